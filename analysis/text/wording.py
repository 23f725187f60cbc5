"""Statistics in words: sizes, cells, scores with their intervals, ranks, the best of a size and
what to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sched_lab.analysis.runs import MISSING
from sched_lab.analysis.statistics.ranking import (
    CELL,
    NO_BASIS,
    SEEDS,
    UNRANKED,
    WITHIN_RUN,
    ranked,
)
from sched_lab.analysis.text.render import DASH, DOUBLE_DAGGER, TIMES
from sched_lab.trainers import schedules

TIES_NAMED = 6


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
    """Each row's schedule, without the image size where it is the row's own: shifted_cosine@64 is
    one at all sizes.
    """
    return pd.Series(
        [
            _schedule_name(*pair)
            for pair in zip(frame["schedule"], frame["resolution"], strict=True)
        ],
        frame.index,
    )


def _schedule_name(notation: str, resolution: int) -> str:
    try:
        schedule = schedules.parse(notation)
    except schedules.ScheduleError:  # a plug-in's schedule, read where the plug-in is not installed
        return notation
    return str(
        schedules.Schedule(
            schedule.kind, tuple(p for p in schedule.params if p != ("size", float(resolution)))
        )
    )


def cell_name(cell: Mapping[str, Any], columns: Iterable[str]) -> str:
    """The settings of a cell in words: linear · b 0.5 · train.lr 0.001."""
    return " · ".join(
        plain(cell[name]) if name == "schedule" else f"{name} {plain(cell[name])}"
        for name in columns
    )


def rows_of(frame: pd.DataFrame) -> Iterable[tuple[Any, dict[Any, Any]]]:
    """Each row's index and its values by column; far faster than Series of them."""
    return zip(frame.index, frame.to_dict("records"), strict=True)


def places(cells: pd.DataFrame) -> int:
    """Decimals that show the smallest mean with three significant digits, the same for a whole
    report.
    """
    means = cells["mean"].abs()
    smallest = means[means > 0].min()
    return 2 if math.isnan(smallest) else min(9, max(0, 2 - math.floor(math.log10(smallest))))


def score_text(cell: Mapping[str, Any], decimals: int) -> str:
    """Mean ± half-width over seeds; — for a missing cell, else the state of one without a score.

    For one seed the half-width is the one within the run, from its samples, where that is known
    (`within_run`): it has a double dagger.
    """
    if not cell["n"]:
        return DASH if cell["state"] == MISSING else str(cell["state"])
    mean, half = f"{cell['mean']:.{decimals}f}", _half(cell)
    return (
        mean
        if math.isnan(half)
        else f"{mean} ± {number(half, decimals)}{DOUBLE_DAGGER if cell['n'] == 1 else ''}"
    )


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
    """The ranks that a cell may have within its image size: 1-3, or 2 where no other is possible; —
    if not known.

    Those of a single run have a double dagger where the error within it is known, which they then
    stand on.
    """
    low, high = cell.get("rank_low", math.nan), cell.get("rank_high", math.nan)
    if pd.isna(low) or pd.isna(high):
        return DASH
    mark = DOUBLE_DAGGER if cell.get("n") == 1 and not math.isnan(_half(cell)) else ""
    return (f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}") + mark


def answers(
    cells: pd.DataFrame,
    best: pd.DataFrame,
    score: str,
    varied: Sequence[str],
    sizes: Iterable[int] = (),
) -> list[Answer]:
    """The best cell of each image size, those without one and `sizes` included.

    Here and below, `varied` are the settings that a cell is named by: see `varied_columns`.
    """
    decimals = places(cells)
    found = []
    for resolution in sorted({*cells["resolution"], *sizes}):
        leaders, at_size = (
            best[best["resolution"] == resolution],
            cells[cells["resolution"] == resolution],
        )
        if leaders.empty:
            nothing = (
                "no trial has a score" if len(at_size) else "no cell came through the screening"
            )
            found.append(Answer(size(resolution), (), remarks=(nothing,)))
            continue
        (_, leader), *_ = rows_of(leaders)
        named = (
            [] if leader["basis"] == NO_BASIS else list(leader["ties"])
        )  # a remark says that it is all of them
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
                certain=(
                    ""
                    if leader["ties"] or leader["basis"] != SEEDS
                    else "Better than " + ("the other." if rivals == 1 else f"all {rivals} others.")
                ),
                remarks=tuple(remarks(leader)),
            )
        )
    return found


def remarks(best: Mapping[str, Any]) -> list[str]:
    """What a reader must know before trusting a row of `best_cells`, beside its ties."""
    notes = []
    if best["edge"]:
        beyond = "below" if best["edge"] == "lowest" else "above"
        notes.append(
            f"{best['edge']} b that was scored: the optimum may lie {beyond} {best['b']:g}"
        )
    if best["untested"] and best["basis"] == NO_BASIS:
        others = "the other" if best["untested"] == 1 else f"the {best['untested']} others"
        notes.append(f"{others} cannot be compared with it: fewer than two seeds in common")
    elif best["untested"]:
        notes.append(
            f"{best['untested']} of these cannot be compared with it: fewer than two seeds in"
            " common"
        )
    if best["basis"] == WITHIN_RUN:
        notes.append(
            "compared by the errors within single runs: training again may move scores further"
        )
    if best["n"] == 2 and len(best["ties"]):
        notes.append("two seeds: intervals are wide; three or more tell much more")
    lost = sum(best[state] for state in UNRANKED)
    if lost:
        notes.append(f"{lost} of its trials did not finish")
    return notes


def varies(values: pd.Series) -> bool:
    """Whether a column holds several values; missing is one."""
    return len(values.drop_duplicates()) > 1


def varied_columns(cells: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The settings beside resolution that take several values; b and schedule are named even when
    nothing varies.
    """
    varied = [name for name in columns if name != "resolution" and varies(cells[name])]
    return varied or [name for name in CELL if name != "resolution"]


def number(value: float, decimals: int) -> str:
    """The value with so many decimals, or, where nothing of it would be left, with one digit."""
    if math.isnan(value):
        return DASH
    return (
        f"{value:.{decimals}f}"
        if value == 0 or abs(value) >= 0.5 * 10**-decimals
        else f"{value:.1g}"
    )


def plain(value: object) -> str:
    """A setting's value as it is written; a missing one is none."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
