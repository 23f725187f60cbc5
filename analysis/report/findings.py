"""What a sweep's scores say, population by population: statistics, the law of b, and the tables
that show them.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from sched_lab.analysis.runs import Sweep
from sched_lab.analysis.statistics import comparisons, law, ranking, reference
from sched_lab.analysis.text import render, tables, wording
from sched_lab.colors import COLORS
from sched_lab.trainers import schedules

SIZES = 6  # image sizes that have figures of their own, the smallest first
SCREENED = (
    "one round of seeds that picked the cells to confirm: scores that won a selection flatter the"
    " winner"
)


@dataclass(frozen=True)
class Findings:
    """What the scores of one population say; schedules go by the names of
    `wording.schedule_names`.
    """

    name: str
    why: tuple[str, ...]
    """Why these trials were set apart from the others; empty where none are."""
    score: str
    runs: pd.DataFrame
    columns: list[str]
    """The settings that tell cells apart."""
    varied: list[str]
    """Those of them that cells are named by."""
    sizes: list[int]
    """The image sizes of the sweep, also those without a cell here."""
    cells: pd.DataFrame
    """See `ranking.summarize` and `ranking.rank_intervals`."""
    best: pd.DataFrame
    """See `ranking.best_cells`."""


@dataclass(frozen=True)
class Analysis:
    """A sweep, and what its scores say."""

    sweep: Sweep
    runs: pd.DataFrame
    """All trials of the sweep."""
    main: Findings
    """Of the largest population, which gives the answer."""
    others: tuple[Findings, ...]
    fitted: pd.DataFrame
    """The best b at each image size: see `law.best_b`."""
    law: law.Law | None
    no_law: str
    """Why there is none."""
    spread: pd.DataFrame
    """See `ranking.spread`, by image size."""
    beside: pd.DataFrame
    """The paper's cells beside the sweep's: see `reference.beside`."""
    agreement: pd.DataFrame
    """See `reference.rank_correlation`."""

    @property
    def answer(self) -> render.Table:
        """The best cell per image size, as a table."""
        main = self.main
        return tables.best_table(main.cells, main.best, main.score, main.varied, main.sizes)


def analyse(sweep: Sweep) -> Analysis:
    """Statistics of a sweep's scores, apart for each population; the law from the largest."""
    runs = sweep.runs.assign(schedule=wording.schedule_names(sweep.runs))
    populations = comparisons.set_apart(runs, sweep.ranked_by)
    main, *others = [found for population in populations for found in _by_stage(population, sweep)]
    best = _best_b(populations[0], sweep)
    try:
        found, reason = law.fit(best), ""
    except law.Unsupported as error:
        found, reason = None, str(error)
    beside = reference.beside(main.cells, main.score)
    return Analysis(
        sweep=sweep,
        runs=runs,
        main=main,
        others=tuple(others),
        fitted=best,
        law=found,
        no_law=reason,
        spread=ranking.spread(main.runs, main.score, main.columns, per=("resolution",)),
        beside=beside,
        agreement=reference.rank_correlation(beside),
    )


def fitted(sweep: Sweep, schedule: str | None = None) -> pd.DataFrame:
    """The best b at each image size of the largest population: see `law.best_b`."""
    with suppress(
        schedules.ScheduleError
    ):  # as sweep files have it; a plug-in's may not be installed here
        schedule = schedule and str(schedules.parse(schedule))
    runs = sweep.runs.assign(schedule=wording.schedule_names(sweep.runs))
    return _best_b(comparisons.set_apart(runs, sweep.ranked_by)[0], sweep, schedule)


def _best_b(
    population: comparisons.Population, sweep: Sweep, schedule: str | None = None
) -> pd.DataFrame:
    columns = ranking.cell_columns(population.runs, sweep.settings)
    return law.best_b(population.runs, population.score, columns, schedule)


