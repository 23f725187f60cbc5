"""The diffusion process keeps the identities that its noising, targets and loss must obey."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sched_lab.trainers.diffusion import DiffusionProcess, eps_from_x0, shaped_as
from sched_lab.trainers.spec import Normalize, Predict, TrialSpec

PREDICTIONS: tuple[Predict, ...] = ("v", "eps", "x0")
GAMMA = torch.tensor([1e-9, 1e-3, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)


def batch(
    dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 4, 4)
) -> tuple[Tensor, Tensor, Tensor]:
    """x0 in [-1, 1], noise and gamma for one example per value of GAMMA."""
    random = torch.Generator().manual_seed(0)
    x0 = torch.rand((len(GAMMA), *shape), generator=random, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x0.shape, generator=random, dtype=torch.float64)
    return x0.to(dtype), noise.to(dtype), GAMMA.to(dtype)


def test_the_process_of_a_trial_has_its_four_settings() -> None:
    train = {"predict": "x0", "normalize": "state", "weight": "min_snr@3"}
    spec = TrialSpec.model_validate({"b": 0.3, "train": train})
    assert DiffusionProcess.of(spec) == DiffusionProcess(0.3, "x0", "state", "min_snr@3")


def test_noising_mixes_the_scaled_image_and_the_noise_by_the_roots_of_gamma() -> None:
    x0, noise, gamma = batch()
    x_t = DiffusionProcess(b=0.3).add_noise(x0, gamma, noise)
    for i, g in enumerate(gamma.tolist()):
        assert_close(x_t[i], math.sqrt(g) * 0.3 * x0[i] + math.sqrt(1 - g) * noise[i])


@pytest.mark.parametrize("b", [0.3, 1.0, 2.0])
def test_unit_variance_images_at_scale_b_have_the_variance_that_the_analytic_normaliser_divides_out(
    b: float,
) -> None:
    random = torch.Generator().manual_seed(1)
    x0, noise = torch.randn((2, 3, 1, 400, 400), generator=random, dtype=torch.float64)
    gamma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    process = DiffusionProcess(b, normalize="analytic")
    x_t = process.add_noise(x0, gamma, noise)
    x_in = process.network_input(x_t, gamma)
    assert_close(x_t.var(dim=(1, 2, 3)), (b**2 - 1) * gamma + 1, rtol=0.02, atol=0)
    assert_close(x_in.var(dim=(1, 2, 3)), torch.ones_like(gamma), rtol=0.02, atol=0)


@pytest.mark.parametrize("b", [0.3, 2.0])
def test_analytically_normalised_scale_b_is_the_same_network_input_as_its_schedule_at_scale_one(
    b: float,
) -> None:
    x0, noise, gamma = batch()
    equivalent = b**2 * gamma / ((b**2 - 1) * gamma + 1)
    scaled, plain = DiffusionProcess(b, normalize="analytic"), DiffusionProcess()
    assert_close(
        scaled.network_input(scaled.add_noise(x0, gamma, noise), gamma),
        plain.network_input(plain.add_noise(x0, equivalent, noise), equivalent),
    )


@pytest.mark.parametrize("how", ["input", "state"])
def test_the_input_normaliser_gives_each_example_unit_deviation_and_leaves_its_mean_in(
    how: Normalize,
) -> None:
    x0, noise, gamma = batch()
    process = DiffusionProcess(0.5, normalize=how)
    x_t = process.add_noise(x0, gamma, noise) + 3
    x_in = process.network_input(x_t, gamma)
    for given, normalised in zip(x_t.numpy(), x_in.numpy(), strict=True):
        assert normalised == pytest.approx(given / given.std())
        assert normalised.mean() > 1


def test_without_normalisation_the_network_sees_the_state() -> None:
    x0, _, gamma = batch()
    assert DiffusionProcess(0.5, normalize="none").network_input(x0, gamma) is x0


def test_a_flat_image_without_noise_is_normalised_to_finite_values() -> None:
    process = DiffusionProcess(normalize="input")
    assert process.network_input(torch.zeros(1, 1, 4, 4), torch.ones(1)).isfinite().all()


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("b", [0.3, 2.0])
def test_the_image_and_the_noise_are_recovered_from_a_perfect_prediction(
    predict: Predict, b: float
) -> None:
    x0, noise, gamma = batch()
    process = DiffusionProcess(b, predict)
    x_t = process.add_noise(x0, gamma, noise)
    recovered = process.recover_x0(process.target(x0, noise, gamma), x_t, gamma)
    assert_close(recovered, b * x0, atol=1e-8, rtol=1e-8)
    assert_close(eps_from_x0(recovered, x_t, gamma), noise)


def test_v_is_the_state_turned_by_a_right_angle() -> None:
    x0, noise, gamma = batch()
    process = DiffusionProcess(0.5, "v")
    x_t, v = process.add_noise(x0, gamma, noise), process.target(x0, noise, gamma)
    assert_close(x_t.square() + v.square(), (0.5 * x0).square() + noise.square())


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("b", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("limit", [0.5, 5.0])
def test_min_snr_charges_one_error_in_the_image_alike_whatever_is_predicted(
    predict: Predict, b: float, limit: float
) -> None:
    x0, noise, gamma = batch()
    process = DiffusionProcess(b, predict, "input", f"min_snr@{limit:g}")
    x_t = process.add_noise(x0, gamma, noise)
    guess = 0.8 * x0 + 0.1  # the network's estimate of the image, output as image, noise or v
    output = process.target(guess, eps_from_x0(b * guess, x_t, gamma), gamma)
    charged = process.losses(lambda x_in, gamma, label: output, x0, None, gamma, noise).network
    snr = b**2 * gamma / (1 - gamma)
    expected = snr.clamp(max=limit) * (guess - x0).square().mean(dim=(1, 2, 3))
    assert_close(charged, expected, rtol=1e-6, atol=1e-14)


def test_min_snr_at_scale_one_has_the_weights_of_its_paper() -> None:
    snr = GAMMA / (1 - GAMMA)
    clipped = snr.clamp(max=5)
    expected = {"x0": clipped, "eps": clipped / snr, "v": clipped / (snr + 1)}
    for predict in PREDICTIONS:
        process = DiffusionProcess(predict=predict, weight="min_snr@5")
        assert_close(process.loss_weight(GAMMA), expected[predict])


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("weight", ["none", "min_snr@5"])
def test_weights_are_finite_at_both_ends_of_the_schedule(predict: Predict, weight: str) -> None:
    process = DiffusionProcess(0.5, predict, weight=weight)
    assert process.loss_weight(torch.tensor([1e-9, 1.0])).isfinite().all()


def test_the_loss_is_the_mean_squared_error_of_each_example() -> None:
    x0, noise, gamma = batch()
    losses = DiffusionProcess().losses(
        lambda x_in, gamma, label: torch.zeros_like(x_in), x0, None, gamma, noise
    )
    assert losses.network.numpy() == pytest.approx((noise.numpy() ** 2).mean(axis=(1, 2, 3)))


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("weight", ["none", "min_snr@5"])
def test_beside_the_loss_stands_that_of_a_network_that_predicts_zero(
    predict: Predict, weight: str
) -> None:
    x0, noise, gamma = batch()
    process = DiffusionProcess(0.5, predict, weight=weight)
    draws = x0, None, gamma, noise
    losses = process.losses(lambda x, gamma, label: x.tanh(), *draws)
    silent = process.losses(lambda x, gamma, label: torch.zeros_like(x), *draws)
    assert torch.equal(losses.zero, silent.network)
    target = process.target(x0, noise, gamma)
    off_by_one = process.losses(lambda x, gamma, label: target + 1, *draws)
    assert_close(losses.one, off_by_one.network)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 3, 1, 4), (7, 3, 16), (7, 6, 4, 4)])
def test_an_output_of_another_shape_is_refused_not_broadcast(shape: tuple[int, ...]) -> None:
    x = torch.zeros(7, 3, 4, 4)
    with pytest.raises(ValueError, match=r"shaped as its input, \(7, 3, 4, 4\), got"):
        shaped_as(x, torch.zeros(shape))


def test_the_network_is_given_the_normalised_state_gamma_and_the_label() -> None:
    x0, noise, gamma = batch()
    label = torch.arange(len(gamma))
    seen: list[Tensor | None] = []

    def network(x_in: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        seen.extend((x_in, gamma, label))
        return x_in

    process = DiffusionProcess(0.5, "v", "analytic")
    process.losses(network, x0, label, gamma, noise)
    x_in = process.network_input(process.add_noise(x0, gamma, noise), gamma)
    assert_close(seen, [x_in, gamma, label])


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("normalize", ["none", "input", "analytic", "state"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_keeps_the_dtype_and_agrees_in_single_precision(
    predict: Predict, normalize: Normalize, dtype: torch.dtype
) -> None:
    process = DiffusionProcess(0.5, predict, normalize, "min_snr@5")

    def losses(dtype: torch.dtype) -> Tensor:
        x0, noise, gamma = batch(dtype)
        return process.losses(
            lambda x_in, gamma, label: x_in.tanh(), x0, None, gamma, noise
        ).network

    assert losses(dtype).dtype == dtype
    assert_close(losses(dtype).double(), losses(torch.float64), rtol=1e-3, atol=1e-9)
