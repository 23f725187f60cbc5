"""Scores agree with closed forms and with torch-fidelity, and references are kept under all that
changes them.
"""

from __future__ import annotations

import json
import math
import operator
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sched_lab.trainers.data.builtin import Shapes
from sched_lab.trainers.data.prepare import prepare
from sched_lab.trainers.images import ImageSet
from sched_lab.trainers.scoring import scores
from sched_lab.trainers.scoring.detectors import NetworkDetector
from sched_lab.trainers.scoring.metrics import least_samples, meaningful_samples
from sched_lab.trainers.scoring.scores import (
    Matrix,
    Reference,
    extract,
    frechet_distance,
    jackknife,
    kernel_distance,
    load_reference,
    precision_recall,
    real_scores,
    refer,
    score,
    standard_errors,
    statistics,
)
from sched_lab.trainers.scoring.torchvision_compat import import_torchvision
from sched_lab.trainers.spec import DETECTORS

CPU = torch.device("cpu")


def _channels(pixels: Tensor) -> Tensor:
    """Each channel's mean, deviation and brightest pixel: features a reader can check."""
    x = pixels.float() / 255
    return torch.cat([x.mean((2, 3)), x.std((2, 3)), x.amax((2, 3))], dim=1)


DETECTOR = NetworkDetector("plain", "0" * 64, _channels, CPU)
SHAPES = Shapes(count=60)


