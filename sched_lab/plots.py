"""The picture of one schedule that a run keeps and `sched-lab schedule --plot` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trainers.schedules import Schedule

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
