"""The figures that a run keeps: its schedule, also for `sched-lab schedule --plot`, and its
loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sched_lab.colors import COLORS
from sched_lab.trainers.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def schedule_figure(schedule: Schedule, b: float) -> Figure:
    """γ and log-SNR over t, and the density that uniform t puts on log-SNR."""
    from matplotlib.figure import Figure

    t = np.linspace(0, 1, 513)[1:-1]
    log_snr = schedule.log_snr(t, b)
    figure = Figure(figsize=(10, 3), layout="constrained")
    curves = [("t", "γ", t, schedule.gamma(t)), ("t", "log-SNR", t, log_snr)]
    curves += [("log-SNR", "density", log_snr, schedule.density(t))]
    for axes, (x_label, y_label, x, y) in zip(figure.subplots(1, 3), curves, strict=True):
        axes.plot(x, y, linewidth=2)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{schedule}  b = {b:g}")
    return figure


def loss_figure(schedule: Schedule, b: float, losses: Mapping[float, float]) -> Figure:
    """The loss in each bin of log-SNR, by the bin's centre, with the density that uniform t puts on
    log-SNR.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4))
    # Fixed margins: to compute them would double the time.
    figure.subplots_adjust(left=0.13, right=0.87, bottom=0.15, top=0.9)
    loss = figure.subplots()
    centres = sorted(losses)
    loss.bar(centres, [losses[centre] for centre in centres], width=1.8, color=COLORS[0], alpha=0.6)
    loss.set(
        xlabel="log-SNR", xlim=(centres[0] - 2, centres[-1] + 2), title=f"{schedule}  b = {b:g}"
    )
    loss.set_ylabel("loss", color=COLORS[0])
    t = 1 / (1 + np.exp(-np.linspace(-9, 9, 361)))  # evenly in the tails too
    density = loss.twinx()
    density.plot(schedule.log_snr(t, b), schedule.density(t), color=COLORS[1], linewidth=2)
    density.set_ylim(bottom=0)
    density.set_ylabel("density of training", color=COLORS[1])
    return figure
