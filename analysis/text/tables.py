"""Statistics laid out as tables. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from sched_lab.analysis.statistics.ranking import CONFIDENCE, scored
from sched_lab.analysis.text.render import DAGGER, DASH, DOUBLE_DAGGER, Entry, Table
from sched_lab.analysis.text.wording import (
    Answer,
    answers,
    cell_name,
    decimal_places,
    number_text,
    percent,
    rank_text,
    rows_of,
    score_text,
    setting_text,
    size_text,
    varies,
)
from sched_lab.names import SECONDS, higher_is_better
from sched_lab.text import counted
from sched_lab.trainers.results import State

TOTAL = f"{SECONDS}total"
UNRANKED = "not ranked"
MARKS = f"Bold: the best of its size and, with {DAGGER}, those that can't be told from it."


def best_table(
    cells: pd.DataFrame,
    best: pd.DataFrame,
    score: str,
    varied: Sequence[str],
    sizes: Iterable[int] = (),
) -> Table:
    """The answer: the best cell per image size, how sure that is, and what ties with it."""
    unknown = [Entry(DASH)] * len(varied)
    rows = [
        (
            Entry(answer.size),
            *([Entry(value, best=True) for _, value in answer.settings] or unknown),
            Entry(answer.score),
            Entry(answer.rank),
            Entry(
                "; ".join(filter(None, [answer.way, answer.basis, _tied(answer), *answer.remarks]))
            ),
        )
        for answer in answers(cells, best, score, varied, sizes)
    ]
    return Table(
        "Best per image size",
        _meaning(score, cells.loc[best.index] if len(best) else cells),
        ("size", *varied, score, "rank", "remarks"),
        tuple(rows),
    )


def _tied(answer: Answer) -> str:
    more = f" and {answer.more_ties} more" if answer.more_ties else ""
    return f"can't be told from {', '.join(answer.ties)}{more}" if answer.ties else ""


def size_table(
    cells: pd.DataFrame, best: pd.DataFrame, row: str, score: str, varied: Sequence[str], title: str
) -> Table:
    """`row` (schedule or b) down, image size across; each entry is the best of the cells there.

    The best of each size is in bold, and with a dagger its ties. Where other settings vary too, an
    entry notes those of its cell. It is empty where the sweep has no such cell.
    """
    free = [name for name in varied if name != row and varies(cells[name])]
    order = pd.concat([scored(cells, score), cells[cells["n"] == 0]])
    chosen = order.drop_duplicates([row, "resolution"])
    ties: set[int] = set().union(*best["ties"])
    usual, decimals = _usual_seeds(cells), decimal_places(cells)
    entries = {
        (cell[row], cell["resolution"]): Entry(
            score_text(cell, decimals),
            ", ".join(
                ([cell_name(cell, free)] if free and cell["n"] else [])
                + ([f"n = {cell['n']}"] if 0 < cell["n"] != usual else [])
                + ([UNRANKED] if cell["n"] and pd.notna(cell["shortfall"]) else [])
            ),
            best=index in best.index,
            tied=index in ties,
        )
        for index, cell in rows_of(chosen)
    }
    sizes = sorted(cells["resolution"].unique())
    values = dict.fromkeys(cells[row].sort_values() if row == "b" else cells[row])
    rows = (
        (
            Entry(setting_text(value)),
            *(entries.get((value, resolution), Entry("")) for resolution in sizes),
        )
        for value in values
    )
    at_best = f"Each at its best {' and '.join(free)}. " if free else ""
    caption = f"{_meaning(score, cells, usual)} {at_best}{MARKS}"
    if any(UNRANKED in entry.note for entry in entries.values()):
        caption += f" {UNRANKED.capitalize()}: why is in the table of every cell."
    return Table(title, caption, (row, *map(size_text, sizes)), tuple(rows))


def cells_table(
    cells: pd.DataFrame, best: pd.DataFrame, score: str, varied: Sequence[str], limit: int
) -> Table:
    """At most `limit` cells of a sweep, each size's best first, with the ranks each may have."""
    decimals = decimal_places(cells)
    ties: set[int] = set().union(*best["ties"])
    order = pd.concat([scored(cells, score), cells[cells["n"] == 0]])
    place = order.groupby("resolution").cumcount().sort_values(kind="stable")
    shown = order.loc[place.index[:limit]].sort_values("resolution", kind="stable")
    known, short = cells["untrained"].notna().any(), cells["shortfall"].notna().any()
    rows = (
        (
            Entry(size_text(cell["resolution"])),
            *(Entry(setting_text(cell[name])) for name in varied),
            Entry(score_text(cell, decimals), best=index in best.index, tied=index in ties),
            Entry(rank_text(cell)),
            Entry(number_text(cell["sd"], decimals)),
            Entry(str(cell["n"])),
            *(
                Entry(text)
                for text in (
                    _significant(cell["untrained"]),
                    _significant(cell["real"]),
                    percent(cell["closed"]),
                )
                if known
            ),
            *([Entry("" if pd.isna(cell["shortfall"]) else cell["shortfall"])] if short else []),
        )
        for index, cell in rows_of(shown)
    )
    caption = f"{_meaning(score, cells)} Rank: the ranks within its size that the cell may have."
    caption += f" {MARKS}"
    if known:
        caption += (
            " Untrained, real: the same score of the cell's networks before training, and of"
            " held-out real images. Of the way: how far a cell is from the best untrained network"
            " of its size to real images."
        )
    if len(shown) < len(cells):
        caption += f" The best {len(shown)} of {len(cells)} cells; all are in cells.csv."
    header = ("size", *varied, score, "rank", "sd", "seeds")
    header += ("untrained", "real", "of the way") if known else ()
    header += ("remarks",) if short else ()
    return Table("Every cell", caption, header, tuple(rows))


