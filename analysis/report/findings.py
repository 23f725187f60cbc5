"""What a sweep's scores say, by population: statistics, the law of b, and their tables."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from sched_lab.analysis.runs import SubmittedSweep
from sched_lab.analysis.statistics import comparisons, law, ranking, reference
from sched_lab.analysis.text import render, tables, wording
from sched_lab.colors import COLORS
from sched_lab.trainers import schedules

SIZES = 6  # image sizes that have figures of their own, the smallest first
SCREENED = (
    "one round of seeds that picked the cells to confirm: scores that won a selection flatter the"
    " winner"
)
# Columns of `ranking.against_best`, and their names beside those of a cell
VERSUS = {
    "difference": "difference",
    "half_width": "difference_half_width",
    "p_adjusted": "p_adjusted",
}
# Of the cells drawn in one figure, the title, and the column that tells its lines apart.
Panel = tuple[str, pd.DataFrame, str]


@dataclass(frozen=True)
class Findings:
    """What the scores of one population say; schedules are named by `wording.schedule_names`."""

    name: str
    why: tuple[str, ...]
    """Why these trials were set apart from the others; empty where none are."""
    score: str
    runs: pd.DataFrame
    columns: list[str]
    """The settings that tell cells apart."""
    varied: list[str]
    """Those of them that name a cell."""
    sizes: list[int]
    """The image sizes of the population's runs, also those without a ranked cell."""
    cells: pd.DataFrame
    """See `ranking.summarize`, `ranking.rank_intervals` and `ranking.against_best`."""
    best: pd.DataFrame
    """See `ranking.best_cells`."""
    warnings: tuple[str, ...]
    """What is to be known before all else: see `wording.warnings`."""


@dataclass(frozen=True)
class Analysis:
    """A sweep, and what its scores say."""

    sweep: SubmittedSweep
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


def analyse(sweep: SubmittedSweep) -> Analysis:
    """Statistics of a sweep's scores, apart for each population; the law from the largest."""
    runs = sweep.runs.assign(schedule=wording.schedule_names(sweep.runs))
    populations = comparisons.set_apart(runs, sweep.ranked_by)
    main, *others = [each for population in populations for each in _by_stage(population, sweep)]
    best = _best_b(populations[0], sweep)
    try:
        law_of_b, no_law = law.fit(best), ""
    except law.Unsupported as error:
        law_of_b, no_law = None, str(error)
    beside = reference.beside(main.cells, main.score)
    return Analysis(
        sweep=sweep,
        runs=runs,
        main=main,
        others=tuple(others),
        fitted=best,
        law=law_of_b,
        no_law=no_law,
        spread=ranking.spread(main.runs, main.score, main.columns, per=("resolution",)),
        beside=beside,
        agreement=reference.rank_correlation(beside),
    )


def fitted(sweep: SubmittedSweep, schedule: str | None = None) -> pd.DataFrame:
    """The best b at each image size of the largest population: see `law.best_b`."""
    with suppress(schedules.ScheduleError):  # of a plug-in that is not installed here
        schedule = schedule and str(schedules.parse(schedule))
    runs = sweep.runs.assign(schedule=wording.schedule_names(sweep.runs))
    return _best_b(comparisons.set_apart(runs, sweep.ranked_by)[0], sweep, schedule)


def warnings(sweep: SubmittedSweep) -> list[str]:
    """What is to be known of the largest population before all else: see `wording.warnings`."""
    largest = comparisons.set_apart(sweep.runs, sweep.ranked_by)[0]
    columns = ranking.cell_columns(largest.runs, sweep.settings)
    cells = ranking.summarize(largest.runs, largest.score, columns)
    return _warnings(cells, largest.runs, largest.score, columns)


def _best_b(
    population: comparisons.Population, sweep: SubmittedSweep, schedule: str | None = None
) -> pd.DataFrame:
    columns = ranking.cell_columns(population.runs, sweep.settings)
    return law.best_b(population.runs, population.score, columns, schedule)


