"""Sampling agrees with the authors' trajectories, a second implementation and an exact denoiser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from sched_lab.trainers.diffusion import DiffusionProcess
from sched_lab.trainers.sampling import Denoise, NoiseSource, SampleNoise, drawn, sample
from sched_lab.trainers.schedules import parse
from sched_lab.trainers.spec import Normalize, Predict, Sampler
from tests.conftest import ROOT

TRAJECTORIES: list[dict[str, Any]] = json.loads(
    (ROOT / "tests" / "data" / "pix2seq_golden.json").read_text("utf-8")
)["trajectories"]
IMAGE = (3, 4, 4)


def draw(denoise: Denoise, noise: NoiseSource, process: DiffusionProcess, **how: Any) -> Tensor:
    """The samples, after all steps."""
    *_, last = sample(denoise, noise, process, **how)
    return drawn(last, process)


def replay(noises: NDArray[Any]) -> NoiseSource:
    """The given noises (calls, B, C, H, W), one a call."""
    remaining: Iterator[Tensor] = iter(torch.from_numpy(noises))
    return lambda: next(remaining)


def reference(
    noises: NDArray[Any],
    *,
    schedule: str,
    steps: int,
    sampler: str,
    b: float,
    predict: str,
    normalize: str,
    k: float,
) -> NDArray[Any]:
    """The last x0 in scaled units, in plain NumPy, for the golden network k·tanh(x) + 0.1·γ."""
    source, dtype = iter(noises), noises.dtype
    x: NDArray[Any] = next(source)
    x0 = x
    for i in range(steps):
        now = parse(schedule).gamma(1 - i / steps).astype(dtype)
        after = parse(schedule).gamma(max(1 - (i + 1) / steps, 0)).astype(dtype)
        x_in = x
        if normalize in ("input", "state"):
            x_in = x / np.sqrt(
                ((x - x.mean((1, 2, 3), keepdims=True)) ** 2).mean((1, 2, 3), keepdims=True)
            )
        if normalize == "analytic":
            x_in = x / np.sqrt((b**2 - 1) * now + 1)
        if normalize == "state":
            x = x_in
        out = dtype.type(k) * np.tanh(x_in) + dtype.type(0.1) * now
        x0 = {
            "eps": (x - np.sqrt(1 - now) * out) / np.sqrt(now),
            "v": np.sqrt(now) * x - np.sqrt(1 - now) * out,
            "x0": out,
        }[predict].clip(-b, b)
        eps = (x - np.sqrt(now) * x0) / np.sqrt(1 - now)
        if sampler == "ddim":
            x = np.sqrt(after) * x0 + np.sqrt(1 - after) * eps
        else:
            alpha = np.clip(now / after, 0, 1)
            variance = (1 - alpha) * ((1 - after) / (1 - now) if sampler == "ddpm_small" else 1)
            x = (x - (1 - alpha) / np.sqrt(1 - now) * eps) / np.sqrt(alpha) + np.sqrt(
                variance
            ) * next(source)
        assert x.dtype == dtype
    return x0


def ours(
    noises: NDArray[Any],
    *,
    schedule: str,
    steps: int,
    sampler: Sampler,
    b: float,
    predict: Predict,
    normalize: Normalize,
    k: float,
) -> NDArray[Any]:
    *_, last = sample(
        lambda x, gamma: k * x.tanh() + 0.1 * gamma[:, None, None, None],
        replay(noises),
        DiffusionProcess(b, predict, normalize),
        schedule=parse(schedule),
        steps=steps,
        sampler=sampler,
    )
    return last.x0.numpy()


def arguments(trajectory: dict[str, Any]) -> dict[str, Any]:
    return {
        "schedule": trajectory["schedule"],
        "steps": trajectory["steps"],
        "sampler": trajectory["sampler"].replace("ddpm", "ddpm_large"),
        "b": trajectory["scale"],
        "predict": "eps",
        "normalize": "input" if trajectory["normalize"] else "none",
        "k": trajectory["k"],
    }


@pytest.mark.parametrize("implementation", [ours, reference])
@pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=lambda t: f"{t['sampler']}-b{t['scale']}")
def test_the_authors_trajectories_are_replayed_in_single_precision(
    trajectory: dict[str, Any], implementation: Any
) -> None:
    noises = np.array(trajectory["noises"], dtype=np.float32).transpose(0, 1, 4, 2, 3)
    samples = np.array(trajectory["samples_before_unscale"], dtype=np.float32).transpose(0, 3, 1, 2)
    assert implementation(noises, **arguments(trajectory)) == pytest.approx(samples, abs=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm_large", "ddpm_small"])
@pytest.mark.parametrize("predict", ["v", "eps", "x0"])
@pytest.mark.parametrize("normalize", ["none", "input", "analytic", "state"])
def test_every_way_of_sampling_agrees_with_a_second_implementation(
    sampler: Sampler, predict: Predict, normalize: Normalize
) -> None:
    noises = np.random.default_rng(0).standard_normal((9, 2, *IMAGE))
    given: dict[str, Any] = {
        "schedule": "cosine@0.2,1,1",
        "steps": 8,
        "sampler": sampler,
        "b": 0.7,
        "predict": predict,
        "normalize": normalize,
        "k": 0.6,
    }
    assert ours(noises, **given) == pytest.approx(reference(noises, **given), abs=1e-6)


GAUSSIAN_MEAN, GAUSSIAN_STD = 0.1, 0.2


def gaussian_samples(
    sampler: Sampler, predict: Predict = "x0", steps: int = 1000, b: float = 0.5
) -> Tensor:
    """Samples of the exact denoiser of pixels that are N(GAUSSIAN_MEAN, GAUSSIAN_STD²), 5
    deviations inside [-1, 1].
    """

    def denoise(x: Tensor, gamma: Tensor) -> Tensor:
        gamma = gamma[:, None, None, None]
        mean, variance = b * GAUSSIAN_MEAN, (b * GAUSSIAN_STD) ** 2
        gain = variance * gamma.sqrt() / (gamma * variance + 1 - gamma)
        x0 = mean + gain * (x - gamma.sqrt() * mean)  # E[b·x0 | x_t]
        eps = (x - gamma.sqrt() * x0) / (1 - gamma).sqrt()
        return {"x0": x0, "eps": eps, "v": gamma.sqrt() * eps - (1 - gamma).sqrt() * x0}[predict]

    return draw(
        denoise,
        SampleNoise(0, range(4), (1, 64, 64), dtype=torch.float64),
        DiffusionProcess(b, predict),
        schedule=parse("cosine"),
        steps=steps,
        sampler=sampler,
    )


@pytest.mark.parametrize("sampler", ["ddim", "ddpm_large", "ddpm_small"])
def test_an_exact_denoiser_of_a_gaussian_yields_that_gaussian(sampler: Sampler) -> None:
    samples = gaussian_samples(sampler)
    assert samples.mean().item() == pytest.approx(GAUSSIAN_MEAN, abs=0.01)
    assert samples.std().item() == pytest.approx(GAUSSIAN_STD, rel=0.03)


@pytest.mark.parametrize("predict", ["v", "eps"])
def test_samples_do_not_depend_on_what_an_exact_denoiser_predicts(predict: Predict) -> None:
    given = gaussian_samples("ddpm_large", predict, steps=100)
    assert_close(given, gaussian_samples("ddpm_large", steps=100), atol=1e-6, rtol=0)


def test_with_few_steps_the_large_variance_spreads_samples_more_than_the_small_one() -> None:
    large, small = (
        gaussian_samples("ddpm_large", steps=5).std(),
        gaussian_samples("ddpm_small", steps=5).std(),
    )
    assert small < 0.95 * large


@pytest.mark.parametrize(("sampler", "calls"), [("ddim", 1), ("ddpm_large", 6), ("ddpm_small", 6)])
def test_noise_is_asked_for_once_at_the_start_and_by_ddpm_at_each_of_five_steps(
    sampler: Sampler, calls: int
) -> None:
    noises = iter(torch.zeros(10, 1, *IMAGE).unbind())
    simple(lambda: next(noises), sampler=sampler)
    assert len(list(noises)) == 10 - calls


def simple(
    noise: NoiseSource, *, sampler: Sampler = "ddpm_large", b: float = 0.3, schedule: str = "cosine"
) -> Tensor:
    return draw(
        lambda x, gamma: x.tanh(),
        noise,
        DiffusionProcess(b, "v", "input"),
        schedule=parse(schedule),
        steps=5,
        sampler=sampler,
    )


@pytest.mark.parametrize("b", [0.1, 0.3, 0.7, 3.0])
@pytest.mark.parametrize("predict", ["v", "eps", "x0"])
def test_predictions_are_clipped_to_scale_b_and_samples_to_the_image_range(
    b: float, predict: Predict
) -> None:
    kwargs: dict[str, Any] = {
        "process": DiffusionProcess(b, predict),
        "schedule": parse("linear"),
        "steps": 4,
        "sampler": "ddim",
    }
    steps = list(sample(lambda x, gamma: 20 * x, SampleNoise(0, range(2), IMAGE), **kwargs))
    samples = draw(lambda x, gamma: 20 * x, SampleNoise(0, range(2), IMAGE), **kwargs)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert all(step.x0.abs().max() <= np.float32(b) for step in steps)
    assert samples.abs().max() == 1
    assert_close(samples, steps[-1].x0 / b)


def test_the_network_is_told_gamma_at_each_time_from_one_downwards() -> None:
    seen: list[Tensor] = []

    def denoise(x: Tensor, gamma: Tensor) -> Tensor:
        seen.append(gamma)
        return x

    schedule = parse("sigmoid@-3,3,0.9")
    draw(
        denoise,
        SampleNoise(0, range(3), IMAGE),
        DiffusionProcess(predict="v"),
        schedule=schedule,
        steps=4,
        sampler="ddim",
    )
    expected = torch.from_numpy(schedule.gamma([1, 0.75, 0.5, 0.25])).float()
    assert_close(torch.stack(seen), expected[:, None].expand(4, 3))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm_large", "ddpm_small"])
def test_a_schedule_that_rounds_to_one_long_before_the_end_gives_finite_samples(
    sampler: Sampler,
) -> None:
    early = "sigmoid@-3,3,0.03"
    assert (parse(early).gamma([0.2, 0.4]).astype(np.float32) == 1).all()
    assert simple(SampleNoise(0, range(2), IMAGE), sampler=sampler, schedule=early).isfinite().all()


def test_a_sample_has_the_same_noise_alone_and_in_any_batch() -> None:
    together, alone = SampleNoise(7, range(10), IMAGE), SampleNoise(7, [6], IMAGE)
    for _ in range(3):
        assert torch.equal(together()[6:7], alone())


def test_noise_is_standard_normal_and_differs_between_samples_seeds_and_calls() -> None:
    source = SampleNoise(0, range(50), (3, 32, 32))
    first, second = source(), source()
    assert first.mean().item() == pytest.approx(0, abs=0.01)
    assert first.std().item() == pytest.approx(1, abs=0.01)
    other_seed = SampleNoise(1, range(50), (3, 32, 32))()
    for other in (second, other_seed, first.roll(1, 0)):
        correlation = (first * other).mean().item()
        assert abs(correlation) < 0.015


def test_the_streams_of_samples_are_told_apart_by_more_than_32_bits() -> None:
    """torch's own generator on the CPU forgets the upper half of its seed; these two would be
    one.
    """
    a, b = SampleNoise(2**32, [0], IMAGE), SampleNoise(0, [0], IMAGE)
    assert not torch.equal(a(), b())


def test_single_and_double_precision_start_from_the_same_noise() -> None:
    single, double = (
        SampleNoise(0, range(2), IMAGE, dtype=dtype)() for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(single.double(), double)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm_large"])
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(sampler: Sampler) -> None:
    together = simple(SampleNoise(0, range(8), IMAGE), sampler=sampler)
    apart = torch.cat([simple(SampleNoise(0, [i], IMAGE), sampler=sampler) for i in range(8)])
    assert_close(together, apart, atol=1e-5, rtol=0)


def test_sampling_records_no_gradients_and_leaves_the_callers_mode_alone() -> None:
    weight = torch.ones((), requires_grad=True)
    for step in sample(
        lambda x, gamma: weight * x,
        SampleNoise(0, range(2), IMAGE),
        DiffusionProcess(predict="v"),
        schedule=parse("linear"),
        steps=2,
        sampler="ddim",
    ):
        assert not step.x.requires_grad
        assert torch.is_grad_enabled()
