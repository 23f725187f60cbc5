"""Which scores may be compared, and which differences between them are more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sched_lab.trainers.results import State
from sched_lab.trainers.spec import JACKKNIFE_GROUPS, metric_name

RANKED_BY = "ranked by"
# These may depend on the image size, across which no score is compared.
PER_SIZE = ("sample.count", "sample.batch")
OTHERS_NAMED = 3
BLOCK = 1_000_000  # numbers held at once where all pairs are gone through

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Population:
    """Runs whose scores compare: equally many samples, judged alike against the same images."""

    name: str
    """What sets it apart: "sample.count 500 · score.detector random", else "all runs"."""
    why: tuple[str, ...]
    """The same with what the others have: "sample.count 500 (others 1000)"."""
    score: str
    """The metric that ranks its runs."""
    runs: pd.DataFrame
    """Its rows, in their order and with their index."""


def set_apart(runs: pd.DataFrame, ranked_by: str) -> list[Population]:
    """The populations whose scores compare, the one with the most finished trials first.

    Scores compare where the images, the detector and the metric that ranks are the same. At one
    image size, the number and batch of samples must be the same too. `data.flip` changes training
    alone, and `score.weights` is a path to verified content: neither counts. A trial that never ran
    joins the largest population that fits what is known of it. `ranked_by` is the metric of runs
    that name none; each population has a column for its own.
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
    finished = (runs["state"] == State.FINISHED).groupby(groups).sum()
    order = finished.sort_values(ascending=False, kind="stable").index
    return [_population(runs, judged, apart, groups == group) for group in order]


def _population(
    runs: pd.DataFrame, judged: pd.DataFrame, apart: Sequence[str], inside: pd.Series[bool]
) -> Population:
    """The runs `inside`, which the columns `apart` of `judged` tell from the others."""
    texts = {name: _text(judged.loc[inside, name].iloc[0]) for name in apart}
    why = []
    for name, text in texts.items():
        if others := sorted(set(judged.loc[~inside, name].map(_text)) - {text}):
            why.append(f"{name} {text} (others {_listed(others)})")
    score = str(judged.loc[inside, RANKED_BY].iloc[0])
    return Population(
        name=" · ".join(f"{name} {text}" for name, text in texts.items()),
        why=tuple(why),
        score=score,
        runs=_with_score(runs[inside], score),
    )


def _with_score(runs: pd.DataFrame, score: str) -> pd.DataFrame:
    return runs if score in runs else runs.assign(**{score: np.nan})  # none of them has finished


def splitting(frame: pd.DataFrame, start: Sequence[str], names: Sequence[str]) -> list[str]:
    """`start`, and those of `names` that split the rows further than all names before them."""
    columns = list(start)
    groups = frame.groupby(columns, dropna=False).ngroups if columns else 1
    for name in names:
        if name not in columns:
            split = frame.groupby([*columns, name], dropna=False, sort=False).ngroups
            if split > groups:
                columns, groups = [*columns, name], split
    return columns


def _judged(runs: pd.DataFrame, ranked_by: str) -> pd.DataFrame:
    """What scores depend on beside the trained network, one column each."""
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
    ran = runs["state"] != State.MISSING
    if ran.any() and len(judged.columns):
        commonest_first = judged[ran].value_counts(dropna=False)
        kinds = commonest_first.reset_index()[list(judged.columns)]
        for _, alike in judged[~ran].groupby(list(judged.columns), dropna=False):
            known = alike.iloc[0].dropna()
            fitting = kinds[(kinds[known.index] == known).all(axis=1)]
            # They lack what is the same for all of a sweep.
            for name in judged.columns.drop(known.index):
                judged.loc[alike.index, name] = (kinds if fitting.empty else fitting)[name].iloc[0]
    how = judged.reindex(columns=["score.detector", "score.metrics"])
    judged[RANKED_BY] = [
        _ranking_metric(detector, metrics) or ranked_by
        for detector, metrics in how.itertuples(index=False)
    ]
    return judged.drop(columns="score.metrics", errors="ignore")


def _ranking_metric(detector: object, metrics: object) -> str:
    """The name of the first of these metrics on this detector; empty where either is unknown."""
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
    """(N,), the jackknife's standard error of a cell's only score within its run; else NaN."""

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
    """Degrees of freedom of the error; 0 where mean and error are NaN, as nothing can be said."""

    @property
    def t(self) -> Array:
        """The differences in standard errors; 0 where nothing can be said or nothing differs."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nan_to_num(self.mean / self.error, nan=0.0, posinf=np.inf, neginf=-np.inf)


def differences(cells: Cells, these: slice, others: slice) -> Differences:
    """The scores of these P cells less those of Q others.

    They are paired over shared seeds, which share the data's order and the starting noise. For
    cells that share fewer than two, the errors within their runs count, where both have them.
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
    """p-values adjusted for being some of this many hypotheses (Holm 1979); NaN stays NaN."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)  # NaN last
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(
        np.minimum(1.0, p[order] * (hypotheses - np.arange(len(p))))
    )
    return adjusted


def beaten(cells: Cells, level: float) -> tuple[Counts, Counts]:
    """How many of the others each cell is significantly below, and above; each (N,).

    The chance of a wrong claim among all pairs tested is at most `level`, by Holm's method.
    """
    from scipy.special import stdtrit

    blocks = list(_pairs(cells))
    tests = sum(np.count_nonzero(df) for _, df in blocks)
    df = np.arange(1, 1 + max((int(each.max()) for _, each in blocks), default=0))
    below = above = np.zeros(len(cells), dtype=np.int64)
    before, rejected = -1, 0
    while before < rejected < tests:  # down Holm's steps, as many at once as the last one allows
        limit = np.r_[np.inf, -stdtrit(df, level / (tests - rejected) / 2)]
        below, above = _beyond(limit, blocks, len(cells))
        before, rejected = rejected, int(below.sum())
    return below, above


def _pairs(cells: Cells) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int16]]]:
    """t and degrees of freedom in blocks of rows: a block's cells against all from its first on.

    Each pair has its degrees of freedom once; they are 0 elsewhere.
    """
    step = max(1, BLOCK // max(1, cells.by_seed.size))
    for start in range(0, len(cells), step):
        each = differences(cells, slice(start, start + step), slice(start, None))
        with np.errstate(over="ignore"):
            yield each.t.astype(np.float32), np.triu(each.df, 1).astype(np.int16)


def _beyond(
    limit: Array, blocks: Sequence[tuple[NDArray[np.float32], NDArray[np.int16]]], count: int
) -> tuple[Counts, Counts]:
    """For each cell, how many t lie below −limit, and above limit, at their degrees of freedom."""
    below, above = np.zeros((2, count), dtype=np.int64)
    start = 0
    for t, df in blocks:
        these, others = slice(start, start + len(t)), slice(start, None)
        for sign, one, other in ((-1, below, above), (1, above, below)):
            beyond = sign * t > limit[df]
            one[these] += beyond.sum(axis=1)
            other[others] += beyond.sum(axis=0)
        start += len(t)
    return below, above
