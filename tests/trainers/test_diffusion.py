"""The forward process, the normalisers, the targets and the loss, against identities they must
obey.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sched_lab.trainers.diffusion import (
    Predict,
    add_noise,
    eps_from_x0,
    loss,
    loss_weight,
    network_input,
    recover_x0,
    target,
)

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


def test_noising_mixes_the_scaled_image_and_the_noise_by_the_roots_of_gamma() -> None:
    x0, noise, gamma = batch()
    x_t = add_noise(x0, gamma, noise, 0.3)
    for i, g in enumerate(gamma.tolist()):
        assert_close(x_t[i], math.sqrt(g) * 0.3 * x0[i] + math.sqrt(1 - g) * noise[i])


@pytest.mark.parametrize("b", [0.3, 1.0, 2.0])
def test_unit_variance_images_at_scale_b_have_the_variance_that_the_analytic_normaliser_divides_out(
    b: float,
) -> None:
    random = torch.Generator().manual_seed(1)
    x0, noise = torch.randn((2, 3, 1, 400, 400), generator=random, dtype=torch.float64)
    gamma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x_t = add_noise(x0, gamma, noise, b)
    assert_close(x_t.var(dim=(1, 2, 3)), (b**2 - 1) * gamma + 1, rtol=0.02, atol=0)
    assert_close(
        network_input(x_t, gamma, b, "analytic").var(dim=(1, 2, 3)),
        torch.ones_like(gamma),
        rtol=0.02,
        atol=0,
    )


@pytest.mark.parametrize("b", [0.3, 2.0])
def test_analytically_normalised_scale_b_is_the_same_network_input_as_its_schedule_at_scale_one(
    b: float,
) -> None:
    x0, noise, gamma = batch()
    equivalent = b**2 * gamma / ((b**2 - 1) * gamma + 1)
    assert_close(
        network_input(add_noise(x0, gamma, noise, b), gamma, b, "analytic"),
        network_input(add_noise(x0, equivalent, noise, 1.0), equivalent, 1.0, "none"),
    )


@pytest.mark.parametrize("how", ["input", "state"])
def test_the_input_normaliser_gives_each_example_unit_deviation_and_leaves_its_mean_in(
    how: str,
) -> None:
    x0, noise, gamma = batch()
    x_t = add_noise(x0, gamma, noise, 0.5) + 3
    x_in = network_input(x_t, gamma, 0.5, how)  # type: ignore[arg-type]
    for given, normalised in zip(x_t.numpy(), x_in.numpy(), strict=True):
        assert normalised == pytest.approx(given / given.std())
        assert normalised.mean() > 1


def test_without_normalisation_the_network_sees_the_state() -> None:
    x0, _, gamma = batch()
    assert network_input(x0, gamma, 0.5, "none") is x0


def test_a_flat_image_without_noise_is_normalised_to_finite_values() -> None:
    assert network_input(torch.zeros(1, 1, 4, 4), torch.ones(1), 1.0, "input").isfinite().all()


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("b", [0.3, 2.0])
def test_the_image_and_the_noise_are_recovered_from_a_perfect_prediction(
    predict: Predict, b: float
) -> None:
    x0, noise, gamma = batch()
    x_t = add_noise(x0, gamma, noise, b)
    recovered = recover_x0(predict, target(predict, x0, noise, gamma, b), x_t, gamma)
    assert_close(recovered, b * x0, atol=1e-8, rtol=1e-8)
    assert_close(eps_from_x0(recovered, x_t, gamma), noise)


def test_v_is_the_state_turned_by_a_right_angle() -> None:
    x0, noise, gamma = batch()
    x_t, v = add_noise(x0, gamma, noise, 0.5), target("v", x0, noise, gamma, 0.5)
    assert_close(x_t.square() + v.square(), (0.5 * x0).square() + noise.square())


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("b", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("limit", [0.5, 5.0])
def test_min_snr_charges_one_error_in_the_image_alike_whatever_is_predicted(
    predict: Predict, b: float, limit: float
) -> None:
    x0, noise, gamma = batch()
    x_t = add_noise(x0, gamma, noise, b)
    guess = (
        0.8 * x0 + 0.1
    )  # what the network takes the image for, told as the image, as noise or as v
    output = target(predict, guess, eps_from_x0(b * guess, x_t, gamma), gamma, b)
    charged = loss(
        lambda x_in, gamma, label: output,
        x0,
        None,
        gamma,
        noise,
        b=b,
        predict=predict,
        normalize="input",
        weight=f"min_snr@{limit:g}",
    )
    snr = b**2 * gamma / (1 - gamma)
    expected = snr.clamp(max=limit) * (guess - x0).square().mean(dim=(1, 2, 3))
    assert_close(charged, expected, rtol=1e-6, atol=1e-14)


def test_min_snr_at_scale_one_has_the_weights_of_its_paper() -> None:
    snr = GAMMA / (1 - GAMMA)
    clipped = snr.clamp(max=5)
    assert_close(loss_weight("min_snr@5", "x0", GAMMA, 1.0), clipped)
    assert_close(loss_weight("min_snr@5", "eps", GAMMA, 1.0), clipped / snr)
    assert_close(loss_weight("min_snr@5", "v", GAMMA, 1.0), clipped / (snr + 1))


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("weight", ["none", "min_snr@5"])
def test_weights_are_finite_at_both_ends_of_the_schedule(predict: Predict, weight: str) -> None:
    assert loss_weight(weight, predict, torch.tensor([1e-9, 1.0]), 0.5).isfinite().all()


def test_the_loss_is_the_mean_squared_error_of_each_example() -> None:
    x0, noise, gamma = batch()
    losses = loss(
        lambda x_in, gamma, label: torch.zeros_like(x_in),
        x0,
        None,
        gamma,
        noise,
        b=1.0,
        predict="eps",
        normalize="none",
        weight="none",
    )
    assert losses.numpy() == pytest.approx((noise.numpy() ** 2).mean(axis=(1, 2, 3)))


def test_the_network_is_given_the_normalised_state_gamma_and_the_label() -> None:
    x0, noise, gamma = batch()
    label = torch.arange(len(gamma))
    seen: list[Tensor | None] = []

    def network(x_in: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        seen.extend((x_in, gamma, label))
        return x_in

    loss(network, x0, label, gamma, noise, b=0.5, predict="v", normalize="analytic", weight="none")
    assert_close(
        seen,
        [network_input(add_noise(x0, gamma, noise, 0.5), gamma, 0.5, "analytic"), gamma, label],
    )


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("normalize", ["none", "input", "analytic", "state"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_keeps_the_dtype_and_agrees_in_single_precision(
    predict: Predict, normalize: str, dtype: torch.dtype
) -> None:
    def losses(dtype: torch.dtype) -> Tensor:
        x0, noise, gamma = batch(dtype)
        return loss(
            lambda x_in, gamma, label: x_in.tanh(),
            x0,
            None,
            gamma,
            noise,
            b=0.5,
            predict=predict,
            normalize=normalize,  # type: ignore[arg-type]
            weight="min_snr@5",
        )

    assert losses(dtype).dtype == dtype
    assert_close(losses(dtype).double(), losses(torch.float64), rtol=1e-3, atol=1e-9)
