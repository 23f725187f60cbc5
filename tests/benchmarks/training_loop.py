"""The training loop, EMA and logging included, against a plain loop over the same network, in
turns.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from sched_lab.trainers.data.prepare import prepare
from sched_lab.trainers.images import ImageSet
from sched_lab.trainers.spec import TrialSpec
from sched_lab.trainers.training import Training, train
from sched_lab.trainers.trial import pick_device

STEPS, ROUNDS = 40, 7

Row = tuple[str, str, str]


def plain_loop(
    network: nn.Module, images: ImageSet, spec: TrialSpec, device: torch.device
) -> Iterator[None]:
    """What a researcher writes by hand: v-prediction on linear γ, AdamW, clipping, EMA; yields
    every STEPS steps.
    """
    network = network.to(device)
    ema = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=spec.train.lr, weight_decay=spec.train.weight_decay
    )
    x = torch.from_numpy(images.pixels[:]).to(device).float() / 127.5 - 1
    while True:
        for _ in range(STEPS):
            x0 = x[torch.randint(len(x), (spec.train.batch,), device=device)]
            gamma = (1 - torch.rand(len(x0), device=device)).clamp(1e-9, 1)[:, None, None, None]
            noise = torch.randn_like(x0)
            x_t = gamma.sqrt() * spec.b * x0 + (1 - gamma).sqrt() * noise
            v = gamma.sqrt() * noise - (1 - gamma).sqrt() * spec.b * x0
            x_in = x_t / x_t.std(dim=(1, 2, 3), keepdim=True, correction=0)
            loss = ((network(x_in, gamma.flatten(), None) - v) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(ema.parameters(), network.parameters(), strict=True):
                    slow.lerp_(fast, 1 - spec.train.ema)
        print(end="" if loss.item() == loss.item() else "the plain loop diverged")
        yield


def measure() -> Iterator[Row]:
    torch.set_num_threads(1)
    device = pick_device("auto")
    for resolution, batch in ((8, 64), (32, 64), (32, 16)):
        spec = TrialSpec.model_validate(
            {
                "resolution": resolution,
                "train": {"steps": 10**6, "batch": batch, "compile": "off", "precision": "fp32"},
            }
        )
        with tempfile.TemporaryDirectory() as cache:
            images = prepare(spec.data, resolution, Path(cache))
            state = Training.start(spec, channels=1, classes=0, device=device)
            network = copy.deepcopy(state.network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            plain = plain_loop(network, images, spec, device)
            ours = train(state, spec, images, until=10**6, report_every=STEPS)
            ratios, ms = [], []
            for turn in range(ROUNDS + 1):
                seconds = []
                for loop in (ours, plain):
                    start = time.perf_counter()
                    next(loop)
                    seconds.append(time.perf_counter() - start)
                if turn:  # the first is the warm-up
                    ratios.append(seconds[0] / seconds[1])
                    ms.append(1000 * seconds[0] / STEPS)
        what = (
            f"a step over a plain loop's, {resolution} x {resolution}, batch {batch}, {device.type}"
        )
        yield (
            what,
            f"{statistics.median(ratios):.3f}",
            f"at most 1; ours {statistics.median(ms):.1f} ms",
        )
