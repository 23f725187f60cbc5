"""What the scores say: means, intervals, the best cell per image size and what cannot be told from
it, ranks, spread.

A cell is everything that was set except the seeds. Only trials that finished with a finite score
count; a cell without one is never ranked. Error bars lie over training seeds: retraining moves a
Fréchet distance more than resampling does. Hand in runs whose scores compare: one population of
`comparisons.set_apart`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sched_lab.analysis.runs import MISSING
from sched_lab.analysis.statistics.comparisons import (
    Cells,
    beaten,
    differences,
    holm,
    splitting,
)
from sched_lab.names import FAILED, FINISHED, JACKKNIFE, RUNNING, STOPPED, higher_is_better
from sched_lab.trainers.plugins import nearest
from sched_lab.trainers.spec import JACKKNIFE_GROUPS

CONFIDENCE = 0.95
CELL = ("resolution", "schedule", "b")
REPLICATES = ("seed", "sample.seed")
UNRANKED = (FAILED, STOPPED, RUNNING, MISSING)
STAGE, CONFIRM = "stage", "confirm"
SEEDS, WITHIN_RUN, NO_BASIS = "seeds", "jackknife", "none"
"""What a comparison rests on: differences over shared seeds, errors within single runs, nothing."""


def half_width(n: ArrayLike, sd: ArrayLike) -> NDArray[np.float64]:
    """Half the width of the 95 % t-interval of a mean of n values with standard deviation sd; NaN
    where n < 2.
    """
    n, sd = np.asarray(n, dtype=float), np.asarray(sd, dtype=float)
    several = np.where(n >= 2, n, np.nan)
    return _half_width(several - 1, sd / np.sqrt(several))


def _half_width(df: ArrayLike, error: ArrayLike) -> NDArray[np.float64]:
    from scipy.special import stdtrit

    return np.asarray(stdtrit(df, (1 + CONFIDENCE) / 2) * error)


def confirmed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that are ranked: of a sweep in two stages those that confirm, once there are any.

    What won the screening has won by luck too: its score there is too good.
    """
    confirming = (
        runs[STAGE] == CONFIRM if STAGE in runs else pd.Series(data=False, index=runs.index)
    )
    return runs[confirming] if confirming.any() else runs


