"""Statistics in words: sizes, cells, scores with intervals, ranks, and the best of each size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sched_lab.analysis.statistics.ranking import (
    CELL,
    NO_BASIS,
    SEEDS,
    UNRANKED,
    WITHIN_RUN,
    ranked,
    ranks,
)
from sched_lab.analysis.text.render import DASH, DOUBLE_DAGGER, TIMES
from sched_lab.sweep import baselines
from sched_lab.trainers import schedules
from sched_lab.trainers.results import State
from sched_lab.trainers.scoring.metrics import meaningful_samples
from sched_lab.trainers.spec import DETECTORS

TIES_NAMED = 6  # at most, of one answer
NOT_CONFIRMED = "no cell came through the screening"
WAY = "of the way from untrained networks to real images"
# Half of the images named rightly: features that miss more tell classes of images badly apart
DOUBTFUL_ACCURACY = 0.5


@dataclass(frozen=True)
class Answer:
    """The best cell at one image size, in words; no settings where no trial has a score."""

    size: str
    settings: tuple[tuple[str, str], ...]
    """Name and value of each setting that varies."""
    score: str = DASH
    way: str = ""
    """How far it is from untrained networks to real images, where that is known."""
    basis: str = ""
    """What the interval lies over: 3 seeds, or the samples of one run."""
    rank: str = DASH
    ties: tuple[str, ...] = ()
    """The cells that can't be told from it, the best first, at most `TIES_NAMED`."""
    more_ties: int = 0
    """How many further ties there are."""
    certain: str = ""
    """What replaces the ties where all other cells were told from it."""
    remarks: tuple[str, ...] = ()


def size_text(resolution: Any) -> str:
    """An image size as it is written: 32×32."""
    return f"{resolution:g}{TIMES}{resolution:g}"


def schedule_names(frame: pd.DataFrame) -> pd.Series[str]:
    """Each row's schedule, without the image size where that is the row's own.

    So shifted_cosine@64 is one schedule at all sizes.
    """
    pairs = zip(frame["schedule"], frame["resolution"], strict=True)
    return pd.Series([_schedule_name(*pair) for pair in pairs], frame.index)


def _schedule_name(notation: str, resolution: int) -> str:
    try:
        schedule = schedules.parse(notation)
    except schedules.ScheduleError:  # of a plug-in that is not installed here
        return notation
    own_size = ("size", float(resolution))
    params = tuple(param for param in schedule.params if param != own_size)
    return str(schedules.Schedule(schedule.kind, params))


def cell_name(cell: Mapping[str, Any], columns: Iterable[str]) -> str:
    """The settings of a cell in words: linear · b 0.5 · train.lr 0.001."""
    return " · ".join(
        setting_text(cell[name]) if name == "schedule" else f"{name} {setting_text(cell[name])}"
        for name in columns
    )


def rows_of(frame: pd.DataFrame) -> Iterable[tuple[Any, dict[Any, Any]]]:
    """Each row's index and its values by column; far faster than `iterrows`."""
    return zip(frame.index, frame.to_dict("records"), strict=True)


def decimal_places(cells: pd.DataFrame) -> int:
    """How many decimals show the smallest mean with three significant digits, in all a report."""
    means = cells["mean"].abs()
    smallest = means[means > 0].min()
    return 2 if math.isnan(smallest) else min(9, max(0, 2 - math.floor(math.log10(smallest))))


def score_text(cell: Mapping[str, Any], decimals: int) -> str:
    """Mean ± half-width over seeds; — for a missing cell, else the state of one without a score.

    For one seed the half-width is `within_run`, where that is known, with a double dagger.
    """
    if not cell["n"]:
        return DASH if cell["state"] == State.MISSING else str(cell["state"])
    mean, half = f"{cell['mean']:.{decimals}f}", _half_width(cell)
    if math.isnan(half):
        return mean
    return f"{mean} ± {number_text(half, decimals)}{DOUBLE_DAGGER if cell['n'] == 1 else ''}"


