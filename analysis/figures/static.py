"""Figures of statistics by Matplotlib's object interface, without global state.

The colours can be told apart under the common colour blindnesses (Okabe and Ito), on white and on
black paper. Functions draw on the Axes they are given, or on a new Figure of their own, and return
the Axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sched_lab.analysis.statistics.ranking import scored
from sched_lab.analysis.text.wording import size_text
from sched_lab.colors import COLORS, INK, MUTED, PAPER, RULE
from sched_lab.names import higher_is_better
from sched_lab.trainers import schedules
from sched_lab.trainers.results import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sched_lab.analysis.statistics.law import Law

WIDTH, HEIGHT = 4.6, 3.2  # inches: text is readable where a phone shows the full width
DOT: dict[str, Any] = {"markersize": 4, "markeredgewidth": 0}
RING: dict[str, Any] = {"markersize": 9, "markeredgewidth": 2.2}
# How a baseline's line is drawn, by its column: in words, by Plotly, by Matplotlib
BASELINES = {"untrained": ("dotted", "dot", ":"), "real": ("dashed", "dash", "--")}
WIDE = 8  # the factor between positive values above which an axis is logarithmic


Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A schedule at an input scale, and how it is drawn."""

    label: str
    schedule: schedules.Schedule
    b: float
    color: str


def palette(resolutions: Iterable[int]) -> dict[int, str]:
    """A colour for each image size, the smallest first; the colours repeat after eight."""
    return dict(zip(sorted(set(resolutions)), cycle(COLORS), strict=False))


def score_against_b(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    best: pd.DataFrame,
    score: str,
    title: str,
    by: str = "resolution",
    ax: Axes | None = None,
) -> Axes:
    """The score over log2 b, a line per value of `by`: seeds, means, intervals, rings.

    The cells of one line must differ in b alone; a ring marks the rows of `best` that are among
    them. Where they are known, untrained networks are dotted and real images dashed. The first
    eight lines are drawn.
    """
    ax = _axes(ax, title, f"input scale b{_legend_of_baselines(cells)}", "")
    finished = runs[runs["state"] == State.FINISHED]
    ends = []
    lines = cells[cells["n"] > 0].groupby(by, sort=False)
    for (value, line), color in zip(lines, COLORS, strict=False):
        line = line.sort_values("b")
        b, mean = line["b"], line["mean"]
        low, high = (mean + sign * line["half_width"].fillna(0) for sign in (-1, 1))
        ax.plot(b, mean, color=color, linewidth=2, zorder=3)
        ax.fill_between(b, low, high, color=color, alpha=0.14, lw=0)
        for name, (_, _, dashes) in BASELINES.items():
            ax.plot(b, line[name], color=color, linestyle=dashes, linewidth=1.2, zorder=1)
        seeds = finished[finished[by] == value]
        ax.plot(seeds["b"], seeds[score], "o", color=color, alpha=0.6, zorder=2, **DOT)
        rings = line[line.index.isin(best.index)]
        ax.plot(rings["b"], rings["mean"], "o", color=PAPER, mec=color, zorder=4, **RING)
        name = size_text(value) if by == "resolution" else str(value)
        ends.append((name, color, float(mean.iloc[-1])))
    ax.set_xscale("log", base=2)
    swept = sorted(cells["b"].unique())
    if len(swept) <= 9:
        ax.set_xticks(swept, [f"{b:g}" for b in swept])
    ax.minorticks_off()
    _log_if_wide(ax, with_baselines(cells))
    _label_ends(ax, ends)
    return ax


