"""Statistics in words and laid out as tables. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.runs import MISSING
from analysis.stats import CELL, CONFIDENCE, NO_BASIS, SEEDS, UNRANKED, WITHIN_RUN, ranked
from analysis.tables import DAGGER, DASH, DOUBLE_DAGGER, TIMES, Entry, Table
from sched_lab.names import FINISHED, SECONDS, higher_is_better
from trainers import schedules

TIES_NAMED = 6
TOTAL = f"{SECONDS}total"
MARKS = f"Bold: the best of its size and, with {DAGGER}, those that can't be told from it."


@dataclass(frozen=True)
class Answer:
    """The best cell at one image size, in words; no settings where no trial has a score."""

    size: str
    settings: tuple[tuple[str, str], ...]
    """Name and value of each setting that varies."""
    score: str = DASH
    basis: str = ""
    """What the interval lies over: 3 seeds, or the samples of one run."""
    rank: str = DASH
    ties: tuple[str, ...] = ()
    """The cells that can't be told from it, the best first, at most `TIES_NAMED`."""
    more_ties: int = 0
    """How many more there are."""
    certain: str = ""
    """What is said in place of ties where all other cells were told from it."""
    remarks: tuple[str, ...] = ()


def size(resolution: Any) -> str:
    """An image size, a whole number, as it is written: 32×32."""
    return f"{resolution:g}{TIMES}{resolution:g}"


def schedule_names(frame: pd.DataFrame) -> pd.Series[str]:
    """Each row's schedule, without the image size where it is the row's own: shifted_cosine@64 is one at all sizes."""
    return pd.Series(
        [_schedule_name(*pair) for pair in zip(frame["schedule"], frame["resolution"], strict=True)], frame.index
    )


def _schedule_name(notation: str, resolution: int) -> str:
    try:
        schedule = schedules.parse(notation)
    except schedules.ScheduleError:  # a plug-in's schedule, read where the plug-in is not installed
        return notation
    return str(schedules.Schedule(schedule.kind, tuple(p for p in schedule.params if p != ("size", float(resolution)))))


def cell_name(cell: Mapping[str, Any], columns: Iterable[str]) -> str:
    """The settings of a cell in words: linear · b 0.5 · train.lr 0.001."""
    return " · ".join(plain(cell[name]) if name == "schedule" else f"{name} {plain(cell[name])}" for name in columns)


def rows_of(frame: pd.DataFrame) -> Iterable[tuple[Any, dict[Any, Any]]]:
    """Each row's index and its values by column; far faster than Series of them."""
    return zip(frame.index, frame.to_dict("records"), strict=True)


def places(cells: pd.DataFrame) -> int:
    """Decimals that show the smallest mean with three significant digits, the same for a whole report."""
    means = cells["mean"].abs()
    smallest = means[means > 0].min()
    return 2 if math.isnan(smallest) else min(9, max(0, 2 - math.floor(math.log10(smallest))))


def score_text(cell: Mapping[str, Any], decimals: int) -> str:
    """Mean ± half-width over seeds; — for a missing cell, else the state of one without a score.

    For one seed the half-width is the one within the run, from its samples, where that is known (`within_run`): it has
    a double dagger.
    """
    if not cell["n"]:
        return DASH if cell["state"] == MISSING else str(cell["state"])
    mean, half = f"{cell['mean']:.{decimals}f}", _half(cell)
    return mean if math.isnan(half) else f"{mean} ± {_number(half, decimals)}{DOUBLE_DAGGER if cell['n'] == 1 else ''}"


def _half(cell: Mapping[str, Any]) -> float:
    return float(cell["half_width"] if cell["n"] > 1 else cell.get("within_run", math.nan))


def basis(cell: Mapping[str, Any]) -> str:
    """What the mean and the interval of `score_text` lie over."""
    if cell["n"] > 1:
        return f"{cell['n']} seeds"
    return (
        "one seed: no interval"
        if math.isnan(_half(cell))
        else "one seed: within-run interval by jackknife, not over seeds"
    )


def rank_text(cell: Mapping[str, Any]) -> str:
    """The ranks that a cell may have within its image size: 1-3, or 2 where no other is possible; — if not known."""
    low, high = cell.get("rank_low", math.nan), cell.get("rank_high", math.nan)
    if pd.isna(low) or pd.isna(high):
        return DASH
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


