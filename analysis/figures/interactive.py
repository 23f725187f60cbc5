"""Interactive figures of statistics by plotly; each function returns a plotly Figure of its own.

They show as they are in a notebook. A page draws them from `as_json` with the script of `library`,
offline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from sched_lab.analysis.figures import axes
from sched_lab.analysis.figures.axes import escaped
from sched_lab.analysis.figures.static import BASELINES, density_curve, with_baselines
from sched_lab.analysis.statistics.ranking import ranks, scored
from sched_lab.analysis.text.render import DAGGER
from sched_lab.analysis.text.wording import (
    WAY,
    cell_name,
    decimal_places,
    percent,
    rows_of,
    score_text,
    size_text,
)
from sched_lab.colors import COLORS, INK, MUTED, PAPER, RULE
from sched_lab.names import LOSS_BY_LOG_SNR, higher_is_better
from sched_lab.trainers import schedules
from sched_lab.trainers.results import State

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LINES = len(COLORS)  # drawn in one figure, so that no colour repeats
THREADS = 2000  # cells drawn in parallel coordinates
HEAT = 40  # rows and columns of a heat map


def library() -> str:
    """plotly.js, about 4.8 MB; it asks nothing of the network and evaluates no text."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def as_json(figure: Figure) -> str:
    """The figure as JSON that may stand within a script element, whatever its texts."""
    text = str(figure.to_json())
    for character in "<\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def score_against_b(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    best: pd.DataFrame,
    score: str,
    lines: str = "resolution",
) -> Figure:
    """The score over log b: a point per seed, lines through the means, bands of their intervals.

    `lines` is the column that tells the lines apart: image size or schedule. The cells of one line
    must differ in b alone. The first eight lines are drawn; a ring marks the rows of `best` that
    are among `cells`. Where they are known, untrained networks are dotted and real images dashed.
    """
    b_axis = {"title": {"text": "input scale b"}, "type": "log"}
    figure = axes.figure(x=b_axis, y=axes.log_if_wide(with_baselines(cells)))
    decimals, finished = decimal_places(cells), runs[runs["state"] == State.FINISHED]
    scored = cells[cells["n"] > 0]
    values = dict.fromkeys(scored[lines])
    for value, color in zip(values, COLORS, strict=False):
        name = escaped(size_text(value) if lines == "resolution" else str(value))
        line = scored[scored[lines] == value].sort_values("b")
        seeds = finished.merge(line[[lines, "b"]])
        figure.add_scatter(**_band(line, name, color))
        figure.add_scatter(**_seed_points(seeds["b"], seeds[score], seeds["seed"], name, color))
        figure.add_scatter(**_means(line, line.index.isin(best.index), name, color, decimals))
        for baseline, (_, dash, _) in BASELINES.items():
            if line[baseline].notna().any():
                figure.add_scatter(**_baseline(line, baseline, dash, name, color))
    figure.update_layout(height=320 + _legend_height(len(values)))
    swept = sorted(cells["b"].unique())
    if len(swept) <= axes.TICKS:
        figure.update_xaxes(tickvals=swept, ticktext=[f"{b:g}" for b in swept])
    return figure


def _band(line: pd.DataFrame, name: str, color: str) -> dict[str, Any]:
    low, high = (line["mean"] + sign * line["half_width"].fillna(0) for sign in (-1, 1))
    return {
        "x": [*line["b"], *line["b"][::-1]],
        "y": [*high, *low[::-1]],
        "fill": "toself",
        "fillcolor": color,
        "opacity": 0.15,
        "mode": "none",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": name,
    }


def _seed_points(
    b: pd.Series[float], scores: pd.Series[float], seeds: pd.Series[int], name: str, color: str
) -> dict[str, Any]:
    return {
        "x": b,
        "y": scores,
        "customdata": seeds,
        "mode": "markers",
        "legendgroup": name,
        "showlegend": False,
        "marker": {"color": color, "size": 5, "opacity": 0.6},
        "hovertemplate": f"{name}<br>b = %{{x:g}}, seed %{{customdata}}: %{{y:.4g}}<extra></extra>",
    }