def best_b_by_size(best: pd.DataFrame, law: Law | None = None, ax: Axes | None = None) -> Axes:
    """The best b over image size, both logarithmic: intervals, seeds, the law with its 95 % band.

    `best` holds the rows of `law.best_b`; those that are not supported are left out.
    """
    from matplotlib.ticker import LogLocator

    ax = _axes(ax, "best b by image size", "", "b")
    known = best[best["supported"]].sort_values("resolution")
    x, b = known["resolution"], known["b"]
    reach = [(b - known["low"]).fillna(0), (known["high"] - b).fillna(0)]
    ax.errorbar(x, b, yerr=reach, fmt="o", color=COLORS[0], markersize=7, elinewidth=1.8, zorder=3)
    seeds = [
        (at, 2**log)
        for at, by_seed in zip(x, known["by_seed"], strict=True)
        for log in by_seed.values()
    ]
    ax.plot(*zip(*seeds, strict=True), "o", color=COLORS[0], alpha=0.4, zorder=2, **DOT)
    if law is not None:
        sizes = np.unique(np.geomspace(law.sizes[0], law.sizes[-1], 65).round().astype(int))
        drawn = [law.at(size) for size in sizes.tolist()]
        low, high = [at.low for at in drawn], [at.high for at in drawn]
        ax.plot(sizes, [at.b for at in drawn], color=COLORS[1], linewidth=2, zorder=1)
        ax.fill_between(sizes, low, high, color=COLORS[1], alpha=0.14, lw=0)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(x, [size_text(at) for at in x])
    ax.yaxis.set_major_locator(LogLocator(2, (1, 1.5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    return ax


def score_by_schedule(cells: pd.DataFrame, score: str, ax: Axes | None = None) -> Axes:
    """A row per schedule, a dot per image size at its best cell there, with its interval.

    Lines mark the best untrained network and real images of each size, where these are known.
    """
    chosen = scored(cells, score).drop_duplicates(["schedule", "resolution"])
    rows, sizes = list(dict.fromkeys(cells["schedule"])), sorted(cells["resolution"].unique())
    height = 1.1 + 0.42 * len(rows) + 0.18 * len(sizes)
    ax = _axes(ax, f"{score} by schedule", _legend_of_baselines(cells), "", height=height)
    colors = palette(sizes)
    for i, resolution in enumerate(sizes):
        at = chosen[chosen["resolution"] == resolution]
        y = [rows.index(name) + 0.16 * (i - (len(sizes) - 1) / 2) for name in at["schedule"]]
        ax.errorbar(
            at["mean"],
            y,
            xerr=at["half_width"].fillna(0),
            fmt="o",
            color=colors[resolution],
            markersize=5.5,
            elinewidth=1.6,
            label=size_text(resolution),
        )
        for name, (_, _, dashes) in BASELINES.items():
            value = at[name].max() if higher_is_better(score) else at[name].min()
            if np.isfinite(value):
                ax.axvline(value, color=colors[resolution], linestyle=dashes, linewidth=1.2)
    ax.set_yticks(range(len(rows)), rows, parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(visible=True, axis="x", color=RULE, linewidth=0.8)
    ax.grid(visible=False, axis="y")
    _log_if_wide(ax, with_baselines(chosen), axis="x")
    _legend(ax)
    return ax


def gamma(curves: Sequence[Curve], ax: Axes | None = None) -> Axes:
    """γ over t with b folded in: the variance-preserving schedule with the same log-SNR.

    That is b²γ/((b²−1)γ + 1).
    """
    ax = _axes(ax, "γ with b folded in", "t", "", height=_height_with_legend(curves))
    t = np.linspace(0, 1, 201)
    for curve in curves:
        value = curve.schedule.gamma(t)
        folded = curve.b**2 * value / ((curve.b**2 - 1) * value + 1)
        ax.plot(t, folded, color=curve.color, label=curve.label, linewidth=2)
    _legend(ax)
    return ax


def log_snr(curves: Sequence[Curve], ax: Axes | None = None) -> Axes:
    """log(b²γ/(1−γ)) over t."""
    ax = _axes(ax, "log-SNR with b", "t", "", height=_height_with_legend(curves))
    t = np.linspace(0.002, 0.998, 250)
    for curve in curves:
        y = curve.schedule.log_snr(t, curve.b)
        ax.plot(t, y, color=curve.color, label=curve.label, linewidth=2)
    _legend(ax)
    return ax


def density(curves: Sequence[Curve], ax: Axes | None = None) -> Axes:
    """How often training visits each log-SNR: its density for uniform t."""
    title = "Where training looks: density over log-SNR"
    ax = _axes(ax, title, "log-SNR", "", height=_height_with_legend(curves))
    for curve in curves:
        x, y = density_curve(curve.schedule, curve.b, 361)
        ax.plot(x, y, color=curve.color, label=curve.label, linewidth=2)
        ax.fill_between(x, y, color=curve.color, alpha=0.06, lw=0)
    ax.set_ylim(bottom=0)
    _legend(ax)
    return ax


def density_curve(schedule: schedules.Schedule, b: float, count: int) -> tuple[Array, Array]:
    """log-SNR, and its density for uniform t, at up to `count` places where both are finite."""
    t = 1 / (1 + np.exp(-np.linspace(-9, 9, count)))  # evenly spaced in the tails too
    x, y = schedule.log_snr(t, b), schedule.density(t)
    finite = np.isfinite(x) & np.isfinite(y)
    return x[finite], y[finite]


def render(ax: Axes, format: str, salt: str = "") -> bytes:
    """The Axes' figure as a file: svg with text and a clear background, or png at 150 dpi on white.

    `salt` makes the SVG's internal ids the same in every run, and unlike those of other figures.
    """
    import matplotlib as mpl

    buffer = BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        ax.figure.savefig(  # type: ignore[union-attr]  # a SubFigure is never made here
            buffer,
            format=format,
            dpi=150,
            transparent=format == "svg",
            metadata={"Date": None} if format == "svg" else None,
        )
    return buffer.getvalue()


def _axes(
    ax: Axes | None, title: str, x: str, y: str, *, width: float = WIDTH, height: float = HEIGHT
) -> Axes:
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(width, height), layout="constrained").subplots()
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    ax.set_xlabel(x, color=MUTED, fontsize=10)
    ax.set_ylabel(y, color=MUTED, fontsize=10)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(RULE)
    ax.tick_params(colors=MUTED, labelsize=9.5, length=0, which="both")
    ax.grid(visible=True, axis="y", color=RULE, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def _legend_of_baselines(cells: pd.DataFrame) -> str:
    """How those of the baselines are drawn that are known."""
    known = [
        f"{how}: {name}" for name, (how, _, _) in BASELINES.items() if cells[name].notna().any()
    ]
    return f" ({', '.join(known)})" if known else ""


def with_baselines(cells: pd.DataFrame) -> pd.Series[float]:
    """All values that a figure of these cells shows."""
    return pd.concat([cells["mean"], *(cells[name] for name in BASELINES)], ignore_index=True)


def is_wide(values: pd.Series[float]) -> bool:
    """Whether values are positive and span more than a factor of `WIDE`."""
    return bool(values.min() > 0 and values.max() > WIDE * values.min())


def _log_if_wide(ax: Axes, values: pd.Series[float], axis: str = "y") -> None:
    """A logarithmic scale, with plain numbers, for values that span a wide range."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not is_wide(values):
        return
    ax.set(**{f"{axis}scale": "log", f"{axis}lim": (0.75 * values.min(), 1.3 * values.max())})
    scale = ax.yaxis if axis == "y" else ax.xaxis
    scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
    scale.set_major_formatter(StrMethodFormatter("{x:g}"))
    scale.set_minor_formatter(NullFormatter())


def _label_ends(ax: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Name each line right of its last point, moved up just enough that no two names overlap."""
    style: dict[str, Any] = {"va": "center", "fontsize": 10, "fontweight": "bold"}
    low = -1.0
    for label, color, value in sorted(ends, key=lambda end: end[2]):
        _, at = ax.transAxes.inverted().transform(ax.transData.transform((1, value)))
        low = max(float(at), low + 0.075)
        ax.text(1.02, low, label, color=color, transform=ax.transAxes, parse_math=False, **style)


def _height_with_legend(entries: Sized) -> float:
    return HEIGHT + 0.18 * len(entries)


def _legend(ax: Axes) -> None:
    """Below the axes, where no line can run."""
    from matplotlib.transforms import ScaledTranslation

    inches = 0.5 if ax.get_xlabel() else 0.32
    below = ax.transAxes + ScaledTranslation(0, -inches, ax.figure.dpi_scale_trans)
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=below,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.2,
        borderpad=0,
        borderaxespad=0,
    )
