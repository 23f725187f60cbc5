"""The pictures that a run keeps: its schedule, also for `sched-lab schedule --plot`, and its loss.

Matplotlib takes a tenth of a second for a picture, nearly all of it for axes and text. So axes have
round limits, and are drawn once for the many runs that share them; data are painted onto copies.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, ParamSpec

import numpy as np
import numpy.typing as npt

from sched_lab.colors import COLORS
from sched_lab.trainers.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image, ImageFont

Values = npt.NDArray[np.float64]
Limits = tuple[float, float]

DPI = 100
FINE = 2  # data are painted so many times larger, and then reduced: smooth edges
OPACITY = 153  # of bars, of 255: what lies behind them shows
P = ParamSpec("P")
_drawing = threading.Lock()


def _one_at_a_time(draw: Callable[P, bytes]) -> Callable[P, bytes]:
    """Matplotlib is not made for threads. Of two that import it at once, one may see half of it."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with _drawing:
            return draw(*args, **kwargs)

    return drawn


@dataclass(frozen=True)
class Axes:
    """Where a picture's axes lie, and what they span."""

    box: tuple[int, int, int, int]
    """Left, top, width and height in pixels."""
    x_label: str
    y_label: str
    x: Limits
    y: Limits
    over: bool = False
    """Whether they share their box and x axis with those before, and have their y axis right."""
    color: str = "black"

    def pixels(self, x: Values, y: Values) -> Values:
        """Where data lie within the box, in pixels. (n, 2)"""
        _, _, width, height = self.box
        across = (x - self.x[0]) / (self.x[1] - self.x[0]) * width
        up = (y - self.y[0]) / (self.y[1] - self.y[0]) * height
        return np.stack([across, height - up], axis=-1)


def schedule_figure(schedule: Schedule, b: float) -> Figure:
    """γ and log-SNR over t, and the density that uniform t puts on log-SNR."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    curves = _schedule_curves(schedule, b)
    for axes, (x_label, y_label, x, y) in zip(figure.subplots(1, 3), curves, strict=True):
        axes.plot(x, y, linewidth=2)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
    figure.suptitle(_title(schedule, b))
    return figure


@_one_at_a_time
def schedule_png(schedule: Schedule, b: float) -> bytes:
    """The same as `schedule_figure` in a moment, as a PNG of 1000 × 300 pixels."""
    axes, lines = [], []
    for number, (x_label, y_label, x, y) in enumerate(_schedule_curves(schedule, b)):
        box = (60 + 335 * number, 35, 240, 215)
        axes.append(Axes(box, x_label, y_label, _round(x), _round(y)))
        lines.append(axes[-1].pixels(x, y))
    picture = _frame((1000, 300), tuple(axes)).copy()
    for where, line in zip(axes, lines, strict=True):
        _paint(picture, where, COLORS[0], line=line)
    return _finished(picture, _title(schedule, b))


@_one_at_a_time
def loss_png(schedule: Schedule, b: float, losses: Mapping[float, float]) -> bytes:
    """The loss in each bin of log-SNR, by the bin's centre, with the density that uniform t puts on
    log-SNR; a PNG of 600 × 340 pixels.
    """
    box = (78, 34, 444, 255)
    centres = np.array(sorted(losses))
    heights = np.array([losses[centre] for centre in centres])
    limits = _round(centres, centres[0] - 1, centres[-1] + 1)
    t = 1 / (1 + np.exp(-np.linspace(-9, 9, 361)))  # evenly in the tails too
    log_snr, density = schedule.log_snr(t, b), schedule.density(t)
    loss = Axes(box, "log-SNR", "loss", limits, _round(heights, 0.0), color=COLORS[0])
    training = Axes(
        box, "log-SNR", "density of training", limits, _round(density, 0.0), True, COLORS[1]
    )
    picture = _frame((600, 340), (loss, training)).copy()
    tops = loss.pixels(centres - 0.9, heights)
    feet = loss.pixels(centres + 0.9, np.zeros_like(heights))
    _paint(picture, loss, COLORS[0], bars=np.concatenate([tops, feet], axis=-1))
    _paint(picture, training, COLORS[1], line=training.pixels(log_snr, density))
    return _finished(picture, _title(schedule, b))


def _schedule_curves(schedule: Schedule, b: float) -> Sequence[tuple[str, str, Values, Values]]:
    t = np.linspace(0, 1, 513)[1:-1]
    log_snr = schedule.log_snr(t, b)
    return (
        ("t", "γ", t, schedule.gamma(t)),
        ("t", "log-SNR", t, log_snr),
        ("log-SNR", "density", log_snr, schedule.density(t)),
    )


def _title(schedule: Schedule, b: float) -> str:
    return f"{schedule}  b = {b:g}"


def _round(values: Values, *also: float) -> Limits:
    """Round numbers about these values; few, so that many pictures share their axes."""
    from matplotlib.ticker import MaxNLocator

    seen = [*values[np.isfinite(values)], *also]
    few = MaxNLocator(3, steps=[1, 2, 5, 10])
    ticks = few.tick_values(min(seen, default=0.0), max(seen, default=1.0))
    return float(ticks[0]), float(ticks[-1])


@lru_cache(maxsize=128)
def _frame(size: tuple[int, int], axes: tuple[Axes, ...]) -> Image.Image:
    """A picture with these axes and no data, of `size` pixels."""
    from matplotlib.figure import Figure
    from PIL import Image

    width, height = size
    figure, last = Figure(figsize=(width / DPI, height / DPI), dpi=DPI), None
    for each in axes:
        left, top, wide, high = each.box
        if each.over and last is not None:
            last = last.twinx()
        else:
            where = (left / width, 1 - (top + high) / height, wide / width, high / height)
            last = figure.add_axes(where)
            last.grid(alpha=0.3)
        last.set(xlim=each.x, ylim=each.y, xlabel=each.x_label)
        last.set_ylabel(each.y_label, color=each.color)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    return Image.open(drawn).convert("RGB")


def _paint(
    picture: Image.Image,
    axes: Axes,
    color: str,
    *,
    line: Values | None = None,
    bars: Values | None = None,
) -> None:
    """Paint a line, (n, 2), or bars, (n, 4) of corners, in pixels of the axes' box."""
    from PIL import Image, ImageDraw

    left, top, width, height = axes.box
    mask = Image.new("L", (FINE * width, FINE * height))
    draw = ImageDraw.Draw(mask)
    if bars is not None:
        for bar in FINE * bars[np.isfinite(bars).all(axis=1)]:
            draw.rectangle(bar.tolist(), fill=OPACITY)
    if line is not None:
        points = FINE * line[np.isfinite(line).all(axis=1)]
        draw.line(points.ravel().tolist(), fill=255, width=2 * FINE)
    picture.paste(color, (left, top), mask.reduce(FINE))


def _finished(picture: Image.Image, title: str) -> bytes:
    """The picture with its title, as a PNG."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    draw.text((picture.width / 2, 18), title, fill="black", font=_font(), anchor="mm")
    content = io.BytesIO()
    picture.save(content, "png", compress_level=1)
    return content.getvalue()


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's own, which has the signs of every schedule."""
    from matplotlib.font_manager import findfont
    from PIL import ImageFont as Fonts

    return Fonts.truetype(findfont("DejaVu Sans"), 16)