def gaussian(count: int, d: int, seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    """Correlated features whose covariance is far from a multiple of the identity."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    features: NDArray[np.float64] = scale * random.normal(size=(count, d)) @ mix + 0.1 * seed
    return features.astype(np.float32)


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randint(
        256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def judged(
    samples: Tensor,
    reference: Reference,
    metrics: Sequence[str],
    detector: NetworkDetector = DETECTOR,
) -> dict[str, float]:
    return score(extract(samples.numpy(), detector), reference, detector.name, metrics)


def distance(features: NDArray[np.float32], real: NDArray[np.float32]) -> float:
    return frechet_distance(*statistics(features), refer(real))


def test_the_distance_of_gaussians_with_diagonal_covariances_is_the_closed_form() -> None:
    random = np.random.default_rng(0)
    mean, real_mean, variance, real_variance = random.uniform(0.5, 2, size=(4, 6))
    reference = Reference(
        np.empty((0, 6), np.float32),
        real_mean,
        np.diag(real_variance),
        np.diag(np.sqrt(real_variance)),
    )
    closed = ((mean - real_mean) ** 2).sum() + (
        (np.sqrt(variance) - np.sqrt(real_variance)) ** 2
    ).sum()
    assert frechet_distance(mean, np.diag(variance), reference) == pytest.approx(closed, rel=1e-12)


def test_the_distance_is_zero_on_the_same_features_grows_with_a_shift_and_is_symmetric() -> None:
    a, b = gaussian(400, 8, 0), gaussian(300, 8, 1, scale=1.5)
    assert distance(a, a) == pytest.approx(0, abs=1e-9)
    assert distance(a + np.float32(3), a) == pytest.approx(8 * 9, rel=1e-5)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)


@pytest.mark.parametrize(
    ("count", "d"), [(500, 16), (1000, 64), (20, 64)]
)  # the last: a covariance without full rank
def test_the_distance_agrees_with_torch_fidelity_to_six_decimals(count: int, d: int) -> None:
    import_torchvision()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    samples, real = gaussian(count, d, 0), gaussian(800, d, 1, scale=1.3)
    theirs = [
        fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (samples, real)
    ]
    expected = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert distance(samples, real) == pytest.approx(expected, abs=1e-6)


def test_the_distance_differs_from_known_bad_ways_to_work_it_out() -> None:
    samples, real = gaussian(40, 16, 0) + np.float32(300), gaussian(400, 16, 1) + np.float32(300)
    right, reference = distance(samples, real), refer(real)
    mean, covariance = statistics(samples)
    over_n = frechet_distance(mean, covariance * (39 / 40), reference)
    second_moment = (samples.T @ samples) / np.float32(39) - np.outer(
        samples.mean(0), samples.mean(0)
    ) * np.float32(40 / 39)
    in_float32 = frechet_distance(mean, second_moment.astype(np.float64), reference)
    assert abs(over_n - right) > 1e-3
    assert abs(in_float32 - right) > 1e-3


@pytest.mark.parametrize(
    ("count", "d"), [(103, 5), (60, 40)]
)  # the last: no remainder has full rank
def test_the_jackknife_is_that_of_the_distances_worked_out_anew_without_each_group(
    count: int, d: int
) -> None:
    features, reference = gaussian(count, d, 0) + np.float32(50), refer(gaussian(300, d, 1))
    groups = np.arange(count) % 20
    left = [frechet_distance(*statistics(features[groups != g]), reference) for g in range(20)]
    assert jackknife(features, reference) == pytest.approx(
        math.sqrt(19 / 20 * np.sum((left - np.mean(left)) ** 2))
    )


@pytest.mark.parametrize(
    ("count", "d", "wide"), [(1000, 16, 1.2), (1000, 64, 1.2), (200, 64, 1.7), (40, 16, 1.7)]
)
def test_the_jackknifes_error_is_how_far_fresh_samples_lie_apart_or_more_when_few(
    count: int, d: int, wide: float
) -> None:
    reference = refer(gaussian(5000, d, 1, scale=1.2))
    draws = [gaussian(count, d, seed) + np.float32(0.1 * (1 - seed)) for seed in range(2, 152)]
    distances = np.array([frechet_distance(*statistics(each), reference) for each in draws])
    errors = np.array([jackknife(each, reference) for each in draws[:60]])
    assert 0.85 < errors.mean() / distances.std(ddof=1) < wide
    assert (
        np.mean(np.abs(distances[:60] - distances.mean()) <= 2.093 * errors) > 0.9
    )  # t(0.975, 19)


def test_a_bootstrap_over_samples_would_give_intervals_that_miss() -> None:
    reference, random = refer(gaussian(5000, 64, 1, scale=1.2)), np.random.default_rng(0)
    draws = [gaussian(1000, 64, seed) + np.float32(0.1 * (1 - seed)) for seed in range(2, 22)]
    expected = np.mean([frechet_distance(*statistics(each), reference) for each in draws])
    hits = 0
    for each in draws[:5]:
        again = [
            frechet_distance(*statistics(random.choice(each, 1000)), reference) for _ in range(100)
        ]
        low, high = np.quantile(again, [0.025, 0.975])
        hits += low <= expected <= high
    assert hits == 0


def test_standard_errors_are_of_frechet_distances_and_of_enough_samples() -> None:
    features, reference = gaussian(40, 4, 0), refer(gaussian(50, 4, 1))
    of_all = standard_errors(
        features, reference, "plain", ("kid_plain", "fd_plain", "recall_plain")
    )
    assert of_all == {"fd_plain": jackknife(features, reference)}
    assert standard_errors(features, reference, "inception", ("fid",)) == {
        "fid": of_all["fd_plain"]
    }
    assert standard_errors(features[:39], reference, "plain", ("fd_plain",)) == {}


def test_a_trial_tells_its_standard_error_with_its_last_scores_alone(small_lab: Path) -> None:
    for folder in (small_lab / "lab" / "trials").iterdir():
        events = [
            json.loads(line) for line in (folder / "journal.jsonl").read_text("utf-8").splitlines()
        ]
        scored = {
            e["step"]: e["metrics"] for e in events if "fd_classifier" in e.get("metrics", {})
        }
        assert ["jackknife/fd_classifier" in metrics for metrics in scored.values()] == [
            False,
            True,
        ]
        result = json.loads((folder / "result.json").read_text("utf-8"))
        assert list(result["scores"]) == ["fd_classifier"]
        assert result["uncertainty"] == {"fd_classifier": scored[20]["jackknife/fd_classifier"]}
        assert 0 < result["uncertainty"]["fd_classifier"] < result["scores"]["fd_classifier"]


def test_statistics_are_numpys_however_many_features_there_are() -> None:
    features = gaussian(9001, 5, 0)  # three blocks, the last one short
    mean, covariance = statistics(features)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10
    )


def test_the_root_of_a_reference_squares_to_its_covariance() -> None:
    reference = refer(gaussian(30, 40, 0))
    np.testing.assert_allclose(reference.root @ reference.root, reference.covariance, atol=1e-10)


def test_kid_precision_and_recall_are_torch_fidelitys() -> None:
    import_torchvision()
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, real = gaussian(150, 8, 0), gaussian(200, 8, 1)
    pair = torch.from_numpy(samples).double(), torch.from_numpy(real).double()
    kid = kid_features_to_metric(
        *pair, kid_subset_size=150, kid_subsets=100, rng_seed=0, verbose=False
    )
    prc = prc_features_to_metric(*pair, save_cpu_ram=False, verbose=False)
    assert kernel_distance(samples, real) == pytest.approx(
        kid["kernel_inception_distance_mean"], rel=1e-9
    )
    assert precision_recall(samples, real) == pytest.approx((prc["precision"], prc["recall"]))


def test_kid_is_the_unbiased_estimate_written_out() -> None:
    samples, real = (
        gaussian(60, 4, 0),
        gaussian(60, 4, 1),
    )  # as many as a subset: every subset is all of them
    x, y = samples.astype(np.float64), real.astype(np.float64)
    xx, yy, xy = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum((kernel.sum() - np.trace(kernel)) / (60 * 59) for kernel in (xx, yy))
    assert kernel_distance(samples, real) == pytest.approx(within - 2 * xy.mean(), rel=1e-4)


ANYWHERE = given(
    offset=st.sampled_from([0.0, 1.0, -100.0, 1e4, 1e6]),
    spread=st.sampled_from([0.0, 1e-3, 1e-2, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 0.3, 3.0]),
    d=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)


def far_off(
    offset: float, spread: float, shift: float, d: int, seed: int, count: int
) -> list[NDArray[np.float32]]:
    """Features of samples and of real images, as float32 holds them."""
    random = np.random.default_rng(seed)
    draws = random.normal(size=(2, count, d)) + np.array([[[shift]], [[0.0]]])
    return list((offset + spread * draws).astype(np.float32))


def exact(features: NDArray[np.float32]) -> list[list[Fraction]]:
    return [[Fraction(float(value)) for value in row] for row in features]


@ANYWHERE
@settings(deadline=None, max_examples=60)
def test_kid_is_exact_however_far_off_centre_and_however_narrow(
    offset: float, spread: float, shift: float, d: int, seed: int
) -> None:
    pair = far_off(offset, spread, shift, d, seed, count=6)
    x, y = map(exact, pair)

    def mean(a: list[list[Fraction]], b: list[list[Fraction]]) -> Fraction:
        values = [(sum(map(operator.mul, u, v)) / d + 1) ** 3 for u in a for v in b if u is not v]
        return sum(values, Fraction()) / len(values)

    expected = float(mean(x, x) + mean(y, y) - 2 * mean(x, y))
    # Of this size are the terms that the estimate is the difference of.
    wide = max(float(np.ptp(np.concatenate(pair))), 1e-30)
    scale = wide**2 * (1 + wide + abs(offset)) ** 4
    assert kernel_distance(*pair) == pytest.approx(expected, rel=1e-6, abs=1e-11 * scale)


@ANYWHERE
@settings(deadline=None, max_examples=60)
def test_precision_and_recall_are_exact_however_far_off_centre_and_however_narrow(
    offset: float, spread: float, shift: float, d: int, seed: int
) -> None:
    pair = far_off(offset, spread, shift, d, seed, count=40)
    samples, real = (each.astype(np.float64) for each in pair)

    def apart(a: Matrix, b: Matrix) -> Matrix:
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    def covered(points: Matrix, balls: Matrix) -> float:
        radii = np.sort(apart(balls, balls), axis=1)[:, 3]
        within = apart(points, balls) <= radii * (1 + 1e-9)
        return float(within.any(axis=1).mean())

    expected = covered(samples, real), covered(real, samples)
    assert precision_recall(*pair) == pytest.approx(expected, abs=0.026)  # one point at an edge


@ANYWHERE
@settings(deadline=None, max_examples=60)
def test_the_distance_is_that_of_the_exact_moments_however_far_off_centre_and_however_narrow(
    offset: float, spread: float, shift: float, d: int, seed: int
) -> None:
    pair = far_off(offset, spread, shift, 1, seed, count=20)
    moments = []
    for column in ([row[0] for row in exact(each)] for each in pair):
        mean = sum(column, Fraction()) / len(column)
        variance = sum(((v - mean) ** 2 for v in column), Fraction()) / (len(column) - 1)
        moments.append((float(mean), math.sqrt(variance)))
    (mean, deviation), (real_mean, real_deviation) = moments
    expected = (mean - real_mean) ** 2 + (deviation - real_deviation) ** 2
    total = (mean - real_mean) ** 2 + deviation**2 + real_deviation**2
    value = distance(*(np.repeat(each, d, axis=1) for each in pair))
    # d equal features have a covariance of rank 1.
    assert value == pytest.approx(d * expected, rel=1e-6, abs=1e-7 * d * total)
    assert value >= 0


@pytest.mark.parametrize("metric", ["fd", "kid", "precision", "recall"])
@pytest.mark.parametrize("largest", [1e12, 1e30, float(np.finfo(np.float32).max) / 2])
def test_scores_of_huge_features_are_finite(metric: str, largest: float) -> None:
    features = (gaussian(30, 4, 0) / 10 * largest).astype(np.float32)
    real = (gaussian(30, 4, 1) / 10 * largest).astype(np.float32)
    values = score(features, refer(real), "plain", [f"{metric}_plain"])
    assert all(map(math.isfinite, values.values()))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("metric", ["fd", "kid"])
def test_a_score_that_is_not_finite_is_refused(metric: str) -> None:
    # Only a detector of a plug-in's own gives float64.
    features = gaussian(30, 4, 0).astype(np.float64) * 1e160
    reference = Reference(features, features.mean(0), np.eye(4), np.eye(4))
    with pytest.raises(ValueError, match=r"scores must be finite, got|infs or NaNs|converge"):
        score(-features, reference, "plain", [f"{metric}_plain"])


def test_the_distance_holds_for_features_that_are_dead_or_equal() -> None:
    """As a classifier's are, after its ReLU: the covariances are singular."""
    import_torchvision()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    pair = [np.maximum(gaussian(n, 16, seed), 0) for n, seed in ((50, 0), (200, 1))]
    for features in pair:
        features[:, 3:8] = 0
        features[:, 9] = features[:, 10]
        features[:, 11] = 7.5
    theirs = [fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in pair]
    expected = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert distance(*pair) == pytest.approx(expected, abs=1e-6)
    constant = np.full((20, 16), 7.3, np.float32)
    assert distance(constant, constant) == 0
    assert kernel_distance(constant, constant) == pytest.approx(0, abs=1e-9)
    assert distance(constant, pair[0]) == pytest.approx(
        float(
            ((statistics(pair[0])[0] - np.float32(7.3)) ** 2).sum() + pair[0].var(0, ddof=1).sum()
        ),
        rel=1e-5,
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused_with_their_number(bad: float) -> None:
    def network(pixels: Tensor) -> Tensor:
        features = _channels(pixels)
        features[pixels.flatten(1).sum(1) == 0] = bad
        return features

    images = noise(30).numpy()
    images[[3, 20]] = 0
    with pytest.raises(ValueError, match=r"'plain' gave features .* not finite for 2 of 30 images"):
        extract(images, replace(DETECTOR, network=network), batch=7)


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2,)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    other = replace(DETECTOR, network=lambda pixels: torch.zeros(shape))
    with pytest.raises(ValueError, match=r"must give features \(N, d\), N = 2, it gave"):
        extract(noise(2).numpy(), other)


@pytest.mark.parametrize("detector", DETECTORS.builtin)
@pytest.mark.parametrize("metric", ["fd", "kid", "precision", "recall"])
def test_a_metric_means_something_only_from_more_samples_than_it_needs(
    metric: str, detector: str
) -> None:
    dimension = DETECTORS.class_for({"kind": detector}).dimension
    assert least_samples(metric) < meaningful_samples(metric, dimension)
    assert least_samples(metric) <= meaningful_samples(metric, None)


def test_from_as_many_samples_as_mean_something_the_covariance_has_full_rank() -> None:
    enough = meaningful_samples("fd", 8)
    ranks = [np.linalg.matrix_rank(statistics(gaussian(n, 8, 0))[1]) for n in (enough - 1, enough)]
    assert ranks == [7, 8]


def test_precision_and_recall_tell_samples_of_one_mode_from_samples_out_of_range() -> None:
    real = np.concatenate([gaussian(100, 4, 0), gaussian(100, 4, 0) + np.float32(100)])
    precision, recall = precision_recall(real[:100] + np.float32(1e-3), real)
    assert precision > 0.95
    assert recall == pytest.approx(0.5, abs=0.03)
    assert precision_recall(gaussian(100, 4, 0) - np.float32(100), real) == (0.0, 0.0)


def test_features_do_not_depend_on_how_many_images_the_detector_sees_at_once() -> None:
    images, seen = noise(50).numpy(), []
    counting = replace(
        DETECTOR, network=lambda pixels: (seen.append(len(pixels)), DETECTOR.network(pixels))[1]
    )
    np.testing.assert_allclose(
        extract(images, counting, batch=7), extract(images, DETECTOR), rtol=1e-5, atol=1e-5
    )
    assert seen == [7] * 7 + [1]


def test_a_score_has_the_names_asked_for_in_their_order_and_repeats_itself() -> None:
    names = ("kid_plain", "recall_plain", "fd_plain", "precision_plain")
    reference = refer(extract(noise(50, 1).numpy(), DETECTOR))
    first, again = (judged(noise(40), reference, names) for _ in range(2))
    assert tuple(first) == names
    assert first == again
    assert judged(noise(40), reference, ("fid",), replace(DETECTOR, name="inception")) == {
        "fid": first["fd_plain"]
    }


def test_worse_samples_score_worse(tmp_path: Path) -> None:
    images = prepare(Shapes(count=200), 8, tmp_path)
    reference = refer(extract(images.pixels[:100], DETECTOR))
    real = judged(
        torch.from_numpy(np.array(images.pixels[100:])), reference, ("fd_plain", "kid_plain")
    )
    bad = judged(noise(100), reference, ("fd_plain", "kid_plain"))
    assert bad["fd_plain"] > 5 * real["fd_plain"]
    assert bad["kid_plain"] > 5 * real["kid_plain"]


@pytest.mark.parametrize(
    ("metric", "count", "least"), [("fd_plain", 1, 2), ("kid_plain", 1, 2), ("recall_plain", 3, 4)]
)
def test_too_few_samples_are_refused(metric: str, count: int, least: int) -> None:
    reference = refer(extract(noise(50, 1).numpy(), DETECTOR))
    with pytest.raises(
        ValueError, match=f"{metric} needs at least {least} samples .* got {count} and 50"
    ):
        judged(noise(count), reference, (metric,))


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match="no metric 'fd_other' on detector 'plain'; valid: fd, kid, precision, recall",
    ):
        judged(noise(5), refer(gaussian(10, 9, 0)), ("fd_other",))


