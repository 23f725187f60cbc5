"""Statistics laid out as tables. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from sched_lab.analysis.statistics.ranking import CONFIDENCE, ranked
from sched_lab.analysis.text.render import DAGGER, DASH, DOUBLE_DAGGER, Entry, Table
from sched_lab.analysis.text.wording import (
    Answer,
    answers,
    cell_name,
    number,
    places,
    plain,
    rank_text,
    rows_of,
    score_text,
    size,
    varies,
)
from sched_lab.names import FINISHED, SECONDS, higher_is_better

TOTAL = f"{SECONDS}total"
MARKS = f"Bold: the best of its size and, with {DAGGER}, those that can't be told from it."


def best_table(
    cells: pd.DataFrame,
    best: pd.DataFrame,
    score: str,
    varied: Sequence[str],
    sizes: Iterable[int] = (),
) -> Table:
    """The answer: the best cell per image size, how sure that is, and what could not be told from
    it.
    """
    rows = [
        (
            Entry(found.size),
            *(
                [Entry(value, best=True) for _, value in found.settings]
                or [Entry(DASH)] * len(varied)
            ),
            Entry(found.score),
            Entry(found.rank),
            Entry("; ".join(filter(None, [found.basis, _tied(found), *found.remarks]))),
        )
        for found in answers(cells, best, score, varied, sizes)
    ]
    return Table(
        "Best per image size",
        _meaning(score, cells.loc[best.index]),
        ("size", *varied, score, "rank", "remarks"),
        tuple(rows),
    )


def _tied(found: Answer) -> str:
    more = f" and {found.more_ties} more" if found.more_ties else ""
    return f"can't be told from {', '.join(found.ties)}{more}" if found.ties else ""


def size_table(
    cells: pd.DataFrame, best: pd.DataFrame, row: str, score: str, varied: Sequence[str], title: str
) -> Table:
    """`row` (schedule or b) down, image size across, as papers have it; each entry the best of the
    cells there.

    The best of each size is in bold, and with a dagger those of its ties that are shown. Where
    other settings vary too, an entry notes those of the cell it shows. Empty where the sweep has no
    such cell.
    """
    free = [name for name in varied if name != row and varies(cells[name])]
    order = pd.concat([ranked(cells, score), cells[cells["n"] == 0]])
    chosen = order.drop_duplicates([row, "resolution"])
    ties = {tie for found in best["ties"] for tie in found}
    usual = _usual_seeds(cells)
    decimals = places(cells)
    entries = {
        (cell[row], cell["resolution"]): Entry(
            score_text(cell, decimals),
            ", ".join(
                ([cell_name(cell, free)] if free and cell["n"] else [])
                + ([f"n = {cell['n']}"] if 0 < cell["n"] != usual else [])
            ),
            best=index in best.index,
            tied=index in ties,
        )
        for index, cell in rows_of(chosen)
    }
    sizes = sorted(cells["resolution"].unique())
    return Table(
        title,
        " ".join(
            [
                _meaning(score, cells, usual),
                *([f"Each at its best {' and '.join(free)}."] if free else []),
                MARKS,
            ]
        ),
        (row, *map(size, sizes)),
        tuple(
            (
                Entry(plain(value)),
                *(entries.get((value, resolution), Entry("")) for resolution in sizes),
            )
            for value in dict.fromkeys(cells[row].sort_values() if row == "b" else cells[row])
        ),
    )


def cells_table(
    cells: pd.DataFrame, best: pd.DataFrame, score: str, varied: Sequence[str], limit: int
) -> Table:
    """The cells of a sweep, each size's best first, with the ranks each may have; no more than
    `limit` rows.
    """
    decimals = places(cells)
    ties = {tie for found in best["ties"] for tie in found}
    order = pd.concat([ranked(cells, score), cells[cells["n"] == 0]])
    place = order.groupby("resolution").cumcount()
    shown = order.loc[place.sort_values(kind="stable").index[:limit]].sort_values(
        "resolution", kind="stable"
    )
    rows = (
        (
            Entry(size(cell["resolution"])),
            *(Entry(plain(cell[name])) for name in varied),
            Entry(score_text(cell, decimals), best=index in best.index, tied=index in ties),
            Entry(rank_text(cell)),
            Entry(number(cell["sd"], decimals)),
            Entry(str(cell["n"])),
        )
        for index, cell in rows_of(shown)
    )
    left = (
        f" The best {len(shown)} of {len(cells)} cells; all are in cells.csv."
        if len(shown) < len(cells)
        else ""
    )
    return Table(
        "Every cell",
        f"{_meaning(score, cells)} Rank: the ranks within its size that the cell may have."
        f" {MARKS}{left}",
        ("size", *varied, score, "rank", "sd", "seeds"),
        tuple(rows),
    )


def fitted_table(fitted: pd.DataFrame, *, staged: bool = False) -> Table:
    """The best b at each image size by the curve of score against log b: the rows of
    `law.best_b`.
    """
    rows = (
        (
            Entry(size(row["resolution"])),
            Entry(row["schedule"]),
            Entry(_significant(row["b"])),
            Entry(DASH if math.isnan(row["low"]) else f"{row['low']:.3g} to {row['high']:.3g}"),
            Entry(str(row["n"])),
            Entry(row["why"]),
        )
        for _, row in rows_of(fitted)
    )
    caption = (
        f"Where a parabola through the scores over log b is best, with its {CONFIDENCE:.0%}"
        " interval over seeds, given that the curve is one."
        + (
            " The seeds of the screening count too: they alone have scores at the other b."
            if staged
            else ""
        )
    )
    return Table(
        "Best b between the values swept",
        caption,
        ("size", "schedule", "b", "interval", "seeds", "remarks"),
        tuple(rows),
    )


def spread_table(spread: pd.DataFrame, score: str) -> Table:
    """How far scores move when a trial is trained again and when it is only sampled again:
    `ranking.spread` by size.
    """
    rows = (
        (
            Entry(size(row["resolution"])),
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
    return Table(
        "Retraining against resampling",
        caption,
        ("size", "retraining", "resampling", "seeds", "scores"),
        tuple(rows),
    )


def reference_table(
    beside: pd.DataFrame, correlation: pd.DataFrame, score: str, source: str, limit: int
) -> Table:
    """The cells that the paper's tables have too, beside theirs: `reference.beside` and its rank
    correlations.
    """
    decimals = places(beside)
    rows = (
        (
            Entry(size(row["resolution"])),
            Entry(row["schedule"]),
            Entry(plain(row["b"])),
            Entry(score_text(row, decimals)),
            Entry(f"{row['rank']:.0f}"),
            Entry(size(row["paper_resolution"])),
            Entry(plain(row["fid"])),
            Entry(f"{row['paper_rank']:.0f}"),
        )
        for _, row in rows_of(beside[:limit])
    )
    agreed = "; ".join(
        f"{size(row['resolution'])} and the paper's {size(row['paper_resolution'])}: Spearman"
        f" {row['spearman']:.2f}, Kendall {row['kendall']:.2f} over {row['n']:.0f} cells"
        for _, row in rows_of(correlation)
        if not math.isnan(row["spearman"])
    )
    left = f" The first {limit} of {len(beside)} rows." if len(beside) > limit else ""
    return Table(
        "Beside the paper's tables",
        f"Values of two kinds: compare ranks, not numbers. {agreed + '. ' if agreed else ''}Source:"
        f" {source}{left}",
        ("size", "schedule", "b", score, "rank", "paper's size", "its FID", "its rank"),
        tuple(rows),
    )


def _significant(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.3g}"


def failures_table(runs: pd.DataFrame) -> Table:
    """How many trials did not finish, by state and kind of failure."""
    lost = runs[runs["state"] != FINISHED]
    kinds = lost["failure"].fillna(DASH) if "failure" in lost else pd.Series(DASH, lost.index)
    rows = (
        (Entry(str(state)), Entry(str(kind)), Entry(str(count)))
        for (state, kind), count in _counts(lost["state"], kinds)
    )
    return Table(
        "Trials that did not finish, by kind of failure",
        "",
        ("state", "failure", "trials"),
        tuple(rows),
    )


def _counts(*by: pd.Series) -> Iterable[tuple[Any, int]]:
    return (
        pd.Series(1, by[0].index)
        .groupby(list(by), sort=False)
        .sum()
        .sort_values(ascending=False)
        .items()
    )


def costs_table(runs: pd.DataFrame) -> Table:
    """What trials cost at each image size: hours in all, seconds of one trial by part."""
    parts = [str(name) for name in runs if str(name).startswith(SECONDS) and str(name) != TOTAL]
    ran = runs[runs[TOTAL].notna()] if TOTAL in runs else runs[:0]
    rows = (
        (
            Entry(size(resolution)),
            Entry(str(len(trials))),
            Entry(f"{trials[TOTAL].sum() / 3600:.3g}"),
            *(Entry(_significant(trials[name].mean())) for name in (TOTAL, *parts)),
        )
        for resolution, trials in ran.groupby("resolution")
    )
    header = (
        "size",
        "trials",
        "hours",
        "s a trial",
        *(name.removeprefix(SECONDS) for name in parts),
    )
    return Table("Cost by image size", "", header, tuple(rows))


def unfinished_table(runs: pd.DataFrame, varied: Sequence[str], limit: int) -> Table:
    """The trials that did not finish, and why; no more than `limit` rows."""
    varied = [*varied, "seed"]
    lost = runs[runs["state"] != FINISHED]
    rows = (
        (
            Entry(size(trial["resolution"])),
            *(Entry(plain(trial[name])) for name in varied),
            Entry(trial["state"]),
            Entry(DASH if pd.isna(trial["reason"]) else trial["reason"]),
            Entry(trial["key"]),
        )
        for _, trial in rows_of(lost[:limit])
    )
    return Table(
        "Trials that did not finish", "", ("size", *varied, "state", "reason", "trial"), tuple(rows)
    )


def _meaning(score: str, cells: pd.DataFrame, seeds: int | None = None) -> str:
    """What the entries are; `seeds` is how many most of them lie over."""
    scored = cells[cells["n"] > 0]
    spread = "mean over 1 seed"
    if (scored["n"] > 1).any() or scored.empty:
        over = f"{seeds} seeds" if seeds and seeds > 1 else "seeds"
        spread = f"mean ± half-width of the {CONFIDENCE:.0%} t-interval over {over}"
    within = (
        f" {DOUBLE_DAGGER}: one seed; how far other samples of that same run may lie, by jackknife,"
        " not over seeds."
        if scored.loc[scored["n"] == 1, "within_run"].notna().any()
        else ""
    )
    return (
        f"{score}, {'higher' if higher_is_better(score) else 'lower'} is better: {spread}.{within}"
    )


def _usual_seeds(cells: pd.DataFrame) -> int | None:
    counts = cells.loc[cells["n"] > 0, "n"]
    return None if counts.empty else int(counts.mode().iloc[0])
