"""What trials cost: their size in images through the network, and the seconds that takes by the
trials already run.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from sched_lab.store.folder import Store
from sched_lab.store.records import first_rule, read_object
from sched_lab.trainers.results import RESULT_FILE, SPEC_FILE, State
from sched_lab.trainers.spec import TrialSpec

log = logging.getLogger(__name__)

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
        """The seconds expected for a trial, NaN when none with its network has finished here.

        Taken from trials of its size where there are any, else from the mean of the other sizes.
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
    """The rates of the newest finished trials among `keys`.

    Trials whose seconds are not known are left out. So are those whose spec no longer fits; the log
    names one of these.
    """
    newest = heapq.nlargest(
        HISTORY, keys, key=lambda key: _modified(store.trial(key) / RESULT_FILE)
    )
    seen: dict[tuple[str, int], list[float]] = defaultdict(list)
    unfit = []
    for key in newest:
        result, file = store.result(key), store.trial(key) / SPEC_FILE
        if result is None or result.state != State.FINISHED or "total" not in result.seconds:
            continue
        raw = read_object(file)
        if raw is None:
            continue
        try:
            spec = TrialSpec.model_validate(raw)
        except ValidationError as error:  # also of a plug-in or a file that is no longer there
            unfit.append(f"{file}: {first_rule(error)}")
            continue
        network = spec.train.network.model_dump_json()
        seen[network, spec.resolution].append(result.seconds["total"] / passes(spec))
    if unfit:
        log.warning("the estimate leaves out %d finished trials, such as %s", len(unfit), unfit[0])
    return Rates({group: fmean(rates) for group, rates in seen.items()})


def _modified(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