def _baseline(
    line: pd.DataFrame, baseline: str, dash: str, name: str, color: str
) -> dict[str, Any]:
    return {
        "x": line["b"],
        "y": line[baseline],
        "mode": "lines",
        "line": {"color": color, "dash": dash, "width": 1.4},
        "legendgroup": name,
        "showlegend": False,
        "hovertemplate": f"{name}, {baseline}<br>b = %{{x:g}}: %{{y:.4g}}<extra></extra>",
    }


def _means(
    line: pd.DataFrame, rings: Sequence[bool], name: str, color: str, decimals: int
) -> dict[str, Any]:
    return {
        "x": line["b"],
        "y": line["mean"],
        "name": name,
        "legendgroup": name,
        "mode": "lines+markers",
        "line": {"color": color},
        "customdata": [_hover_text(cell, decimals) for _, cell in rows_of(line)],
        "marker": {
            "size": [11 if ring else 4 for ring in rings],
            "color": [PAPER if ring else color for ring in rings],
            "line": {"color": color, "width": [2.5 if ring else 0 for ring in rings]},
        },
        "hovertemplate": f"<b>{name}</b><br>b = %{{x:g}}: %{{customdata}}<extra></extra>",
    }


def heat_map(cells: pd.DataFrame, best: pd.DataFrame, score: str) -> Figure:
    """Schedule down, b across, for the cells of one image size; the better the darker.

    Of cells with one schedule and b the best is shown; the best forty schedules are. The best cell
    is framed, a dagger marks those that can't be told from it.
    """
    order = scored(cells, score).drop_duplicates(["schedule", "b"])
    rows = list(dict.fromkeys(order["schedule"]))[:HEAT][::-1]  # plotly draws the first at the foot
    columns = sorted(order["b"].unique())[:HEAT]
    placed = {(cell["schedule"], cell["b"]): (index, cell) for index, cell in rows_of(order)}
    ties: set[int] = set().union(*best["ties"])
    decimals, positive = decimal_places(cells), order["mean"].min() > 0

    def grid(show: Callable[[int, dict[str, Any]], object]) -> list[list[object]]:
        return [
            [show(*placed[name, b]) if (name, b) in placed else None for b in columns]
            for name in rows
        ]

    def text(index: int, cell: Mapping[str, Any]) -> str:
        return f"{cell['mean']:.{decimals}f}" + (DAGGER if index in ties else "")

    b_axis = {"title": {"text": "input scale b"}, "showgrid": False}
    figure = axes.figure(x=b_axis, y={"showgrid": False})
    figure.update_layout(height=130 + 34 * len(rows), xaxis_type="category", yaxis_type="category")
    figure.add_heatmap(
        x=[f"{b:g}" for b in columns],
        y=[escaped(name) for name in rows],
        z=grid(lambda _, cell: math.log(cell["mean"]) if positive else cell["mean"]),
        text=grid(text),
        customdata=grid(lambda _, cell: _hover_text(cell, decimals)),
        texttemplate="%{text}",
        hovertemplate="%{y}<br>b = %{x}: %{customdata}<extra></extra>",
        hoverongaps=False,
        showscale=False,
        reversescale=not higher_is_better(score),
        colorscale=[[0, PAPER], [1, COLORS[0]]],
        xgap=2,
        ygap=2,
    )
    frame = {"type": "rect", "line": {"color": COLORS[1], "width": 3}}
    for (name, b), (index, _) in placed.items():
        if index in best.index and b in columns:
            x, y = columns.index(b), rows.index(name)
            figure.add_shape(x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, **frame)
    return figure


