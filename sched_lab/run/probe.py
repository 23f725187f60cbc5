"""Times a few training steps of each network and size, for a plan on a store where nothing has
finished.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from sched_lab.run.cost import Rates, kind
from sched_lab.store.folder import Store
from sched_lab.trainers.data.prepare import prepare
from sched_lab.trainers.spec import TrialSpec
from sched_lab.trainers.training import Training, TrainProgress, autocast_for, train
from sched_lab.trainers.trial import pick_device

STEPS = 6


def probe(specs: Iterable[TrialSpec], store: Store) -> Rates:
    """Seconds of training and of sampling on this machine, on one slot."""
    device = pick_device("auto")
    torch.set_num_threads(1)
    rates = Rates()
    for spec in specs:
        if kind("train", spec) in rates.seen and kind("sample", spec) in rates.seen:
            continue
        images = prepare(spec.data, spec.resolution, store.cache)
        channels, classes = images.pixels.shape[1], len(images.class_names)
        state = Training.start(spec, channels=channels, classes=classes, device=device)
        events = train(state, spec, images, until=2 * STEPS, report_every=STEPS)
        reports = [event for event in events if isinstance(event, TrainProgress)]
        # The first report holds the warm-up.
        rates.add("train", spec, 1 / reports[-1].images_per_second)
        rates.add("sample", spec, _sampling(spec, state.ema, images.pixels.shape[1:], device))
    return rates


def _sampling(
    spec: TrialSpec, network: torch.nn.Module, shape: tuple[int, ...], device: torch.device
) -> float:
    """Seconds that one step of one sample takes."""
    count = min(spec.sample.batch, spec.sample.count)
    x, gamma = torch.zeros(count, *shape, device=device), torch.full((count,), 0.5, device=device)
    label = torch.zeros(count, dtype=torch.long, device=device)
    with torch.inference_mode(), autocast_for(spec.train, device):
        for _ in range(2):  # the first holds the warm-up
            start = time.perf_counter()
            network(x, gamma, label=label if spec.train.class_conditional else None).sum().item()
            seconds = time.perf_counter() - start
    return seconds / count
