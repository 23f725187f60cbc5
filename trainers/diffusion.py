"""The forward process at input scale b: noising, normalising, what a network predicts, and the
weighted loss.

Images x0 are (B, C, H, W) in [-1, 1]; gamma is (B,) in (0, 1]. Everything a network predicts, and
everything recovered from its output, is in *scaled units*: the clean image is b·x0 (the authors'
code). All functions are pure, keep the dtype of what they are given and never wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, assert_never

import torch
from torch import Tensor

Predict = Literal["v", "eps", "x0"]
Normalize = Literal["none", "input", "analytic", "state"]
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A network's forward: x (B, C, H, W), gamma (B,), label (B,) int64 or None -> (B, C, H, W)."""


def _coefficients(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """√γ and √(1 − γ), the amplitudes of image and noise, each (B, 1, 1, 1)."""
    gamma = gamma[:, None, None, None]
    return gamma.sqrt(), (1 - gamma).sqrt()


def add_noise(x0: Tensor, gamma: Tensor, noise: Tensor, b: float) -> Tensor:
    """x_t = √γ·b·x0 + √(1−γ)·ε, (B, C, H, W) (2301.10972, section 2.2)."""
    signal, sigma = _coefficients(gamma)
    return signal * (b * x0) + sigma * noise


def network_input(x_t: Tensor, gamma: Tensor, b: float, how: Normalize) -> Tensor:
    """x_t divided by its standard deviation, (B, C, H, W) (2301.10972, section 2.3).

    `input` and `state` take each example's own standard deviation over all its values (the mean is
    left in x_t); `analytic` takes √((b²−1)γ + 1), the one of unit-variance data; `none` returns
    x_t. With `input` the state stays x_t (the authors' code). With `state` the sampler goes on from
    what this function returns (Algorithm 3 as printed).
    """
    match how:
        case "none":
            return x_t
        case "input" | "state":
            std = x_t.std(dim=(1, 2, 3), correction=0, keepdim=True)
            return x_t / std.clamp_min(
                torch.finfo(x_t.dtype).eps
            )  # a flat image without noise has no deviation
        case "analytic":
            return x_t / ((b**2 - 1) * gamma + 1).sqrt()[:, None, None, None]
        case _:
            assert_never(how)


def target(predict: Predict, x0: Tensor, noise: Tensor, gamma: Tensor, b: float) -> Tensor:
    """What the network should output, (B, C, H, W): v = √γ·ε − √(1−γ)·b·x0 (2202.00512, section 4),
    ε, or b·x0.
    """
    match predict:
        case "v":
            signal, sigma = _coefficients(gamma)
            return signal * noise - sigma * (b * x0)
        case "eps":
            return noise
        case "x0":
            return b * x0
        case _:
            assert_never(predict)


def recover_x0(predict: Predict, output: Tensor, x_t: Tensor, gamma: Tensor) -> Tensor:
    """The clean image in scaled units, b·x0, that a network's output stands for: the inverse of
    `target`.

    v: √γ·x_t − √(1−γ)·v (2202.00512, appendix D); ε: (x_t − √(1−γ)·ε)/√γ. The noise follows by
    `eps_from_x0`.
    """
    match predict:
        case "v":
            signal, sigma = _coefficients(gamma)
            return signal * x_t - sigma * output
        case "eps":
            signal, sigma = _coefficients(gamma)
            return (x_t - sigma * output) / signal
        case "x0":
            return output
        case _:
            assert_never(predict)


def eps_from_x0(x0_scaled: Tensor, x_t: Tensor, gamma: Tensor) -> Tensor:
    """The noise ε = (x_t − √γ·b·x0)/√(1−γ) that x_t holds beside the clean image b·x0; gamma below
    1.
    """
    signal, sigma = _coefficients(gamma)
    return (x_t - signal * x0_scaled) / sigma


def loss_weight(weight: str, predict: Predict, gamma: Tensor, b: float) -> Tensor:
    """The factor on the squared error of a prediction, (B,): 1 for `none`; for `min_snr@G` the one
    of min-SNR-γ.

    Min-SNR-γ (2303.09556, section 3.4) puts min(SNR, G) on the squared error of x0, SNR =
    b²γ/(1−γ). In scaled units that is min(SNR, G)/b² on b·x0. An error d in b·x0 is one of
    −√(γ/(1−γ))·d in ε and of −d/√(1−γ) in v, hence min(SNR, G)/SNR on ε and min(SNR, G)/(SNR + b²)
    on v: one and the same loss whatever is predicted.
    """
    if weight == "none":
        return torch.ones_like(gamma)
    limit = float(weight.removeprefix("min_snr@"))
    on_x0 = (gamma / (1 - gamma)).clamp_max(limit / b**2)  # min(SNR, G)/b², finite where γ = 1
    match predict:
        case "v":
            return on_x0 * (1 - gamma)
        case "eps":
            return on_x0 * (1 - gamma) / gamma
        case "x0":
            return on_x0
        case _:
            assert_never(predict)


def loss(
    network: Network,
    x0: Tensor,
    label: Tensor | None,
    gamma: Tensor,
    noise: Tensor,
    *,
    b: float,
    predict: Predict,
    normalize: Normalize,
    weight: str,
) -> Tensor:
    """The weighted mean squared error of each example, (B,) (2301.10972, section 2.3; weights in
    `loss_weight`).

    The prediction's target is the same for every `normalize`: training with `state` is training
    with `input`.
    """
    x_in = network_input(add_noise(x0, gamma, noise, b), gamma, b, normalize)
    error = network(x_in, gamma, label) - target(predict, x0, noise, gamma, b)
    return loss_weight(weight, predict, gamma, b) * error.square().mean(dim=(1, 2, 3))
