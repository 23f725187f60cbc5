"""Sampling as one generator of steps that the caller drives: DDIM and DDPM, with the noise from a
source passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sched_lab.trainers.diffusion import Normalize, Predict, eps_from_x0, network_input, recover_x0
from sched_lab.trainers.schedules import Schedule

Sampler = Literal["ddim", "ddpm_large", "ddpm_small"]
Denoise = Callable[[Tensor, Tensor], Tensor]
"""The trained network: normalised x (B, C, H, W), gamma (B,) -> its prediction (B, C, H, W)."""
NoiseSource = Callable[[], Tensor]
"""Standard normal noise (B, C, H, W), fresh at every call: one call for the start, one for each
DDPM step.
"""


@dataclass(frozen=True)
class Step:
    """Where sampling stands after step `index`, counted from 0."""

    index: int
    x0: Tensor
    """The clean image as predicted in this step, in scaled units, clipped to [-b, b]: (B, C, H,
    W).
    """
    x: Tensor
    """The state that the next step starts from: (B, C, H, W)."""


class SampleNoise:
    """Noise in which every sample has a random stream of its own, named by `seed` and the sample's
    index.

    A sample therefore does not depend on the batch it is drawn in, nor on the device, and all
    trials with one seed start from the same noise. `shape` is that of one sample, (C, H, W).
    """

    # NumPy's generators: torch's on the CPU keeps 32 bits of its seed, so that two in 50,000
    # samples would often agree.
    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._streams = [
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))) for i in indices
        ]
        self._shape, self._device, self._dtype = shape, device, dtype

    def __call__(self) -> Tensor:
        """The next noise of every sample: (B, C, H, W), B the number of indices."""
        noise = np.stack(
            [stream.standard_normal(self._shape, dtype=np.float32) for stream in self._streams]
        )
        return torch.from_numpy(noise).to(self._device, self._dtype)


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: NoiseSource,
    *,
    schedule: Schedule,
    steps: int,
    sampler: Sampler,
    b: float,
    predict: Predict,
    normalize: Normalize,
) -> Iterator[Step]:
    """The `steps` steps from t = 1 to t = 0 (2301.10972, Algorithm 3), in the dtype and on the
    device of the noise.

    Step i goes from t = 1 − i/steps to 1 − (i+1)/steps, by DDIM without noise of its own
    (2010.02502, equation 12) or by DDPM. The start is plain noise whatever b is; x0 is clipped to
    [-b, b], and ε is what that leaves of the state. The last step's x0, divided by b, is the
    sample: see `draw`.
    """
    x = noise()  # (B, C, H, W)
    gammas = torch.from_numpy(schedule.gamma(1 - np.arange(steps + 1) / steps)).to(
        x
    )  # (steps + 1,)
    # γ that rounds to 1 before the end would make ε infinite.
    gammas[:-1] = gammas[:-1].clamp_max(1 - torch.finfo(x.dtype).eps)
    for i in range(steps):
        now, after = gammas[i], gammas[i + 1]
        gamma = now.expand(len(x))  # (B,)
        x_in = network_input(x, gamma, b, normalize)
        if normalize == "state":
            x = x_in
        x0 = recover_x0(predict, denoise(x_in, gamma).to(x.dtype), x, gamma).clamp(-b, b)
        eps = eps_from_x0(x0, x, gamma)
        if sampler == "ddim":
            x = after.sqrt() * x0 + (1 - after).sqrt() * eps
        else:
            mean, variance = _ddpm(x, eps, now, after, sampler)
            x = mean + variance.sqrt() * noise()
        yield Step(i, x0, x)


def _ddpm(
    x: Tensor, eps: Tensor, now: Tensor, after: Tensor, sampler: Literal["ddpm_large", "ddpm_small"]
) -> tuple[Tensor, Tensor]:
    """The mean (B, C, H, W) and variance of one ancestral step from γ = now to γ = after (DDPM,
    2006.11239).

    α = now/after; the mean is (x − (1−α)/√(1−now)·ε)/√α (equation 11); the variance is, for large,
    1 − α and, for small, the posterior's (1−after)/(1−now)·(1−α) (equation 7).
    """
    alpha = (now / after).clamp(0, 1)
    mean = (x - (1 - alpha) / (1 - now).sqrt() * eps) / alpha.sqrt()
    small = (1 - after) / (1 - now) if sampler == "ddpm_small" else 1.0
    return mean, (1 - alpha) * small


def draw(
    denoise: Denoise,
    noise: NoiseSource,
    *,
    schedule: Schedule,
    steps: int,
    sampler: Sampler,
    b: float,
    predict: Predict,
    normalize: Normalize,
) -> Tensor:
    """The samples, (B, C, H, W) in [-1, 1]: the last x0 of `sample`, which has the same arguments,
    divided by b.
    """
    for step in sample(
        denoise,
        noise,
        schedule=schedule,
        steps=steps,
        sampler=sampler,
        b=b,
        predict=predict,
        normalize=normalize,
    ):
        x0 = step.x0
    return (x0 / b).clamp(-1, 1)  # dividing may round beyond ±1
