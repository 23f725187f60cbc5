"""Runs trials on Ray Tune: one actor per slot, reused from trial to trial; nothing of Tune's own state is kept.

Ray reads the environment when it is imported: see `sched_lab.execution.ray_environment`.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from sched_lab.execution import Listener
from sched_lab.grid import Trial
from sched_lab.store import OutOfReach
from sched_lab.sweep import Resources, RunSpec
from sched_lab.worker import Orders, Report, work


class TrialActor(tune.Trainable):
    """A worker process that runs one trial after another; a step is one evaluation."""

    def setup(self, config: dict[str, Any]) -> None:
        self._reports = work(config["key"], Orders(**config["orders"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        report = next(self._reports)
        return {**asdict(report), "done": report.done}

    def cleanup(self) -> None:
        self._reports.close()


class _Unsaved:
    """Tune writes down what it is given, in order to restore it; nothing here is ever restored."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Relay(_Unsaved, tune.Callback):
    """Passes what Tune says of its trials on to the listener."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._last: dict[str, Report] = {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._listener.started(trial.config["key"])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        report = Report(**{name: result[name] for name in Report.__dataclass_fields__})
        self._last[trial.config["key"]] = report
        if report.done:
            self._listener.ended(trial.config["key"], report)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        last = self._last.get(trial.config["key"])
        if last is not None and not last.done:  # Tune's scheduler ended it
            self._listener.pruned(trial.config["key"], last)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._listener.lost(trial.config["key"])


class _UntilStopped(_Unsaved, tune.Stopper):
    """Starts no further trial once the listener says that the user wants to stop."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._listener.stopping()


class _PerSize(tune.schedulers.TrialScheduler):
    """Early stopping that compares a trial with those of its own image size only: scores of two sizes don't compare."""

    def __init__(self, trials: Sequence[Trial], kind: str, mode: str) -> None:
        self._size = {trial.key: trial.spec.resolution for trial in trials}
        most = {
            size: max(t.spec.train.steps for t in trials if t.spec.resolution == size)
            for size in {*self._size.values()}
        }
        self._by_size = {size: _scheduler(kind, mode, steps) for size, steps in most.items()}

    def _of(self, trial: TuneTrial) -> tune.schedulers.TrialScheduler:
        return self._by_size[self._size[trial.config["key"]]]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        ready = (
            trial for trial in tune_controller.get_trials() if trial.status in (TuneTrial.PENDING, TuneTrial.PAUSED)
        )
        return next(ready, None)

    def debug_string(self) -> str:
        return "per size"


def _scheduler(kind: str, mode: str, steps: int) -> tune.schedulers.TrialScheduler:
    if kind == "asha":
        return tune.schedulers.ASHAScheduler(
            time_attr="step", metric="score", mode=mode, max_t=steps, grace_period=max(1, steps // 8)
        )
    return tune.schedulers.MedianStoppingRule(
        time_attr="step", metric="score", mode=mode, grace_period=max(1, steps // 8), min_samples_required=2
    )


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray on this machine for as long as the context lasts, or the cluster at `address`. Raises OutOfReach."""
    try:
        ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise OutOfReach(f"Ray can't be {f'reached at {address}' if address else 'started'}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def fitting(wanted: Resources) -> dict[str, float]:
    """What each trial takes: as asked, else a GPU where there is one and a core where there is none.

    Raises OutOfReach when no node of the cluster has that much.
    """
    nodes = [node["Resources"] for node in _nodes()]
    has_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
    cpu = 1.0 if wanted.cpu is None else wanted.cpu
    gpu = (1.0 if has_gpu else 0.0) if wanted.gpu is None else wanted.gpu
    if not any(node.get("CPU", 0) >= cpu and node.get("GPU", 0) >= gpu for node in nodes):
        most = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
        raise OutOfReach(f"a trial asks for {cpu:g} CPU and {gpu:g} GPU at once; the nodes have {most or 'nothing'}")
    return {"cpu": cpu, "gpu": gpu}


def slots(per_trial: dict[str, float]) -> int:
    """How many trials run at once."""
    nodes = [node["Resources"] for node in _nodes()]
    kinds = {"CPU": per_trial["cpu"], "GPU": per_trial["gpu"]}
    return sum(int(min(node.get(kind, 0) / need for kind, need in kinds.items() if need)) for node in nodes)


def check_shared(root: str) -> None:
    """Raise OutOfReach when a node of the cluster does not see the store's folder: trials write there."""
    nodes = _nodes()
    if len(nodes) < 2:
        return
    seen = ray.remote(num_cpus=0)(os.path.isdir)
    for node in nodes:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        if not ray.get(seen.options(scheduling_strategy=here).remote(root)):
            raise OutOfReach(f"node {node['NodeManagerAddress']} does not see the store {root}: it must be shared")


def execute(
    trials: Sequence[Trial], *, run: RunSpec, orders: Orders, per_trial: dict[str, float], mode: str, listener: Listener
) -> None:
    """Run every trial, or as many as start before the listener says stop; what becomes of each goes to the listener."""
    with tempfile.TemporaryDirectory(prefix="sched-lab-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(TrialActor, per_trial),
            param_space={"key": tune.grid_search([trial.key for trial in trials]), "orders": asdict(orders)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                scheduler=None if run.early_stop == "none" else _PerSize(trials, run.early_stop, mode),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                callbacks=[_Relay(listener)],
                stop=_UntilStopped(listener),
                failure_config=tune.FailureConfig(max_failures=run.max_failures),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
