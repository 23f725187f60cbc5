"""A plan as the command line shows it: lines of text, or JSON values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sched_lab.names import Stage
from sched_lab.run.cost import Seconds, span
from sched_lab.run.plan import Plan, warnings
from sched_lab.text import counted, facts_text, label
from sched_lab.trainers.results import State


def record(plan: Plan, seconds: Seconds) -> dict[str, Any]:
    """The plan as JSON values; `seconds` of compute are expected, NaN where that is not known."""
    gpu, known = plan.sweep.resources.gpu, seconds.is_known
    accuracy_known = math.isfinite(plan.detector_accuracy or math.nan)
    return {
        "sweep": plan.sweep.name,
        "cells": len(plan.trials),
        "duplicates": plan.grid.duplicates,
        "excluded": plan.grid.excluded,
        "finished": plan.count(State.FINISHED),
        "failed": plan.count(State.FAILED),
        "to_run": len(plan.to_run),
        "expected_seconds": seconds.likely if known else None,
        "expected_range": [seconds.low, seconds.high] if known else None,
        "expected_gpu_hours": seconds.likely * gpu / 3600 if known and gpu is not None else None,
        "to_confirm": plan.to_confirm,
        "warnings": warnings(plan),
        "images": [facts.model_dump(mode="json") for facts in plan.images],
        "detector_accuracy": plan.detector_accuracy if accuracy_known else None,
        "trials": [
            {"key": trial.key, "state": plan.state(trial), "settings": trial.settings}
            for trial in plan.trials
        ],
    }


def lines(plan: Plan, seconds: Seconds, cells: bool) -> Iterator[str]:
    """The plan as text; `cells` adds a line for each trial."""
    if cells:
        for trial in plan.trials:
            yield f"{trial.key}  {plan.state(trial):<9} {label(trial)}"
    axes = " x ".join(plan.grid.axes)
    yield f"sweep      {plan.sweep.name}"
    yield f"cells      {len(plan.trials)}{f' ({axes})' if axes else ''}"
    for facts in plan.images:
        yield f"images     {facts_text(facts)}"
    if (accuracy := plan.detector_accuracy) is not None:
        yield f"detector   classifier, {_accuracy(accuracy)}"
    if plan.grid.duplicates:
        yield f"collapsed  {plan.grid.duplicates} that denote the same trial as another"
    if plan.grid.excluded:
        yield f"excluded   {plan.grid.excluded}"
    yield f"finished   {plan.count(State.FINISHED)}"
    if failed := plan.count(State.FAILED):
        yield f"failed     {failed}: {_failed(plan, failed)}"
    yield f"to run     {len(plan.to_run)}"
    if plan.sweep.run.confirm is not None:
        yield f"stages     {_stages(plan, plan.sweep.run.confirm.seeds)}"
    yield f"expected   {_cost(plan, seconds)}"


def _accuracy(accuracy: float) -> str:
    if math.isfinite(accuracy):
        return f"right on {accuracy:.0%} of held-out images"
    return "its accuracy unknown until it is trained"


def _failed(plan: Plan, failed: int) -> str:
    left = sum(r.is_final for r in plan.results.values() if r.state == State.FAILED)
    again = f"{failed - left} to be run again" if failed > left else ""
    diverged = f"{left} diverged and left so (sched-lab retry has them run again)" if left else ""
    return ", ".join(part for part in (again, diverged) if part)


def _stages(plan: Plan, seeds: int) -> str:
    whole, needed = len(plan.grid.cells) * seeds, len(plan.trials) + plan.to_confirm
    saved = (
        f"{counted(needed, 'trial')} in all, the whole grid with {counted(seeds, 'seed')} takes"
        f" {whole}"
    )
    if plan.to_confirm:
        return f"screening; up to {counted(plan.to_confirm, 'trial')} to confirm the best; {saved}"
    confirmed = list(plan.stages.values()).count(Stage.CONFIRM) // seeds
    if not confirmed:
        return "nothing to confirm: no cell of the screening draws better than untrained networks"
    return f"confirming {counted(confirmed, 'cell')}; {saved}"


def _cost(plan: Plan, seconds: Seconds) -> str:
    if not plan.to_run:
        return "nothing: no trial is left to run"
    if not seconds.is_known:
        return (
            "unknown until a trial with this network has finished in this store; --measure times a"
            " few steps"
        )
    gpu = plan.sweep.resources.gpu
    return (
        f"{span(seconds)} of compute on one"
        f" slot{f', {seconds.likely * gpu / 3600:.2g} GPU-hours' if gpu else ''}"
    )