def _by_stage(population: comparisons.Population, sweep: SubmittedSweep) -> list[Findings]:
    """The findings of a population; where cells were confirmed, those of the screening apart."""
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
    sweep: SubmittedSweep,
) -> Findings:
    """What `runs` say; `whole` are those of all stages, which tell what was searched."""
    columns = ranking.cell_columns(whole, sweep.settings)
    cells = ranking.summarize(whole, score, columns)
    versus = ranking.against_best(whole, score, columns)[list(VERSUS)]
    ranks = ranking.rank_intervals(whole, score, columns)
    best = ranking.best_cells(whole, score, columns)
    # Without a tie it is better than every other cell: a weaker claim than all ranks at once.
    ranks.loc[best.index[best["ties"].map(len).eq(0)], "rank_high"] = 1
    return Findings(
        name=name,
        why=why,
        score=score,
        runs=runs,
        columns=columns,
        varied=wording.varied_columns(whole, columns),
        sizes=sorted(whole["resolution"].unique()),
        cells=cells.join(ranks).join(versus.rename(columns=VERSUS)),
        best=best.join(ranks),
        warnings=tuple(_warnings(cells, whole, score, columns)),
    )


def _warnings(
    cells: pd.DataFrame, whole: pd.DataFrame, score: str, columns: list[str]
) -> list[str]:
    """Of the cells, and of those of the screening at sizes where none was confirmed."""
    if "stage" in whole:
        tried = ranking.summarize(whole.drop(columns="stage"), score, columns)
        cells = pd.concat([cells, tried[~tried["resolution"].isin(cells["resolution"])]])
    return wording.warnings(cells, whole, score)


def report_tables(analysis: Analysis, limit: int) -> list[render.Table]:
    """The tables of the main population: the answer first, at most `limit` cells last."""
    main = analysis.main
    answer, *by_size, cells = findings_tables(main, limit)
    further = []
    if wording.varies(main.cells["b"]):
        further.append(tables.fitted_table(analysis.fitted, staged="stage" in analysis.runs))
    if analysis.spread["resampling"].notna().any():
        further.append(tables.spread_table(analysis.spread, main.score))
    if len(analysis.beside):
        beside, agreement = analysis.beside, analysis.agreement
        further.append(
            tables.reference_table(beside, agreement, main.score, reference.CITATION, limit)
        )
    return [answer, *by_size, *further, cells]


def findings_tables(findings: Findings, limit: int) -> list[render.Table]:
    """The best cells, then schedule and b by image size where these vary, then `limit` cells."""
    cells, best, score = findings.cells, findings.best, findings.score
    titles = {"schedule": "Schedule by image size", "b": "Input scale b by image size"}
    by_size = [
        tables.size_table(cells, best, row, score, findings.varied, title)
        for row, title in titles.items()
        if wording.varies(cells[row])
    ]
    answer = tables.best_table(cells, best, score, findings.varied, findings.sizes)
    every = tables.cells_table(cells, best, score, findings.varied, limit)
    return [answer, *by_size, every]


def b_panels(findings: Findings) -> list[Panel]:
    """What the figures of score against b show.

    Where one schedule was swept, one figure has a line per image size. Else each image size has a
    figure with a line per schedule, the best ones. The cells of a line differ in b alone: of other
    settings, the best.
    """
    order = ranking.scored(findings.cells, findings.score)
    order = order.drop_duplicates(["resolution", "schedule", "b"])
    by_size = order.sort_values("resolution", kind="stable")
    if not wording.varies(order["b"]):
        return []
    if not wording.varies(order["schedule"]):
        return [(f"{findings.score} against b", by_size, "resolution")]
    panels = []
    for resolution, cells in by_size.groupby("resolution"):
        title = f"{wording.size_text(resolution)}: {findings.score} against b"
        if (count := cells["schedule"].nunique()) > len(COLORS):
            title += f", best {len(COLORS)} of {count} schedules"
        panels.append((title, cells, "schedule"))
    return panels[:SIZES]
