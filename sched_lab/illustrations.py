"""The first three figures of 2301.10972, drawn from a user's own images.

Images are noised by the process that trials train on, so those figures load torch; the figure of
schedules does not. Functions draw on the Axes or Figure given, or on a new one, and return it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sched_lab.colors import COLORS
from sched_lab.trainers.schedules import Schedule
from sched_lab.trainers.spec import DataSpec, Normalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
DIVIDED = {
    "none": "not normalised",
    "input": "each divided by its own standard deviation",
    "analytic": r"divided by $\sqrt{(b^2-1)\gamma+1}$",
    "state": "each divided by its own standard deviation",
}
EQUATION = r"$x_t=\sqrt{\gamma}\,b\,x_0+\sqrt{1-\gamma}\,\epsilon$"
TILE = 0.8  # inches: the side of an image in print
CAPTION = 4.6  # inches: the width that is left for the longest line below
GAP, BLOCK_GAP = 0.06, 0.3  # between images, and between blocks of them, in sides of an image


def examples(data: DataSpec, size: int, count: int) -> Array:
    """The first `count` images of a source, (count, C, size, size) in [-1, 1].

    No others are decoded. Raises ValueError when the source has fewer, or can't be read.
    """
    first = [pixels for pixels, _ in islice(data.images(size).items, count)]
    if len(first) < count:
        raise ValueError(
            f"data source {data.source!r} has {len(first)} images, fewer than the {count} asked for"
        )
    return np.asarray(np.stack(first) / 127.5 - 1)


def network_inputs(
    x0: Array, noise: Array, gammas: Sequence[float], b: float, normalize: Normalize
) -> Array:
    """What a network is given at each γ in [0, 1], (γ, N, C, H, W).

    x0 (N, C, H, W) is in [-1, 1], and the noise has its shape.
    """
    import torch

    from sched_lab.trainers.diffusion import DiffusionProcess

    process = DiffusionProcess(b, normalize=normalize)
    images, eps = torch.from_numpy(x0), torch.from_numpy(noise)
    levels = [torch.full((len(x0),), gamma, dtype=images.dtype) for gamma in gammas]
    inputs = [process.network_input(process.add_noise(images, at, eps), at) for at in levels]
    return np.asarray(torch.stack(inputs).numpy())


def noise_by_size(
    data: DataSpec,
    sizes: Sequence[int],
    gammas: Sequence[float] = (0.7, 0.3),
    *,
    count: int = 3,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Figure 1: the same images at each size under the same noise, b = 1.

    Larger images look less destroyed. Rows are sizes in pixels; blocks of `count` images are clean,
    then at each γ in [0, 1]. All have the same noise. Raises ValueError as `examples` does.
    """
    levels = (1.0, *gammas)
    rows = []
    for size in sizes:
        x0 = examples(data, size, count)
        noise = np.random.default_rng(seed).standard_normal(x0.shape)
        rows.append([_shown(x_t, 1) for x_t in network_inputs(x0, noise, levels, 1.0, "none")])
    titles = ["clean" if gamma == 1 else rf"$\gamma={gamma:g}$" for gamma in levels]
    ax = _sheet(rows, [f"{size}×{size}" for size in sizes], titles, ax)
    return _caption(ax, EQUATION + ", b = 1, shown from −1 to 1")


