"""Runs trials on Ray Tune: one actor a slot, reused from trial to trial.

Nothing of Tune's own state is kept.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from sched_lab import names
from sched_lab.errors import OutOfReach
from sched_lab.run.executors import Listener
from sched_lab.run.nodes import Nodes
from sched_lab.run.proof import differences
from sched_lab.run.queue import Queue
from sched_lab.run.worker import Orders, Report
from sched_lab.sweep.grid import Trial
from sched_lab.sweep.spec import RunSpec
from sched_lab.sweep.stages import comparable
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import TrialSpec

NODE_LABEL = "ray.io/node-id"


class TrialActor(tune.Trainable):
    """A worker process that runs one trial after another; a step is one report.

    Ray carries this class to other nodes as it is here. It imports sched-lab there only once the
    node has proved that it is the same.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        if not config["without"]:
            return tune.PlacementGroupFactory([config["takes"]])
        elsewhere = {NODE_LABEL: f"!in({','.join(config['without'])})"}
        return tune.PlacementGroupFactory([config["takes"]], bundle_label_selector=[elsewhere])

    def setup(self, config: dict[str, Any]) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        orders = config["orders"]
        different = differences(orders["evidence"])
        self._reports = _refusal(different) if different else _work(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return next(self._reports) | {"node": self._node}

    def cleanup(self) -> None:
        self._reports.close()


def _work(config: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    from sched_lab.run.worker import Orders, work
    from sched_lab.trainers.spec import TrialSpec

    spec = TrialSpec.model_validate_json(config["spec"])
    with closing(work(config["key"], spec, Orders(**config["orders"]))) as reports:
        for report in reports:
            yield {**asdict(report), "done": report.done}


def _refusal(unfit: str) -> Generator[dict[str, Any], None, None]:
    # What `_work` yields of a Report, by hand: this node may have another sched-lab, or none.
    yield {"step": 0, "score": math.nan, "state": "elsewhere", "unfit": unfit, "done": True}


class _Unsaved:
    """Tune writes down what it is given, in order to restore it; nothing here is ever restored."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _FromQueue(_Unsaved, tune.search.Searcher):
    """Has Tune run what the queue hands out, until the queue is over or the user wants to stop."""

    def __init__(self, queue: Queue, nodes: Nodes, over: Callable[[], bool]) -> None:
        super().__init__()
        self._queue, self._nodes, self._over = queue, nodes, over

    def suggest(self, trial_id: str) -> Any:
        if self._over():
            return self.FINISHED
        if self._nodes.full(self._queue.out):
            return None
        trial = self._queue.take()
        if trial is None:
            return self.FINISHED if self._queue.over else None
        spec = trial.spec.model_dump_json()
        return {"key": trial.key, "spec": spec, "without": sorted(self._nodes.left_out)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass  # the listener is told

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        pass


class _Relay(_Unsaved, tune.Callback):
    """Passes what Tune says of its trials on to the listener."""

    def __init__(self, listener: Listener, nodes: Nodes) -> None:
        self._listener, self._nodes = listener, nodes

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self._nodes.look(lambda: any(each.status == TuneTrial.RUNNING for each in trials))

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
        told = {name: result[name] for name in Report.__dataclass_fields__ if name in result}
        report = Report(**told | {"state": State(result["state"])})
        if report.unfit:
            self._leave_out(result["node"], report.unfit)
        if not self._listener.reported(trial.config["key"], report):
            why = f"says that {trial.config['key']} finished, and its result is not in the store"
            self._leave_out(result["node"], f"{why}: share that folder")

    def _leave_out(self, node: str, why: str) -> None:
        if node not in self._nodes.left_out:
            self._nodes.leave_out(node, why)
            self._listener.left_out(self._nodes.left_out[node])

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
    """Starts no further trial once it is over, whatever the queue holds."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._over()


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
    mode = "max" if names.higher_is_better(specs[0].score.metric_names[0]) else "min"
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


def execute(
    queue: Queue, *, run: RunSpec, orders: Orders, nodes: Nodes, listener: Listener
) -> None:
    """Run what the queue holds, until the listener says stop; what becomes of each trial goes to
    the listener.

    Raises OutOfReach when no node is left that can run a trial.
    """

    # Workers get the class as it is here, whatever their own sched-lab.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

    def over() -> bool:
        return bool(nodes.lacking) or listener.stopping()

    for named in nodes.left_out.values():
        listener.left_out(named)
    # Tune asks for so many trials ahead of those that run; fewer would cost actors that could be
    # used again.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(nodes.slots))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the listener hears of every failure
    with tempfile.TemporaryDirectory(
        prefix="sched-lab-tune-", ignore_cleanup_errors=True
    ) as scratch:
        tune.Tuner(
            TrialActor,
            param_space={"orders": asdict(orders), "takes": nodes.takes},
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_FromQueue(queue, nodes, over),
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
                callbacks=[_Relay(listener, nodes)],
                stop=_UntilStopped(over),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    if nodes.lacking:
        raise OutOfReach(nodes.lacking)
