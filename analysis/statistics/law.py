"""The input scale b at which scores are best, by image size, and a power law through these.

Sizes and scales are handled as log2, so that the law b = c·size^k is a line. Intervals are 95 %
t-intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sched_lab.analysis.statistics.lines import (
    line_over_seeds,
    line_over_sizes,
    t_quantile,
    widened,
)
from sched_lab.analysis.statistics.ranking import (
    CELL,
    CONFIDENCE,
    half_width,
    ranked,
    ranks,
    summarize,
)
from sched_lab.names import higher_is_better
from sched_lab.sweep import baselines
from sched_lab.text import counted
from sched_lab.trainers.plugins import nearest
from sched_lab.trainers.results import State

NEIGHBOURS = 2  # points on each side of the best that a parabola is fitted to
FEWEST = 3  # values of b that a parabola takes
WIDEST = 16.0  # upper over lower end of an interval that still recommends something

Array = NDArray[np.float64]


class Unsupported(ValueError):
    """The scores do not say which b is best."""


@dataclass(frozen=True)
class Recommendation:
    """The best b for images of one size."""

    size: int
    b: float
    low: float
    high: float
    """The ends of b's interval; NaN where there is none."""
    extrapolated: bool
    """Whether the size lies outside those that b was measured at."""
    basis: str
    """What it rests on: the scores at this size, or the law."""


@dataclass(frozen=True, eq=False)
class Law:
    """The best b is c·size^k: at the sizes measured and, less surely, at others."""

    sizes: tuple[int, ...]
    schedule: str
    line: Array
    """(2,): log2 c and k."""
    covariance: Array
    """(2, 2): of `line`; NaN where there is no interval."""
    freedom: int
    """Degrees of freedom of the intervals."""
    basis: str
    """What the intervals rest on: "95 % over 3 seeds", or "no interval: one seed"."""
    off: tuple[int, ...]
    """The sizes whose own interval excludes the law."""
    unknown: tuple[int, ...] = ()
    """The sizes whose scores do not tell the best b."""

    @property
    def c(self) -> float:
        """The best b of an image of one pixel."""
        return float(2 ** self.line[0])

    @property
    def k(self) -> float:
        """The power of the size."""
        return float(self.line[1])

    @property
    def k_low(self) -> float:
        """The lower end of k's interval; NaN where there is none."""
        return self.k - self._half(np.array([0.0, 1.0]))

    @property
    def k_high(self) -> float:
        """The upper end of k's interval; NaN where there is none."""
        return self.k + self._half(np.array([0.0, 1.0]))

    @property
    def sentence(self) -> str:
        """The law in words."""
        known = not math.isnan(self.k_low)
        interval = f"k from {_signed(self.k_low)} to {_signed(self.k_high)}, " if known else ""
        off = f"; not on it: {', '.join(map(str, self.off))}" if self.off else ""
        without = f"; without {', '.join(map(str, self.unknown))}" if self.unknown else ""
        return (
            f"best b ≈ {self.c:.2g}·size^{_signed(self.k)} ({interval}{self.basis};"
            f" {self.span}{off}{without})"
        )

    @property
    def span(self) -> str:
        """The sizes it was measured at, in words."""
        first, *_, last = self.sizes
        return f"sizes {first} {'and' if len(self.sizes) == 2 else 'to'} {last}"

    def at(self, size: int) -> Recommendation:
        """What the law says for a size. Raises ValueError for one below 1."""
        if size < 1:
            raise ValueError(f"size {size} is no image size: it must be at least 1")
        point = np.array([1.0, math.log2(size)])
        half = self._half(point)
        low, b, high = (float(2 ** (point @ self.line + end)) for end in (-half, 0.0, half))
        outside = not self.sizes[0] <= size <= self.sizes[-1]
        return Recommendation(size, b, low, high, outside, f"by the law: {self.sentence}")

    def _half(self, point: Array) -> float:
        variance = max(0.0, float(point @ self.covariance @ point))
        return float(t_quantile(self.freedom) * math.sqrt(variance))


