"""Layouts and axes of the plotly figures."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sched_lab.analysis.figures.static import is_wide
from sched_lab.analysis.text.wording import setting_text
from sched_lab.colors import INK, MUTED, PAPER, RULE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TICKS = 12  # values above which an axis of numbers is drawn to scale


def escaped(text: str) -> str:
    """Text that plotly, which interprets some HTML, shows as it is."""
    return html.escape(text, quote=False)


def figure(x: dict[str, Any], y: dict[str, Any]) -> Figure:
    """A figure without traces, in the report's style; `x` and `y` are settings of its axes."""
    from plotly.graph_objects import Figure

    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0}
    return Figure(
        layout={
            "template": "none",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {"bgcolor": PAPER, "bordercolor": RULE, "font": {"color": INK}},
            "legend": legend,
            "margin": {"l": 56, "r": 14, "t": 34, "b": 46},
            "height": 340,
            "xaxis": ruled() | x,
            "yaxis": ruled() | y,
        }
    )


def ruled() -> dict[str, Any]:
    """An axis with a grid."""
    return {
        "gridcolor": RULE,
        "linecolor": RULE,
        "zeroline": False,
        "tickfont": {"color": MUTED},
        "automargin": True,
    }


def log_if_wide(values: pd.Series[float]) -> dict[str, Any]:
    """A logarithmic axis for values that span a wide range, else nothing."""
    if not is_wide(values):
        return {}
    low, high = 0.75 * values.min(), 1.4 * values.max()
    return {"type": "log", "range": [math.log10(low), math.log10(high)], **_ticks(low, high)}


def dimension(name: str, values: pd.Series) -> dict[str, Any]:
    """An axis of parallel coordinates: many numbers to scale, else values evenly spaced."""
    if pd.api.types.is_float_dtype(values) and values.nunique() > TICKS:
        return scaled_dimension(name, values)
    order = [setting_text(value) for value in values.drop_duplicates().sort_values()]
    return {
        "label": escaped(name),
        "values": [order.index(setting_text(value)) for value in values],
        "tickvals": list(range(len(order))),
        "ticktext": order,
    }


def scaled_dimension(name: str, values: pd.Series[float]) -> dict[str, Any]:
    """An axis of parallel coordinates to scale, logarithmic where values span a wide range."""
    if not is_wide(values):
        return {"label": escaped(name), "values": values.to_numpy()}
    logs, low, high = np.log10(values), values.min(), values.max()
    ticks = _ticks(low, high)
    return {
        "label": escaped(name),
        "values": logs,
        "range": [logs.min(), logs.max()],
        # Plotly draws an axis from its first tick to its last.
        "tickvals": np.log10([low, *ticks["tickvals"], high]),
        "ticktext": ["", *ticks["ticktext"], ""],
    }


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times powers of ten, or at the powers alone where many; low above 0."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    at = [digit * 10.0**ten for ten in tens for digit in ((1, 2, 5) if len(tens) < 4 else (1,))]
    at = [value for value in at if low <= value <= high] or [low, high]
    return {"tickvals": at, "ticktext": [f"{value:.3g}" for value in at]}
