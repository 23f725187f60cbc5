"""What trials cost, by those that have run: a start, and seconds for each image that is trained on,
denoised or scored.

These are kept apart by device and by all that they depend on. So an estimate stays the same
whatever else a store holds. What is shared, such as a trained detector, is made by the first trial
alone.
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pydantic import ValidationError

from sched_lab.store.folder import Store
from sched_lab.store.records import first_rule, read_object
from sched_lab.text import clock
from sched_lab.trainers.results import RESULT_FILE, SPEC_FILE, State
from sched_lab.trainers.spec import TrialSpec

log = logging.getLogger(__name__)

TRAINING_PASSES = 3.0  # a backward pass costs about two forward ones
ENOUGH = 20  # finished trials of one kind that tell what it costs
PARTS = ("prepare", "train", "sample", "score")  # of a trial, as its result tells their seconds
OF_NETWORK = ("train", "sample")
VARIES = 1.15  # trials of one kind take so many times longer or less
# A network cuts images into patches, so larger ones cost little more: images of 64 pixels took 1.4
# times as long as those of 16.
GROWTH, MOST_GROWTH = 0.2, 1.0  # exponents of the side's ratio
UNSEEN = 0.2  # of the other parts, what one that was never seen may take
SHARED = 0.2  # of the first trial's preparing, what each further trial repeats


class Seconds(NamedTuple):
    """Seconds, and from where to where they may be; NaN where nothing is known."""

    low: float
    likely: float
    high: float

    def __mul__(self, times: float) -> Seconds:  # type: ignore[override]
        return Seconds(*(times * each for each in self))

    @property
    def is_known(self) -> bool:
        return math.isfinite(self.likely)


UNKNOWN = Seconds(math.nan, math.nan, math.nan)


class Kind(NamedTuple):
    """What the seconds of a part of a trial depend on."""

    part: str
    alike: str
    """The network, or else the detector and the images."""
    resolution: int
    batch: int


Cost = tuple[tuple[Kind, float], ...]
"""Of each part of a trial, in the order of `PARTS`: its kind, and how much of it there is."""


def passes(spec: TrialSpec) -> float:
    """Images passed forward through the network over the whole trial, training counted with its
    backward passes.
    """
    amount = amounts(spec)
    return TRAINING_PASSES * amount["train"] + amount["sample"]


def amounts(spec: TrialSpec) -> dict[str, float]:
    """How much there is of each part: one start, images trained on, steps of samples, samples."""
    evaluations = math.ceil(spec.train.steps / (spec.score.every or spec.train.steps))
    drawn = evaluations * spec.sample.count
    trained = spec.train.steps * spec.train.batch
    return {"prepare": 1, "train": trained, "sample": drawn * spec.sample.steps, "score": drawn}


def kind(part: str, spec: TrialSpec) -> Kind:
    network = f"{spec.train.network.model_dump_json()} {spec.train.precision}"
    judged = f"{spec.score.detector.model_dump_json()} {spec.data.model_dump_json()}"
    batch = {"train": spec.train.batch, "sample": spec.sample.batch}.get(part, 0)
    return Kind(part, network if part in OF_NETWORK else judged, spec.resolution, batch)


def cost(spec: TrialSpec) -> Cost:
    return tuple((kind(part, spec), amount) for part, amount in amounts(spec).items())


def span(seconds: Seconds) -> str:
    """As text: the likely time and, where they are not the same, between which it may lie."""
    low, likely, high = map(clock, seconds)
    return f"about {likely}" + (f" ({low} to {high})" if low != high else "")


@dataclass(frozen=True)
class Rates:
    """Seconds for one of a part's amount on one slot, as seen."""

    seen: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    before: Rates | None = None
    """Those seen earlier, for what has not been seen since."""

    def add(self, part: str, spec: TrialSpec, rate: float) -> None:
        if math.isfinite(rate) and rate > 0:
            self.seen[kind(part, spec)].append(rate)

    def add_trial(self, spec: TrialSpec, seconds: Mapping[str, float]) -> None:
        """Learn from a trial that has finished; parts whose seconds are not known are left out."""
        seconds = dict(seconds)
        if "prepare" in seconds:  # what scores are compared with is shared as well
            seconds["prepare"] += seconds.get("baselines", 0.0)
        for part, amount in amounts(spec).items():
            self.add(part, spec, seconds.get(part, math.nan) / amount)

    def rate(self, wanted: Kind) -> Seconds:
        """The seconds of one of a part's amount."""
        part = wanted.part
        for layer in self._layers():
            if values := layer.seen.get(wanted):
                return _around(values, shared=part == "prepare")
        for layer in self._layers():
            alike = [each for each in layer.seen if (each.part, each.alike) == wanted[:2]]
            if alike:
                nearest = min(alike, key=lambda each: _distance(each, wanted))
                known = _around(layer.seen[nearest], shared=part == "prepare")
                return _grown(known, wanted.resolution / nearest.resolution)
        return UNKNOWN

    def seconds(self, trial: Cost, done: Mapping[str, float] | None = None) -> Seconds:
        """The seconds expected for a trial, or for what is left of it when so much of each part is
        done.

        NaN where nothing tells of training its network. What sampling takes is then guessed from
        training; preparing and scoring are little beside these.
        """
        rates = {each.part: self.rate(each) for each, _ in trial}
        if not rates["sample"].is_known:
            rates["sample"] = _forward(rates["train"])
        parts = {
            each.part: rates[each.part] * max(0.0, amount - (done or {}).get(each.part, 0.0))
            for each, amount in trial
        }
        if not parts["train"].is_known:
            return UNKNOWN
        known = [each for each in parts.values() if each.is_known]
        low, likely, high = (math.fsum(each) for each in zip(*known, strict=True))
        missing = len(parts) - len(known)
        return Seconds(low, likely, high * (1 + UNSEEN * missing))

    def total(self, specs: Iterable[TrialSpec]) -> Seconds:
        """The seconds expected for all of these; NaN when one is not known."""
        each = [self.seconds(cost(spec)) for spec in specs]
        sums = [math.fsum(one[which] for one in each) for which in range(3)]
        return Seconds(*sums)

    def _layers(self) -> Iterator[Rates]:
        yield self
        if self.before is not None:
            yield from self.before._layers()