def best_b(
    runs: pd.DataFrame, score: str, by: Sequence[str] = CELL, schedule: str | None = None
) -> pd.DataFrame:
    """One row per resolution: the b at which the curve of `score` against log b is best.

    The first columns are resolution, schedule and the other settings of `by`. Then come:

    - `b`, NaN where not supported; `low` and `high`, NaN with one seed. The interval lies over
      seeds, given that the curve is a parabola.
    - `n`: the seeds used, 0 where fewer than three b have scores.
    - `supported`, and `why` not, else "".
    - `by_seed`: log2 b of each seed.

    All sizes are read at one schedule. That is the one given, else the one with enough b at most
    sizes; of several, the one whose best cells have the best mean. Other settings are those of its
    best cell at each size. Only cells that rank count: see `ranking.summarize`. Runs of all stages
    do, since the selection does not bias where a curve is lowest. Raises ValueError for a schedule
    or score that these runs lack.

    The curve is a parabola through the logarithm of the score. It is the score itself where some
    are not positive, or higher is better. The parabola goes through the best b and `NEIGHBOURS` on
    each side, the nearer with more weight. The mean parabola tells the best b, and how far a seed's
    slope moves it. A single noisy curve can bend so little that its own lowest point lies anywhere.
    """
    runs = runs.drop(columns="stage", errors="ignore")
    cells = summarize(runs, score, by)
    if schedule is not None and schedule not in set(cells["schedule"]):
        raise ValueError(
            f"no schedule {schedule!r} in these runs{nearest(schedule, cells['schedule'].unique())}"
        )
    line = [name for name in by if name != "b"]
    order = ranked(cells, score)
    enough = order[order.groupby(line, dropna=False)["b"].transform("nunique") >= FEWEST]
    leaders = (order if enough.empty else enough).drop_duplicates(["resolution", "schedule"])
    schedule = schedule or _best_schedule(leaders.assign(mean=_heights(leaders["mean"], score)))
    leaders = leaders[leaders["schedule"].eq(schedule) & leaders.index.isin(enough.index)]
    leaders = leaders.set_index("resolution")
    heights = _heights(runs[score].where(runs["state"] == State.FINISHED), score)
    trials = runs[[*by, "seed"]].assign(height=heights).dropna(subset="height")
    trials = trials.merge(cells.loc[ranks(cells), by])
    rows = []
    for resolution in sorted(cells["resolution"].unique()):
        row = {"resolution": resolution, "schedule": schedule}
        if resolution in leaders.index:
            cell = leaders.loc[[resolution]].reset_index()[line]
            # Sampling seeds are averaged.
            curves = trials.merge(cell).pivot_table("height", "seed", "b")
            unranked = cells[(cells["n"] > 0) & ~ranks(cells)].merge(cell)
            counted = "was scored" if unranked.empty else "is better than untrained networks"
            named = {str(name): cell[name].iloc[0] for name in cell}
            rows.append(row | named | _lowest(curves, counted))
        else:
            rows.append(row | _unsupported(_too_few(cells[cells["resolution"] == resolution])))
    return pd.DataFrame(rows)


def _too_few(cells: pd.DataFrame) -> str:
    """Why the cells of a size have no curve over b."""
    short = cells.loc[(cells["n"] > 0) & ~ranks(cells), "shortfall"]
    if short.empty:
        return f"fewer than {FEWEST} b have scores"
    if ranks(cells).any():
        return f"fewer than {FEWEST} b are better than untrained networks"
    return baselines.in_words(short)


def fit(best: pd.DataFrame) -> Law:
    """The law through the rows of `best_b` that are supported.

    Where these share two seeds or more, each seed has its own line and the intervals lie over
    seeds. Else one line is fitted to the sizes, weighted by their intervals where all have one.
    How far the sizes lie off the line gives the intervals where there is nothing else. From three
    sizes on it also does where it exceeds what seeds explain, by an F-test at 5 %. Raises
    Unsupported when fewer than two sizes are supported.
    """
    rows, unknown = best[best["supported"]].sort_values("resolution"), best[~best["supported"]]
    if len(rows) < 2:
        why = "; ".join(f"{row.resolution}: {row.why}" for row in unknown.itertuples())
        raise Unsupported(
            f"the best b is known at {counted(len(rows), 'image size')}, a law needs"
            f" 2{f' ({why})' if why else ''}"
        )
    x, y = np.log2(rows["resolution"].to_numpy(float)), np.log2(rows["b"].to_numpy(float))
    by_seed = pd.DataFrame(list(rows["by_seed"])).dropna(axis=1).to_numpy()  # (sizes, seeds)
    if by_seed.shape[1] >= 2:
        line = line_over_seeds(x, by_seed)
    else:
        error = np.log2(rows["high"] / rows["low"]) / 2 / t_quantile(rows["n"] - 1)
        line = line_over_sizes(x, y, error.to_numpy(float), int((rows["n"] - 1).sum()))
    line = widened(line, x, y)
    if np.isfinite(line.covariance).all():
        basis = f"{CONFIDENCE * 100:g} % {line.basis}"
    elif (rows["n"] == 1).all():
        basis = "no interval: one seed"
    else:
        basis = "no interval: fewer than two seeds in common"
    beyond = np.exp2(np.abs(line.at(x) - y)) > (1 + 1e-9) * rows["high"] / rows["b"]
    return Law(
        sizes=tuple(map(int, rows["resolution"])),
        schedule=str(rows["schedule"].iloc[0]),
        line=line.coefficients,
        covariance=line.covariance,
        freedom=line.freedom,
        basis=basis,
        off=tuple(map(int, rows.loc[beyond, "resolution"])),
        unknown=tuple(map(int, unknown["resolution"])),
    )