def parallel_coordinates(cells: pd.DataFrame, score: str, columns: Sequence[str]) -> Figure:
    """A thread per cell through every setting of `columns` to the score.

    Colour is the rank within the image size, as scores of two sizes do not compare: the better, the
    darker. Up to 2,000 threads are drawn, the best ranks first. Dragging along an axis picks some.
    """
    order = scored(cells, score)
    groups = order.groupby("resolution")
    rank = groups.cumcount() / (groups["n"].transform("size") - 1).clip(lower=1)
    rank = rank.where(ranks(order), 1)
    rank = rank.sort_values(kind="stable")[:THREADS][::-1]  # the best are drawn last, on top
    shown = order.loc[rank.index]
    colorscale = [[0, COLORS[1]], [1, MUTED]]
    figure = axes.figure(x={}, y={})
    figure.add_parcoords(
        dimensions=[
            *(axes.dimension(name, shown[name]) for name in columns),
            axes.scaled_dimension(score, shown["mean"]),
        ],
        line={"color": rank.to_numpy(), "colorscale": colorscale, "cmin": 0, "cmax": 1},
        labelfont={"color": INK, "size": 13},
        tickfont={"color": MUTED, "size": 11},
        rangefont={"color": MUTED, "size": 10},
        unselected={"line": {"color": RULE, "opacity": 0.15}},
    )
    figure.update_layout(height=420, margin={"l": 90, "r": 60, "t": 60, "b": 30})
    return figure


def loss_by_log_snr(runs: pd.DataFrame, cells: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """Above, the loss by log-SNR; below, how often training visits it; a colour per cell, up to 8.

    `columns` are the settings that name a cell. Loss is the mean over seeds of the runs' last bins.
    """
    figure = axes.figure(
        x={"title": {"text": "log-SNR, with b"}},
        y={"title": {"text": "density"}, "domain": [0, 0.36]},
    )
    losses, finished = bins(runs), runs[runs["state"] == State.FINISHED]
    scale = axes.log_if_wide(pd.Series(finished[list(losses.values())].to_numpy().ravel()))
    loss_axis = {"title": {"text": "loss"}, "domain": [0.44, 1], "anchor": "x"}
    height = 420 + _legend_height(len(cells))
    figure.update_layout(height=height, yaxis2=axes.ruled() | scale | loss_axis)
    for (index, cell), color in zip(rows_of(cells), COLORS, strict=False):
        name = escaped(cell_name(cell, columns))
        style = {"legendgroup": name, "line": {"color": color}}
        trials = finished.merge(cells.loc[[index], ["resolution", *columns]])
        figure.add_scatter(
            x=list(losses),
            y=trials[list(losses.values())].mean().to_numpy(dtype=float),
            yaxis="y2",
            name=name,
            mode="lines+markers",
            marker={"size": 4},
            hovertemplate=f"<b>{name}</b><br>log-SNR %{{x:g}}: loss %{{y:.3g}}<extra></extra>",
            **style,
        )
        with suppress(schedules.ScheduleError):  # of a plug-in that is not installed here
            x, y = density(cell["schedule"], cell["resolution"], cell["b"])
            hover = f"<b>{name}</b><br>log-SNR %{{x:.1f}}: density %{{y:.3f}}<extra></extra>"
            figure.add_scatter(
                x=x, y=y, showlegend=False, mode="lines", hovertemplate=hover, **style
            )
    return figure


def _legend_height(entries: int) -> int:
    """Pixels that a legend may take on a phone."""
    return 20 * min(entries, LINES)


def bins(runs: pd.DataFrame) -> dict[float, str]:
    """The columns of `runs` that hold a loss, by the log-SNR at the centre of the bin, in order."""
    columns = [name for name in map(str, runs.columns) if name.startswith(LOSS_BY_LOG_SNR)]
    centres = {float(name.removeprefix(LOSS_BY_LOG_SNR)): name for name in columns}
    return {at: centres[at] for at in sorted(centres) if runs[centres[at]].notna().any()}


@cache
def density(schedule: str, resolution: int, b: float) -> tuple[list[float], list[float]]:
    """The density of log-SNR for uniform t, at up to 241 places, rounded.

    Raises ScheduleError for an unknown schedule.
    """
    x, y = density_curve(schedules.parse(schedule).at_size(resolution), b, 241)
    return x.round(3).tolist(), y.round(5).tolist()


def _hover_text(cell: Mapping[str, Any], decimals: int) -> str:
    seeds = "1 seed" if cell["n"] == 1 else f"{cell['n']} seeds"
    way = "" if math.isnan(cell["closed"]) else f", {percent(cell['closed'])} {WAY}"
    short = "" if pd.isna(cell["shortfall"]) else f"; not ranked: {cell['shortfall']}"
    return escaped(f"{score_text(cell, decimals)}, {seeds}{way}{short}")
