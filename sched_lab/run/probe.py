"""Times a few training steps of each network and size, for a plan on a store where nothing has
finished.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sched_lab.run.cost import TRAINING_PASSES, Rates
from sched_lab.store.folder import Store
from sched_lab.trainers.data.prepare import prepare
from sched_lab.trainers.spec import TrialSpec
from sched_lab.trainers.training import Training, TrainProgress, train
from sched_lab.trainers.trial import pick_device

STEPS = 6


def probe(specs: Iterable[TrialSpec], store: Store) -> Rates:
    """Seconds a pass on this machine, one slot, by network and resolution."""
    device = pick_device("auto")
    torch.set_num_threads(1)
    rates: dict[tuple[str, int], float] = {}
    for spec in specs:
        group = spec.train.network.model_dump_json(), spec.resolution
        if group in rates:
            continue
        images = prepare(spec.data, spec.resolution, store.cache)
        state = Training.start(
            spec, channels=images.pixels.shape[1], classes=len(images.class_names), device=device
        )
        events = train(state, spec, images, until=2 * STEPS, report_every=STEPS)
        reports = [event for event in events if isinstance(event, TrainProgress)]
        # The first report holds the warm-up.
        rates[group] = 1 / (TRAINING_PASSES * reports[-1].images_per_second)
    return Rates(rates)
