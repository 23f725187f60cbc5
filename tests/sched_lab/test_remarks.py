"""What valid settings amount to is told at their lines: trials that are sure to fail are refused,
scores that would say little are doubted.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sched_lab.errors import SweepError
from sched_lab.sweep.located_yaml import loads
from sched_lab.sweep.remarks import initial_share
from sched_lab.sweep.settings import settings_text
from sched_lab.sweep.spec import Sweep, validated
from sched_lab.trainers.scoring.metrics import METRICS, least_samples, meaningful_samples
from sched_lab.trainers.spec import TrainSpec
from sched_lab.trainers.training import ema_at

ENOUGH = "sample: {count: 1000}\ntrain: {steps: 600}\n"


def read(text: str) -> Sweep:
    return validated(loads("name: x\n" + text, "x.yaml"))


def doubts(text: str) -> list[str]:
    return [str(warning) for warning in read(text).grid.warnings]


@pytest.mark.parametrize("metric", METRICS)
def test_too_few_samples_to_compute_a_metric_are_refused_and_too_few_to_mean_something_doubted(
    metric: str,
) -> None:
    least, enough = least_samples(metric), meaningful_samples(metric, 64)
    text = f"sample: {{count: COUNT}}\nscore: {{detector: random, metrics: [{metric}]}}"
    with pytest.raises(SweepError) as caught:
        read(text.replace("COUNT", str(least - 1)))
    assert str(caught.value) == (
        f"x.yaml:2:17: sample.count = {least - 1}: {metric} needs at least {least} samples"
    )
    (doubt,) = doubts(text.replace("COUNT", str(least)))
    assert doubt.startswith(f"x.yaml:2:17: sample.count = {least}: too few samples to mean much")
    assert doubts(text.replace("COUNT", str(enough - 1)))
    assert not doubts(text.replace("COUNT", str(enough)))


def test_how_many_samples_say_something_depends_on_the_detectors_features() -> None:
    (doubt,) = doubts("sample: {count: 1000}\nscore: {detector: inception, metrics: [fid]}")
    assert doubt.endswith("with the detector's 2,048 features: draw 2,049 or more for fid")


@given(st.integers(1, 5000), st.floats(0, 0.9999), st.booleans())
@settings(deadline=None, max_examples=50)
def test_the_initial_share_of_the_average_is_what_its_steps_leave(
    steps: int, ema: float, warm: bool
) -> None:
    train = TrainSpec(steps=steps, ema=ema, ema_warmup=warm)
    left = math.prod(ema_at(train, step) for step in range(steps))
    assert initial_share(train) == pytest.approx(left, rel=1e-6, abs=1e-200)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: {steps: 40, ema_warmup: false}", "2:32: train.ema_warmup = false: the average"),
        ("train: {steps: 600,\n  warmup: 600}", "3:11: train.warmup = 600: the learning rate"),
        ("train:\n  lr: 0.9\n  weight_decay: 2", "3:7: train.lr = 0.9: AdamW multiplies"),
        ("train:\n  lr: 1.0e-10", "3:7: train.lr = 1.0e-10: AdamW moves each weight"),
        ("train:\n  lr: 2", "3:7: train.lr = 2: AdamW moves each weight"),
        ("sample: {steps: 1}\ngrid:\n  sample.sampler: [ddim, ddpm_large]",
         '4:19: grid.sample.sampler = [ddim, ddpm_large]: changes nothing'),
        ("grid: {train.network.attention: [2, 3]}", "2:33: grid.train.network.attention = [2"),
        ("train:\n  grad_clip: 1.0e-300", "3:14: train.grad_clip = 1.0e-300: AdamW divides"),
        ("train:\n  weight: min_snr@1e-9", "3:11: train.weight = min_snr@1e-9: AdamW divides"),
        ("grid: {b: [1,\n  2000]}", "3:3: grid.b[1] = 2000: most of training teaches little: b is"
         " too large"),
        ("grid: {b: [1,\n  5.0e-4]}", "3:3: grid.b[1] = 5.0e-4: most of training teaches little: b"
         " is too small"),
        ("grid: {schedule: [sigmoid], tau: [1,\n  0.005]}", "3:3: grid.tau[1] = 0.005: most of"),
        ("train: {steps: 1}", "2:16: train.steps = 1: the average of the weights still has 10% of"
         " the initial ones after 1 step: "),
        ("score: {every: 1500}", "2:16: score.every = 1500: changes nothing"),
        ("grid: {score.every: [5000]}", "2:21: grid.score.every = [5000]: changes nothing"),
        ("train: {steps: 100}\ngrid:\n  score.every: [null, 100]",
         "4:16: grid.score.every = [null, 100]: changes nothing"),
        ("score: {weights: /w.pth}", "2:18: score.weights = /w.pth: changes nothing"),
    ],
)  # fmt: skip
def test_a_doubt_is_told_where_its_cause_is_written(text: str, told: str) -> None:
    (doubt,) = doubts(text)
    assert doubt.startswith(f"x.yaml:{told}")


@pytest.mark.parametrize(
    "text",
    [
        ENOUGH,
        "grid: {score.detector: [inception, random]}\nscore: {weights: /w.pth}\n"
        "sample: {count: 3000}",
        "grid: {sample.steps: [1, 20], sample.sampler: [ddim, ddpm_large]}",
        "grid: {sample.batch: [256]}\nsample: {count: 100}",
        "train: {steps: 40}",
        "score: {every: null}",
        "score: {every: 1499}",
        "score: {every: 500}\ngrid: {train.steps: [100, 600]}",
        "train: {grad_clip: 1.0e-3, weight: min_snr@0.1}",
        "grid: {b: [0.01, 100]}",
    ],
)
def test_what_says_something_is_not_doubted(text: str) -> None:
    assert not doubts(text)


@given(st.lists(st.floats(0.1, 9) | st.sampled_from([0.3, 0.1 + 0.2]), min_size=2, max_size=5))
@settings(deadline=None, max_examples=100)
def test_cells_that_differ_are_shown_apart_or_refused(values: list[float]) -> None:
    text = f"grid:\n  b: {values}\n  tau: {values}\n  schedule: [sigmoid]"
    apart = len({f"{value:g}" for value in values}) == len(set(values))
    if not apart:
        with pytest.raises(SweepError, match="let them differ in their first six digits") as caught:
            read(text)
        assert {problem.key[:5] for problem in caught.value.problems} <= {"grid."}
        return
    sweep = read(text)
    names = {settings_text(cell.settings) for cell in sweep.grid.cells}
    assert len(names) == len(sweep.grid.cells) == len(set(values)) ** 2
