"""The diffusion process of a trial: noising, normalising, what a network predicts, the loss.

Images x0 are (B, C, H, W) in [-1, 1]; gamma is (B,) in (0, 1]. A network predicts in *scaled
units*, in which the clean image is b·x0 (the authors' code). All functions are pure, keep the
dtype of their arguments and never wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self, assert_never

import torch
from torch import Tensor

from sched_lab.trainers.spec import Normalize, Predict, TrialSpec

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A network's forward: x (B, C, H, W), gamma (B,), label (B,) int64 or None -> (B, C, H, W)."""


def _coefficients(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """√γ and √(1 − γ), the amplitudes of image and noise, each (B, 1, 1, 1)."""
    gamma = gamma[:, None, None, None]
    return gamma.sqrt(), (1 - gamma).sqrt()


def eps_from_x0(x0_scaled: Tensor, x_t: Tensor, gamma: Tensor) -> Tensor:
    """The noise ε = (x_t − √γ·b·x0)/√(1−γ) in x_t, given the clean image b·x0; gamma below 1."""
    signal, sigma = _coefficients(gamma)
    return (x_t - signal * x0_scaled) / sigma


class Losses(NamedTuple):
    """The losses of a batch's examples, each (B,)."""

    network: Tensor
    """The network's."""
    zero: Tensor
    """What predicting zero would have."""
    one: Tensor
    """What an error of 1 everywhere would have."""


def shaped_as(x: Tensor, output: Tensor) -> Tensor:
    """The network's output for input x. Raises ValueError where it would have to be broadcast."""
    if output.shape != x.shape:
        raise ValueError(
            f"a network must return an output shaped as its input, {tuple(x.shape)}, got"
            f" {tuple(output.shape)}"
        )
    return output


@dataclass(frozen=True)
class DiffusionProcess:
    """How images are noised and what is learned of them. The defaults are DDPM's (2006.11239)."""

    b: float = 1.0
    """The input scale, above 0."""
    predict: Predict = "eps"
    """What the network predicts."""
    normalize: Normalize = "none"
    """What is divided by its standard deviation; see `network_input`."""
    weight: str = "none"
    """The weight of the loss, `none` or `min_snr@G`; see `loss_weight`."""

    @classmethod
    def of(cls, spec: TrialSpec) -> Self:
        """The process of a trial."""
        return cls(spec.b, spec.train.predict, spec.train.normalize, spec.train.weight)

    def add_noise(self, x0: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
        """x_t = √γ·b·x0 + √(1−γ)·ε, (B, C, H, W) (2301.10972, section 2.2)."""
        signal, sigma = _coefficients(gamma)
        return signal * (self.b * x0) + sigma * noise

    def network_input(self, x_t: Tensor, gamma: Tensor) -> Tensor:
        """x_t divided by its standard deviation, (B, C, H, W) (2301.10972, section 2.3).

        `input` and `state` take each example's standard deviation over all its values; the mean
        stays in x_t. `analytic` takes √((b²−1)γ + 1), that of unit-variance data. `none` returns
        x_t. With `input`, sampling continues from x_t (the authors' code); with `state`, from the
        result of this function (Algorithm 3 as printed).
        """
        match self.normalize:
            case "none":
                return x_t
            case "input" | "state":
                std = x_t.std(dim=(1, 2, 3), correction=0, keepdim=True)
                # A flat image without noise has no deviation.
                return x_t / std.clamp_min(torch.finfo(x_t.dtype).eps)
            case "analytic":
                return x_t / ((self.b**2 - 1) * gamma + 1).sqrt()[:, None, None, None]
            case _:
                assert_never(self.normalize)

    def target(self, x0: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
        """What the network should output, (B, C, H, W).

        v = √γ·ε − √(1−γ)·b·x0 (2202.00512, section 4), ε, or b·x0.
        """
        match self.predict:
            case "v":
                signal, sigma = _coefficients(gamma)
                return signal * noise - sigma * (self.b * x0)
            case "eps":
                return noise
            case "x0":
                return self.b * x0
            case _:
                assert_never(self.predict)

    def recover_x0(self, output: Tensor, x_t: Tensor, gamma: Tensor) -> Tensor:
        """The clean image b·x0 that a network's output stands for: the inverse of `target`.

        v: √γ·x_t − √(1−γ)·v (2202.00512, appendix D); ε: (x_t − √(1−γ)·ε)/√γ. `eps_from_x0` then
        gives the noise.
        """
        match self.predict:
            case "v":
                signal, sigma = _coefficients(gamma)
                return signal * x_t - sigma * output
            case "eps":
                signal, sigma = _coefficients(gamma)
                return (x_t - sigma * output) / signal
            case "x0":
                return output
            case _:
                assert_never(self.predict)

    def loss_weight(self, gamma: Tensor) -> Tensor:
        """The factor on a prediction's squared error, (B,): 1, or that of min-SNR-γ.

        Min-SNR-γ (2303.09556, section 3.4) puts min(SNR, G) on the squared error of x0, with SNR =
        b²γ/(1−γ). In scaled units that is min(SNR, G)/b² on b·x0. An error d in b·x0 is one of
        −√(γ/(1−γ))·d in ε and of −d/√(1−γ) in v. The factor is therefore min(SNR, G)/SNR on ε and
        min(SNR, G)/(SNR + b²) on v: the same loss whatever is predicted.
        """
        if self.weight == "none":
            return torch.ones_like(gamma)
        limit = float(self.weight.removeprefix("min_snr@"))
        on_x0 = (gamma / (1 - gamma)).clamp_max(limit / self.b**2)  # finite where γ = 1
        match self.predict:
            case "v":
                return on_x0 * (1 - gamma)
            case "eps":
                return on_x0 * (1 - gamma) / gamma
            case "x0":
                return on_x0
            case _:
                assert_never(self.predict)

    def losses(
        self, network: Network, x0: Tensor, label: Tensor | None, gamma: Tensor, noise: Tensor
    ) -> Losses:
        """The weighted mean squared error of each example (2301.10972, section 2.3).

        `normalize` does not change the target: training with `state` is training with `input`.
        """
        x_in = self.network_input(self.add_noise(x0, gamma, noise), gamma)
        target, weight = self.target(x0, noise, gamma), self.loss_weight(gamma)
        error = shaped_as(x_in, network(x_in, gamma, label)) - target
        squares = (each.square().mean(dim=(1, 2, 3)) for each in (error, target))
        of_network, of_zero = (weight * square for square in squares)
        return Losses(of_network, of_zero, weight)
