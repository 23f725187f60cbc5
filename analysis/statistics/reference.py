"""The paper's scores, to compare with those of a sweep."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from sched_lab.analysis.statistics.ranking import CELL, ranked

CITATION = (
    "Chen 2023, On the Importance of Noise Scheduling for Diffusion Models, arXiv 2301.10972v4"
)
DATA = Path(__file__).parent / "data"
FEWEST = 3  # cells in common that a rank correlation needs


def paper_scores() -> pd.DataFrame:
    """The paper's tables of schedules and of input scales: resolution, schedule, b, fid, source.

    FID on class-conditional ImageNet. The paper gives neither seeds nor intervals.
    """
    schedules = pd.read_csv(DATA / "chen2023_schedules.csv", comment="#")
    schedules = schedules.melt("schedule", var_name="resolution", value_name="fid").assign(
        b=1.0, source="schedules"
    )
    scales = pd.read_csv(DATA / "chen2023_input_scale.csv", comment="#")
    scales = scales.melt("b", var_name="column", value_name="fid").assign(source="input scales")
    scales[["schedule", "resolution"]] = scales["column"].str.rsplit("_", n=1, expand=True)
    scales["schedule"] = scales["schedule"].replace("cosine", "cosine@0.2,1,1")
    scores = pd.concat([schedules, scales], ignore_index=True)
    scores["resolution"] = scores["resolution"].str.removeprefix("fid_").astype(int)
    return scores.astype({"b": float, "fid": float})[[*CELL, "fid", "source"]]


def beside(cells: pd.DataFrame, score: str) -> pd.DataFrame:
    """The cells of `ranking.summarize` that rank and that the paper has too, each with the paper's.

    Columns: resolution, schedule, b, mean, half_width, n, rank; fid, paper_rank. Ranks are among
    the cells in common of a resolution, 1 the best. Of cells that differ in other settings the best
    represents all. Empty where no size is the paper's: orders at two sizes need not agree.
    """
    paper = paper_scores().drop_duplicates(list(CELL)).drop(columns="source")
    ours = ranked(cells, score).drop_duplicates(list(CELL))
    pairs = ours.assign(order=range(len(ours))).merge(paper, on=list(CELL))
    groups = pairs.groupby("resolution")
    pairs = pairs.assign(rank=groups["order"].rank(), paper_rank=groups["fid"].rank())
    columns = [*CELL, "mean", "half_width", "n", "rank", "fid", "paper_rank"]
    return pairs[columns].sort_values(["resolution", "rank"], ignore_index=True)


def rank_correlation(beside: pd.DataFrame) -> pd.DataFrame:
    """The rank correlations n, spearman and kendall for each resolution.

    1 is the same order, −1 the reverse; NaN for fewer than three cells in common.
    """
    rows = []
    for resolution, pairs in beside.groupby("resolution"):
        enough = len(pairs) >= FEWEST
        spearman, kendall = (
            pairs["rank"].corr(pairs["paper_rank"], method=name) if enough else math.nan
            for name in ("spearman", "kendall")
        )
        rows.append((resolution, len(pairs), spearman, kendall))
    return pd.DataFrame(rows, columns=["resolution", "n", "spearman", "kendall"])


def nothing_beside() -> str:
    """Why no cell of a sweep stands beside the paper's tables."""
    sizes = sorted(paper_scores()["resolution"].unique())
    listed = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
    return f"The paper's tables are of {listed} pixels: no cell of this sweep stands beside them."
