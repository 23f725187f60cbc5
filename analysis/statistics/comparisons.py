"""Which scores may be compared, and which differences between them are more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sched_lab.analysis.runs import MISSING
from sched_lab.names import FINISHED
from sched_lab.trainers.spec import metric_name

JACKKNIFE_GROUPS = 20  # as sched_lab.trainers.scoring.scores has it, which loads torch
RANKED_BY = "ranked by"
PER_SIZE = (
    "sample.count",
    "sample.batch",
)  # may depend on the image size, across which no score is compared
OTHERS_NAMED = 3
BLOCK = 1_000_000  # numbers held at once where all pairs are gone through

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Population:
    """Runs whose scores compare: as many samples, judged in the same way against the same
    images.
    """

    name: str
    """What sets it apart, "sample.count 500 · score.detector random"; "all runs" where nothing
    does.
    """
    why: tuple[str, ...]
    """The same with what the others have: "sample.count 500 (others 1000)"."""
    score: str
    """The metric that ranks its runs."""
    runs: pd.DataFrame
    """Its rows, in their order and with their index."""


def set_apart(runs: pd.DataFrame, ranked_by: str) -> list[Population]:
    """Split runs into those whose scores compare; the population with the most finished trials
    first.

    Scores compare where the images, the detector and the metric that ranks are the same, and, at
    one image size, the number and batch of samples. `data.flip` is left out, as it changes training
    alone, and so is `score.weights`, a path to content that is verified. A trial that never ran
    goes where what is known of it fits, the largest population first. `ranked_by` is the metric of
    runs that do not say; each population has a column for its own.
    """
    if runs.empty:
        return []
    judged = _judged(runs, ranked_by)
    apart = splitting(judged, [], [name for name in judged.columns if name not in PER_SIZE])
    sized = judged.assign(resolution=runs["resolution"])
    apart += splitting(
        sized, [*apart, "resolution"], [name for name in PER_SIZE if name in judged]
    )[len(apart) + 1 :]
    if not apart:
        score = str(judged[RANKED_BY].iloc[0])
        return [Population("all runs", (), score, _with_score(runs, score))]
    groups = judged.groupby(apart, dropna=False, sort=False).ngroup()
    finished = (runs["state"] == FINISHED).groupby(groups).sum()
    populations = []
    for group in finished.sort_values(ascending=False, kind="stable").index:
        inside = groups == group
        own = {name: _text(judged.loc[inside, name].iloc[0]) for name in apart}
        others = {
            name: sorted(set(judged.loc[~inside, name].map(_text)) - {own[name]}) for name in apart
        }
        why = tuple(
            f"{name} {own[name]} (others {_listed(others[name])})" for name in apart if others[name]
        )
        score = str(judged.loc[inside, RANKED_BY].iloc[0])
        populations.append(
            Population(
                " · ".join(f"{name} {text}" for name, text in own.items()),
                why,
                score,
                _with_score(runs[inside], score),
            )
        )
    return populations


def _with_score(runs: pd.DataFrame, score: str) -> pd.DataFrame:
    return runs if score in runs else runs.assign(**{score: np.nan})  # none of them has finished


def splitting(frame: pd.DataFrame, start: Sequence[str], names: Sequence[str]) -> list[str]:
    """`start`, and of `names` those, from the first on, that split the rows further than the ones
    before them.
    """
    columns = list(start)
    groups = frame.groupby(columns, dropna=False).ngroups if columns else 1
    for name in names:
        if name not in columns:
            split = frame.groupby([*columns, name], dropna=False, sort=False).ngroups
            if split > groups:
                columns, groups = [*columns, name], split
    return columns


def _judged(runs: pd.DataFrame, ranked_by: str) -> pd.DataFrame:
    """What scores depend on beside the trained network, one column each, the telling ones first."""
    data = [
        name for name in map(str, runs.columns) if name.startswith("data.") and name != "data.flip"
    ]
    first = (
        "data.source",
        *data,
        "score.detector",
        *(name for name in map(str, runs.columns) if name.startswith("score.detector.")),
        "score.metrics",
        "sample.count",
        "sample.batch",
    )
    judged = runs[[name for name in dict.fromkeys(first) if name in runs]].astype(object)
    ran = runs["state"] != MISSING
    if ran.any() and len(judged.columns):
        kinds = (
            judged[ran].value_counts(dropna=False).reset_index(drop=False)[list(judged.columns)]
        )  # commonest first
        for _, alike in judged[~ran].groupby(list(judged.columns), dropna=False):
            known = alike.iloc[0].dropna()
            fitting = kinds[(kinds[known.index] == known).all(axis=1)]
            for name in judged.columns.drop(
                known.index
            ):  # they lack what is the same for all of a sweep
                judged.loc[alike.index, name] = (kinds if fitting.empty else fitting)[name].iloc[0]
    judged[RANKED_BY] = [
        _ranking(detector, metrics) or ranked_by
        for detector, metrics in zip(
            *(
                judged[name] if name in judged else [None] * len(judged)
                for name in ("score.detector", "score.metrics")
            ),
            strict=True,
        )
    ]
    return judged.drop(columns="score.metrics", errors="ignore")


def _ranking(detector: object, metrics: object) -> str:
    """The name of the first of these metrics on this detector; "" where either is not known."""
    if isinstance(detector, str) and isinstance(metrics, str):
        return metric_name(metrics.partition(",")[0], detector)
    return ""


def _text(value: object) -> str:
    if isinstance(value, float):
        return "none" if np.isnan(value) else f"{value:.12g}"
    return "none" if value is None or value is pd.NA else str(value)


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - OTHERS_NAMED
    return ", ".join(texts[:OTHERS_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, eq=False)
class Cells:
    """The scores of N cells that are compared with one another."""

    by_seed: Array
    """(N, S), the score at each training seed; NaN where there is none."""
    mean: Array
    """(N,), over seeds."""
    error: Array
    """(N,), the standard error of a cell's only score within its run, by a jackknife; NaN where
    there is none.
    """

    def __len__(self) -> int:
        return len(self.mean)


class Differences(NamedTuple):
    """Differences of cells, each array (P, Q)."""

    mean: Array
    error: Array
    """Standard errors."""
    shared: Counts
    """Seeds that both cells have."""
    df: Counts
    """Degrees of freedom of the standard error; 0 where nothing can be said, and mean and error are
    NaN.
    """

    @property
    def t(self) -> Array:
        """The differences in standard errors; 0 where nothing can be said or nothing differs."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nan_to_num(self.mean / self.error, nan=0.0, posinf=np.inf, neginf=-np.inf)