def _around(values: Sequence[float], *, shared: bool) -> Seconds:
    """What such values suggest for the next one; the first ones of a `shared` part took more."""
    low, middle, high = min(values), median(values), max(values)
    if not shared:
        return Seconds(low / VARIES, middle, high * VARIES)
    again = low if len(values) > 2 else SHARED * low
    return Seconds(min(again, low) / VARIES, again, max(middle, again) * VARIES)


def _forward(training: Seconds) -> Seconds:
    """What one pass of sampling may take, by one of training, before any was seen."""
    low, likely, high = training * (1 / TRAINING_PASSES)
    return Seconds(low / 2, likely, high * 2)


def _distance(one: Kind, other: Kind) -> tuple[float, float]:
    return (
        abs(math.log(one.resolution / other.resolution)),
        abs(math.log((one.batch + 1) / (other.batch + 1))),
    )


def _grown(known: Seconds, ratio: float) -> Seconds:
    """The same for images `ratio` times as wide."""
    ends = sorted((1.0, ratio**MOST_GROWTH))
    low, high = known.low * ends[0] / VARIES, known.high * ends[1] * VARIES
    return Seconds(low, known.likely * ratio**GROWTH, high)


def left(running: Sequence[Seconds], waiting: Sequence[Seconds], slots: int) -> Seconds:
    """Until the last trial ends, when those that wait begin in their order as slots get free."""

    def last(which: int) -> float:
        ends = sorted(each[which] for each in running)
        ends = [*[0.0] * (slots - len(ends)), *ends]
        for trial in waiting:
            first = ends.index(min(ends))
            ends[first] += trial[which]
        return max(ends, default=0.0)

    if not all(each.is_known for each in (*running, *waiting)):
        return UNKNOWN
    return Seconds(last(0), last(1), last(2))


def measured(
    store: Store, keys: Iterable[str], wanted: Iterable[TrialSpec], device: str = ""
) -> Rates:
    """The rates of the newest finished trials among `keys`, as far as they tell of those `wanted`.

    They come from one device, whose name begins with `device`: that of the newest one. Trials whose
    seconds are not known are left out. So are those whose spec no longer fits; the log names one
    of these.
    """
    rates, unfit = Rates(), list[str]()
    kinds = {kind(part, spec) for spec in wanted for part in PARTS}
    newest = sorted(keys, key=lambda key: -_modified(store.trial(key) / RESULT_FILE))
    for key in newest:
        if kinds and all(len(rates.seen.get(each, ())) >= ENOUGH for each in kinds):
            break
        result, file = store.result(key), store.trial(key) / SPEC_FILE
        if result is None or result.state != State.FINISHED or "train" not in result.seconds:
            continue
        where = result.environment.get("device", device)
        if not where.startswith(device):
            continue
        raw = read_object(file)
        if raw is None:
            continue
        try:
            spec = TrialSpec.model_validate(raw)
        except ValidationError as error:  # also of a plug-in or a file that is no longer there
            unfit.append(f"{file}: {first_rule(error)}")
            continue
        device = where
        rates.add_trial(spec, result.seconds)
    if unfit:
        log.warning("the estimate leaves out %d finished trials, such as %s", len(unfit), unfit[0])
    return rates


def _modified(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
