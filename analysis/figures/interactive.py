"""Interactive figures drawn from statistics with plotly; each function returns a plotly Figure of
its own.

They show as they are in a notebook. A page draws them from `as_json` with the script of `library`,
offline.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sched_lab.analysis.statistics.ranking import ranked
from sched_lab.analysis.text.render import DAGGER
from sched_lab.analysis.text.wording import cell_name, places, plain, rows_of, score_text, size
from sched_lab.colors import COLORS, INK, MUTED, PAPER, RULE
from sched_lab.names import FINISHED, LOSS_BY_LOG_SNR, higher_is_better
from sched_lab.trainers import schedules

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LINES = len(COLORS)  # drawn in one figure, so that no colour repeats
THREADS = 2000  # cells drawn in parallel coordinates
HEAT = 40  # rows and columns of a heat map
TICKS = 12  # values above which an axis of numbers is drawn to scale


def library() -> str:
    """plotly.js, about 4.8 MB; it asks nothing of the network and evaluates no text."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def as_json(figure: Figure) -> str:
    """The figure as JSON that may stand within a script element, whatever its texts."""
    return (
        str(figure.to_json())
        .replace("<", r"\u003c")
        .replace("\u2028", r"\u2028")
        .replace("\u2029", r"\u2029")
    )


def score_against_b(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    best: pd.DataFrame,
    score: str,
    lines: str = "resolution",
) -> Figure:
    """The score over log b, a line per image size or per schedule: a point per seed, the mean, its
    interval, rings.

    `lines` is the column that tells the lines apart; the cells of one line must differ in b alone.
    The first eight lines are drawn; a ring marks the rows of `best` that are among `cells`.
    """
    figure = _figure(x={"title": {"text": "input scale b"}, "type": "log"}, y=_scale(cells["mean"]))
    decimals, finished = places(cells), runs[runs["state"] == FINISHED]
    for (value, line), color in zip(_lines(cells, lines), COLORS, strict=False):
        name = _text(size(value) if lines == "resolution" else str(value))
        at = line.sort_values("b")
        low, high = (at["mean"] + sign * at["half_width"].fillna(0) for sign in (-1, 1))
        figure.add_scatter(
            x=[*at["b"], *at["b"][::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=color,
            opacity=0.15,
            mode="none",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
        seeds = finished.merge(at[[lines, "b"]])
        figure.add_scatter(
            x=seeds["b"],
            y=seeds[score],
            customdata=seeds["seed"],
            mode="markers",
            legendgroup=name,
            showlegend=False,
            marker={"color": color, "size": 5, "opacity": 0.6},
            hovertemplate=f"{name}<br>b = %{{x:g}}, seed %{{customdata}}: "
            "%{y:.4g}<extra></extra>",
        )
        rings = at.index.isin(best.index)
        figure.add_scatter(
            x=at["b"],
            y=at["mean"],
            name=name,
            legendgroup=name,
            mode="lines+markers",
            line={"color": color},
            customdata=[_text(_told(row, decimals)) for _, row in rows_of(at)],
            marker={
                "size": [11 if ring else 4 for ring in rings],
                "color": [PAPER if ring else color for ring in rings],
                "line": {"color": color, "width": [2.5 if ring else 0 for ring in rings]},
            },
            hovertemplate=f"<b>{name}</b><br>b = %{{x:g}}: %{{customdata}}<extra></extra>",
        )
    figure.update_layout(height=320 + _legend(len(figure.data) // 3))
    swept = sorted(cells["b"].unique())
    if len(swept) <= TICKS:
        figure.update_xaxes(tickvals=swept, ticktext=[f"{b:g}" for b in swept])
    return figure


def heat_map(cells: pd.DataFrame, best: pd.DataFrame, score: str) -> Figure:
    """Schedule down, b across, for the cells of one image size; the best of each place, the better
    the darker.

    The best cell is framed, a dagger marks those that can't be told from it. The best forty
    schedules are shown.
    """
    order = ranked(cells, score).drop_duplicates(["schedule", "b"])
    rows = list(dict.fromkeys(order["schedule"]))[:HEAT][
        ::-1
    ]  # plotly's first row is at the bottom
    columns = sorted(order["b"].unique())[:HEAT]
    placed = {(cell["schedule"], cell["b"]): (index, cell) for index, cell in rows_of(order)}
    ties = {tie for found in best["ties"] for tie in found}
    decimals, positive = places(cells), order["mean"].min() > 0

    def grid(show: Callable[[int, dict[str, Any]], object]) -> list[list[object]]:
        return [
            [show(*placed[name, b]) if (name, b) in placed else None for b in columns]
            for name in rows
        ]

    figure = _figure(
        x={"title": {"text": "input scale b"}, "showgrid": False}, y={"showgrid": False}
    )
    figure.update_layout(height=130 + 34 * len(rows), xaxis_type="category", yaxis_type="category")
    figure.add_heatmap(
        x=[f"{b:g}" for b in columns],
        y=[_text(name) for name in rows],
        z=grid(lambda _, cell: math.log(cell["mean"]) if positive else cell["mean"]),
        text=grid(
            lambda index, cell: f"{cell['mean']:.{decimals}f}" + (DAGGER if index in ties else "")
        ),
        customdata=grid(lambda _, cell: _text(_told(cell, decimals))),
        texttemplate="%{text}",
        hovertemplate="%{y}<br>b = %{x}: %{customdata}<extra></extra>",
        hoverongaps=False,
        showscale=False,
        reversescale=not higher_is_better(score),
        colorscale=[[0, PAPER], [1, COLORS[0]]],
        xgap=2,
        ygap=2,
    )
    for (name, b), (index, _) in placed.items():
        if index in best.index and b in columns:
            x, y = columns.index(b), rows.index(name)
            box = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
            figure.add_shape(type="rect", line={"color": COLORS[1], "width": 3}, **box)
    return figure


def parallel_coordinates(cells: pd.DataFrame, score: str, columns: Sequence[str]) -> Figure:
    """A thread per cell through every setting of `columns` to the score; drag along an axis to pick
    threads.

    Colour is the rank within the image size, since scores of two sizes do not compare: the better
    the darker. Up to 2,000 threads, the best ranks first.
    """
    order = ranked(cells, score)
    groups = order.groupby("resolution")
    rank = groups.cumcount() / (groups["n"].transform("size") - 1).clip(lower=1)
    rank = rank.sort_values(kind="stable")[:THREADS][::-1]  # the best are drawn last, on top
    shown = order.loc[rank.index]
    figure = _figure(x={}, y={})
    figure.add_parcoords(
        dimensions=[
            *(_axis(name, shown[name]) for name in columns),
            _scaled_axis(score, shown["mean"]),
        ],
        line={
            "color": rank.to_numpy(),
            "colorscale": [[0, COLORS[1]], [1, MUTED]],
            "cmin": 0,
            "cmax": 1,
        },
        labelfont={"color": INK, "size": 13},
        tickfont={"color": MUTED, "size": 11},
        rangefont={"color": MUTED, "size": 10},
        unselected={"line": {"color": RULE, "opacity": 0.15}},
    )
    figure.update_layout(height=420, margin={"l": 90, "r": 60, "t": 60, "b": 30})
    return figure


def loss_by_log_snr(runs: pd.DataFrame, cells: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Above: the training loss by log-SNR. Below: how often training visits it. A colour per cell,
    the first eight.

    `names` are the columns that a cell is named by. Loss is the mean over seeds of the run's last
    bins.
    """
    figure = _figure(
        x={"title": {"text": "log-SNR, with b"}},
        y={"title": {"text": "density"}, "domain": [0, 0.36]},
    )
    columns = bins(runs)
    at, finished = list(columns), runs[runs["state"] == FINISHED]
    scale = _scale(pd.Series(finished[list(columns.values())].to_numpy().ravel()))
    figure.update_layout(height=420 + _legend(len(cells)), yaxis2=_ruled() | scale)
    figure.update_layout(yaxis2={"title": {"text": "loss"}, "domain": [0.44, 1], "anchor": "x"})
    for (index, cell), color in zip(rows_of(cells), COLORS, strict=False):
        name = _text(cell_name(cell, names))
        trials = finished.merge(cells.loc[[index], ["resolution", *names]])
        figure.add_scatter(
            x=at,
            y=trials[list(columns.values())].mean().to_numpy(dtype=float),
            yaxis="y2",
            name=name,
            legendgroup=name,
            mode="lines+markers",
            line={"color": color},
            marker={"size": 4},
            hovertemplate=f"<b>{name}</b><br>log-SNR %{{x:g}}: loss %{{y:.3g}}<extra></extra>",
        )
        with suppress(
            schedules.ScheduleError
        ):  # a plug-in's schedule, read where the plug-in is not installed
            x, y = density(cell["schedule"], cell["resolution"], cell["b"])
            figure.add_scatter(
                x=x,
                y=y,
                legendgroup=name,
                showlegend=False,
                mode="lines",
                line={"color": color},
                hovertemplate=f"<b>{name}</b><br>log-SNR %{{x:.1f}}: "
                "density %{y:.3f}<extra></extra>",
            )
    return figure


def _legend(entries: int) -> int:
    """Pixels that a legend may take on a phone."""
    return 20 * min(entries, LINES)


def bins(runs: pd.DataFrame) -> dict[float, str]:
    """The columns of `runs` that hold a loss, by the log-SNR in the middle of their bin,
    ascending.
    """
    names = [name for name in map(str, runs.columns) if name.startswith(LOSS_BY_LOG_SNR)]
    found = {float(name.removeprefix(LOSS_BY_LOG_SNR)): name for name in names}
    return {at: found[at] for at in sorted(found) if runs[found[at]].notna().any()}


@cache
def density(schedule: str, resolution: int, b: float) -> tuple[list[float], list[float]]:
    """The density that uniform t puts on log-SNR, at up to 241 places. Raises ScheduleError for an
    unknown schedule.
    """
    found = schedules.parse(schedule).at_size(resolution)
    t = 1 / (1 + np.exp(-np.linspace(-9, 9, 241)))  # evenly in the tails too
    x, y = found.log_snr(t, b), found.density(t)
    seen = np.isfinite(x) & np.isfinite(y)
    return x[seen].round(3).tolist(), y[seen].round(5).tolist()


def _figure(x: dict[str, Any], y: dict[str, Any]) -> Figure:
    from plotly.graph_objects import Figure

    return Figure(
        layout={
            "template": "none",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {"bgcolor": PAPER, "bordercolor": RULE, "font": {"color": INK}},
            "legend": {
                "orientation": "h",
                "yanchor": "bottom",
                "y": 1.02,
                "xanchor": "left",
                "x": 0,
            },
            "margin": {"l": 56, "r": 14, "t": 34, "b": 46},
            "height": 340,
            "xaxis": _ruled() | x,
            "yaxis": _ruled() | y,
        }
    )


def _ruled() -> dict[str, Any]:
    return {
        "gridcolor": RULE,
        "linecolor": RULE,
        "zeroline": False,
        "tickfont": {"color": MUTED},
        "automargin": True,
    }


def _scale(values: pd.Series[float]) -> dict[str, Any]:
    """A logarithmic axis for positive values that span more than a factor of eight."""
    if not _wide(values):
        return {}
    low, high = 0.75 * values.min(), 1.4 * values.max()
    return {"type": "log", "range": [math.log10(low), math.log10(high)], **_ticks(low, high)}


def _wide(values: pd.Series[float]) -> bool:
    return bool(values.min() > 0 and values.max() > 8 * values.min())


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times powers of ten, or at the powers alone where these are many; low
    above 0.
    """
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    at = [digit * 10.0**ten for ten in tens for digit in ((1, 2, 5) if len(tens) < 4 else (1,))]
    at = [value for value in at if low <= value <= high] or [low, high]
    return {"tickvals": at, "ticktext": [f"{value:.3g}" for value in at]}


def _lines(cells: pd.DataFrame, column: str) -> list[tuple[Any, pd.DataFrame]]:
    scored = cells[cells["n"] > 0]
    return [(value, scored[scored[column] == value]) for value in dict.fromkeys(scored[column])]


def _axis(name: str, values: pd.Series) -> dict[str, Any]:
    """An axis of parallel coordinates: few values evenly spaced under their names, many numbers to
    scale.
    """
    if pd.api.types.is_float_dtype(values) and values.nunique() > TICKS:
        return _scaled_axis(name, values)
    texts = [plain(value) for value in values]
    order = [plain(value) for value in values.drop_duplicates().sort_values()]
    at = [order.index(text) for text in texts]
    return {
        "label": _text(name),
        "values": at,
        "tickvals": list(range(len(order))),
        "ticktext": order,
    }


def _scaled_axis(name: str, values: pd.Series[float]) -> dict[str, Any]:
    if not _wide(values):
        return {"label": _text(name), "values": values.to_numpy()}
    logs, ticks = np.log10(values), _ticks(values.min(), values.max())
    ends = {"range": [logs.min(), logs.max()], "tickvals": np.log10(ticks["tickvals"])}
    return {"label": _text(name), "values": logs, **ticks, **ends}


def _told(cell: Mapping[str, Any], decimals: int) -> str:
    seeds = "1 seed" if cell["n"] == 1 else f"{cell['n']} seeds"
    return f"{score_text(cell, decimals)}, {seeds}"


def _text(text: str) -> str:
    """Text that plotly, which reads some HTML, shows as it is."""
    return html.escape(text, quote=False)
