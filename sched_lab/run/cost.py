"""What trials cost: their size in images through the network, and the seconds that takes by the
trials already run.
"""

from __future__ import annotations

import heapq
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sched_lab import names
from sched_lab.store.folder import Store, read_json
from sched_lab.trainers.spec import TrialSpec

TRAINING_PASSES = 3.0  # a backward pass costs about two forward ones
HISTORY = 500  # finished trials looked at, the newest first


def passes(spec: TrialSpec) -> float:
    """Images passed forward through the network over the whole trial, training counted with its
    backward passes.
    """
    train, sample = spec.train, spec.sample
    evaluations = math.ceil(train.steps / (spec.score.every or train.steps))
    return TRAINING_PASSES * train.steps * train.batch + evaluations * sample.count * sample.steps


@dataclass(frozen=True)
class Rates:
    """Seconds a pass on one slot, by network and resolution."""

    by_size: dict[tuple[str, int], float]

    def seconds(self, spec: TrialSpec) -> float:
        """The seconds expected for a trial: by its own size where that has run, else by the mean of
        the other sizes.

        NaN when no trial with its network has finished in this store.
        """
        network = spec.train.network.model_dump_json()
        exact = self.by_size.get((network, spec.resolution))
        others = [rate for (of, _), rate in self.by_size.items() if of == network]
        rate = exact if exact is not None else (fmean(others) if others else float("nan"))
        return rate * passes(spec)

    def total(self, specs: Iterable[TrialSpec]) -> float:
        """The seconds expected for all of these; NaN when one is not known."""
        return math.fsum(self.seconds(spec) for spec in specs)


def measured(store: Store, keys: Iterable[str]) -> Rates:
    """The rates of the newest finished trials among `keys`."""
    newest = heapq.nlargest(
        HISTORY, keys, key=lambda key: _modified(store.trial(key) / names.RESULT_FILE)
    )
    seen: dict[tuple[str, int], list[float]] = defaultdict(list)
    for key in newest:
        result, raw = store.result(key), read_json(store.trial(key) / names.SPEC_FILE)
        if result is None or raw is None or result["state"] != names.FINISHED:
            continue
        try:
            spec = TrialSpec.model_validate(raw)
        except ValueError:  # of a plug-in or a file that is no longer there
            continue
        network = spec.train.network.model_dump_json()
        seen[network, spec.resolution].append(result["seconds"]["total"] / passes(spec))
    return Rates({group: fmean(rates) for group, rates in seen.items()})


def _modified(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