def recommend(best: pd.DataFrame, size: int) -> Recommendation:
    """The best b for a size: measured where the rows of `best_b` have it, else by the law.

    Raises Unsupported where neither is known, or the scores at this size support no b among those
    swept. It also does where a law without an interval would be extrapolated, and where the
    interval is too wide to say anything.
    """
    swept = best[(best["resolution"] == size) & (best["n"] > 0)]
    if len(swept) and not swept["supported"].iloc[0]:
        raise Unsupported(f"at this size, {swept['why'].iloc[0]}")
    advice = fit(best).at(size) if swept.empty else _measured(swept.iloc[0])
    low, high, basis = advice.low, advice.high, advice.basis
    if advice.extrapolated and math.isnan(low):
        raise Unsupported(
            f"without an interval nothing can be said beyond the sizes swept ({basis})"
        )
    if high > WIDEST * low:
        raise Unsupported(f"b may lie anywhere from {low:.2g} to {high:.2g} ({basis})")
    return advice


def _measured(row: pd.Series[Any]) -> Recommendation:
    sure = f"{CONFIDENCE * 100:g} % over {counted(row['n'], 'seed')}"
    b, low, high = (float(row[name]) for name in ("b", "low", "high"))
    basis = f"measured at this size, {'one seed: no interval' if row['n'] == 1 else sure}"
    return Recommendation(int(row["resolution"]), b, low, high, False, basis)


def _best_schedule(leaders: pd.DataFrame) -> str:
    """Of the best cells of each schedule: that with most sizes, then with the lowest mean."""
    means = leaders.groupby("schedule")["mean"].agg(["count", "mean"])
    order = means.sort_values(["count", "mean"], ascending=[False, True]).index
    return str(order[0]) if len(order) else ""


def _heights(scores: pd.Series[float], score: str) -> pd.Series[float]:
    """Scores such that lower is better and a parabola fits: their logarithm where it exists."""
    values = scores.astype(float).where(np.isfinite(scores.astype(float)))
    if higher_is_better(score):
        return -values
    return values.map(math.log, na_action="ignore") if (values.dropna() > 0).all() else values


def _lowest(curves: pd.DataFrame, counted: str) -> dict[str, Any]:
    """Where curves of height against b are lowest; a row per seed, a column per b, ascending.

    `counted` says what each b of the curves does.
    """
    swept = np.log2(curves.columns.to_numpy(float))
    whole = curves.dropna()  # seeds that lack some b would move the mean between them
    at = int((curves if whole.empty else whole).mean().to_numpy().argmin())
    n = len(curves)
    if at in (0, len(swept) - 1):
        side = "lowest" if at == 0 else "highest"
        return _unsupported(f"best at the {side} b that {counted}, {curves.columns[at]:g}", n)
    near = slice(max(0, at - NEIGHBOURS), at + NEIGHBOURS + 1)
    window = curves.iloc[:, near]
    window = window[window.count(axis=1) >= FEWEST]
    if window.empty:
        return _unsupported(f"no seed has scores of {FEWEST} b around {curves.columns[at]:g}")
    distance = np.abs(np.arange(len(swept)) - at)[near]
    weight = (1 - (distance / (NEIGHBOURS + 1)) ** 3) ** 3
    parabolas = [_parabola(swept[near], row, weight) for row in window.to_numpy(float)]
    _, slope, bend = np.array(parabolas).T
    if bend.mean() <= 0:
        return _unsupported(f"the curve has no lowest point around {curves.columns[at]:g}", n)
    lowest = -slope.mean() / bend.mean() / 2
    if not swept[0] <= lowest <= swept[-1]:
        why = f"the curve is lowest at {2**lowest:.2g}, outside the b that were scored"
        return _unsupported(why, n)
    by_seed = lowest - (slope + 2 * bend * lowest) / bend.mean() / 2
    half = float(half_width(len(by_seed), by_seed.std(ddof=1))) if len(by_seed) > 1 else math.nan
    return {
        "b": 2**lowest,
        "low": 2 ** (lowest - half),
        "high": 2 ** (lowest + half),
        "n": len(by_seed),
        "supported": True,
        "why": "",
        "by_seed": dict(zip(window.index.tolist(), by_seed.tolist(), strict=True)),
    }


def _unsupported(why: str, n: int = 0) -> dict[str, Any]:
    unknown = dict.fromkeys(("b", "low", "high"), math.nan)
    return {**unknown, "n": n, "supported": False, "why": why, "by_seed": {}}


def _parabola(x: Array, y: Array, weight: Array) -> Array:
    """(3,): the coefficients of 1, x and x², fitted where y is finite."""
    known = np.isfinite(y)
    weight = np.sqrt(weight[known])
    return np.asarray(np.polynomial.polynomial.polyfit(x[known], y[known], 2, w=weight), float)


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
