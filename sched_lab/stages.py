"""Two stages: the grid is screened with few seeds, then the best cells of each size are confirmed with fresh ones.

A cell that was picked because it scored best with some seeds owes part of that score to them (the winner's curse), so
what is reported comes from the fresh seeds alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from sched_lab import names
from sched_lab.grid import Cell, Trial
from sched_lab.progress import better
from trainers.spec import TrialSpec

SCREEN, CONFIRM = "screen", "confirm"


def comparable(spec: TrialSpec) -> tuple[Any, ...]:
    """What two trials must share for their scores to be compared."""
    judged = spec.score.metric_names[0], spec.sample.count, spec.sample.batch
    return (spec.resolution, spec.data.model_dump_json(), *judged)


def with_seeds(cells: Iterable[Cell], seeds: range) -> list[Cell]:
    """Each cell once for each of these seeds, counted from its own."""
    return [
        Cell(cell.spec.model_copy(update={"seed": seed}), {**cell.settings, "seed": seed})
        for cell in cells
        for seed in (cell.spec.seed + offset for offset in seeds)
    ]


def best(
    cells: Iterable[Cell], screened: Iterable[Trial], results: Mapping[str, Mapping[str, Any]], keep: int
) -> list[Cell]:
    """The `keep` cells of each size, or fewer, whose mean score over the seeds they were screened with is best."""
    scores: dict[str, list[float]] = defaultdict(list)
    for trial in screened:
        score = results[trial.key]["scores"].get(trial.spec.score.metric_names[0])
        if results[trial.key]["state"] == names.FINISHED and score is not None:
            scores[_but_seed(trial.spec)].append(score)
    groups: dict[tuple[Any, ...], list[tuple[float, Cell]]] = defaultdict(list)
    for cell in cells:
        if found := scores.get(_but_seed(cell.spec)):
            groups[comparable(cell.spec)].append((fmean(found), cell))
    kept = []
    for group in groups.values():
        higher = better(group[0][1].spec.score.metrics[0], 1, 0)
        kept += [cell for _, cell in sorted(group, key=lambda each: each[0], reverse=higher)[:keep]]
    return kept


def _but_seed(spec: TrialSpec) -> str:
    return spec.model_dump_json(exclude={"seed"})
