"""What the scores say: means, intervals, ranks, spread, and the best cells per image size.

A cell is everything that was set except the seeds. Only trials that finished with a finite score
count; a cell without one is never ranked, and neither is one whose models draw no better than
untrained networks do (`sweep.baselines`). Intervals lie over training seeds, since retraining moves
a Fréchet distance more than resampling does. All functions take runs whose scores compare: one
population of `comparisons.set_apart`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sched_lab.analysis.statistics.comparisons import (
    Cells,
    beaten,
    differences,
    holm,
    splitting,
)
from sched_lab.names import (
    DETECTOR_ACCURACY,
    JACKKNIFE,
    LOSS,
    LOSS_OF_ZERO,
    REAL,
    UNTRAINED,
    Stage,
    higher_is_better,
)
from sched_lab.sweep import baselines
from sched_lab.trainers.plugins import nearest
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import JACKKNIFE_GROUPS, Metric

CONFIDENCE = 0.95
CELL = ("resolution", "schedule", "b")
REPLICATES = ("seed", "sample.seed")
BASELINES = ("real", "untrained", "learned", "detector_accuracy")
UNRANKED = (State.FAILED, State.STOPPED, State.RUNNING, State.MISSING)
SEEDS, WITHIN_RUN, NO_BASIS = "seeds", "jackknife", "none"
"""What a comparison rests on: differences over shared seeds, errors within single runs, nothing."""


def half_width(n: ArrayLike, sd: ArrayLike) -> NDArray[np.float64]:
    """Half the 95 % t-interval of a mean of n values with standard deviation sd; NaN for n < 2."""
    n, sd = np.asarray(n, dtype=float), np.asarray(sd, dtype=float)
    several = np.where(n >= 2, n, np.nan)
    return _half_width(several - 1, sd / np.sqrt(several))


def _half_width(df: ArrayLike, error: ArrayLike) -> NDArray[np.float64]:
    from scipy.special import stdtrit

    return np.asarray(stdtrit(df, (1 + CONFIDENCE) / 2) * error)


def confirmed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that are ranked: of a sweep in two stages those that confirm, once there are any.

    What won the screening owes part of its score there to luck.
    """
    confirming = runs.get("stage", pd.Series("", runs.index)) == Stage.CONFIRM
    return runs[confirming] if confirming.any() else runs