def answers(
    cells: pd.DataFrame, best: pd.DataFrame, score: str, varied: Sequence[str], sizes: Iterable[int] = ()
) -> list[Answer]:
    """The best cell of each image size, those without one and `sizes` included.

    Here and below, `varied` are the settings that a cell is named by: see `varied_columns`.
    """
    decimals = places(cells)
    found = []
    for resolution in sorted({*cells["resolution"], *sizes}):
        leaders, at_size = best[best["resolution"] == resolution], cells[cells["resolution"] == resolution]
        if leaders.empty:
            nothing = "no trial has a score" if len(at_size) else "no cell came through the screening"
            found.append(Answer(size(resolution), (), remarks=(nothing,)))
            continue
        (_, leader), *_ = rows_of(leaders)
        named = [] if leader["basis"] == NO_BASIS else list(leader["ties"])  # a remark says that it is all of them
        tied = ranked(at_size.loc[named], score)
        rivals = int((at_size["n"] > 0).sum()) - 1
        found.append(
            Answer(
                size=size(leader["resolution"]),
                settings=tuple((name, plain(leader[name])) for name in varied),
                score=score_text(leader, decimals),
                basis=basis(leader),
                rank=f"{rank_text(leader)} of {rivals + 1}",
                ties=tuple(cell_name(cell, varied) for _, cell in rows_of(tied[:TIES_NAMED])),
                more_ties=max(0, len(tied) - TIES_NAMED),
                certain=""
                if leader["ties"] or leader["basis"] != SEEDS
                else "Better than " + ("the other." if rivals == 1 else f"all {rivals} others."),
                remarks=tuple(remarks(leader)),
            )
        )
    return found


def best_table(
    cells: pd.DataFrame, best: pd.DataFrame, score: str, varied: Sequence[str], sizes: Iterable[int] = ()
) -> Table:
    """The answer: the best cell per image size, how sure that is, and what could not be told from it."""
    rows = [
        (
            Entry(found.size),
            *(Entry(value, best=True) for _, value in found.settings or [("", DASH)] * len(varied)),
            Entry(found.score),
            Entry(found.rank),
            Entry("; ".join(filter(None, [found.basis, _tied(found), *found.remarks]))),
        )
        for found in answers(cells, best, score, varied, sizes)
    ]
    return Table(
        "Best per image size", _meaning(score, cells), ("size", *varied, score, "rank", "remarks"), tuple(rows)
    )


def _tied(found: Answer) -> str:
    more = f" and {found.more_ties} more" if found.more_ties else ""
    return f"can't be told from {', '.join(found.ties)}{more}" if found.ties else ""


def remarks(best: Mapping[str, Any]) -> list[str]:
    """What a reader must know before trusting a row of `best_cells`, beside its ties."""
    notes = []
    if best["edge"]:
        beyond = "below" if best["edge"] == "lowest" else "above"
        notes.append(f"{best['edge']} b that was scored: the optimum may lie {beyond} {best['b']:g}")
    if best["untested"] and best["basis"] == NO_BASIS:
        others = "the other" if best["untested"] == 1 else f"the {best['untested']} others"
        notes.append(f"nothing tells {others} from it: that takes two seeds that both have")
    elif best["untested"]:
        notes.append(f"{best['untested']} of these share fewer than two seeds with it and could not be compared")
    if best["basis"] == WITHIN_RUN:
        notes.append("told from others by the error within runs, which is smaller than that of training again")
    lost = sum(best[state] for state in UNRANKED)
    if lost:
        notes.append(f"{lost} of its trials did not finish")
    return notes


def varies(values: pd.Series) -> bool:
    """Whether a column holds several values; missing is one."""
    return len(values.drop_duplicates()) > 1


def varied_columns(cells: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The settings beside resolution that take several values; b and schedule are named even when nothing varies."""
    varied = [name for name in columns if name != "resolution" and varies(cells[name])]
    return varied or [name for name in CELL if name != "resolution"]


def size_table(
    cells: pd.DataFrame, best: pd.DataFrame, row: str, score: str, varied: Sequence[str], title: str
) -> Table:
    """`row` (schedule or b) down, image size across, as papers have it; each entry the best of the cells there.

    The best of each size is in bold, and with a dagger those of its ties that are shown. Where other settings vary too,
    an entry notes those of the cell it shows. Empty where the sweep has no such cell.
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
            [_meaning(score, cells, usual), *([f"Each at its best {' and '.join(free)}."] if free else []), MARKS]
        ),
        (row, *map(size, sizes)),
        tuple(
            (Entry(plain(value)), *(entries.get((value, resolution), Entry("")) for resolution in sizes))
            for value in dict.fromkeys(cells[row].sort_values() if row == "b" else cells[row])
        ),
    )


