"""Whether a cell's models draw anything: their scores between untrained networks and real images.

Of models that all draw noise one scores best, too, and means nothing by it. So a cell may be best
only where training made its samples better, and its loss lower, than doing nothing does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sched_lab.trainers.results import LOSS_OF_ZERO, REAL, UNTRAINED, TrialResult
from sched_lab.trainers.spec import JACKKNIFE_GROUPS

CONFIDENCE = 0.95
"""With which a cell is better than untrained networks, by a one-sided t-test."""
CLOSED = 0.2
"""The share of the way from untrained networks to real images that a cell must have gone. Of small
U-Nets on photos and digits at 16×16, some that drew static came to 17 % by Fréchet distance; all
from 26 % on drew shapes."""
LEARNED = 0.01
"""The share of the loss of predicting zero that training must have taken away. After five steps it
was 2 %."""

Array = NDArray[np.float64]


class Shortfall(StrEnum):
    """Why a cell is never best, in words for one cell and for many."""

    BLIND = "with scores that do not tell untrained networks from real images"
    NO_BETTER = "no better than untrained networks"
    TOO_LITTLE = f"under {100 * CLOSED:g} % of the way from untrained networks to real images"
    NO_LEARNING = "with a loss no lower than that of predicting zero"


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one image size whose scores compare: (N,) arrays, NaN where not known."""

    mean: Array
    """Of the score that ranks them, over training seeds."""
    sd: Array
    """Over training seeds."""
    n: Array
    """How many training seeds."""
    within: Array
    """The standard error of the score within a cell's only run."""
    real: Array
    """The same score of held-out real images."""
    untrained: Array
    """The same score of samples by the networks as they were before training."""
    learned: Array
    """The share of the loss of predicting zero that training took away."""

    @classmethod
    def of(cls, cells: Sequence[Sequence[TrialResult]], metric: str) -> Cells:
        """Of the finished results of each cell, all with a score of this metric."""

        def mean(value: Callable[[TrialResult], float | None]) -> Array:
            return np.array([_mean(map(value, results)) for results in cells])

        scores = [np.array([each.scores[metric] for each in results], float) for results in cells]
        alone = [len(each) == 1 for each in scores]
        return cls(
            mean=np.array([each.mean() for each in scores]),
            sd=np.array([each.std(ddof=1) if len(each) > 1 else np.nan for each in scores]),
            n=np.array([len(each) for each in scores]),
            within=np.where(alone, mean(lambda each: each.uncertainty.get(metric)), np.nan),
            real=mean(lambda each: each.baselines.get(f"{REAL}{metric}")),
            untrained=mean(lambda each: each.baselines.get(f"{UNTRAINED}{metric}")),
            learned=mean(_learned),
        )


class Standing(NamedTuple):
    """How N cells stand between the baselines of their size; (N,) each."""

    closed: Array
    """0 at the best untrained network, 1 at real images; NaN where either is not known."""
    shortfall: list[Shortfall | None]
    """None where a cell may be best."""


def standing(cells: Cells, *, higher_is_better: bool) -> Standing:
    """How the cells of one image size stand. What is not known keeps no cell from being best.

    The best of all untrained networks counts, not each cell's own. One at another b may draw noise
    that scores better, and a cell below that has no claim to be best: digits that were static at
    b = 2 had gone 16 % of the way from their own untrained network. The error of a mean is
    that of all cells pooled, since the spread of two seeds says little.
    """
    from scipy.special import stdtrit

    sign = -1.0 if higher_is_better else 1.0
    mean, untrained = sign * cells.mean, sign * cells.untrained
    nothing = float(min(untrained[np.isfinite(untrained)], default=np.nan))
    known = sign * cells.real[np.isfinite(cells.real)]
    gap = nothing - (float(known.mean()) if len(known) else np.nan)
    closed = (nothing - mean) / gap if gap > 0 else np.full(len(mean), np.nan)
    error, freedom = _errors(cells)
    # Comparisons with NaN are false: what is not known is no shortfall.
    short = [
        (Shortfall.BLIND, np.isfinite(mean) & (gap <= 0)),
        (Shortfall.NO_BETTER, nothing - mean <= stdtrit(freedom, CONFIDENCE) * error),
        (Shortfall.TOO_LITTLE, closed <= CLOSED),
        (Shortfall.NO_LEARNING, cells.learned <= LEARNED),
    ]
    first = np.select([where for _, where in short], range(1, 1 + len(short)), 0)
    return Standing(closed, [(None, *(each for each, _ in short))[i] for i in first])


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else np.nan


def _learned(result: TrialResult) -> float | None:
    zero = result.baselines.get(LOSS_OF_ZERO)
    return None if result.loss is None or not zero else 1 - result.loss / zero


def in_words(shortfalls: Iterable[Shortfall]) -> str:
    """Why none of a size's cells may be best, by what each falls short of."""
    counts = Counter(shortfalls).most_common()
    total = sum(count for _, count in counts)
    if len(counts) == 1:
        return f"its {f'{total} cells are all' if total > 1 else 'only cell is'} {counts[0][0]}"
    parts = [f"{count} {'is' if count == 1 else 'are'} {each}" for each, count in counts]
    return f"of its {total} cells, {', '.join(parts[:-1])} and {parts[-1]}"


def _errors(cells: Cells) -> tuple[Array, int]:
    """The standard error of each cell's mean, (N,), and its degrees of freedom."""
    freedom = int(np.clip(cells.n - 1, 0, None).sum())
    if freedom:
        pooled = np.nansum((cells.n - 1) * cells.sd**2) / freedom
        return np.sqrt(pooled / np.clip(cells.n, 1, None)), freedom
    return np.nan_to_num(cells.within), JACKKNIFE_GROUPS - 1
