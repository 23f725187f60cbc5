"""The static figures of a report, by file name."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pandas as pd

from sched_lab.analysis.figures import static
from sched_lab.analysis.report.findings import Analysis, Findings, b_panels
from sched_lab.analysis.statistics import ranking
from sched_lab.analysis.text import wording
from sched_lab.trainers import schedules

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def static_figures(analysis: Analysis) -> dict[str, Axes]:
    """The scores, the best b by image size where two are known, and the best schedules."""
    drawn = _score_figures(analysis.main)
    if analysis.fitted["supported"].sum() > 1:
        drawn["law"] = static.best_b_by_size(analysis.fitted, analysis.law)
    return drawn | _schedule_figures(analysis.main.best)


def _score_figures(findings: Findings) -> dict[str, Axes]:
    """The scores against b and by schedule, where these were swept."""
    drawn = {
        f"b-{i}": static.score_against_b(
            findings.runs.merge(cells[findings.columns]),
            cells,
            findings.best,
            findings.score,
            title,
            by,
        )
        for i, (title, cells, by) in enumerate(b_panels(findings))
    }
    order = ranking.scored(findings.cells, findings.score)
    if wording.varies(order["schedule"]):
        drawn["schedules"] = static.score_by_schedule(order, findings.score)
    return drawn


def _schedule_figures(best: pd.DataFrame) -> dict[str, Axes]:
    """The schedule and b of the best cell at each image size; sizes that share them as a curve."""
    colors = static.palette(best["resolution"])
    sizes: dict[tuple[schedules.Schedule, float], list[int]] = {}
    for _, row in best.iterrows():
        with suppress(schedules.ScheduleError):  # of a plug-in that is not installed here
            schedule = schedules.parse(row["schedule"]).at_size(row["resolution"])
            sizes.setdefault((schedule, row["b"]), []).append(row["resolution"])
    curves = []
    for (schedule, b), at in sizes.items():
        label = f"{', '.join(map(wording.size_text, at))}: {schedule} · b {b:g}"
        curves.append(static.Curve(label, schedule, b, colors[at[0]]))
    if not curves:
        return {}
    return {
        "gamma": static.gamma(curves),
        "log-snr": static.log_snr(curves),
        "density": static.density(curves),
    }
