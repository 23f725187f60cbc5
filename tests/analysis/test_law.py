"""The best b from curves whose lowest point is known, and the law through several sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from sched_lab.analysis.statistics.law import Law, Unsupported, best_b, fit, recommend
from sched_lab.analysis.statistics.lines import weighted_line

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def runs(
    lowest: Mapping[tuple[int, int], float],
    scales: Sequence[float] = SCALES,
    bend: float = 0.3,
    schedule: str = "linear",
    noise: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Trials whose log score is a parabola of log2 b, lowest at `lowest[size, seed]`."""
    rows = [
        {"resolution": size, "schedule": schedule, "b": b, "seed": seed, "state": "finished"}
        | {
            "fd": math.exp(
                1
                + bend * (math.log2(b) - math.log2(at)) ** 2
                + (noise.normal(0, 0.03) if noise else 0)
            )
        }
        for (size, seed), at in lowest.items()
        for b in scales
    ]
    return pd.DataFrame(rows)


def power(
    c: float, k: float, sizes: Sequence[int] = (8, 16, 32), seeds: int = 3
) -> dict[tuple[int, int], float]:
    return {(size, seed): c * size**k for size in sizes for seed in range(seeds)}


def law(frame: pd.DataFrame) -> Law:
    return fit(best_b(frame, "fd"))


def test_the_lowest_point_of_a_parabola_is_found_between_the_values_that_were_swept() -> None:
    best = best_b(runs({(8, 0): 1.3, (16, 0): 0.8}), "fd")
    assert best["b"].tolist() == pytest.approx([1.3, 0.8])
    assert best["supported"].tolist() == [True, True]
    assert best["low"].isna().all()
    assert best["n"].tolist() == [1, 1]


def test_the_interval_over_seeds_is_the_t_interval_of_their_lowest_points() -> None:
    logs = np.array([0.1, 0.3, 0.5])
    row = best_b(runs({(8, seed): 2**at for seed, at in enumerate(logs)}), "fd").iloc[0]
    half = 4.302652730 * logs.std(ddof=1) / math.sqrt(3)
    assert np.log2([row["low"], row["b"], row["high"]]) == pytest.approx(
        [0.3 - half, 0.3, 0.3 + half], abs=1e-9
    )
    assert row["by_seed"] == pytest.approx({0: 0.1, 1: 0.3, 2: 0.5})


@pytest.mark.parametrize(
    ("lowest", "scales", "why"),
    [
        (9.0, SCALES, "best at the highest b that was scored, 4"),
        (0.1, SCALES, "best at the lowest b that was scored, 0.25"),
        (1.0, (0.5, 1.0), "fewer than 3 b have scores"),
    ],
)
def test_where_no_lowest_point_was_seen_there_is_no_best_b(
    lowest: float, scales: Sequence[float], why: str
) -> None:
    frame = runs({(8, 0): lowest}, scales)
    row = best_b(frame, "fd").iloc[0]
    assert (row["supported"], row["why"], row["schedule"]) == (False, why, "linear")
    assert math.isnan(row["b"])
    with pytest.raises(
        Unsupported, match="known at 0 image sizes" if "fewer" in why else f"at this size, {why}"
    ):
        recommend(best_b(frame, "fd"), 8)


def test_trials_without_a_score_leave_a_size_without_a_best_b() -> None:
    frame = runs(power(16, -1, sizes=(8, 16))).assign(state="failed")
    assert best_b(frame, "fd")["why"].tolist() == ["fewer than 3 b have scores"] * 2


def test_a_power_law_is_found_again_and_said_in_a_sentence() -> None:
    fitted = law(runs(power(16, -1)))
    assert (fitted.c, fitted.k) == pytest.approx((16, -1))
    assert (fitted.k_low, fitted.k_high) == pytest.approx((-1, -1))
    assert (
        fitted.sentence
        == "best b ≈ 16·size^−1.00 (k from −1.00 to −1.00, 95 % over 3 seeds; sizes 8 to 32)"
    )
    assert fitted.at(64).b == pytest.approx(0.25)
    assert (fitted.at(64).extrapolated, fitted.at(24).extrapolated) == (True, False)


def test_one_seed_at_two_sizes_gives_a_law_without_an_interval() -> None:
    fitted = law(runs(power(16, -1, sizes=(8, 32), seeds=1)))
    assert math.isnan(fitted.k_low)
    assert fitted.sentence == "best b ≈ 16·size^−1.00 (no interval: one seed; sizes 8 and 32)"


def test_one_seed_at_three_sizes_has_the_interval_of_a_line_through_them() -> None:
    """Against the textbook's standard error of a slope."""
    logs = np.array([0.9, 0.2, -0.7])
    fitted = law(runs({(size, 0): 2**at for size, at in zip((8, 16, 32), logs, strict=True)}))
    x = np.array([3.0, 4.0, 5.0])
    slope = ((x - 4) * logs).sum() / 2
    left = logs - logs.mean() - slope * (x - 4)
    assert fitted.k == pytest.approx(slope)
    assert fitted.k_high - fitted.k == pytest.approx(12.7062047364 * math.sqrt((left**2).sum() / 2))