def _half_width(cell: Mapping[str, Any]) -> float:
    return float(cell["half_width"] if cell["n"] > 1 else cell.get("within_run", math.nan))


def basis_text(cell: Mapping[str, Any]) -> str:
    """What the mean and the interval of `score_text` lie over."""
    if cell["n"] > 1:
        return f"{cell['n']} seeds"
    if math.isnan(_half_width(cell)):
        return "one seed: no interval"
    return "one seed: within-run interval by jackknife, not over seeds"


def rank_text(cell: Mapping[str, Any]) -> str:
    """The ranks that a cell may have within its image size: 1–3, 2 alone, or — if not known.

    Those of a single run rest on the error within it, where that is known, with a double dagger.
    """
    low, high = cell.get("rank_low", math.nan), cell.get("rank_high", math.nan)
    if pd.isna(low) or pd.isna(high):
        return DASH
    mark = DOUBLE_DAGGER if cell.get("n") == 1 and not math.isnan(_half_width(cell)) else ""
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
    decimals = decimal_places(cells)
    leaders = {leader["resolution"]: leader for _, leader in rows_of(best)}
    texts = []
    for resolution in sorted({*cells["resolution"], *sizes}):
        at_size = cells[cells["resolution"] == resolution]
        if resolution in leaders:
            texts.append(_answer(leaders[resolution], at_size, score, varied, decimals))
        else:
            why = none_ranks(at_size) if len(at_size) else NOT_CONFIRMED
            why = f"no best: {why}" if at_size["n"].any() else why
            texts.append(Answer(size_text(resolution), (), remarks=(why,)))
    return texts


def none_ranks(at_size: pd.DataFrame) -> str:
    """Why no cell of an image size ranks; empty where one does."""
    if ranks(at_size).any():
        return ""
    scored = at_size[at_size["n"] > 0]
    return baselines.in_words(scored["shortfall"]) if len(scored) else "no trial has a score"


def warnings(cells: pd.DataFrame, runs: pd.DataFrame, score: str) -> list[str]:
    """What a reader must know before all else: sizes where nothing is best, doubtful scores.

    `cells` are the rows of `summarize` of these runs by this score.
    """
    scored = cells[cells["n"] > 0]
    noted = {size: why for size, part in scored.groupby("resolution") if (why := none_ranks(part))}
    notes = [f"No cell is best at {size_text(size)}: {why}." for size, why in noted.items()]
    blind = {size for size in noted if _all_blind(scored[scored["resolution"] == size])}
    if blind:
        notes.append(
            f"Draw more samples{_now(runs, blind, 'sample.count')}, give more real images or use"
            " another detector (score.detector)."
        )
    if trained := noted.keys() - blind:
        notes.append(
            f"Train for more steps{_now(runs, trained, 'train.steps')} or at another train.lr, and"
            " look at the samples before anything else."
        )
    enough = enough_samples(score)
    counts = runs.get("sample.count", pd.Series(math.nan, runs.index))
    few = runs[counts < enough]
    if len(scored) and len(few):
        notes.append(
            f"Scores of so few samples mean little{_now(few, few['resolution'], 'sample.count')}:"
            f" draw {enough:,} or more for {score}."
        )
    accuracy = scored["detector_accuracy"].min()
    if accuracy < DOUBTFUL_ACCURACY:
        notes.append(
            f"These scores mean little: the detector is right on {percent(accuracy)} of held-out"
            " images. Look at the labels, or use another detector (score.detector)."
        )
    if (unknown := scored["untrained"].isna()).any():
        of = "" if unknown.all() else f" of {unknown.sum()} of {len(scored)} cells"
        notes.append(
            f"How untrained networks{of} score is not known: trials of earlier versions did not"
            " measure it. What is called best may draw noise."
        )
    return notes


def enough_samples(score: str) -> int:
    """From how many samples a score means something; 0 for one of a plug-in not installed here."""
    metric, _, detector = score.partition("_")
    try:
        dimension = DETECTORS.member(detector or "inception").dimension
    except ValueError:
        return 0
    return meaningful_samples(metric, dimension)


