"""Figures drawn from statistics with Matplotlib's object interface; no global state, every colour
from one palette.

The palette tells apart under the common colour blindnesses (Okabe and Ito) and reads on white and
on black paper. Functions draw on the Axes they are given, or on a new Figure of their own, and
return the Axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sched_lab.analysis.statistics.ranking import ranked
from sched_lab.analysis.text.wording import size
from sched_lab.colors import COLORS, INK, MUTED, PAPER, RULE
from sched_lab.names import FINISHED
from sched_lab.trainers import schedules

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sched_lab.analysis.statistics.law import Law

WIDTH, HEIGHT = (
    4.6,
    3.2,
)  # inches: text stays readable when a phone shows the figure at its full width


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
    """The score over log2 b, one line per image size (or per value of `by`): a point per seed,
    mean, interval, rings.

    The cells of one line must differ in b alone; a ring marks the rows of `best` that are among
    them. Eight lines at most are drawn, the first ones.
    """
    ax = _axes(ax, title, "input scale b", "")
    finished = runs[runs["state"] == FINISHED]
    ends = []
    for (value, found), color in zip(
        cells[cells["n"] > 0].groupby(by, sort=False), COLORS, strict=False
    ):
        line = found.sort_values("b")
        ax.plot(line["b"], line["mean"], color=color, linewidth=2, zorder=3)
        low, high = line["mean"] - line["half_width"], line["mean"] + line["half_width"]
        ax.fill_between(
            line["b"],
            low.fillna(line["mean"]),
            high.fillna(line["mean"]),
            color=color,
            alpha=0.14,
            lw=0,
        )
        seeds = finished[finished[by] == value]
        ax.plot(
            seeds["b"],
            seeds[score],
            "o",
            color=color,
            markersize=4,
            alpha=0.6,
            markeredgewidth=0,
            zorder=2,
        )
        ring = line[line.index.isin(best.index)]
        ax.plot(
            ring["b"],
            ring["mean"],
            "o",
            color=PAPER,
            mec=color,
            markersize=9,
            markeredgewidth=2.2,
            zorder=4,
        )
        name = size(value) if by == "resolution" else str(value)
        ends.append((name, color, float(line["mean"].iloc[-1])))
    ax.set_xscale("log", base=2)
    swept = sorted(cells["b"].unique())
    if len(swept) <= 9:
        ax.set_xticks(swept, [f"{b:g}" for b in swept])
    ax.minorticks_off()
    _log_if_wide(ax, cells["mean"])
    _label_ends(ax, ends)
    return ax


def best_b_by_size(best: pd.DataFrame, law: Law | None = None, ax: Axes | None = None) -> Axes:
    """The best b over image size, both as logarithms: its interval, a dot per seed, and the law
    with its 95 % band.

    `best` holds the rows of `law.best_b`; those that are not supported are left out.
    """
    from matplotlib.ticker import LogLocator

    ax = _axes(ax, "best b by image size", "", "b")
    found = best[best["supported"]].sort_values("resolution")
    x, b = found["resolution"], found["b"]
    reach = [(b - found["low"]).fillna(0), (found["high"] - b).fillna(0)]
    ax.errorbar(x, b, yerr=reach, fmt="o", color=COLORS[0], markersize=7, elinewidth=1.8, zorder=3)
    seeds = [
        (at, 2**log)
        for at, by_seed in zip(x, found["by_seed"], strict=True)
        for log in by_seed.values()
    ]
    ax.plot(
        *zip(*seeds, strict=True),
        "o",
        color=COLORS[0],
        markersize=4,
        alpha=0.4,
        markeredgewidth=0,
        zorder=2,
    )
    if law is not None:
        sizes = np.unique(
            np.geomspace(law.sizes[0], law.sizes[-1], 65).round().astype(int)
        ).tolist()
        drawn = [law.at(size) for size in sizes]
        ax.plot(sizes, [at.b for at in drawn], color=COLORS[1], linewidth=2, zorder=1)
        ax.fill_between(
            sizes,
            [at.low for at in drawn],
            [at.high for at in drawn],
            color=COLORS[1],
            alpha=0.14,
            lw=0,
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(x, [size(at) for at in x])
    ax.yaxis.set_major_locator(LogLocator(2, (1, 1.5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    return ax


def score_by_schedule(cells: pd.DataFrame, score: str, ax: Axes | None = None) -> Axes:
    """A row per schedule, a dot per image size at its best cell there, with its interval."""
    chosen = ranked(cells, score).drop_duplicates(["schedule", "resolution"])
    rows, sizes = list(dict.fromkeys(cells["schedule"])), sorted(cells["resolution"].unique())
    ax = _axes(
        ax, f"{score} by schedule", "", "", height=1.1 + 0.42 * len(rows) + 0.18 * len(sizes)
    )
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
            label=size(resolution),
        )
    ax.set_yticks(range(len(rows)), rows, parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(visible=True, axis="x", color=RULE, linewidth=0.8)
    ax.grid(visible=False, axis="y")
    _log_if_wide(ax, chosen["mean"], axis="x")
    _legend(ax)
    return ax


def gamma(curves: Sequence[Curve], ax: Axes | None = None) -> Axes:
    """γ over t with b folded in, b²γ/((b²−1)γ + 1): the variance-preserving schedule with the same
    log-SNR.
    """
    ax = _axes(ax, "γ with b folded in", "t", "", height=_with_legend(curves))
    t = np.linspace(0, 1, 201)
    for curve in curves:
        value = curve.schedule.gamma(t)
        ax.plot(
            t,
            curve.b**2 * value / ((curve.b**2 - 1) * value + 1),
            color=curve.color,
            label=curve.label,
            linewidth=2,
        )
    _legend(ax)
    return ax


def log_snr(curves: Sequence[Curve], ax: Axes | None = None) -> Axes:
    """log(b²γ/(1−γ)) over t."""
    ax = _axes(ax, "log-SNR with b", "t", "", height=_with_legend(curves))
    t = np.linspace(0.002, 0.998, 250)
    for curve in curves:
        ax.plot(
            t, curve.schedule.log_snr(t, curve.b), color=curve.color, label=curve.label, linewidth=2
        )
    _legend(ax)
    return ax


def density(curves: Sequence[Curve], ax: Axes | None = None) -> Axes:
    """How often training visits each log-SNR: the density of λ for uniform t."""
    ax = _axes(
        ax, "Where training looks: density over log-SNR", "log-SNR", "", height=_with_legend(curves)
    )
    odds = np.linspace(-9, 9, 361)
    t = 1 / (1 + np.exp(-odds))  # evenly in the tails too
    for curve in curves:
        x, y = curve.schedule.log_snr(t, curve.b), curve.schedule.density(t)
        seen = np.isfinite(x) & np.isfinite(y)
        ax.plot(x[seen], y[seen], color=curve.color, label=curve.label, linewidth=2)
        ax.fill_between(x[seen], y[seen], color=curve.color, alpha=0.06, lw=0)
    ax.set_ylim(bottom=0)
    _legend(ax)
    return ax


def render(ax: Axes, format: str, salt: str = "") -> bytes:
    """The Axes' figure as a file: svg with real text and a clear background, or png on white at 150
    dots an inch.

    `salt` keeps the SVG's internal ids apart from those of other figures on a page, and the same
    from run to run.
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


def _log_if_wide(ax: Axes, values: pd.Series[float], axis: str = "y") -> None:
    """A logarithmic scale, with plain numbers, for positive values that span more than a factor of
    eight.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not values.min() > 0 or values.max() <= 8 * values.min():
        return
    ax.set(**{f"{axis}scale": "log", f"{axis}lim": (0.75 * values.min(), 1.3 * values.max())})
    scale = ax.yaxis if axis == "y" else ax.xaxis
    scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
    scale.set_major_formatter(StrMethodFormatter("{x:g}"))
    scale.set_minor_formatter(NullFormatter())


def _label_ends(ax: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Name each line to the right of its last point, moved up just enough that no two names
    overlap.
    """
    low = -1.0
    for label, color, value in sorted(ends, key=lambda end: end[2]):
        _, at = ax.transAxes.inverted().transform(ax.transData.transform((1, value)))
        low = max(float(at), low + 0.075)
        ax.text(
            1.02,
            low,
            label,
            color=color,
            transform=ax.transAxes,
            va="center",
            fontsize=10,
            fontweight="bold",
            parse_math=False,
        )


def _with_legend(entries: Sized) -> float:
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