def cell_columns(runs: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """The fewest settings that tell the cells apart: resolution, schedule, b, and each one that
    splits them further.
    """
    return splitting(runs, CELL, [name for name in settings if name not in REPLICATES])


def summarize(runs: pd.DataFrame, score: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """One row per cell: `by`; n, mean, sd, half_width of `score` over training seeds; within_run,
    level, and states.

    Several sampling seeds of one training seed are averaged first. `within_run` is the half-width
    of a 95 % interval from the run's own jackknife, for a cell with one training seed: how far
    other samples of the same network may lie, not other networks. `level` is what cells are ranked
    by: the mean, less what the seeds that a cell has and others lack add to it. `failed`,
    `stopped`, `running` and `missing` count trials; `state` is finished when any trial has a score,
    else the gravest state found. sd and half_width are NaN for n < 2, within_run for n other than
    1, mean for n = 0. Raises ValueError when `by` leaves two trials with the same seeds in a cell.
    """
    by = list(by)
    trials, runs = _trials(runs, score, by), confirmed(runs)
    groups = (
        runs[by]
        .assign(**{state: runs["state"] == state for state in UNRANKED})
        .groupby(by, dropna=False)
    )
    lost = groups[list(UNRANKED)].sum().reset_index()
    cells = _cells(trials, len(lost))
    cells["within_run"] = _half_width(JACKKNIFE_GROUPS - 1, cells.pop("error"))
    cells = pd.concat([lost[by], cells, lost[list(UNRANKED)]], axis=1)
    cells["level"] = _levels(trials, cells)
    found = [cells[state] > 0 for state in UNRANKED]
    cells["state"] = np.select([cells["n"] > 0, *found], [FINISHED, *UNRANKED], "no score")
    return cells


def _trials(runs: pd.DataFrame, score: str, by: Sequence[str]) -> pd.DataFrame:
    """One row per trial with a score: `cell`, its row in `summarize`; seed, draw (the sampling
    seed), score, variance.

    `variance` is the square of the score's standard error within the run, NaN where that is not
    known.
    """
    if score not in runs:
        raise ValueError(
            f"no metric {score!r} in these runs{nearest(score, map(str, runs.columns))}"
        )
    runs = confirmed(runs)
    if runs.duplicated([*by, *(name for name in REPLICATES if name in runs)]).any():
        raise ValueError(
            f"cells told apart by {', '.join(by)} hold several trials of one seed: name more"
            " settings"
        )
    error = runs.get(f"{JACKKNIFE}{score}", pd.Series(np.nan, runs.index))
    trials = pd.DataFrame(
        {
            "cell": runs.groupby(list(by), dropna=False).ngroup(),
            "seed": runs["seed"],
            "draw": runs.get("sample.seed", pd.Series(0, runs.index)),
            "score": runs[score].astype(float),
            "variance": error.astype(float) ** 2,
        }
    )
    return trials[(runs["state"] == FINISHED) & (trials["score"].abs() < np.inf)]


def _by_seed(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and training seed: the mean score over sampling seeds, and the variance of
    that.
    """
    groups = trials.groupby(["cell", "seed"])
    mean = groups[["score", "variance"]].mean()
    return mean.assign(variance=mean["variance"] / groups.size()).reset_index()


def _levels(trials: pd.DataFrame, cells: pd.DataFrame) -> pd.Series[float]:
    """What a cell adds beside its seeds, at each resolution, by least squares; its mean where no
    seed is missing.

    A mean over the lucky seeds alone is no better score. Cells that share no seeds, not even
    through others, keep their means.
    """
    seeds = _by_seed(trials).merge(cells["resolution"], left_on="cell", right_index=True)
    at = seeds.groupby("resolution")
    if (at.size() == at["cell"].nunique() * at["seed"].nunique()).all():
        return cells["mean"]
    score, seed = seeds["score"], seeds.groupby(["resolution", "seed"]).ngroup()
    effect = pd.Series(0.0, seeds.index)
    for _ in range(1000):
        level = (score - effect).groupby(seeds["cell"]).transform("mean")
        before, effect = effect, (score - level).groupby(seed).transform("mean")
        if (effect - before).abs().max() <= 1e-12 * score.abs().max():
            break
    return (score - effect).groupby(seeds["cell"]).mean().reindex(cells.index)


def _cells(trials: pd.DataFrame, count: int) -> pd.DataFrame:
    """n, mean, sd, half_width, and error, the standard error within a cell's only run, of `count`
    cells.
    """
    groups = _by_seed(trials).groupby("cell")
    cells = pd.DataFrame(
        {"n": groups.size(), "mean": groups["score"].mean(), "sd": groups["score"].std()}
    )
    cells["half_width"] = half_width(cells["n"], cells["sd"])
    cells["error"] = np.sqrt(groups["variance"].first()).where(cells["n"] == 1)
    cells = cells.reindex(range(count))
    return cells.assign(n=cells["n"].fillna(0).astype(int))


def ranked(cells: pd.DataFrame, score: str) -> pd.DataFrame:
    """The rows of `summarize` that have a score, the best level first."""
    return cells[cells["n"] > 0].sort_values(
        "level", ascending=not higher_is_better(score), kind="stable"
    )


def best_cells(runs: pd.DataFrame, score: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """The cell with the best level at each resolution; a row of `summarize` each, with its index
    there, and four more.

    `ties`: indices of the cells that cannot be told from it; `against_best` says how sure that is.
    `untested`: how many of them nothing can be said of, as they share fewer than two seeds with it.
    `edge`: "lowest" or "highest" when its b is at that end of two or more scored values, all else
    equal, so that the optimum may lie outside; else "". `basis`: "seeds", "jackknife" when a
    comparison with it rests on errors within single runs, "none" when none could be made.
    Resolutions without a ranked cell are left out.
    """
    cells = summarize(runs, score, by)
    order = ranked(cells, score)
    best = order.drop_duplicates("resolution").sort_values("resolution")
    versus = against_best(runs, score, by)
    tried = (
        cells if STAGE not in runs else summarize(runs.drop(columns=STAGE), score, by)
    )  # the screening tried more b
    line = [name for name in by if name != "b"]
    ties: list[tuple[int, ...]] = []
    untested, edges, bases = [], [], []
    for index in map(int, best.index):
        rivals = versus[versus["leader"] == index].drop(index)
        counts = rivals["basis"].value_counts()
        ties.append(tuple(rivals.index[rivals["tied"]]))
        untested.append(int(counts.get(NO_BASIS, 0)))
        alike = tried[tried["n"] > 0].merge(best.loc[[index], line])
        edges.append(_edge(best.loc[index, "b"], alike["b"]))
        bases.append(next((basis for basis in (WITHIN_RUN, SEEDS) if basis in counts), NO_BASIS))
    return best.assign(
        ties=pd.Series(ties, best.index, dtype=object), untested=untested, edge=edges, basis=bases
    )


def against_best(runs: pd.DataFrame, score: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """Every cell against the best of its resolution, one row for each of `summarize`'s, with the
    same index.

    `leader`: the best cell's index. `shared`: how many training seeds both have. `difference`: the
    cell's score less the leader's, with `half_width` of its 95 % t-interval and `p`, not adjusted.
    `basis`: "seeds" for differences in pairs over shared seeds; "jackknife" for single runs, told
    apart by the errors within them, which say nothing of other networks; "none" where nothing can
    be said, as of the leader itself, and the numbers are NaN. `tied`: whether it stays open that
    the cell is as good as the leader, by `p_adjusted` or because nothing can be said. The chance
    that any cell of a resolution is called worse, and is as good as the best, is at most 5 %: over
    other seeds where the basis is seeds, else over other samples of these networks alone.

    Adjusted for what? The leader was found in the data that it is then compared in, so the p-value
    of a cell being the best allows for each of the N − 1 others that might have led: (N − 1)·p/2,
    half since only a better one leads. Holm's method then allows for the N cells.
    """
    from scipy.special import stdtr

    cells = summarize(runs, score, by)
    numbers = ("difference", "half_width", "p", "p_adjusted")
    versus = pd.DataFrame(
        {
            "leader": pd.NA,
            "shared": 0,
            **dict.fromkeys(numbers, np.nan),
            "basis": NO_BASIS,
            "tied": False,
        },
        cells.index,
    ).astype({"leader": "Int64"})
    for index, each in _comparable(runs, cells, score, by):
        leader = int(np.argmin(_sign(score) * cells.loc[index, "level"]))
        found = differences(each, slice(None), slice(leader, leader + 1))
        mean, error, shared, df, t = (column[:, 0] for column in (*found, found.t))
        rival = np.arange(len(each)) != leader
        tested = (df > 0) & rival
        p = np.where(tested, 2 * stdtr(df, -np.abs(t)), np.nan)
        worse = np.where(t > 0, p * (len(each) - 1) / 2, np.where(tested, 1.0, np.nan))
        adjusted = holm(worse, len(each))
        columns = {
            "leader": index[leader],
            "shared": shared,
            "difference": np.where(tested, _sign(score) * mean, np.nan),
            "half_width": np.where(tested, _half_width(df, error), np.nan),
            "p": p,
            "p_adjusted": adjusted,
            "basis": np.select([~tested, shared >= 2], [NO_BASIS, SEEDS], WITHIN_RUN),
            "tied": rival & ~(adjusted <= 1 - CONFIDENCE),
        }
        for name, values in columns.items():
            versus.loc[index, name] = values
    return versus


def rank_intervals(runs: pd.DataFrame, score: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """`rank_low` to `rank_high` of every cell at its resolution, 1 the best; rows of `summarize`,
    NA without a score.

    A cell stands below those that are significantly better and above those that are significantly
    worse, by differences between all pairs, adjusted by Holm's method: all the intervals of a
    resolution hold at once with 95 % confidence. The differences are those of `against_best`: of
    cells with one seed the ranks hold for other samples of these networks alone, and any rank is
    possible where the errors within runs are not known.
    """
    cells = summarize(runs, score, by)
    ranks = pd.DataFrame(np.nan, cells.index, ["rank_low", "rank_high"])
    for index, each in _comparable(runs, cells, score, by):
        better, worse = beaten(each, 1 - CONFIDENCE)
        ranks.loc[index] = np.column_stack([1 + worse, len(each) - better])
    return ranks.astype("Int64")


def spread(
    runs: pd.DataFrame, score: str, by: Sequence[str] = CELL, per: Sequence[str] | None = None
) -> pd.DataFrame:
    """How far scores of one cell lie apart, by cause: one row per cell, or per value of `per`,
    pooled over its cells.

    `retraining` is the standard deviation between networks that differ in the training seed alone,
    `resampling` that between samples of one network that differ in the sampling seed alone; NaN
    where the seeds do not tell. `seeds` and `draws` count training seeds and scored trials.

    Half the mean square of the differences within one training seed estimates the variance of
    resampling; of those where both seeds differ, the sum of the two variances. In a balanced design
    this is analysis of variance, and it holds as well where training seeds share sampling seeds and
    with them the starting noise.
    """
    cells = summarize(runs, score, by)[list(by)]
    trials = _trials(runs, score, by)
    within, pairs_within = _squares(trials, "seed")
    alike, pairs_alike = _squares(trials, "draw")
    whole, pairs = _squares(trials)
    resampling, apart = within / pairs_within, pairs - pairs_within - pairs_alike
    retraining = (whole - within - alike) / apart.where(apart > 0) - resampling
    seeds = trials.groupby("cell")["seed"]
    found = pd.DataFrame(
        {
            "retraining": retraining,
            "resampling": resampling,
            "seeds": seeds.nunique(),
            "draws": seeds.size(),
        }
    )
    rows = cells.join(found).groupby(list(per or by), dropna=False)
    variances, counts = rows[["retraining", "resampling"]].mean(), rows[["seeds", "draws"]].sum()
    return variances.clip(lower=0).pow(0.5).join(counts.astype(int)).reset_index()


def _squares(trials: pd.DataFrame, *same: str) -> tuple[pd.Series[float], pd.Series[float]]:
    """Per cell, half the sum of squared differences over pairs of trials alike in `same`, and the
    number of pairs.
    """
    groups = trials.groupby(["cell", *same])["score"]
    count = groups.size()
    squares, pairs = count**2 * groups.var(ddof=0) / 2, count * (count - 1) / 2
    return squares.groupby("cell").sum(), pairs.groupby("cell").sum()


def _comparable(
    runs: pd.DataFrame, cells: pd.DataFrame, score: str, by: Sequence[str]
) -> Iterator[tuple[pd.Index, Cells]]:
    """The ranked cells of each resolution, with scores turned so that lower is better."""
    trials = _trials(runs, score, by)
    sign, error = _sign(score), _cells(trials, len(cells))["error"]
    seeds = _by_seed(trials).merge(cells["resolution"], left_on="cell", right_index=True)
    seeds = seeds[seeds.duplicated(["resolution", "seed"], keep=False)]  # no pair shares the others
    for _, part in cells[cells["n"] > 0].groupby("resolution"):
        these = seeds[seeds["cell"].isin(part.index)]
        table = these.pivot(index="cell", columns="seed", values="score")  # noqa: PD010
        by_seed = sign * table.reindex(part.index).to_numpy(float)
        yield (
            part.index,
            Cells(by_seed, sign * part["mean"].to_numpy(), error[part.index].to_numpy()),
        )


def _sign(score: str) -> float:
    return -1.0 if higher_is_better(score) else 1.0


def _edge(b: object, swept: pd.Series[float]) -> str:
    if swept.nunique() < 2:
        return ""
    return "lowest" if b == swept.min() else "highest" if b == swept.max() else ""