def _all_blind(at_size: pd.DataFrame) -> bool:
    return bool((at_size["shortfall"] == baselines.Shortfall.BLIND).all())


def _now(runs: pd.DataFrame, sizes: Iterable[Any], setting: str) -> str:
    """What a setting is in the runs of some sizes, in words."""
    values = runs.loc[runs["resolution"].isin(list(sizes))].get(setting, pd.Series(dtype=float))
    now = ", ".join(f"{value:g}" for value in sorted(values.dropna().unique()))
    return f" ({setting} is {now})" if now else ""


def percent(share: float) -> str:
    """A share in per cent; — for NaN."""
    return DASH if math.isnan(share) else f"{round(100 * share)} %".replace("-", "−")


def _answer(
    leader: Mapping[str, Any],
    at_size: pd.DataFrame,
    score: str,
    varied: Sequence[str],
    decimals: int,
) -> Answer:
    """The row of `best_cells` in words; `at_size` are the cells of its image size."""
    # Where nothing can be compared, a remark says that all others tie.
    named = [] if leader["basis"] == NO_BASIS else list(leader["ties"])
    tied = ranked(at_size.loc[named], score)
    rivals = int(ranks(at_size).sum()) - 1
    certain = "Better than " + ("the other." if rivals == 1 else f"all {rivals} others.")
    return Answer(
        size=size_text(leader["resolution"]),
        settings=tuple((name, setting_text(leader[name])) for name in varied),
        score=score_text(leader, decimals),
        way="" if math.isnan(leader["closed"]) else f"{percent(leader['closed'])} {WAY}",
        basis=basis_text(leader),
        rank=f"{rank_text(leader)} of {rivals + 1}",
        ties=tuple(cell_name(cell, varied) for _, cell in rows_of(tied[:TIES_NAMED])),
        more_ties=max(0, len(tied) - TIES_NAMED),
        certain="" if leader["ties"] or leader["basis"] != SEEDS else certain,
        remarks=(
            *_why_tied(leader, tied, varied, decimals),
            *remarks(leader),
            *_not_ranked(at_size),
        ),
    )


def _why_tied(
    leader: Mapping[str, Any], tied: pd.DataFrame, varied: Sequence[str], decimals: int
) -> list[str]:
    """Why a cell may tie though its mean lies beyond the best one's interval, of the first such.

    The interval says how far the best cell's own seeds lie apart, the comparison how far the
    differences of the two do.
    """
    if "difference" not in tied:
        return []
    for _, cell in rows_of(tied[tied["difference"].abs() > leader["half_width"]]):
        apart, half = abs(cell["difference"]), cell["difference_half_width"]
        why = (
            f"{cell_name(cell, varied)} ties though it lies outside this interval, which is of the"
            f" best cell's own seeds: seed by seed the two differ by {number_text(apart, decimals)}"
            f" ± {number_text(half, decimals)}"
        )
        if half < apart:
            why += f", but one of so many cells may by chance (p = {cell['p_adjusted']:.2g})"
        return [why]
    return []


def _not_ranked(at_size: pd.DataFrame) -> list[str]:
    short = at_size.loc[(at_size["n"] > 0) & ~ranks(at_size), "shortfall"]
    counts = short.value_counts(sort=False).items()
    return [f"{count} not ranked: {why}" for why, count in counts]


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
    """The settings beside resolution that take several values; schedule and b where none does."""
    varied = [name for name in columns if name != "resolution" and varies(cells[name])]
    return varied or [name for name in CELL if name != "resolution"]


def number_text(value: float, decimals: int) -> str:
    """The value with so many decimals, or with one digit where these would show 0; — for NaN."""
    if math.isnan(value):
        return DASH
    shown = value == 0 or abs(value) >= 0.5 * 10**-decimals
    return f"{value:.{decimals}f}" if shown else f"{value:.1g}"


def setting_text(value: object) -> str:
    """A setting's value as it is written; a missing one is none."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