def cell_columns(runs: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """The settings that tell cells apart: resolution, schedule, b, and all that split further."""
    return splitting(runs, CELL, [name for name in settings if name not in REPLICATES])


def summarize(runs: pd.DataFrame, score: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """One row per cell: its settings `by`, then statistics of `score` and counts of states.

    - `n`, `mean`, `sd`, `half_width` lie over training seeds; sampling seeds are averaged first.
      mean is NaN for n = 0, sd and half_width are NaN for n < 2.
    - `within_run`, of a cell with one training seed, else NaN: the half-width of a 95 % interval by
      the run's own jackknife. It says where other samples of that network lie, not other networks.
    - `real` and `untrained` are means of that score of real images, and of samples by the cell's
      networks before training. `learned` is the share of the loss of predicting zero that training
      took away. NaN where not known, as `detector_accuracy` is.
    - `closed` and `shortfall`: see `baselines.standing`. A cell is ranked where the latter is
      missing.
    - `level` ranks the cells: the mean, less what seeds that other cells lack add to it.
    - `failed`, `stopped`, `running` and `missing` count trials. `state` is finished where any trial
      has a score, else the gravest of the cell.

    Raises ValueError when `by` leaves two trials with the same seeds in a cell.
    """
    by = list(by)
    trials, runs = _trials(runs, score, by), confirmed(runs)
    groups = (
        runs[by]
        .assign(**{state: runs["state"] == state for state in UNRANKED})
        .groupby(by, dropna=False)
    )
    lost = groups[list(UNRANKED)].sum().reset_index()
    cells = _cells(trials, len(lost)).join(trials.groupby("cell")[list(BASELINES)].mean())
    cells["within_run"] = _half_width(JACKKNIFE_GROUPS - 1, cells["error"])
    cells = pd.concat([lost[by], cells, lost[list(UNRANKED)]], axis=1)
    cells = _with_standing(cells, score)
    cells["level"] = _levels(trials[trials["cell"].isin(cells.index[ranks(cells)])], cells)
    counted = [cells[name] > 0 for name in ("n", *UNRANKED)]
    cells["state"] = np.select(counted, [State.FINISHED, *UNRANKED], "no score")
    return cells


def _trials(runs: pd.DataFrame, score: str, by: Sequence[str]) -> pd.DataFrame:
    """One row per trial with a score: cell, seed, draw, score, variance, and its baselines.

    `cell` is its row in `summarize`, `draw` the sampling seed. `variance` is the square of the
    score's standard error within the run, NaN where that is not known.
    """
    if score not in runs:
        metrics = [str(name) for name in runs if str(name).startswith(get_args(Metric))]
        raise ValueError(f"no metric {score!r} in these runs{nearest(score, metrics)}")
    runs = confirmed(runs)
    if runs.duplicated([*by, *(name for name in REPLICATES if name in runs)]).any():
        raise ValueError(
            f"cells told apart by {', '.join(by)} hold several trials of one seed: name more"
            " settings"
        )

    def known(metric: str) -> pd.Series[float]:
        return runs.get(metric, pd.Series(np.nan, runs.index)).astype(float)

    trials = pd.DataFrame(
        {
            "cell": runs.groupby(list(by), dropna=False).ngroup(),
            "seed": runs["seed"],
            "draw": runs.get("sample.seed", pd.Series(0, runs.index)),
            "score": runs[score].astype(float),
            "variance": known(f"{JACKKNIFE}{score}") ** 2,
            "real": known(f"{REAL}{score}"),
            "untrained": known(f"{UNTRAINED}{score}"),
            "learned": 1 - known(LOSS) / known(LOSS_OF_ZERO),
            "detector_accuracy": known(DETECTOR_ACCURACY),
        }
    )
    return trials[(runs["state"] == State.FINISHED) & (trials["score"].abs() < np.inf)]


def _by_seed(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and training seed: the mean score over sampling seeds, its variance."""
    groups = trials.groupby(["cell", "seed"])
    mean = groups[["score", "variance"]].mean()
    return mean.assign(variance=mean["variance"] / groups.size()).reset_index()


def _levels(trials: pd.DataFrame, cells: pd.DataFrame) -> pd.Series[float]:
    """The cells' effects beside those of the seeds at each resolution, by least squares.

    A mean over lucky seeds alone is no better score. Cells that share no seeds, not even through
    others, keep their means; so do all cells where none lacks a seed.
    """
    scores = _by_seed(trials).merge(cells[["resolution", "mean"]], left_on="cell", right_index=True)
    at = scores.groupby("resolution")
    if (at.size() == at["cell"].nunique() * at["seed"].nunique()).all():
        return cells["mean"]
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import lsqr

    seed = scores.groupby(["resolution", "seed"]).ngroup() + len(cells)
    columns = np.column_stack([scores["cell"], seed]).ravel()  # two in each row of the design
    rows = np.arange(len(scores)).repeat(2)
    # Of all least-squares solutions lsqr gives the smallest. With columns of unit length, and
    # deviations from the cells' means, the effects of connected cells then average zero.
    length = np.sqrt(np.bincount(columns)).clip(1)
    design = csr_array((1 / length[columns], (rows, columns)))
    deviation = scores["score"] - scores["mean"]
    effect, *_ = lsqr(design, deviation, atol=1e-14, btol=1e-14, conlim=0)
    return cells["mean"].add((effect / length)[: len(cells)])


def _cells(trials: pd.DataFrame, count: int) -> pd.DataFrame:
    """n, mean, sd, half_width of `count` cells; error, the standard error within an only run."""
    groups = _by_seed(trials).groupby("cell")
    cells = pd.DataFrame(
        {"n": groups.size(), "mean": groups["score"].mean(), "sd": groups["score"].std()}
    )
    cells["half_width"] = half_width(cells["n"], cells["sd"])
    cells["error"] = np.sqrt(groups["variance"].first()).where(cells["n"] == 1)
    cells = cells.reindex(range(count))
    return cells.assign(n=cells["n"].fillna(0).astype(int))


def _with_standing(cells: pd.DataFrame, score: str) -> pd.DataFrame:
    """The cells with how they stand between the baselines of their resolution."""
    cells = cells.assign(closed=np.nan, shortfall=pd.Series(dtype="str"))
    for _, part in cells.groupby("resolution"):
        named = ("mean", "sd", "n", "real", "untrained", "learned")
        known = {name: part[name].to_numpy(float) for name in named}
        measured = baselines.Cells(within=part["error"].to_numpy(float), **known)
        closed, shortfall = baselines.standing(measured, higher_is_better=higher_is_better(score))
        cells.loc[part.index, "closed"] = closed
        cells.loc[part.index, "shortfall"] = shortfall
    return cells.drop(columns="error")


def ranks(cells: pd.DataFrame) -> pd.Series[bool]:
    """Whether each row of `summarize` has a score, and models that draw something."""
    return (cells["n"] > 0) & cells["shortfall"].isna()


def ranked(cells: pd.DataFrame, score: str) -> pd.DataFrame:
    """The rows of `summarize` that rank, the best level first."""
    return scored(cells[ranks(cells)], score)


def scored(cells: pd.DataFrame, score: str) -> pd.DataFrame:
    """The rows of `summarize` that have a score: those that rank, then the others; the best level
    first.
    """
    order = cells.assign(last=~ranks(cells), height=_sign(score) * cells["level"])
    order = order[order["n"] > 0].sort_values(["last", "height"], kind="stable")
    return order.drop(columns=["last", "height"])


def best_cells(runs: pd.DataFrame, score: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """The cell with the best level at each resolution: its row and index in `summarize`, and more.

    - `ties`: the indices of cells that cannot be told from it; `against_best` says how surely.
    - `untested`: how many of these share fewer than two seeds with it, so that nothing can be said.
    - `edge`: "lowest" or "highest" where its b is at that end of two or more scored values, all
      else equal; else "". The optimum may then lie outside.
    - `basis`: "jackknife" where a comparison with it rests on errors within single runs, "none"
      where none could be made, else "seeds".

    Resolutions without a ranked cell are left out.
    """
    cells = summarize(runs, score, by)
    order = ranked(cells, score)
    best = order.drop_duplicates("resolution").sort_values("resolution")
    versus = against_best(runs, score, by)
    # The screening tried more b.
    tried = summarize(runs.drop(columns="stage"), score, by) if "stage" in runs else cells
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
    """Every cell against the best of its resolution; rows and index are those of `summarize`.

    - `leader`: the best cell's index. `shared`: how many training seeds both have.
    - `difference`: the cell's score less the leader's, with `half_width` of its 95 % t-interval.
    - `basis`: "seeds" for pairs over shared seeds. "jackknife" for single runs, compared by the
      errors within them, which say nothing of other networks. "none" where nothing can be said, as
      of the leader itself; the numbers are NaN there.
    - `p` of the difference, and `p_adjusted`: see below.
    - `tied`: whether the cell may be as good as the leader, by `p_adjusted` or as nothing is known.

    With 95 % probability, no cell of a resolution that is as good as the best is called worse. That
    holds over other seeds where the basis is seeds, else over other samples of these networks.

    The data that chose the leader also compare it. So the p-value of a cell allows for each of the
    N − 1 others that might have led: (N − 1)·p/2, half since only a better one leads. Holm's method
    then allows for the N cells.
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
        behind = differences(each, slice(None), slice(leader, leader + 1))
        mean, error, shared, df, t = (column[:, 0] for column in (*behind, behind.t))
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
    """`rank_low` to `rank_high` of every cell at its resolution, 1 the best; NA where it has none.

    Rows are those of `summarize`. A cell ranks below all that are significantly better, and above
    all that are significantly worse. Holm's method adjusts the tests of all pairs, so all intervals
    of a resolution hold at once with 95 % confidence. The differences are those of
    `against_best`. Of cells with one seed the ranks hold for other samples of these networks alone;
    any rank is possible where the errors within runs are not known.
    """
    cells = summarize(runs, score, by)
    intervals = pd.DataFrame(np.nan, cells.index, ["rank_low", "rank_high"])
    for index, each in _comparable(runs, cells, score, by):
        better, worse = beaten(each, 1 - CONFIDENCE)
        intervals.loc[index] = np.column_stack([1 + worse, len(each) - better])
    return intervals.astype("Int64")


def spread(
    runs: pd.DataFrame, score: str, by: Sequence[str] = CELL, per: Sequence[str] | None = None
) -> pd.DataFrame:
    """How far scores of one cell lie apart, by cause: one row per cell, or pooled for each `per`.

    `retraining` is the standard deviation between networks that differ in the training seed alone.
    `resampling` is that between samples of one network that differ in the sampling seed alone. Both
    are NaN where the seeds do not tell. `seeds` and `draws` count training seeds and scored trials.

    Half the mean square of differences within one training seed estimates the variance of
    resampling; where both seeds differ, it estimates the sum of the two variances. In a balanced
    design this is analysis of variance. It also holds where training seeds share sampling seeds,
    and with them the starting noise.
    """
    cells = summarize(runs, score, by)[list(by)]
    trials = _trials(runs, score, by)
    within, pairs_within = _squares(trials, "seed")
    alike, pairs_alike = _squares(trials, "draw")
    whole, pairs = _squares(trials)
    resampling, apart = within / pairs_within, pairs - pairs_within - pairs_alike
    retraining = (whole - within - alike) / apart.where(apart > 0) - resampling
    seeds = trials.groupby("cell")["seed"]
    counts = {"seeds": seeds.nunique(), "draws": seeds.size()}
    by_cell = pd.DataFrame({"retraining": retraining, "resampling": resampling, **counts})
    rows = cells.join(by_cell).groupby(list(per or by), dropna=False)
    deviations = rows[["retraining", "resampling"]].mean().clip(lower=0).pow(0.5)
    return deviations.join(rows[["seeds", "draws"]].sum().astype(int)).reset_index()


def _squares(trials: pd.DataFrame, *same: str) -> tuple[pd.Series[float], pd.Series[float]]:
    """Per cell, half the sum of squared differences, and the count, of pairs alike in `same`."""
    groups = trials.groupby(["cell", *same])["score"]
    count = groups.size()
    squares, pairs = count**2 * groups.var(ddof=0) / 2, count * (count - 1) / 2
    return squares.groupby("cell").sum(), pairs.groupby("cell").sum()


def _comparable(
    runs: pd.DataFrame, cells: pd.DataFrame, score: str, by: Sequence[str]
) -> Iterator[tuple[pd.Index, Cells]]:
    """The cells that rank at each resolution, with scores turned so that lower is better."""
    trials = _trials(runs, score, by)
    sign, error = _sign(score), _cells(trials, len(cells))["error"]
    seeds = _by_seed(trials).merge(cells["resolution"], left_on="cell", right_index=True)
    seeds = seeds[seeds.duplicated(["resolution", "seed"], keep=False)]  # no pair shares the others
    for _, part in cells[ranks(cells)].groupby("resolution"):
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