def _by_stage(population: comparisons.Population, sweep: Sweep) -> list[Findings]:
    """The findings of a population; where cells were confirmed with fresh seeds, those of the
    screening apart.
    """
    name, why, score, whole = population.name, population.why, population.score, population.runs
    confirmed = ranking.confirmed(whole)
    screened = whole.drop(confirmed.index)
    if screened.empty:
        return [_findings(name, why, score, whole, whole, sweep)]
    return [
        _findings(f"confirmed · {name}", why, score, confirmed, whole, sweep),
        _findings(f"screening · {name}", (*why, SCREENED), score, screened, screened, sweep),
    ]


def _findings(
    name: str,
    why: tuple[str, ...],
    score: str,
    runs: pd.DataFrame,
    whole: pd.DataFrame,
    sweep: Sweep,
) -> Findings:
    """What `runs` say; `whole` are those of all stages, which say what was searched."""
    columns = ranking.cell_columns(whole, sweep.settings)
    ranks = ranking.rank_intervals(whole, score, columns)
    best = ranking.best_cells(whole, score, columns)
    alone = best.index[best["ties"].map(len).eq(0)]
    ranks.loc[alone, "rank_high"] = (
        1  # told from every other cell, which is less to ask than all ranks at once
    )
    return Findings(
        name=name,
        why=why,
        score=score,
        runs=runs,
        columns=columns,
        varied=wording.varied_columns(whole, columns),
        sizes=sorted(whole["resolution"].unique()),
        cells=ranking.summarize(whole, score, columns).join(ranks),
        best=best.join(ranks),
    )


def report_tables(analysis: Analysis, limit: int) -> list[render.Table]:
    """The tables of the main population: the answer first, every cell last; those cut to `limit`
    rows.
    """
    main = analysis.main
    answer, *by_size, cells = findings_tables(main, limit)
    further = []
    if wording.varies(main.cells["b"]):
        further.append(tables.fitted_table(analysis.fitted, staged=ranking.STAGE in analysis.runs))
    if analysis.spread["resampling"].notna().any():
        further.append(tables.spread_table(analysis.spread, main.score))
    if len(analysis.beside):
        beside, agreement = analysis.beside, analysis.agreement
        further.append(
            tables.reference_table(beside, agreement, main.score, reference.CITATION, limit)
        )
    return [answer, *by_size, *further, cells]


def findings_tables(found: Findings, limit: int) -> list[render.Table]:
    """The best cells, then schedule and b by image size where these vary, then the cells, no more
    than `limit`.
    """
    cells, best, varied, score = found.cells, found.best, found.varied, found.score
    by_size = [
        tables.size_table(cells, best, row, score, varied, title)
        for row, title in (
            ("schedule", "Schedule by image size"),
            ("b", "Input scale b by image size"),
        )
        if wording.varies(cells[row])
    ]
    answer = tables.best_table(cells, best, score, varied, found.sizes)
    return [answer, *by_size, tables.cells_table(cells, best, score, varied, limit)]


def lines(found: Findings) -> list[tuple[str, pd.DataFrame, str]]:
    """What the figures of score against b show: (title, cells, the column that tells the lines
    apart) each.

    One figure with a line per image size where one schedule was swept, else one per image size, a
    line per schedule. A line's cells differ in b alone: the best of the other settings. Of
    schedules, the best are drawn.
    """
    order = ranking.ranked(found.cells, found.score).drop_duplicates(
        ["resolution", "schedule", "b"]
    )
    if not wording.varies(order["b"]):
        return []
    if not wording.varies(order["schedule"]):
        return [
            (
                f"{found.score} against b",
                order.sort_values("resolution", kind="stable"),
                "resolution",
            )
        ]
    sizes = order.sort_values("resolution", kind="stable").groupby("resolution")
    return [
        (f"{wording.size(size)}: {found.score} against b{_cut(at['schedule'])}", at, "schedule")
        for size, at in sizes
    ][:SIZES]


def _cut(lines: pd.Series[str]) -> str:
    """What a title adds where a figure shows but some of these lines."""
    return (
        f", best {len(COLORS)} of {lines.nunique()} schedules"
        if lines.nunique() > len(COLORS)
        else ""
    )