def _forbidden(pixels: Tensor) -> Tensor:
    raise AssertionError("the reference was worked out again")


def test_a_reference_is_worked_out_once(tmp_path: Path) -> None:
    images = prepare(SHAPES, 8, tmp_path)
    made = load_reference(SHAPES, 8, DETECTOR, tmp_path, images)
    kept = load_reference(SHAPES, 8, replace(DETECTOR, network=_forbidden), tmp_path, images)
    expected = refer(extract(images.pixels, DETECTOR))
    for name in ("features", "mean", "covariance", "root"):
        assert np.array_equal(getattr(kept, name), getattr(made, name))
        assert np.array_equal(getattr(kept, name), getattr(expected, name))


def test_everything_that_changes_a_reference_changes_where_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def references() -> int:
        return sum(path.is_dir() for path in (tmp_path / "references").iterdir())

    images: ImageSet = prepare(SHAPES, 8, tmp_path)
    load_reference(SHAPES, 8, DETECTOR, tmp_path, images)
    assert references() == 1
    load_reference(Shapes(count=60, flip=True), 8, DETECTOR, tmp_path, images)
    assert references() == 1  # flips are left to training
    load_reference(SHAPES, 16, DETECTOR, tmp_path, prepare(SHAPES, 16, tmp_path))
    load_reference(SHAPES, 8, replace(DETECTOR, fingerprint="1" * 64), tmp_path, images)
    load_reference(Shapes(count=61), 8, DETECTOR, tmp_path, prepare(Shapes(count=61), 8, tmp_path))
    assert references() == 4
    monkeypatch.setattr(scores, "REFERENCE_IMAGES", 20)
    assert load_reference(SHAPES, 8, DETECTOR, tmp_path, images).features.shape == (20, 9)
    monkeypatch.setattr(scores, "SCIENCE_VERSION", 999)
    load_reference(SHAPES, 8, DETECTOR, tmp_path, images)
    assert references() == 6


