"""Two stages: the grid is screened with few seeds, then the best cells of each size are confirmed
with fresh ones.

The best cell of a screening owes part of its score to the seeds (the winner's curse). What is
reported therefore comes from the fresh seeds alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sched_lab import names
from sched_lab.sweep import baselines
from sched_lab.sweep.grid import Cell, Trial
from sched_lab.trainers.results import State, TrialResult
from sched_lab.trainers.spec import TrialSpec


def comparable(spec: TrialSpec) -> tuple[Any, ...]:
    """What two trials must share for their scores to be compared."""
    images = spec.data.model_dump_json(exclude={"flip"})  # flip changes training alone
    detector = spec.score.detector.model_dump_json()
    metric, sample = spec.score.metric_names[0], spec.sample
    return spec.resolution, images, detector, metric, sample.count, sample.batch


def with_seeds(cells: Iterable[Cell], seeds: range) -> list[Cell]:
    """Each cell once for each of these seeds, counted from its own."""
    return [
        replace(
            cell,
            spec=cell.spec.model_copy(update={"seed": seed}),
            settings={**cell.settings, "seed": seed},
        )
        for cell in cells
        for seed in (cell.spec.seed + offset for offset in seeds)
    ]


def best(
    cells: Iterable[Cell],
    screened: Iterable[Trial],
    results: Mapping[str, TrialResult],
    keep: int,
) -> list[Cell]:
    """The `keep` cells of each size, or fewer, whose mean score over the seeds they were screened
    with is best.

    Cells that differ in the sampling seed alone count as one, and go on together. Those that draw
    noise do not: see `baselines.standing`.
    """
    finished: dict[str, list[TrialResult]] = defaultdict(list)
    for trial in screened:
        result = results[trial.key]
        score = result.scores.get(trial.spec.score.metric_names[0])
        if result.state == State.FINISHED and score is not None:
            finished[_but_seeds(trial.spec)].append(result)
    kept = []
    for group in _replicates(cells):
        scored = {key: alike for key, alike in group.items() if key in finished}
        metric = next(iter(group.values()))[0].spec.score.metric_names[0]
        higher = names.higher_is_better(metric)
        measured = baselines.Cells.of([finished[key] for key in scored], metric)
        standing = baselines.standing(measured, higher_is_better=higher)
        ranked = sorted(
            zip(measured.mean, standing.shortfall, scored.values(), strict=True),
            key=lambda each: each[0],
            reverse=higher,
        )
        drawing = [alike for _, shortfall, alike in ranked if shortfall is None]
        kept += [cell for alike in drawing[:keep] for cell in alike]
    return kept


def at_most(cells: Iterable[Cell], keep: int) -> int:
    """How many cells `best` can keep."""
    return sum(sum(sorted(map(len, group.values()))[-keep:]) for group in _replicates(cells))


def _replicates(cells: Iterable[Cell]) -> Iterable[dict[str, list[Cell]]]:
    """Of cells whose scores compare, those that only seeds tell apart, together."""
    groups: dict[tuple[Any, ...], dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        groups[comparable(cell.spec)][_but_seeds(cell.spec)].append(cell)
    return groups.values()


def _but_seeds(spec: TrialSpec) -> str:
    return spec.model_dump_json(exclude={"seed": True, "sample": {"seed"}})
