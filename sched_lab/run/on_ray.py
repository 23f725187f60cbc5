"""Runs trials on Ray Tune: one actor a slot, reused from trial to trial.

Nothing of Tune's own state is kept. Ray reads the environment when it is imported: see
`sched_lab.run.executors.ray_environment`.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sched_lab import __version__, names
from sched_lab.errors import OutOfReach
from sched_lab.run.executors import Listener
from sched_lab.run.queue import Queue
from sched_lab.run.worker import Orders, Report, work
from sched_lab.sweep.grid import Trial
from sched_lab.sweep.spec import Resources, RunSpec
from sched_lab.sweep.stages import comparable
from sched_lab.trainers.scoring.weights import INCEPTION_VARIABLE
from sched_lab.trainers.spec import TrialSpec


class TrialActor(tune.Trainable):
    """A worker process that runs one trial after another; a step is one report."""

    def setup(self, config: dict[str, Any]) -> None:
        spec = TrialSpec.model_validate_json(config["spec"])
        self._reports = work(config["key"], spec, Orders(**config["orders"]))

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


class _FromQueue(_Unsaved, tune.search.Searcher):
    """Has Tune run what the queue hands out, until the queue is over or the user wants to stop."""

    def __init__(self, queue: Queue, listener: Listener) -> None:
        super().__init__()
        self._queue, self._listener = queue, listener

    def suggest(self, trial_id: str) -> Any:
        trial = None if self._listener.stopping() else self._queue.take()
        if trial is not None:
            return {"key": trial.key, "spec": trial.spec.model_dump_json()}
        return self.FINISHED if self._queue.over or self._listener.stopping() else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass  # the listener is told

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        pass


class _Relay(_Unsaved, tune.Callback):
    """Passes what Tune says of its trials on to the listener."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._listener.started(trial.config["key"])

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        report = Report(**{name: result[name] for name in Report.__dataclass_fields__})
        self._listener.reported(trial.config["key"], report)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        try:
            lines = Path(trial.error_file or "").read_text("utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        told = [line.strip() for line in lines if line.strip()]
        self._listener.lost(trial.config["key"], "\n".join(told))


class _UntilStopped(_Unsaved, tune.Stopper):
    """Starts no further trial once the listener says that the user wants to stop."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._listener.stopping()


class _AmongAlike(_Unsaved, tune.schedulers.TrialScheduler):
    """Early stopping that compares a trial only with those whose scores compare: same size, images,
    metric, samples.
    """

    def __init__(self, trials: Collection[Trial], kind: str, listener: Listener) -> None:
        self._listener = listener
        self._group = {trial.key: comparable(trial.spec) for trial in trials}
        members = defaultdict(list)
        for trial in trials:
            members[self._group[trial.key]].append(trial.spec)
        self._schedulers = {group: _scheduler(kind, specs) for group, specs in members.items()}

    def _of(self, trial: TuneTrial) -> tune.schedulers.TrialScheduler:
        return self._schedulers[self._group[trial.config["key"]]]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        if math.isnan(result["score"]):
            return self.CONTINUE
        decision = str(self._of(trial).on_trial_result(tune_controller, trial, result))
        if decision == self.STOP:  # the worker ends the trial: it alone writes in its folder
            self._listener.prune(trial.config["key"])
        return self.CONTINUE  # nor is a trial paused, which Tune would have to save and restore

    def on_trial_complete(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        ready = (
            trial
            for trial in tune_controller.get_trials()
            if trial.status in (TuneTrial.PENDING, TuneTrial.PAUSED)
        )
        return next(ready, None)

    def debug_string(self) -> str:
        return "among trials whose scores compare"


def _scheduler(kind: str, specs: Sequence[TrialSpec]) -> tune.schedulers.TrialScheduler:
    mode = "max" if names.higher_is_better(specs[0].score.metrics[0]) else "min"
    steps = max(spec.train.steps for spec in specs)
    grace = max(1, steps // 8)
    if kind == "asha":
        return tune.schedulers.ASHAScheduler(
            time_attr="step",
            metric="score",
            mode=mode,
            max_t=steps,
            grace_period=grace,
            stop_last_trials=False,
        )
    return tune.schedulers.MedianStoppingRule(
        time_attr="step", metric="score", mode=mode, grace_period=grace, min_samples_required=2
    )


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray on this machine for as long as the context lasts, or the cluster at `address`. Raises
    OutOfReach.
    """
    if address is not None and "://" in address:
        raise OutOfReach(
            f"--address takes HOST:PORT or auto, got {address}: Ray's client can't drive Tune"
        )
    if address is not None and address != "auto":
        _knock(address)
    weights = {name: value for name in (INCEPTION_VARIABLE,) if (value := os.environ.get(name))}
    try:
        ray.init(
            address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": weights} if address and weights else None,
        )
    except Exception as error:  # Ray raises plain ones too
        reason = str(error).partition("\n")[0]
        raise OutOfReach(
            f"Ray can't be {f'reached at {address}' if address else 'started'}: {reason}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str, seconds: float = 5.0) -> None:
    """Raise OutOfReach when nobody listens at HOST:PORT: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), seconds).close()
    except (OSError, ValueError) as error:
        raise OutOfReach(f"there is no Ray cluster at {address}: {error}") from error


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def fitting(wanted: Resources) -> dict[str, float]:
    """What each trial takes: as asked, else a GPU where there is one and a core where there is
    none.

    Raises OutOfReach when no node of the cluster has that much.
    """
    nodes = [node["Resources"] for node in _nodes()]
    has_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
    cpu = 1.0 if wanted.cpu is None else wanted.cpu
    gpu = (1.0 if has_gpu else 0.0) if wanted.gpu is None else wanted.gpu
    if not any(node.get("CPU", 0) >= cpu and node.get("GPU", 0) >= gpu for node in nodes):
        most = ", ".join(
            f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes
        )
        raise OutOfReach(
            f"a trial asks for {cpu:g} CPU and {gpu:g} GPU at once; the nodes have"
            f" {most or 'nothing'}"
        )
    return {"cpu": cpu, "gpu": gpu}


def check_nodes(root: Path) -> None:
    """Raise OutOfReach unless every node of the cluster has this version of sched-lab and shares
    the store's folder.
    """
    root.mkdir(parents=True, exist_ok=True)
    token = root / f".shared-{secrets.token_hex(4)}"
    token.write_text(__version__, "utf-8")
    probe = ray.remote(num_cpus=0, max_retries=0)(_version_here)
    try:
        for node in _nodes():
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                found, shared = ray.get(probe.options(scheduling_strategy=here).remote(str(token)))
            except ray.exceptions.RayError as error:
                reason = str(error).strip().rpartition("\n")[2]
                raise OutOfReach(
                    f"node {node['NodeManagerAddress']} can't run sched-lab: {reason}"
                ) from error
            if found != __version__:
                raise OutOfReach(
                    f"node {node['NodeManagerAddress']} has sched-lab {found}, this is"
                    f" {__version__}"
                )
            if not shared:
                raise OutOfReach(
                    f"node {node['NodeManagerAddress']} does not see the store {root}: share that"
                    " folder"
                )
    finally:
        token.unlink()


def _version_here(token: str) -> tuple[str, bool]:
    return __version__, Path(token).exists()


def execute(
    queue: Queue, *, run: RunSpec, orders: Orders, per_trial: dict[str, float], listener: Listener
) -> None:
    """Run what the queue holds, until the listener says stop; what becomes of each trial goes to
    the listener.
    """
    # Tune asks for so many trials ahead of those that run; fewer would cost actors that could be
    # used again.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(_slots(per_trial)))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the listener hears of every failure
    with tempfile.TemporaryDirectory(
        prefix="sched-lab-tune-", ignore_cleanup_errors=True
    ) as scratch:
        tune.Tuner(
            tune.with_resources(TrialActor, per_trial),
            param_space={"orders": asdict(orders)},
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_FromQueue(queue, listener),
                reuse_actors=True,
                scheduler=(
                    None
                    if run.early_stop == "none"
                    else _AmongAlike(queue.trials.values(), run.early_stop, listener)
                ),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                callbacks=[_Relay(listener)],
                stop=_UntilStopped(listener),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


def _slots(per_trial: dict[str, float]) -> int:
    """How many trials the cluster can run at once."""
    whole = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(
        1,
        int(
            min(whole.get(name.upper(), 0) / amount for name, amount in per_trial.items() if amount)
        ),
    )
