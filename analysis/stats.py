"""What the scores say: means and intervals over seeds, the best cell per image size, ties and edges. Pure pandas.

A cell is everything that was set except the seed. Only trials that finished with a finite score count; a cell without
one is never ranked. Error bars lie over training seeds: retraining moves a Fréchet distance more than resampling does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.runs import MISSING
from sched_lab.names import FAILED, FINISHED, RUNNING, STOPPED
from trainers.plugins import nearest

CONFIDENCE = 0.95
CELL = ("resolution", "schedule", "b")
UNRANKED = (FAILED, STOPPED, RUNNING, MISSING)


def higher_is_better(score: str) -> bool:
    """Whether a larger value of this metric is better: so for precision and recall, and for no distance."""
    return score.startswith(("precision", "recall"))


def half_width(n: ArrayLike, sd: ArrayLike) -> NDArray[np.float64]:
    """Half the width of the 95 % t-interval of a mean of n values with standard deviation sd; NaN where n < 2."""
    from scipy.stats import t

    n, sd = np.asarray(n, dtype=float), np.asarray(sd, dtype=float)
    several = np.where(n >= 2, n, np.nan)
    return np.asarray(t.ppf((1 + CONFIDENCE) / 2, several - 1) * sd / np.sqrt(several))


def cell_columns(runs: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """The fewest settings that tell the cells apart: resolution, schedule, b, and each one that splits them further."""
    columns = list(CELL)
    cells = runs.groupby(columns, dropna=False).ngroups
    for name in settings:
        if name == "seed" or name in columns:
            continue
        split = runs.groupby([*columns, name], dropna=False).ngroups
        if split > cells:
            columns, cells = [*columns, name], split
    return columns


def summarize(runs: pd.DataFrame, score: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """One row per cell: `by`, then n, mean, sd, half_width of `score` over seeds, state, and how many trials had it.

    `state` is finished when any trial has a score, else the gravest state found. `failed`, `stopped`, `running` and
    `missing` count trials. sd and half_width are NaN for n < 2, mean for n = 0. Raises ValueError when `by` leaves
    two trials of one seed in a cell.
    """
    by = list(by)
    if score not in runs:
        raise ValueError(f"no metric {score!r} in these runs{nearest(score, map(str, runs.columns))}")
    if runs.duplicated([*by, "seed"]).any():
        raise ValueError(f"cells told apart by {', '.join(by)} hold several trials of one seed: name more settings")
    trials = runs[by].assign(score=_scores(runs, score), **{state: runs["state"] == state for state in UNRANKED})
    groups = trials.groupby(by, dropna=False)
    scores = groups["score"]
    cells = pd.DataFrame({"n": scores.count(), "mean": scores.mean(), "sd": scores.std()})
    cells["half_width"] = half_width(cells["n"], cells["sd"])
    cells = cells.join(groups[list(UNRANKED)].sum()).reset_index()
    lost = [cells[state] > 0 for state in UNRANKED]
    cells["state"] = np.select([cells["n"] > 0, *lost], [FINISHED, *UNRANKED], "no score")
    return cells


def ranked(cells: pd.DataFrame, score: str) -> pd.DataFrame:
    """The rows of `summarize` that have a score, the best mean first."""
    return cells[cells["n"] > 0].sort_values("mean", ascending=not higher_is_better(score), kind="stable")


def best_cells(runs: pd.DataFrame, score: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """The cell with the best mean at each resolution; a row of `summarize` each, with its index there, and three more.

    `ties`: indices of the cells that cannot be told from it, those whose paired difference over shared seeds has a 95 %
    t-interval that holds 0 (no correction is made for having picked the best of many). `untested`: how many ranked
    cells share fewer than two seeds with it, so that nothing can be said. `edge`: "lowest" or "highest" when its b
    is at that end of two or more ranked values, all else equal, so that the optimum may lie outside; else "".
    Resolutions without a ranked cell are left out.
    """
    by = list(by)
    cells = summarize(runs, score, by)
    order = ranked(cells, score)
    best = order.drop_duplicates("resolution").sort_values("resolution")
    number = runs.groupby(by, dropna=False).ngroup()  # the rows of `cells`, which is sorted by the same groups
    by_seed = runs.assign(cell=number, score=_scores(runs, score)).pivot(index="cell", columns="seed", values="score")  # noqa: PD010
    line = cells.groupby([name for name in by if name != "b"], dropna=False).ngroup()
    ties: list[tuple[int, ...]] = []
    untested, edges = [], []
    for index in map(int, best.index):
        row = best.loc[index]
        rivals = order.index[(order["resolution"] == row["resolution"]) & (order.index != index)]
        difference = by_seed.loc[rivals] - by_seed.loc[index]
        shared = difference.count(axis=1)
        mean, half = difference.mean(axis=1), half_width(shared, difference.std(axis=1))
        ties.append(tuple(rivals[mean.abs() <= half]))
        untested.append(int((shared < 2).sum()))
        edges.append(_edge(row["b"], order["b"][line[order.index] == line[index]]))
    return best.assign(ties=pd.Series(ties, best.index, dtype=object), untested=untested, edge=edges)


def _scores(runs: pd.DataFrame, score: str) -> pd.Series[float]:
    values = runs[score].astype(float)
    return values.where((runs["state"] == FINISHED) & np.isfinite(values))


def _edge(b: object, swept: pd.Series[float]) -> str:
    if swept.nunique() < 2:
        return ""
    return "lowest" if b == swept.min() else "highest" if b == swept.max() else ""
