"""The paper's tables as they ship, and laid beside a sweep's cells."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from sched_lab.analysis.statistics import reference
from sched_lab.trainers.schedules import parse


def cells(scores: dict[tuple[int, str, float], float]) -> pd.DataFrame:
    rows = [(*cell, mean, mean, 0.1, 3, "finished") for cell, mean in scores.items()]
    columns = ["resolution", "schedule", "b", "mean", "level", "half_width", "n", "state"]
    return pd.DataFrame(rows, columns=columns).assign(shortfall=None)


def test_the_tables_hold_every_number_of_the_two_files_in_our_notation() -> None:
    tables = reference.paper_scores()
    assert len(tables) == 84
    assert tables.notna().all(axis=None)
    assert all(str(parse(schedule)) == schedule for schedule in tables["schedule"].unique())
    keyed = tables.set_index(["source", "resolution", "schedule", "b"])["fid"]
    for file, source in (
        ("chen2023_schedules.csv", "schedules"),
        ("chen2023_input_scale.csv", "input scales"),
    ):
        text = Path(reference.DATA, file).read_text("utf-8").splitlines()
        for row in csv.DictReader(line for line in text if not line.startswith("#")):
            for name, value in row.items():
                schedule, _, size = name.rpartition("_")
                if size.isdigit():
                    schedule = row.get(
                        "schedule", {"cosine": "cosine@0.2,1,1"}.get(schedule, schedule)
                    )
                    assert keyed[source, int(size), schedule, float(row.get("b", 1))] == float(
                        value
                    )


def test_cells_of_a_size_that_the_paper_has_stand_beside_its_own() -> None:
    ours = cells(
        {
            (64, "linear", 1.0): 5.0,
            (64, "linear", 0.5): 6.0,
            (64, "linear", 0.3): 4.0,
            (64, "linear", 3.0): 1.0,
        }
    )
    beside = reference.beside(ours, "fid")
    assert beside["b"].tolist() == [0.3, 1.0, 0.5]  # 3.0 is not in the paper
    assert beside["fid"].tolist() == [6.77, 2.04, 3.79]
    assert (beside["rank"].tolist(), beside["paper_rank"].tolist()) == ([1, 2, 3], [3, 1, 2])
    agreement = reference.rank_correlation(beside).iloc[0]
    assert (agreement["n"], agreement["spearman"], agreement["kendall"]) == pytest.approx(
        (3, -0.5, -1 / 3)
    )


def test_only_sizes_of_the_paper_stand_beside_it() -> None:
    sizes = (8, 16, 32, 63, 64, 128, 256, 1024)
    ours = cells({(size, "linear", b): size + b for size in sizes for b in (0.5, 1.0)})
    beside = reference.beside(ours, "fd_classifier")
    assert beside["resolution"].tolist() == [64, 64, 128, 128, 256, 256]
    assert reference.rank_correlation(beside)["spearman"].isna().all()  # of two cells


def test_a_cell_that_draws_noise_does_not_stand_beside_the_paper() -> None:
    ours = cells({(64, "linear", b): b for b in (0.5, 1.0)})
    ours.loc[0, "shortfall"] = "no better than untrained networks"
    assert reference.beside(ours, "fd_classifier")["b"].tolist() == [1.0]


def test_of_cells_that_other_settings_tell_apart_the_best_stands_beside_the_paper() -> None:
    ours = pd.concat(
        [cells({(64, "linear", 1.0): mean}).assign(lr=mean) for mean in (3.0, 2.0)],
        ignore_index=True,
    )
    assert reference.beside(ours, "fid")["mean"].tolist() == [2.0]


def test_nothing_in_common_gives_an_empty_table() -> None:
    beside = reference.beside(cells({(8, "linear", 7.0): 1.0}), "fid")
    assert beside.empty
    assert reference.rank_correlation(beside).empty
