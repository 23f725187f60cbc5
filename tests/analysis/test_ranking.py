"""Statistics over seeds, the best cell, ties and edges, on frames small enough to check by hand."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import t as student
from scipy.stats import ttest_rel

from sched_lab import names
from sched_lab.analysis.statistics import law, ranking
from sched_lab.analysis.statistics.comparisons import holm
from sched_lab.trainers.results import State

FD = "fd_classifier"


def runs(scores: dict[tuple[int, float], list[float]], **settings: object) -> pd.DataFrame:
    """Finished runs of a linear schedule: the scores of seeds 0, 1, … for each (resolution, b)."""
    return pd.DataFrame(
        {
            "resolution": size,
            "schedule": "linear",
            "b": b,
            "seed": seed,
            "state": State.FINISHED,
            FD: score,
            **settings,
        }
        for (size, b), values in scores.items()
        for seed, score in enumerate(values)
    )


def test_mean_sd_and_interval_are_those_of_the_textbook() -> None:
    cell = ranking.summarize(runs({(8, 1.0): [4.0, 6.0, 8.0]}), FD).iloc[0]
    assert (cell["n"], cell["mean"], cell["sd"]) == (3, 6.0, 2.0)
    assert cell["half_width"] == pytest.approx(
        4.302653 * 2 / math.sqrt(3), rel=1e-6
    )  # t(0.975, 2) from a table


def test_one_seed_has_a_mean_and_no_interval() -> None:
    cell = ranking.summarize(runs({(8, 1.0): [4.0]}), FD).iloc[0]
    assert cell["mean"] == 4.0
    assert math.isnan(cell["sd"])
    assert math.isnan(cell["half_width"])


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(10.0, 3.0, size=(20_000, 3))
    half = ranking.half_width(np.full(20_000, 3), draws.std(axis=1, ddof=1))
    assert np.mean(np.abs(draws.mean(axis=1) - 10.0) <= half) == pytest.approx(0.95, abs=0.006)


@pytest.mark.parametrize("state", [State.FAILED, State.STOPPED, State.RUNNING, "missing"])
def test_a_trial_that_did_not_finish_is_counted_and_never_scored(state: str) -> None:
    frame = runs({(8, 1.0): [5.0, 0.0], (8, 2.0): [0.0]})
    frame.loc[frame[FD] == 0.0, "state"] = state
    cells = ranking.summarize(frame, FD)
    assert cells["n"].tolist() == [1, 0]
    assert cells["mean"].iloc[0] == 5.0
    assert math.isnan(cells["mean"].iloc[1])
    assert cells[state].tolist() == [1, 1]
    assert cells["state"].tolist() == [State.FINISHED, state]
    assert ranking.best_cells(frame, FD)["b"].tolist() == [1.0]


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_never_the_best(broken: float) -> None:
    frame = runs({(8, 1.0): [5.0], (8, 2.0): [broken]})
    assert ranking.best_cells(frame, FD)["b"].tolist() == [1.0]
    assert ranking.summarize(frame, FD)["state"].tolist() == [State.FINISHED, "no score"]


def test_a_resolution_without_a_finished_trial_has_no_best_cell() -> None:
    frame = runs({(8, 1.0): [5.0], (16, 1.0): [5.0]})
    frame.loc[frame["resolution"] == 16, "state"] = State.FAILED
    assert ranking.best_cells(frame, FD)["resolution"].tolist() == [8]


@pytest.mark.parametrize(
    ("score", "b"),
    [
        ("fid", 0.5),
        ("kid_classifier", 0.5),
        ("precision_classifier", 2.0),
        ("recall_inception", 2.0),
    ],
)
def test_distances_are_best_low_and_precision_and_recall_high(score: str, b: float) -> None:
    frame = runs({(8, 0.5): [1.0], (8, 1.0): [2.0], (8, 2.0): [3.0]}).rename(columns={FD: score})
    assert ranking.best_cells(frame, score)["b"].tolist() == [b]


def test_the_best_b_at_either_end_of_its_range_is_flagged() -> None:
    frame = runs({(8, 1.0): [3.0], (8, 2.0): [2.0], (16, 1.0): [2.0], (16, 2.0): [3.0]})
    frame = pd.concat(
        [frame, runs({(32, 0.5): [3.0], (32, 1.0): [2.0], (32, 2.0): [3.0], (64, 1.0): [2.0]})]
    )
    assert ranking.best_cells(frame, FD)["edge"].tolist() == [
        "highest",
        "lowest",
        "",
        "",
    ]  # at 64 b was not swept


def test_an_edge_is_where_scores_end_not_where_the_sweep_was_meant_to() -> None:
    frame = runs({(8, 1.0): [3.0], (8, 2.0): [2.0], (8, 4.0): [1.0]})
    frame.loc[frame["b"] == 4.0, "state"] = State.FAILED
    assert ranking.best_cells(frame, FD)["edge"].tolist() == ["highest"]


def test_an_edge_is_that_of_the_winning_schedule() -> None:
    other = runs({(8, 4.0): [9.0]}).assign(schedule="cosine")
    frame = pd.concat([runs({(8, 1.0): [3.0], (8, 2.0): [2.0]}), other])
    assert ranking.best_cells(frame, FD)["edge"].tolist() == ["highest"]


def test_cells_tie_when_their_paired_difference_may_be_zero() -> None:
    # Differences to b = 1: (1, -1, 3), mean 1 ± 4.97, a tie; (9, 10, 11), mean 10 ± 2.48, none.
    frame = runs({(8, 1.0): [5, 7, 6], (8, 2.0): [6, 6, 9], (8, 4.0): [14, 17, 17]})
    best = ranking.best_cells(frame, FD).iloc[0]
    cells = ranking.summarize(frame, FD)
    assert cells.loc[list(best["ties"]), "b"].tolist() == [2.0]
    assert best["untested"] == 0


def test_pairing_tells_cells_apart_whose_own_intervals_overlap() -> None:
    frame = runs({(8, 1.0): [10, 20, 30], (8, 2.0): [11, 21.1, 30.9]})
    cells = ranking.summarize(frame, FD)
    assert (cells["half_width"] > 20).all()
    assert ranking.best_cells(frame, FD)["ties"].tolist() == [()]


def test_with_one_seed_no_cell_can_be_told_from_the_best() -> None:
    best = ranking.best_cells(runs({(8, 1.0): [5.0], (8, 2.0): [500.0]}), FD).iloc[0]
    assert (best["ties"], best["untested"]) == ((1,), 1)


def test_single_runs_are_told_apart_by_the_errors_within_them_and_that_is_said() -> None:
    # Standard errors 3 and 4, so 5 of a difference: 2 and 30 are 0.4 and 6 of these; t(0.975, 19)
    # is 2.09.
    frame = runs({(8, 1.0): [10.0], (8, 2.0): [12.0], (8, 4.0): [40.0], (8, 8.0): [50.0]})
    frame[f"{names.JACKKNIFE}{FD}"] = [3.0, 4.0, 4.0, math.nan]
    versus = ranking.against_best(frame, FD)
    assert versus["basis"].tolist() == ["none", "jackknife", "jackknife", "none"]
    assert versus["tied"].tolist() == [False, True, False, True]
    assert versus["difference"].tolist()[1:3] == [2.0, 30.0]
    assert versus["half_width"].tolist()[1:3] == pytest.approx([2.0930241 * 5] * 2)
    best = ranking.best_cells(frame, FD).iloc[0]
    assert (best["ties"], best["untested"], best["basis"]) == ((1, 3), 1, "jackknife")
    ranks = ranking.rank_intervals(frame, FD)
    assert ranks.to_numpy().tolist() == [
        [1, 3],
        [1, 3],
        [3, 4],
        [1, 4],
    ]  # the third is worse than the first two
    cells = ranking.summarize(frame, FD)
    assert cells["within_run"].tolist()[:2] == pytest.approx([2.0930241 * 3, 2.0930241 * 4])
    assert cells["half_width"].isna().all()


def test_where_seeds_are_shared_errors_within_runs_decide_nothing() -> None:
    frame = runs({(8, 1.0): [10, 20, 30], (8, 2.0): [11, 21.1, 30.9]})
    frame[f"{names.JACKKNIFE}{FD}"] = 100.0
    assert ranking.best_cells(frame, FD)[["ties", "basis"]].to_numpy().tolist() == [[(), "seeds"]]
    assert ranking.summarize(frame, FD)["within_run"].isna().all()


def test_seeds_that_are_not_shared_are_not_paired() -> None:
    frame = pd.concat(
        [runs({(8, 1.0): [5.0, 6.0]}), runs({(8, 2.0): [5.0, 7.0]}).assign(seed=[2, 3])]
    )
    best = ranking.best_cells(frame, FD).iloc[0]
    assert (best["ties"], best["untested"]) == ((1,), 1)


def test_a_setting_that_splits_the_cells_is_part_of_them_and_one_that_follows_is_not() -> None:
    settings = ["resolution", "schedule", "kind", "b", "seed", "train.steps", "train.lr"]
    frame = pd.concat(
        [
            runs({(8, 1.0): [1.0, 2.0], (16, 1.0): [1.0, 2.0]}, kind="linear").assign(
                **{"train.lr": lr}
            )
            for lr in (1e-3, None)
        ]
    ).assign(**{"train.steps": lambda frame: frame["resolution"] * 100})
    columns = ranking.cell_columns(frame, settings)
    assert columns == ["resolution", "schedule", "b", "train.lr"]
    assert ranking.summarize(frame, FD, columns)["n"].tolist() == [2, 2, 2, 2]


def test_trials_that_only_an_unnamed_setting_tells_apart_are_refused_rather_than_averaged() -> None:
    frame = pd.concat([runs({(8, 1.0): [1.0]}), runs({(8, 1.0): [3.0]})])
    with pytest.raises(
        ValueError, match="told apart by resolution, schedule, b hold several trials of one seed"
    ):
        ranking.summarize(frame, FD)


def test_sampling_seeds_are_averaged_and_only_training_seeds_are_counted() -> None:
    draws = [
        runs({(8, 1.0): values}, **{"sample.seed": i})
        for i, values in enumerate([[4, 6, 8], [6, 8, 10]])
    ]
    frame = pd.concat(draws, ignore_index=True)
    cell = ranking.summarize(frame, FD).iloc[0]
    assert (cell["n"], cell["mean"], cell["sd"]) == (3, 7.0, 2.0)
    frame.loc[5, "state"] = State.FAILED  # of seed 2 only the draw of 8 is left
    cell = ranking.summarize(frame, FD).iloc[0]
    assert (cell["n"], cell["mean"], cell["failed"]) == (3, pytest.approx(20 / 3), 1)
    assert ranking.cell_columns(frame, ["resolution", "seed", "sample.seed"]) == [
        "resolution",
        "schedule",
        "b",
    ]
    with pytest.raises(ValueError, match="several trials of one seed"):
        ranking.summarize(pd.concat([frame, frame]), FD)


def test_once_trials_confirm_those_that_screened_are_not_ranked() -> None:
    screened = runs({(8, 1.0): [1.0], (8, 2.0): [2.0], (8, 4.0): [3.0]}, stage="screen")
    confirming = runs({(8, 1.0): [9.0, 9.5], (8, 2.0): [2.0, 2.5]}, stage="confirm").assign(
        seed=[1, 2, 1, 2]
    )
    frame = pd.concat([screened, confirming], ignore_index=True)
    assert ranking.best_cells(screened, FD)[["b", "n"]].to_numpy().tolist() == [[1.0, 1]]
    assert ranking.best_cells(frame, FD)[["b", "n", "mean"]].to_numpy().tolist() == [[2.0, 2, 2.25]]
    assert ranking.summarize(frame, FD)["b"].tolist() == [1.0, 2.0]
    assert ranking.rank_intervals(frame, FD).shape == (2, 2)


def test_spread_tells_retraining_from_resampling() -> None:
    # Differences of 2 within each training seed: variance 2. Of the seeds' means, 11 and 21, the
    # variance is 50.
    draws = [
        runs({(8, 1.0): values}, **{"sample.seed": i})
        for i, values in enumerate([[10, 20], [12, 22]])
    ]
    shared = ranking.spread(pd.concat(draws), FD).iloc[0]
    assert shared["resampling"] == pytest.approx(math.sqrt(2))
    assert shared["retraining"] == pytest.approx(
        math.sqrt(50)
    )  # the draws' differences are shared, and cancel
    own = pd.concat(draws).assign(**{"sample.seed": [0, 1, 2, 3]})
    assert ranking.spread(own, FD)["retraining"].iloc[0] == pytest.approx(
        math.sqrt(50 - 2 / 2)
    )  # MS_between less MS/2
    assert shared[["seeds", "draws"]].tolist() == [2, 4]


def test_spread_is_unknown_where_the_seeds_do_not_tell() -> None:
    once = ranking.spread(runs({(8, 1.0): [1.0, 2.0]}, **{"sample.seed": 0}), FD).iloc[0]
    assert once[["retraining", "resampling"]].isna().all()
    together = ranking.spread(
        runs({(8, 1.0): [1.0, 2.0]}).assign(**{"sample.seed": [0, 1]}), FD
    ).iloc[0]
    assert together[["retraining", "resampling"]].isna().all()
    one_network = pd.concat(
        [runs({(8, 1.0): [x]}, **{"sample.seed": i}) for i, x in enumerate([0.1, 0.3, 0.4])]
    )
    spread = ranking.spread(one_network, FD).iloc[0]
    assert math.isnan(spread["retraining"])
    assert spread["resampling"] == pytest.approx(np.std([0.1, 0.3, 0.4], ddof=1))
    empty = ranking.spread(runs({(8, 1.0): [1.0]}).assign(state=State.FAILED), FD).iloc[0]
    assert empty[["seeds", "draws"]].tolist() == [0, 0]


@pytest.mark.parametrize("noise_is_shared", [True, False])
def test_spread_finds_the_deviations_that_scores_were_made_with(noise_is_shared: bool) -> None:
    random = np.random.default_rng(0)
    cells, seeds, draws = 3000, 4, 3
    retraining = random.normal(0, 3, (cells, seeds, 1))
    resampling = random.normal(0, 2, (cells, 1 if noise_is_shared else seeds, draws))
    values = 100 + retraining + resampling + random.normal(0, 1, (cells, seeds, draws))
    index = pd.MultiIndex.from_product(
        [range(cells), range(seeds), range(draws)], names=["b", "seed", "sample.seed"]
    )
    frame = index.to_frame(index=False).assign(
        resolution=8, schedule="linear", state=State.FINISHED, score=values.ravel()
    )
    if not noise_is_shared:
        frame["sample.seed"] += draws * frame["seed"]
    spread = ranking.spread(frame.sample(frac=0.8, random_state=0), "score", per=["resolution"])
    assert spread.columns.tolist() == ["resolution", "retraining", "resampling", "seeds", "draws"]
    assert spread["retraining"].item() == pytest.approx(3, rel=0.04)
    assert spread["resampling"].item() == pytest.approx(math.sqrt(5), rel=0.04)


def random_cells(
    seed: int, cells: int, seeds: int, gap: float, missing: float = 0.0
) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    values = (
        50
        + gap * np.arange(cells)[:, None]
        + random.normal(size=(cells, seeds))
        + random.normal(size=seeds)
    )
    frame = runs({(8, float(b + 1)): list(row) for b, row in enumerate(values)})
    frame.loc[random.random(len(frame)) < missing, "state"] = State.FAILED
    return frame


def test_differences_p_values_and_intervals_are_scipys_paired_ones() -> None:
    frame = random_cells(0, cells=5, seeds=4, gap=1.0)
    versus = ranking.against_best(frame, FD)
    table = frame.pivot(index="b", columns="seed", values=FD).to_numpy()  # noqa: PD010
    leader = int(table.mean(axis=1).argmin())
    for cell in set(range(5)) - {leader}:
        expected = ttest_rel(table[cell], table[leader])
        low, high = expected.confidence_interval(0.95)
        assert versus.loc[cell, "p"] == pytest.approx(expected.pvalue)
        assert versus.loc[cell, "difference"] == pytest.approx((low + high) / 2)
        assert versus.loc[cell, "half_width"] == pytest.approx((high - low) / 2)
    assert versus["leader"].eq(leader).all()
    assert math.isnan(versus.loc[leader, "p"])


def test_the_p_value_of_a_cell_allows_for_every_cell_that_might_have_led() -> None:
    frame = random_cells(1, cells=4, seeds=5, gap=2.0)
    versus = ranking.against_best(frame, FD)
    p, adjusted = (versus[name].dropna().sort_values().tolist() for name in ("p", "p_adjusted"))
    steps = [min(1.0, 4 * p[0] * 3 / 2), min(1.0, 3 * p[1] * 3 / 2), min(1.0, 2 * p[2] * 3 / 2)]
    assert adjusted == pytest.approx([max(steps[: i + 1]) for i in range(3)])
    two = ranking.against_best(frame[frame["b"] < 3], FD)
    assert two["p_adjusted"].equals(two["p"])  # of two cells, one comparison


def test_a_cell_better_on_the_seeds_it_shares_leads_however_lucky_the_seeds_that_it_lacks() -> None:
    frame = runs({(8, 1.0): [10.0, 11.0, 12.0, 0.0, 0.0, 0.0], (8, 2.0): [9.0, 9.99, 11.01]})
    versus = ranking.against_best(frame, FD)
    assert ranking.best_cells(frame, FD)["b"].tolist() == [2.0]
    assert versus["tied"].tolist() == [False, False]
    assert versus.loc[0, "p"] < 0.001


def test_levels_are_least_squares_of_cells_and_seeds_and_the_means_where_none_is_missing() -> None:
    random = np.random.default_rng(0)
    frame = runs(
        {(size, b): list(random.normal(size=4)) for size in (8, 16) for b in (0.5, 1.0, 2.0)}
    )
    whole = ranking.summarize(frame, FD)
    assert whole["level"].tolist() == whole["mean"].tolist()
    lost = frame.index.isin([0, 5, 7])
    part = frame.assign(state=frame["state"].mask(lost, State.FAILED))
    cells = ranking.summarize(part, FD)
    kept = part[~lost & (part["resolution"] == 8)]
    design = pd.get_dummies(kept[["b", "seed"]].astype(str)).to_numpy(float)
    effects = np.linalg.lstsq(design, kept[FD].to_numpy())[0]
    levels = cells.loc[cells["resolution"] == 8, "level"].to_numpy()
    assert np.diff(levels) == pytest.approx(np.diff(effects[:3]))


def backfitted(frame: pd.DataFrame) -> pd.Series[float]:
    """The cells' levels by alternating between the effects of cells and of seeds until both rest;
    all seeds of an image size together average zero within cells that they connect.
    """
    cell = frame.groupby(["resolution", "schedule", "b"]).ngroup()
    seed = frame.groupby(["resolution", "seed"]).ngroup()
    effect = pd.Series(0.0, frame.index)
    moved = math.inf
    while moved > 1e-14 * frame[FD].abs().max():
        level = (frame[FD] - effect).groupby(cell).transform("mean")
        before, effect = effect, (frame[FD] - level).groupby(seed).transform("mean")
        moved = (effect - before).abs().max()
    return (frame[FD] - effect).groupby(cell).mean()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 6),
    st.sampled_from([0.1, 0.3, 0.6]),
    st.integers(1, 3),
)
def test_levels_are_least_squares_whatever_is_missing_and_whatever_the_seeds_connect(
    seed: int, cells: int, seeds: int, missing: float, islands: int
) -> None:
    """Cells of one island share no seeds with those of another."""
    frame = random_cells(seed, cells, seeds, gap=0.3, missing=missing)
    frame["seed"] += 100 * (frame["b"].astype(int) % islands)
    kept = frame[frame["state"] == State.FINISHED]
    levels = ranking.summarize(kept, FD)["level"] if len(kept) else pd.Series(dtype=float)
    np.testing.assert_allclose(levels, backfitted(kept), rtol=1e-9)


def test_a_long_chain_of_cells_that_share_one_seed_each_is_solved_to_its_end() -> None:
    """Cell i has the seeds i and i + 1: from one to the next, only the shared seed compares."""
    count, random = 400, np.random.default_rng(0)
    score = 100 + random.normal(size=(count, 2))
    frame = runs({(8, float(b)): list(pair) for b, pair in enumerate(score)})
    frame["seed"] += frame["b"].astype(int)
    step = np.diff(ranking.summarize(frame, FD)["level"])
    np.testing.assert_allclose(step, score[1:, 0] - score[:-1, 1], atol=1e-9)


def test_cells_without_a_seed_in_common_keep_their_means() -> None:
    frame = pd.concat(
        [runs({(8, 1.0): [5.0, 9.0]}), runs({(8, 2.0): [1.0, 2.0, 6.0]}).assign(seed=[7, 8, 9])]
    )
    assert ranking.summarize(frame, FD)["level"].tolist() == pytest.approx([7.0, 3.0], rel=1e-12)


def repeated(mean: NDArray[np.float64], seeds: int, repeats: int) -> pd.DataFrame:
    """Many sweeps of the same cells, each at an image size of its own; seeds share most of their
    noise.
    """
    random = np.random.default_rng(0)
    shape = repeats, len(mean), seeds
    values = mean[:, None] + random.normal(size=shape) + 5 * random.normal(size=(repeats, 1, seeds))
    index = pd.MultiIndex.from_product(list(map(range, shape)), names=["resolution", "b", "seed"])
    return index.to_frame(index=False).assign(
        **{"schedule": "linear", "state": State.FINISHED, FD: values.ravel()}
    )


@pytest.mark.parametrize(
    ("cells", "seeds", "equal"), [(3, 3, 3), (6, 5, 6), (12, 10, 12), (8, 5, 2)]
)
def test_cells_as_good_as_the_best_are_all_in_the_best_set_19_times_of_20(
    cells: int, seeds: int, equal: int
) -> None:
    repeats = 400
    versus = ranking.against_best(
        repeated(np.where(np.arange(cells) < equal, 0.0, 8.0), seeds, repeats), FD
    )
    kept = (versus["tied"] | (versus.index == versus["leader"])).to_numpy().reshape(repeats, cells)
    wrong = np.mean(~kept[:, :equal].all(axis=1))
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / repeats)
    assert kept[:, equal:].mean() < 0.25 if equal < cells else kept.all(axis=1).mean() > 0.9


def test_without_allowing_for_the_choice_of_the_leader_the_best_set_would_be_wrong_too_often() -> (
    None
):
    frame, repeats = repeated(np.zeros(12), 10, 300), 300
    versus = ranking.against_best(frame, FD).join(ranking.summarize(frame, FD)["resolution"])
    wrong = sum(
        bool((holm(p.dropna(), 11) <= 0.05).any()) for _, p in versus.groupby("resolution")["p"]
    )
    assert wrong / repeats > 0.09


def test_rank_intervals_hold_every_true_rank_19_times_of_20() -> None:
    repeats = 500
    ranks = ranking.rank_intervals(
        repeated(np.array([0.0, 0.0, 0.0, 3.0, 8.0, 8.0]), 6, repeats), FD
    )
    low, high = (ranks[name].to_numpy().reshape(repeats, 6) for name in ("rank_low", "rank_high"))
    wrong = ((low > [1, 1, 1, 4, 5, 5]) | (high < [3, 3, 3, 4, 6, 6])).any(axis=1).mean()
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / repeats)
    assert (high - low).mean() < 3.5


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_a_cells_interval_over_training_seeds_covers_as_often_as_it_says(seeds: int) -> None:
    random, cells, draws = np.random.default_rng(0), 6000, 2
    values = (
        10 + 3 * random.normal(size=(cells, seeds, 1)) + random.normal(size=(cells, seeds, draws))
    )
    index = pd.MultiIndex.from_product(
        [range(cells), range(seeds), range(draws)], names=["b", "seed", "sample.seed"]
    )
    frame = index.to_frame(index=False).assign(
        resolution=8, schedule="linear", state=State.FINISHED, score=values.ravel()
    )
    scored = ranking.summarize(frame, "score")
    assert 0.94 < ((scored["mean"] - 10).abs() <= scored["half_width"]).mean() < 0.96
    low, high = student.interval(0.95, seeds - 1, scored["mean"], scored["sd"] / math.sqrt(seeds))
    assert scored["half_width"].to_numpy() == pytest.approx((high - low) / 2)


def test_ranks_go_from_one_and_follow_what_the_seeds_can_tell() -> None:
    frame = runs(
        {(8, 1.0): [1.0, 2.0, 3.0], (8, 2.0): [1.1, 1.9, 3.0], (8, 4.0): [51.0, 52.01, 53.0]}
    )
    ranks = ranking.rank_intervals(
        pd.concat([frame, runs({(16, 1.0): [1.0]}), runs({(32, 1.0): [math.nan]})]), FD
    )
    assert ranks.to_numpy()[:4].tolist() == [[1, 2], [1, 2], [3, 3], [1, 1]]
    assert ranks.iloc[4].isna().all()


seeded = st.builds(
    random_cells,
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([0, 5.0]),
    st.sampled_from([0.0, 0.3]),
)


@settings(max_examples=20, deadline=None)
@given(
    seeded, st.sampled_from([0.25, 1.0, 1024.0]), st.sampled_from([0.0, -1000.0, 7.5]), st.randoms()
)
def test_conclusions_do_not_depend_on_the_order_of_rows_or_on_the_scores_scale_and_zero(
    frame: pd.DataFrame, scale: float, constant: float, order: Random
) -> None:
    rows = list(frame.index)
    order.shuffle(rows)
    changed = frame.loc[rows].assign(**{FD: scale * frame[FD] + constant})
    cells, others = (ranking.summarize(each, FD) for each in (frame, changed))
    np.testing.assert_allclose(scale * cells["mean"] + constant, others["mean"], rtol=1e-9)
    np.testing.assert_allclose(scale * cells["half_width"], others["half_width"], rtol=1e-6)
    one, other = (ranking.against_best(each, FD) for each in (frame, changed))
    assert one[["tied", "basis", "leader"]].equals(other[["tied", "basis", "leader"]])
    np.testing.assert_allclose(one["p_adjusted"], other["p_adjusted"], rtol=1e-5)
    np.testing.assert_allclose(
        scale * one["difference"], other["difference"], rtol=1e-7, atol=1e-9 * scale
    )
    assert ranking.rank_intervals(frame, FD).equals(ranking.rank_intervals(changed, FD))
    upside_down = frame.rename(columns={FD: "recall_x"}).assign(recall_x=-frame[FD])
    assert ranking.rank_intervals(frame, FD).equals(ranking.rank_intervals(upside_down, "recall_x"))
    assert ranking.against_best(upside_down, "recall_x")["tied"].equals(one["tied"])


def test_an_unknown_score_is_refused_with_the_columns_there_are() -> None:
    with pytest.raises(ValueError, match=r"no metric 'fd_clasifier'.*did you mean 'fd_classifier'"):
        ranking.summarize(runs({(8, 1.0): [1.0]}), "fd_clasifier")


@st.composite
def noisy(draw: st.DrawFn) -> tuple[pd.DataFrame, set[float]]:
    """Runs of one size, some of whose b draw noise, by baselines that leave no doubt; and these b.

    Noise scores worse than untrained networks do, or well with a loss that learned nothing.
    """
    scales = draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), min_size=1, unique=True))
    noise = {b for b in scales if draw(st.booleans())}
    seeds = draw(st.integers(1, 4))
    rows = []
    for b in scales:
        learns = draw(st.booleans())
        for seed in range(seeds):
            score = draw(st.floats(10.0, 30.0))
            if b in noise and learns:
                score += 100
            rows.append((b, seed, score, 1.0 if b in noise and not learns else 0.3))
    frame = pd.DataFrame(rows, columns=["b", "seed", FD, "loss"]).assign(
        resolution=8, schedule="linear", state=State.FINISHED, loss_of_zero=1.0
    )
    return frame.assign(**{f"real_{FD}": 0.0, f"untrained_{FD}": 100.0}), noise


@settings(max_examples=20, deadline=None)
@given(noisy())
def test_a_cell_that_draws_noise_is_never_best_nor_tied_nor_ranked(
    drawn: tuple[pd.DataFrame, set[float]],
) -> None:
    frame, noise = drawn
    cells = ranking.summarize(frame, FD)
    draws_noise = cells["b"].isin(noise)
    assert (cells["shortfall"].notna() == draws_noise).all()
    best = ranking.best_cells(frame, FD)
    assert len(best) == (not draws_noise.all())
    called = [*best.index, *(tie for ties in best["ties"] for tie in ties)]
    assert not draws_noise[called].any()
    assert not ranking.against_best(frame, FD).loc[draws_noise, "tied"].any()
    assert (ranking.rank_intervals(frame, FD)["rank_low"].isna() == draws_noise).all()
    # These come last.
    assert ranking.scored(cells, FD)["b"].isin(noise).is_monotonic_increasing


@settings(max_examples=20, deadline=None)
@given(noisy())
def test_the_others_rank_as_they_would_without_the_cells_that_draw_noise(
    drawn: tuple[pd.DataFrame, set[float]],
) -> None:
    frame, noise = drawn
    without = frame[~frame["b"].isin(noise)]
    assume(len(without))
    bare = without.drop(columns=["loss", "loss_of_zero", f"real_{FD}", f"untrained_{FD}"])
    said = ["b", "mean", "half_width", "level", "basis", "untested", "rank_low", "rank_high"]
    found = []
    for runs in (frame, without, bare):
        best = ranking.best_cells(runs, FD).join(ranking.rank_intervals(runs, FD)).iloc[0]
        ties = ranking.summarize(runs, FD).loc[list(best["ties"]), "b"].tolist()
        found.append((best[said].tolist(), ties, law.best_b(runs, FD)["b"].tolist()))
    assert str(found[0]) == str(found[1]) == str(found[2])
