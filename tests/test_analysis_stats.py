"""Statistics over seeds, the best cell, ties and edges, on frames small enough to check by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis import stats
from sched_lab import names

FD = "fd_classifier"


def runs(scores: dict[tuple[int, float], list[float]], **settings: object) -> pd.DataFrame:
    """Finished runs of a linear schedule: the scores of seeds 0, 1, … for each (resolution, b)."""
    return pd.DataFrame(
        {"resolution": size, "schedule": "linear", "b": b, "seed": seed, "state": names.FINISHED, FD: score, **settings}
        for (size, b), values in scores.items()
        for seed, score in enumerate(values)
    )


def test_mean_sd_and_interval_are_those_of_the_textbook() -> None:
    cell = stats.summarize(runs({(8, 1.0): [4.0, 6.0, 8.0]}), FD).iloc[0]
    assert (cell["n"], cell["mean"], cell["sd"]) == (3, 6.0, 2.0)
    assert cell["half_width"] == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)  # t(0.975, 2) from a table


def test_one_seed_has_a_mean_and_no_interval() -> None:
    cell = stats.summarize(runs({(8, 1.0): [4.0]}), FD).iloc[0]
    assert cell["mean"] == 4.0
    assert math.isnan(cell["sd"])
    assert math.isnan(cell["half_width"])


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(10.0, 3.0, size=(20_000, 3))
    half = stats.half_width(np.full(20_000, 3), draws.std(axis=1, ddof=1))
    assert np.mean(np.abs(draws.mean(axis=1) - 10.0) <= half) == pytest.approx(0.95, abs=0.006)


@pytest.mark.parametrize("state", [names.FAILED, names.STOPPED, names.RUNNING, "missing"])
def test_a_trial_that_did_not_finish_is_counted_and_never_scored(state: str) -> None:
    frame = runs({(8, 1.0): [5.0, 0.0], (8, 2.0): [0.0]})
    frame.loc[frame[FD] == 0.0, "state"] = state
    cells = stats.summarize(frame, FD)
    assert cells["n"].tolist() == [1, 0]
    assert cells["mean"].iloc[0] == 5.0
    assert math.isnan(cells["mean"].iloc[1])
    assert cells[state].tolist() == [1, 1]
    assert cells["state"].tolist() == [names.FINISHED, state]
    assert stats.best_cells(frame, FD)["b"].tolist() == [1.0]


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_never_the_best(broken: float) -> None:
    frame = runs({(8, 1.0): [5.0], (8, 2.0): [broken]})
    assert stats.best_cells(frame, FD)["b"].tolist() == [1.0]
    assert stats.summarize(frame, FD)["state"].tolist() == [names.FINISHED, "no score"]


def test_a_resolution_without_a_finished_trial_has_no_best_cell() -> None:
    frame = runs({(8, 1.0): [5.0], (16, 1.0): [5.0]})
    frame.loc[frame["resolution"] == 16, "state"] = names.FAILED
    assert stats.best_cells(frame, FD)["resolution"].tolist() == [8]


@pytest.mark.parametrize(
    ("score", "b"), [("fid", 0.5), ("kid_classifier", 0.5), ("precision_classifier", 2.0), ("recall_inception", 2.0)]
)
def test_distances_are_best_low_and_precision_and_recall_high(score: str, b: float) -> None:
    frame = runs({(8, 0.5): [1.0], (8, 1.0): [2.0], (8, 2.0): [3.0]}).rename(columns={FD: score})
    assert stats.best_cells(frame, score)["b"].tolist() == [b]


def test_the_best_b_at_either_end_of_its_range_is_flagged() -> None:
    frame = runs({(8, 1.0): [3.0], (8, 2.0): [2.0], (16, 1.0): [2.0], (16, 2.0): [3.0]})
    frame = pd.concat([frame, runs({(32, 0.5): [3.0], (32, 1.0): [2.0], (32, 2.0): [3.0], (64, 1.0): [2.0]})])
    assert stats.best_cells(frame, FD)["edge"].tolist() == ["highest", "lowest", "", ""]  # at 64 b was not swept


def test_an_edge_is_where_scores_end_not_where_the_sweep_was_meant_to() -> None:
    frame = runs({(8, 1.0): [3.0], (8, 2.0): [2.0], (8, 4.0): [1.0]})
    frame.loc[frame["b"] == 4.0, "state"] = names.FAILED
    assert stats.best_cells(frame, FD)["edge"].tolist() == ["highest"]


def test_an_edge_is_that_of_the_winning_schedule() -> None:
    other = runs({(8, 4.0): [9.0]}).assign(schedule="cosine")
    frame = pd.concat([runs({(8, 1.0): [3.0], (8, 2.0): [2.0]}), other])
    assert stats.best_cells(frame, FD)["edge"].tolist() == ["highest"]


def test_cells_tie_when_their_paired_difference_may_be_zero() -> None:
    # Differences to b = 1: (1, -1, 3), mean 1 ± 4.97, a tie; (9, 10, 11), mean 10 ± 2.48, none.
    frame = runs({(8, 1.0): [5, 7, 6], (8, 2.0): [6, 6, 9], (8, 4.0): [14, 17, 17]})
    best = stats.best_cells(frame, FD).iloc[0]
    cells = stats.summarize(frame, FD)
    assert cells.loc[list(best["ties"]), "b"].tolist() == [2.0]
    assert best["untested"] == 0


def test_pairing_tells_cells_apart_whose_own_intervals_overlap() -> None:
    frame = runs({(8, 1.0): [10, 20, 30], (8, 2.0): [11, 21.1, 30.9]})
    cells = stats.summarize(frame, FD)
    assert (cells["half_width"] > 20).all()
    assert stats.best_cells(frame, FD)["ties"].tolist() == [()]


def test_with_one_seed_nothing_is_said_of_ties() -> None:
    best = stats.best_cells(runs({(8, 1.0): [5.0], (8, 2.0): [5.0001]}), FD).iloc[0]
    assert (best["ties"], best["untested"]) == ((), 1)


def test_seeds_that_are_not_shared_are_not_paired() -> None:
    frame = pd.concat([runs({(8, 1.0): [5.0, 6.0]}), runs({(8, 2.0): [5.0, 7.0]}).assign(seed=[2, 3])])
    best = stats.best_cells(frame, FD).iloc[0]
    assert (best["ties"], best["untested"]) == ((), 1)


def test_a_setting_that_splits_the_cells_is_part_of_them_and_one_that_follows_is_not() -> None:
    settings = ["resolution", "schedule", "kind", "b", "seed", "train.steps", "train.lr"]
    frame = pd.concat(
        [
            runs({(8, 1.0): [1.0, 2.0], (16, 1.0): [1.0, 2.0]}, kind="linear").assign(**{"train.lr": lr})
            for lr in (1e-3, None)
        ]
    ).assign(**{"train.steps": lambda frame: frame["resolution"] * 100})
    columns = stats.cell_columns(frame, settings)
    assert columns == ["resolution", "schedule", "b", "train.lr"]
    assert stats.summarize(frame, FD, columns)["n"].tolist() == [2, 2, 2, 2]


def test_trials_that_only_an_unnamed_setting_tells_apart_are_refused_rather_than_averaged() -> None:
    frame = pd.concat([runs({(8, 1.0): [1.0]}), runs({(8, 1.0): [3.0]})])
    with pytest.raises(ValueError, match="told apart by resolution, schedule, b hold several trials of one seed"):
        stats.summarize(frame, FD)


def test_an_unknown_score_is_refused_with_the_columns_there_are() -> None:
    with pytest.raises(ValueError, match=r"no metric 'fd_clasifier'.*did you mean 'fd_classifier'"):
        stats.summarize(runs({(8, 1.0): [1.0]}), "fd_clasifier")
