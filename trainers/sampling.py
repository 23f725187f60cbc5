"""Sampling by DDIM or DDPM, as a generator of steps that the caller drives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sched_lab.trainers.diffusion import DiffusionProcess, eps_from_x0, shaped_as
from sched_lab.trainers.schedules import Schedule
from sched_lab.trainers.spec import Sampler

Denoise = Callable[[Tensor, Tensor], Tensor]
"""The trained network: normalised x (B, C, H, W), gamma (B,) -> its prediction (B, C, H, W)."""
NoiseSource = Callable[[], Tensor]
"""Fresh standard normal noise (B, C, H, W): called at the start, and in each DDPM step."""


@dataclass(frozen=True)
class Step:
    """The result of step `index`, counted from 0."""

    index: int
    x0: Tensor
    """The predicted clean image in scaled units, clipped to [-b, b]: (B, C, H, W)."""
    x: Tensor
    """The state that the next step starts from: (B, C, H, W)."""


class SampleNoise:
    """Noise in which every sample has its own random stream, named by `seed` and its index.

    A sample therefore depends neither on its batch nor on the device, and all trials with one seed
    start from the same noise. `shape` is that of one sample, (C, H, W).
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
    process: DiffusionProcess,
    *,
    schedule: Schedule,
    steps: int,
    sampler: Sampler,
) -> Iterator[Step]:
    """The `steps` steps from t = 1 to t = 0 (2301.10972, Algorithm 3).

    Step i goes from t = 1 − i/steps to 1 − (i+1)/steps, by DDIM without noise of its own
    (2010.02502, equation 12) or by DDPM. The start is plain noise whatever b is. x0 is clipped to
    [-b, b], and ε follows from the clipped x0. The last step's x0, divided by b, is the sample: see
    `drawn`. The noise sets dtype and device. Where an output is not finite, x0 and x are NaN.
    """
    x = noise()  # (B, C, H, W)
    times = 1 - np.arange(steps + 1) / steps
    gammas = torch.from_numpy(schedule.gamma(times)).to(x)  # (steps + 1,)
    # γ that rounds to 1 before the end would make ε infinite.
    gammas[:-1] = gammas[:-1].clamp_max(1 - torch.finfo(x.dtype).eps)
    for i in range(steps):
        now, after = gammas[i], gammas[i + 1]
        gamma = now.expand(len(x))  # (B,)
        x_in = process.network_input(x, gamma)
        if process.normalize == "state":
            x = x_in
        output = shaped_as(x, denoise(x_in, gamma)).to(x.dtype)
        x0 = process.recover_x0(output, x, gamma).clamp(-process.b, process.b)
        # Clipped, an infinity would be a picture's white.
        x0 = x0 + 0 * output
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
    """Mean (B, C, H, W) and variance of DDPM's step from γ = now to γ = after (2006.11239).

    With α = now/after, the mean is (x − (1−α)/√(1−now)·ε)/√α (equation 11). The variance is 1 − α
    for large, and the posterior's (1−after)/(1−now)·(1−α) for small (equation 7).
    """
    alpha = (now / after).clamp(0, 1)
    mean = (x - (1 - alpha) / (1 - now).sqrt() * eps) / alpha.sqrt()
    small = (1 - after) / (1 - now) if sampler == "ddpm_small" else 1.0
    return mean, (1 - alpha) * small


def drawn(last: Step, process: DiffusionProcess) -> Tensor:
    """The samples (B, C, H, W) in [-1, 1] that the last step of `sample` comes to, NaN where the
    network's outputs were not finite in any step.
    """
    # Dividing may round beyond ±1. x alone remembers what was not finite in earlier steps.
    return (last.x0 / process.b).clamp(-1, 1) + 0 * last.x