def cells_table(cells: pd.DataFrame, best: pd.DataFrame, score: str, varied: Sequence[str], limit: int) -> Table:
    """The cells of a sweep, each size's best first, with the ranks each may have; no more than `limit` rows."""
    decimals = places(cells)
    ties = {tie for found in best["ties"] for tie in found}
    order = pd.concat([ranked(cells, score), cells[cells["n"] == 0]])
    place = order.groupby("resolution").cumcount()
    shown = order.loc[place.sort_values(kind="stable").index[:limit]].sort_values("resolution", kind="stable")
    rows = (
        (
            Entry(size(cell["resolution"])),
            *(Entry(plain(cell[name])) for name in varied),
            Entry(score_text(cell, decimals), best=index in best.index, tied=index in ties),
            Entry(rank_text(cell)),
            Entry(_number(cell["sd"], decimals)),
            Entry(str(cell["n"])),
        )
        for index, cell in rows_of(shown)
    )
    left = f" The best {len(shown)} of {len(cells)} cells; all are in cells.csv." if len(shown) < len(cells) else ""
    return Table(
        "Every cell",
        f"{_meaning(score, cells)} Rank: the ranks within its size that the cell may have. {MARKS}{left}",
        ("size", *varied, score, "rank", "sd", "seeds"),
        tuple(rows),
    )


def fitted_table(fitted: pd.DataFrame) -> Table:
    """The best b at each image size by the curve of score against log b: the rows of `law.best_b`."""
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
        f"Where a parabola through the scores over log b is best, with its {CONFIDENCE:.0%} interval over seeds, given "
        "that the curve is one."
    )
    return Table(
        "Best b between the values swept",
        caption,
        ("size", "schedule", "b", "interval", "seeds", "remarks"),
        tuple(rows),
    )


def spread_table(spread: pd.DataFrame, score: str) -> Table:
    """How far scores move when a trial is trained again and when it is only sampled again: `stats.spread` by size."""
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
        f"Standard deviations of {score} within a cell: over training seeds, and over sampling seeds of one training."
    )
    return Table(
        "Retraining against resampling", caption, ("size", "retraining", "resampling", "seeds", "scores"), tuple(rows)
    )


def reference_table(beside: pd.DataFrame, correlation: pd.DataFrame, score: str, source: str, limit: int) -> Table:
    """The cells that the paper's tables have too, beside theirs: `reference.beside` and its rank correlations."""
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
        f"{size(row['resolution'])} and the paper's {size(row['paper_resolution'])}: Spearman {row['spearman']:.2f}, "
        f"Kendall {row['kendall']:.2f} over {row['n']:.0f} cells"
        for _, row in rows_of(correlation)
        if not math.isnan(row["spearman"])
    )
    left = f" The first {limit} of {len(beside)} rows." if len(beside) > limit else ""
    return Table(
        "Beside the paper's tables",
        f"Values of two kinds: compare ranks, not numbers. {agreed + '. ' if agreed else ''}Source: {source}{left}",
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
    return Table("How many, and why", "", ("state", "failure", "trials"), tuple(rows))


def _counts(*by: pd.Series) -> Iterable[tuple[Any, int]]:
    return pd.Series(1, by[0].index).groupby(list(by), sort=False).sum().sort_values(ascending=False).items()


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
    header = ("size", "trials", "hours", "s a trial", *(name.removeprefix(SECONDS) for name in parts))
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
    return Table("Trials that did not finish", "", ("size", *varied, "state", "reason", "trial"), tuple(rows))


def _meaning(score: str, cells: pd.DataFrame, seeds: int | None = None) -> str:
    """What the entries are; `seeds` is how many most of them lie over."""
    scored = cells[cells["n"] > 0]
    spread = "mean over 1 seed"
    if (scored["n"] > 1).any() or scored.empty:
        over = f"{seeds} seeds" if seeds and seeds > 1 else "seeds"
        spread = f"mean ± half-width of the {CONFIDENCE:.0%} t-interval over {over}"
    within = (
        f" {DOUBLE_DAGGER}: one seed; how far other samples of that same run may lie, by jackknife, not over seeds."
        if scored.loc[scored["n"] == 1, "within_run"].notna().any()
        else ""
    )
    return f"{score}, {'higher' if higher_is_better(score) else 'lower'} is better: {spread}.{within}"


def _usual_seeds(cells: pd.DataFrame) -> int | None:
    counts = cells.loc[cells["n"] > 0, "n"]
    return None if counts.empty else int(counts.mode().iloc[0])


def _number(value: float, decimals: int) -> str:
    """The value with so many decimals, or, where nothing of it would be left, with one digit."""
    if math.isnan(value):
        return DASH
    return f"{value:.{decimals}f}" if value == 0 or abs(value) >= 0.5 * 10**-decimals else f"{value:.1g}"


def plain(value: object) -> str:
    """A setting's value as it is written; a missing one is none."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