def test_real_images_are_scored_as_samples_against_the_others_once(tmp_path: Path) -> None:
    metrics = ["fd_plain", "kid_plain", "precision_plain"]
    reference = refer(gaussian(41, 4, 0))
    order = np.random.default_rng(0).permutation(41)
    for count, taken in ((7, 7), (20, 20), (1000, 20)):  # half of them at most
        drawn, others = reference.features[order[:taken]], reference.features[order[taken:]]
        expected = score(drawn, refer(others), "plain", metrics)
        assert real_scores(reference, "plain", metrics, count, tmp_path) == expected
    assert len(list(tmp_path.glob("baselines/*/text"))) == 2
    other = replace(refer(gaussian(41, 4, 1)), key="other")
    assert real_scores(other, "plain", metrics, 7, tmp_path) != expected
    few = replace(refer(gaussian(5, 4, 1)), key="few")
    assert real_scores(few, "plain", metrics, 9, tmp_path).keys() == {"fd_plain", "kid_plain"}
    for count in (2, 3):
        fewer = replace(refer(gaussian(count, 4, 1)), key=f"{count}")
        assert real_scores(fewer, "plain", metrics, 9, tmp_path) == {}


def test_a_trial_tells_its_baselines_with_its_last_scores_alone(small_lab: Path) -> None:
    for folder in (small_lab / "lab" / "trials").iterdir():
        lines = (folder / "journal.jsonl").read_text("utf-8").splitlines()
        told = {
            (event["step"], name): value
            for event in map(json.loads, lines)
            for name, value in event.get("metrics", {}).items()
        }
        result = json.loads((folder / "result.json").read_text("utf-8"))
        assert set(result["baselines"]) == {
            "real_fd_classifier",
            "untrained_fd_classifier",
            "loss_of_zero",
            "detector_accuracy",
        }
        for name, value in result["baselines"].items():
            assert {(20, name): value} == {at: v for at, v in told.items() if at[1] == name}


def test_a_damaged_reference_is_worked_out_again(tmp_path: Path) -> None:
    images = prepare(SHAPES, 8, tmp_path)
    root = np.array(load_reference(SHAPES, 8, DETECTOR, tmp_path, images).root)
    (file,) = tmp_path.glob("references/*/root.npy")
    file.write_bytes(file.read_bytes()[:-100])
    assert np.array_equal(load_reference(SHAPES, 8, DETECTOR, tmp_path, images).root, root)


def test_the_frechet_distance_alone_imports_no_torch_fidelity() -> None:
    program = (
        "import sys, torch\n"
        "from sched_lab.trainers.scoring.scores import *\n"
        "from sched_lab.trainers.scoring.detectors import NetworkDetector\n"
        "d = NetworkDetector('x', '', lambda p: p.flatten(1), torch.device('cpu'))\n"
        "p = torch.arange(320, dtype=torch.uint8).reshape(20, 1, 4, 4)\n"
        "f = extract(p.numpy(), d)\n"
        "score(f, refer(f), 'x', ['fd_x'])\n"
        "print({'torch_fidelity', 'torchvision'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "set()"