def fitted_table(fitted: pd.DataFrame, *, staged: bool = False) -> Table:
    """The best b at each image size, by the curve of score against log b: rows of `law.best_b`."""
    header = ("size", "schedule", "b", "interval", "seeds", "remarks")
    columns = len(header) if fitted["why"].any() else len(header) - 1
    rows = (
        (
            Entry(size_text(row["resolution"])),
            Entry(row["schedule"]),
            Entry(_significant(row["b"])),
            Entry(DASH if math.isnan(row["low"]) else f"{row['low']:.3g} to {row['high']:.3g}"),
            Entry(str(row["n"])),
            Entry(row["why"]),
        )[:columns]
        for _, row in rows_of(fitted)
    )
    caption = (
        f"Where a parabola through the scores over log b is best, with its {CONFIDENCE * 100:g} %"
        " interval over seeds, given that the curve is one."
    )
    if staged:
        caption += " The seeds of the screening count too: they alone have scores at the other b."
    return Table("Best b between the values swept", caption, header[:columns], tuple(rows))


def spread_table(spread: pd.DataFrame, score: str) -> Table:
    """How far scores move by training again and by sampling again: `ranking.spread` by size."""
    rows = (
        (
            Entry(size_text(row["resolution"])),
            Entry(_significant(row["retraining"])),
            Entry(_significant(row["resampling"])),
            Entry(f"{row['seeds']:.0f}"),
            Entry(f"{row['draws']:.0f}"),
        )
        for _, row in rows_of(spread)
    )
    caption = (
        f"Standard deviations of {score} within a cell: over training seeds, and over sampling"
        " seeds of one training."
    )
    header = ("size", "retraining", "resampling", "seeds", "scores")
    return Table("Retraining against resampling", caption, header, tuple(rows))


def reference_table(
    beside: pd.DataFrame, correlation: pd.DataFrame, score: str, source: str, limit: int
) -> Table:
    """The cells that the paper's tables have too: `reference.beside` and its correlations."""
    decimals = decimal_places(beside)
    rows = (
        (
            Entry(size_text(row["resolution"])),
            Entry(row["schedule"]),
            Entry(setting_text(row["b"])),
            Entry(score_text(row, decimals)),
            Entry(f"{row['rank']:.0f}"),
            Entry(setting_text(row["fid"])),
            Entry(f"{row['paper_rank']:.0f}"),
        )
        for _, row in rows_of(beside[:limit])
    )
    agreed = "; ".join(
        f"{size_text(row['resolution'])}: Spearman {row['spearman']:.2f},"
        f" Kendall {row['kendall']:.2f} over {counted(row['n'], 'cell')}"
        for _, row in rows_of(correlation)
        if not math.isnan(row["spearman"])
    )
    left = f" The first {limit} of {len(beside)} rows." if len(beside) > limit else ""
    caption = "Other images and detectors than the paper's: compare ranks, not numbers."
    caption += f"{f' {agreed}.' if agreed else ''} Source: {source}{left}"
    header = ("size", "schedule", "b", score, "rank", "paper's FID", "its rank")
    return Table("Beside the paper's tables", caption, header, tuple(rows))