def test_the_interval_of_k_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        moved = {at: b * 2 ** random.normal(0, 0.15) for at, b in power(16, -0.8, seeds=4).items()}
        fitted = law(runs(moved, noise=random))
        hits += fitted.k_low <= -0.8 <= fitted.k_high
    assert 0.92 <= hits / 300 <= 0.98  # three standard errors on either side of 0.95


def test_sizes_that_no_line_goes_through_widen_the_interval() -> None:
    lowest = {
        (size, seed): b * 2 ** (0.02 * seed)
        for size, b in ((8, 2.0), (16, 0.5), (32, 1.0))
        for seed in range(3)
    }
    fitted = law(runs(lowest))
    assert "over 3 sizes, which no line goes through" in fitted.sentence
    assert fitted.k_low < -5 < 5 < fitted.k_high


def test_a_seed_that_has_few_b_does_not_move_the_lowest_point() -> None:
    """As in two stages: one seed has every b, the others those that were kept."""
    screened = runs({(8, 0): 1.0})
    confirmed = runs({(8, seed): 1.0 for seed in (1, 2, 3)}, scales=(0.5, 1.0, 2.0))
    row = best_b(
        pd.concat([screened, confirmed.assign(fd=confirmed["fd"] * 1.5)], ignore_index=True), "fd"
    ).iloc[0]
    assert row["supported"]
    assert (row["b"], row["n"]) == (pytest.approx(1.0), 4)


def test_a_setting_that_the_best_schedule_lacks_is_no_obstacle() -> None:
    frame = runs(power(16, -1)).assign(norm=None)
    other = runs(power(16, -1), schedule="cosine@0.2,1,1").assign(
        norm="layer", fd=lambda frame: frame["fd"] * 2
    )
    both = pd.concat([frame, other], ignore_index=True).astype({"norm": "str"})
    assert fit(best_b(both, "fd", by=("resolution", "schedule", "b", "norm"))).k == pytest.approx(
        -1
    )


def test_one_seed_at_two_sizes_says_nothing_of_others() -> None:
    best = best_b(runs(power(16, -1, sizes=(8, 32), seeds=1)), "fd")
    assert recommend(best, 16).b == pytest.approx(1)
    with pytest.raises(Unsupported, match="without an interval"):
        recommend(best, 64)


def test_an_intervals_size_that_no_line_goes_through_is_named() -> None:
    lowest = power(1, 0, sizes=(8, 32)) | {(16, seed): 2.0 for seed in range(3)}
    lowest = {(size, seed): b * 2 ** (0.01 * seed) for (size, seed), b in lowest.items()}
    assert law(runs(lowest)).sentence.endswith("sizes 8 to 32; not on it: 8, 16, 32)")


def test_the_schedule_with_the_best_cells_is_read_unless_another_is_asked_for() -> None:
    worse = runs(power(8, -1), schedule="cosine@0.2,1,1")
    frame = pd.concat([runs(power(16, -1)), worse.assign(fd=worse["fd"] * 2)], ignore_index=True)
    assert set(best_b(frame, "fd")["schedule"]) == {"linear"}
    assert fit(best_b(frame, "fd", schedule="cosine@0.2,1,1")).c == pytest.approx(8)
    with pytest.raises(ValueError, match="no schedule 'sigmoid' in these runs"):
        best_b(frame, "fd", schedule="sigmoid")


def test_where_higher_is_better_the_highest_point_is_taken() -> None:
    frame = runs(power(16, -1)).rename(columns={"fd": "recall_random"})
    frame["recall_random"] = 1 - np.log(frame["recall_random"]) / 10
    assert fit(best_b(frame, "recall_random")).k == pytest.approx(-1)


def test_a_size_that_was_swept_is_recommended_by_its_own_scores_and_others_by_the_law() -> None:
    lowest = power(16, -1) | {(16, seed): 1.2 + 0.1 * seed for seed in range(3)}
    best = best_b(runs(lowest), "fd")
    own = recommend(best, 16)
    assert own.b == pytest.approx((1.2 * 1.3 * 1.4) ** (1 / 3))
    assert own.basis == "measured at this size, 95 % over 3 seeds"
    assert own.low < own.b < own.high
    assert recommend(best_b(runs(power(16, -1)), "fd"), 64).basis.startswith("by the law: best b ≈")


def test_an_interval_that_says_nothing_is_no_recommendation() -> None:
    random = np.random.default_rng(1)
    lowest = {at: b * 2 ** random.normal(0, 0.8) for at, b in power(4, -0.5, seeds=2).items()}
    with pytest.raises(Unsupported, match="b may lie anywhere from"):
        recommend(best_b(runs(lowest), "fd"), 1024)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_weighted_line_and_its_covariance_are_those_of_the_normal_equations(
    count: int, known: bool
) -> None:
    """Against (XᵀWX)⁻¹XᵀWy; errors that are not known weigh the same."""
    random = np.random.default_rng(count)
    x, y = 3.0 + np.arange(count), random.normal(size=count)
    error = random.uniform(0.01, 1, count) if known else np.full(count, math.nan)
    design, weight = np.stack([np.ones(count), x], axis=1), np.nan_to_num(error, nan=1.0) ** -2
    expected = np.linalg.inv(design.T @ (weight[:, None] * design))
    line, covariance = weighted_line(x, y, error)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9)
    np.testing.assert_allclose(line, expected @ design.T @ (weight * y), rtol=1e-9)
