"""Lines through log2 b over log2 size, and how sure they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sched_lab.analysis.statistics.ranking import CONFIDENCE

FINEST = 1e-6  # the least error of log2 b, above that of rounding

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Line:
    """A line through log2 b over log2 size, and how sure it is."""

    coefficients: Array
    """(2,): log2 c and k."""
    covariance: Array
    """(2, 2): of the coefficients; NaN where it is not known."""
    freedom: int
    """Degrees of freedom of the covariance."""
    basis: str
    """What the covariance lies over."""
    error: Array
    """(sizes,): the standard errors of log2 b that seeds explain; NaN where they tell none."""
    error_freedom: int
    """Degrees of freedom of `error`, pooled."""

    def at(self, x: Array) -> Array:
        """log2 b at each log2 size."""
        return np.asarray(self.coefficients[0] + self.coefficients[1] * x)


def line_over_seeds(x: Array, by_seed: Array) -> Line:
    """The mean of the seeds' own lines; `by_seed` (sizes, seeds) holds their best log2 b."""
    sizes, seeds = by_seed.shape
    lines = np.polynomial.polynomial.polyfit(x, by_seed, 1)  # (2, seeds)
    error = math.sqrt(by_seed.var(axis=1, ddof=1).mean() / seeds)
    return Line(
        lines.mean(axis=1),
        np.cov(lines) / seeds,
        seeds - 1,
        f"over {seeds} seeds",
        np.full(sizes, max(error, FINEST)),
        sizes * (seeds - 1),
    )


def line_over_sizes(x: Array, y: Array, error: Array, freedom: int) -> Line:
    """One line through all sizes, weighted by their standard errors where all have one."""
    error = np.maximum(error, FINEST) if np.isfinite(error).all() else np.full(len(x), math.nan)
    fitted = weighted_line(x, y, error)
    return Line(*fitted, freedom, "over the seeds of each size", error, freedom)


def widened(line: Line, x: Array, y: Array) -> Line:
    """The line with the covariance that its distance from the sizes gives, where that is due."""
    freedom, known = len(x) - 2, bool(np.isfinite(line.error).all())
    squares = float((((y - line.at(x)) / np.nan_to_num(line.error, nan=1.0)) ** 2).sum())
    misfit = squares / freedom if freedom else math.nan  # the mean square, in errors
    if known and not (
        freedom and _f_survival(freedom, line.error_freedom, misfit) < 1 - CONFIDENCE
    ):
        return line
    _, covariance = weighted_line(x, y, line.error)
    basis = f"over {len(x)} sizes" + (", which no line goes through" if known else "")
    return replace(line, covariance=covariance * misfit, freedom=freedom, basis=basis)


def weighted_line(x: Array, y: Array, error: Array) -> tuple[Array, Array]:
    """(2,): log2 c and k through points with these standard errors; (2, 2): their covariance.

    Where the errors are NaN, the points weigh the same, and the covariance is that of errors of 1.
    """
    weight = np.nan_to_num(1 / error, nan=1.0)
    line, covariance = np.polyfit(x, y, 1, w=weight, cov="unscaled")  # k first
    return line[::-1], covariance[::-1, ::-1]


def _f_survival(above: int, below: int, ratio: float) -> float:
    from scipy.special import fdtrc

    return float(fdtrc(above, below, ratio))


def t_quantile(freedom: Any) -> Any:
    """How many standard errors a 95 % t-interval reaches to each side."""
    from scipy.special import stdtrit

    return stdtrit(freedom, (1 + CONFIDENCE) / 2)