def differences(cells: Cells, these: slice, others: slice) -> Differences:
    """Of these P cells less those Q others.

    In pairs over the seeds that both have, as seeds share the data's order and the starting noise.
    Cells that share fewer than two are told apart by the errors within their runs, where both have
    them.
    """
    each = cells.by_seed[these, None] - cells.by_seed[None, others]  # (P, Q, S)
    known = np.isfinite(each)
    shared = known.sum(axis=-1)
    error = np.hypot(cells.error[these, None], cells.error[None, others])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, each, 0.0).sum(axis=-1) / shared
        squares = (np.where(known, each - mean[..., None], 0.0) ** 2).sum(axis=-1)
        paired = np.sqrt(squares / (shared - 1) / shared)
    pairs, within = shared >= 2, np.isfinite(error)
    unpaired = np.where(within, cells.mean[these, None] - cells.mean[None, others], np.nan)
    df = np.where(pairs, shared - 1, np.where(within, JACKKNIFE_GROUPS - 1, 0))
    return Differences(np.where(pairs, mean, unpaired), np.where(pairs, paired, error), shared, df)


def holm(p: ArrayLike, hypotheses: int) -> Array:
    """p-values adjusted for being some of this many hypotheses (Holm 1979); NaN stays NaN and
    counts for none.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)  # NaN last
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(
        np.minimum(1.0, p[order] * (hypotheses - np.arange(len(p))))
    )
    return adjusted


def beaten(cells: Cells, level: float) -> tuple[Counts, Counts]:
    """How many of the others each cell is significantly below, and above; each (N,).

    Over all pairs that can be tested, the chance of one wrong claim or more is at most `level`, by
    Holm's method.
    """
    from scipy.special import stdtrit

    blocks = list(_pairs(cells))
    tests = sum(np.count_nonzero(df) for _, df in blocks)
    df = np.arange(1, 1 + max((int(each.max()) for _, each in blocks), default=0))
    below = above = np.zeros(len(cells), dtype=np.int64)
    before, rejected = -1, 0
    while (
        before < rejected < tests
    ):  # down Holm's steps, all at once that the next one allows, until it allows no more
        limit = np.r_[np.inf, -stdtrit(df, level / (tests - rejected) / 2)]
        below, above = _beyond(limit, blocks, len(cells))
        before, rejected = rejected, int(below.sum())
    return below, above


def _pairs(cells: Cells) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int16]]]:
    """t and degrees of freedom of some cells against those from the first of them on, each pair
    once; 0 for others.
    """
    step = max(1, BLOCK // max(1, cells.by_seed.size))
    for start in range(0, len(cells), step):
        each = differences(cells, slice(start, start + step), slice(start, None))
        with np.errstate(over="ignore"):
            yield each.t.astype(np.float32), np.triu(each.df, 1).astype(np.int16)


def _beyond(
    limit: Array, blocks: Sequence[tuple[NDArray[np.float32], NDArray[np.int16]]], count: int
) -> tuple[Counts, Counts]:
    """For each cell, how many t lie beyond the limit for their degrees of freedom, below 0 and
    above it.
    """
    below, above = np.zeros((2, count), dtype=np.int64)
    start = 0
    for t, df in blocks:
        these, others = slice(start, start + len(t)), slice(start, None)
        for sign, one, other in ((-1, below, above), (1, above, below)):
            found = sign * t > limit[df]
            one[these] += found.sum(axis=1)
            other[others] += found.sum(axis=0)
        start += len(t)
    return below, above