def scale_by_time(
    data: DataSpec,
    size: int,
    schedule: Schedule,
    scales: Sequence[float],
    times: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    *,
    normalize: Normalize = "input",
    count: int = 2,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Figure 3: what a network is given at each scale b (rows) and time t in [0, 1] (columns).

    There is a block for each of `count` images, with one noise. Raises ValueError as `examples`
    does.
    """
    x0 = examples(data, size, count)
    noise = np.random.default_rng(seed).standard_normal(x0.shape)
    gammas = schedule.at_size(size).gamma(np.asarray(times)).tolist()

    rows = []
    for b in scales:
        inputs = network_inputs(x0, noise, gammas, b, normalize)  # (times, images, C, H, W)
        rows.append([_shown(inputs[:, image], 2) for image in range(count)])
    columns = [rf"$t={t:g}$" for t in times]
    ax = _sheet(rows, [f"b = {b:g}" for b in scales], [""] * count, ax, columns)
    return _caption(ax, f"{EQUATION}, {DIVIDED[normalize]}\n{schedule}, {size}×{size}")


@dataclass(frozen=True)
class Curve:
    """A schedule at an input scale, and what its line is called."""

    label: str
    schedule: Schedule
    b: float = 1.0


def schedules_by_time(curves: Sequence[Curve], figure: Figure | None = None) -> Figure:
    """Figure 2: γ(t) of each schedule, and log-SNR and its density at its input scale b."""
    from matplotlib.figure import Figure

    figure = figure or Figure(figsize=(10, 3.4 + 0.2 * -(-len(curves) // 3)), layout="constrained")
    gamma, log_snr, density = figure.subplots(1, 3)
    odds = np.linspace(-9, 9, 721)
    t = 1 / (1 + np.exp(-odds))  # evenly in the tails too
    for curve, style in zip(curves, _styles(len(curves)), strict=True):
        at = curve.schedule.log_snr(t, curve.b)
        gamma.plot(t, curve.schedule.gamma(t), **style)
        log_snr.plot(t, at, **style, label=curve.label)
        density.plot(at, curve.schedule.density(t), **style)
    several = len({curve.b for curve in curves}) > 1
    gamma.set(
        xlabel="$t$",
        title=r"$\gamma(t)$" + (", the same at every $b$" if several else ""),
        ylim=(-0.02, 1.02),
    )
    log_snr.set(xlabel="$t$", title=r"log-SNR: $\log\,b^2\gamma/(1-\gamma)$", ylim=(-12, 12))
    density.set(xlabel="log-SNR", title="density over log-SNR", xlim=(-12, 12))
    density.set_ylim(bottom=0)
    for axes in (gamma, log_snr, density):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def sharp_dpi(largest: int) -> int:
    """Dots an inch, from 300, that make each pixel of a `largest`² image whole dots wide."""
    return round(largest * math.ceil(300 * TILE / largest) / TILE)


def _styles(count: int) -> Iterable[dict[str, str]]:
    """One style for each line: the colours in turn, then the same with other dashes."""
    looks = (
        {"linestyle": dash, "color": color} for dash in ("-", "--", ":", "-.") for color in COLORS
    )
    return islice(cycle(looks), count)


def _shown(x: Array, reach: float) -> Array:
    """Images (n, C, H, W) for Matplotlib, (n, H, W, 3): −reach is black, reach is white."""
    grey = np.clip(x / (2 * reach) + 0.5, 0, 1)
    return np.broadcast_to(grey, (len(x), 3, *x.shape[2:])).transpose(0, 2, 3, 1)


def _sheet(
    rows: Sequence[Sequence[Array]],
    row_labels: Sequence[str],
    block_labels: Sequence[str],
    ax: Axes | None,
    column_labels: Sequence[str] = (),
) -> Axes:
    """Images in rows and blocks, all equally wide in print; rows[row][block] is (n, H, W, 3)."""
    columns = len(rows[0][0])
    block_width = columns * (1 + GAP) - GAP
    starts = [block * (block_width + BLOCK_GAP) for block in range(len(block_labels))]
    width, height = starts[-1] + block_width, len(rows) * (1 + GAP) - GAP
    if ax is None:
        ax = _exact_axes(width, height)
    for row, blocks in enumerate(rows):
        top = row * (1 + GAP)
        for start, images in zip(starts, blocks, strict=True):
            for column, image in enumerate(images):
                left = start + column * (1 + GAP)
                ax.imshow(image, extent=(left, left + 1, top + 1, top), interpolation="none")
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.set_yticks([row * (1 + GAP) + 0.5 for row in range(len(rows))], row_labels)
    middles = [start + column * (1 + GAP) + 0.5 for start in starts for column in range(columns)]
    if column_labels:
        ax.set_xticks(middles, list(column_labels) * len(starts))
    else:
        ax.set_xticks([start + block_width / 2 for start in starts], block_labels)
    ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return ax


def _exact_axes(width: float, height: float) -> Axes:
    """Axes of this many images across and down, on a figure with room for the labels."""
    from matplotlib.figure import Figure

    left, right, bottom, top = 0.9, 0.1, 0.6, 0.4  # inches
    inches = (left + max(width * TILE, CAPTION) + right, bottom + height * TILE + top)
    box = (
        left / inches[0],
        bottom / inches[1],
        width * TILE / inches[0],
        height * TILE / inches[1],
    )
    return Figure(figsize=inches).add_axes(box)


def _caption(ax: Axes, text: str) -> Axes:
    ax.set_xlabel(text, loc="left", fontsize=9)
    return ax