def _significant(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.3g}"


def failures_table(runs: pd.DataFrame) -> Table:
    """How many trials did not finish, by state and kind of failure."""
    lost = runs[runs["state"] != State.FINISHED]
    kinds = lost["failure"].fillna(DASH) if "failure" in lost else pd.Series(DASH, lost.index)
    counts: Any = lost.groupby([lost["state"], kinds], sort=False).size()
    rows = (
        (Entry(str(state)), Entry(str(kind)), Entry(str(count)))
        for (state, kind), count in counts.sort_values(ascending=False).items()
    )
    title = "Trials that did not finish, by kind of failure"
    return Table(title, "", ("state", "failure", "trials"), tuple(rows))


def costs_table(runs: pd.DataFrame) -> Table:
    """What trials cost at each image size: hours in all, seconds of one trial by part."""
    parts = [str(name) for name in runs if str(name).startswith(SECONDS) and str(name) != TOTAL]
    ran = runs[runs[TOTAL].notna()] if TOTAL in runs else runs[:0]
    rows = (
        (
            Entry(size_text(resolution)),
            Entry(str(len(trials))),
            Entry(f"{trials[TOTAL].sum() / 3600:.3g}"),
            *(Entry(_significant(trials[name].mean())) for name in (TOTAL, *parts)),
        )
        for resolution, trials in ran.groupby("resolution")
    )
    by_part = (name.removeprefix(SECONDS) for name in parts)
    header = ("size", "trials", "hours", "s a trial", *by_part)
    return Table("Cost by image size", "", header, tuple(rows))


def unfinished_table(runs: pd.DataFrame, varied: Sequence[str], limit: int) -> Table:
    """The trials that did not finish, and why; no more than `limit` rows."""
    varied = [*varied, "seed"]
    lost = runs[runs["state"] != State.FINISHED]
    rows = (
        (
            Entry(size_text(trial["resolution"])),
            *(Entry(setting_text(trial[name])) for name in varied),
            Entry(trial["state"]),
            Entry(DASH if pd.isna(trial["reason"]) else trial["reason"]),
            Entry(trial["key"]),
        )
        for _, trial in rows_of(lost[:limit])
    )
    header = ("size", *varied, "state", "reason", "trial")
    return Table("Trials that did not finish", "", header, tuple(rows))


def _meaning(score: str, cells: pd.DataFrame, seeds: int | None = None) -> str:
    """What the entries are; `seeds` is how many most of them lie over."""
    judged = cells[cells["n"] > 0]
    spread = "mean over 1 seed"
    if (judged["n"] > 1).any() or judged.empty:
        over = f"{seeds} seeds" if seeds and seeds > 1 else "seeds"
        spread = f"mean ± half-width of the {CONFIDENCE * 100:g} % t-interval over {over}"
    better = "higher" if higher_is_better(score) else "lower"
    meaning = f"{score}, {better} is better: {spread}."
    if judged.loc[judged["n"] == 1, "within_run"].notna().any():
        meaning += (
            f" {DOUBLE_DAGGER}: one seed; how far other samples of that same run may lie, by"
            " jackknife, not over seeds."
        )
    accuracy = judged["detector_accuracy"]
    low, high = accuracy.min(), accuracy.max()
    if not math.isnan(low):
        span = (
            percent(low) if percent(low) == percent(high) else f"{percent(low)} to {percent(high)}"
        )
        meaning += f" The detector is right on {span} of held-out images."
    return meaning


def _usual_seeds(cells: pd.DataFrame) -> int | None:
    counts = cells.loc[cells["n"] > 0, "n"]
    return None if counts.empty else int(counts.mode().iloc[0])
