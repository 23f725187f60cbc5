"""What valid settings amount to: trials that are sure to fail, and scores that would say little."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from operator import getitem
from typing import NamedTuple

from sched_lab.errors import Problem
from sched_lab.sweep.cells import place
from sched_lab.sweep.grid import Cell, Grid
from sched_lab.sweep.located_yaml import Located
from sched_lab.sweep.settings import settings_text
from sched_lab.trainers.errors import FieldError, counted
from sched_lab.trainers.schedules import ScheduleError, check_visible
from sched_lab.trainers.scoring.metrics import least_samples, meaningful_samples
from sched_lab.trainers.spec import TrainSpec, TrialSpec, idle_settings

INITIAL_SHARE = 0.05
"""Above this share of the initial weights in the average, samples are judged on them."""

USUAL_SHARE = 0.1
"""Where image and noise both show at a smaller share of t, most of training teaches little."""

LEAST_NORM = 1e-6
"""Of the gradients: 1e-9 for a weight of a million, of which AdamW's 1e-8 leaves a tenth."""

LEAST_WEIGHT = 1e-4
"""Of a loss near 1, whose gradients then are some 1e-7 for a weight."""

TOO_LOW = 1e-9
"""Half the distance of float32 numbers near 0.03, where a network's weights begin."""


class Rule(NamedTuple):
    """Something that settings which are valid each must keep together."""

    part: str
    fields: tuple[str, ...]
    """The settings that it is about, the likeliest cause first."""
    broken: Callable[[TrialSpec], str | FieldError]
    """What is wrong with a trial, in words; "" where nothing is. An error names its own fields."""


def refused(source: Located, cells: Iterable[Cell]) -> Iterator[Problem]:
    """Why cells are sure to fail, or could not be told from one another."""
    cells = list(cells)
    yield from _told(source, cells, REFUSED)
    named: dict[str, Cell] = {}
    for cell in cells:
        first = named.setdefault(settings_text(cell.settings), cell)
        differ = [name for name in cell.settings if cell.settings[name] != first.settings.get(name)]
        if differ:
            path = place(source, cell.chosen, "", differ)
            rule = f"is shown as another {differ[0]} is: let them differ in their first six digits"
            yield source.problem(path, rule)


def doubted(source: Located, grid: Grid) -> Iterator[Problem]:
    """Why scores of cells would say little, and which settings change nothing."""
    yield from _told(source, grid.cells, DOUBTED)
    axes = {name for name in grid.axes if len(source.data["grid"][name]) > 1}
    idle = {"score.weights", "score.every"} | axes
    for cell in grid.cells:
        # An evaluation after the last step is none.
        never = {"score.every"} if cell.spec.score.every is None else set()
        idle &= idle_settings(cell.spec) | never
    for name in sorted(idle):
        path = ("grid", name) if ("grid", name) in source.values else tuple(name.split("."))
        if path in source.values and reduce(getitem, path, source.data) is not None:
            yield source.problem(path, "changes nothing in this sweep")


def _told(source: Located, cells: Iterable[Cell], rules: Iterable[Rule]) -> Iterator[Problem]:
    told = set()
    for cell in cells:
        for rule in rules:
            if broken := rule.broken(cell.spec):
                fields = broken.fields if isinstance(broken, FieldError) else rule.fields
                words = broken.rule if isinstance(broken, FieldError) else broken
                path = place(source, cell.chosen, rule.part, fields)
                if (path, words) not in told:
                    told.add((path, words))
                    yield source.problem(path, words)


def initial_share(train: TrainSpec) -> float:
    """The share of the initial weights in the average that is sampled from.

    The first n steps of the warm-up decay by (1 + n)/(10 + n), whose product is 1/C(n + 9, 9).
    """
    if train.ema == 0:
        return 0.0
    warming = 0
    if train.ema_warmup:
        warming = min(train.steps, max(0, math.ceil((10 * train.ema - 1) / (1 - train.ema))))
    log_chosen = math.lgamma(warming + 10) - math.lgamma(10) - math.lgamma(warming + 1)
    return math.exp((train.steps - warming) * math.log(train.ema) - log_chosen)


def _too_few(spec: TrialSpec) -> str:
    least, metric = max((least_samples(metric), metric) for metric in spec.score.metrics)
    return f"{metric} needs at least {least} samples" if spec.sample.count < least else ""


def _few(spec: TrialSpec) -> str:
    dimension = spec.score.detector.dimension
    needed = {m: meaningful_samples(m, dimension) for m in spec.score.metrics}
    lacking = [f"{n:,} or more for {m}" for m, n in needed.items() if spec.sample.count < n]
    few = f"too few samples to mean much {with_features(spec)}"
    return f"{few}: draw {', '.join(lacking)}" if lacking else ""


def with_features(spec: TrialSpec) -> str:
    """What decides on how many images say something, in words."""
    dimension = spec.score.detector.dimension
    return f"with the detector's {counted(dimension, 'feature')}" if dimension else "with it"


def _initial(spec: TrialSpec) -> str:
    share = initial_share(spec.train)
    if share <= INITIAL_SHARE:
        return ""
    steps = counted(spec.train.steps, "step")
    return (
        f"the average of the weights still has {share:.0%} of the initial ones after {steps}:"
        " train longer, lower train.ema or leave train.ema_warmup on"
    )


def _never_warm(spec: TrialSpec) -> str:
    warmup, steps = spec.train.warmup, spec.train.steps
    rule = f"the learning rate never reaches its peak in {counted(steps, 'step')}"
    return f"{rule}: warm up over fewer, or train longer" if warmup >= steps else ""


def _rate(spec: TrialSpec) -> str:
    moves = "AdamW moves each weight by about the learning rate in a step, and"
    if spec.train.lr < TOO_LOW:
        return f"{moves} float32 rounds so little away: nothing is learned; 1e-3 is usual"
    if spec.train.lr >= 1:
        return f"{moves} so much is far beyond the weights: this diverges; 1e-3 is usual"
    return ""


def _clipped(spec: TrialSpec) -> str:
    clip = spec.train.grad_clip
    return f"{_SHRUNK}; 1 is usual" if clip is not None and clip < LEAST_NORM else ""


def _weighed(spec: TrialSpec) -> str:
    limit = spec.train.weight.partition("@")[2]
    small = bool(limit) and float(limit) < LEAST_WEIGHT
    return f"{_SHRUNK}; min_snr@5 is usual" if small else ""


def _seldom_seen(spec: TrialSpec) -> str | FieldError:
    try:
        check_visible(spec.schedule, spec.b, sampled=False, least=USUAL_SHARE)
    except ScheduleError as error:
        return ScheduleError(f"most of training teaches little: {error.rule}", *error.fields)
    return ""


def _growing(spec: TrialSpec) -> str:
    product = spec.train.lr * spec.train.weight_decay
    rule = "AdamW multiplies the weights by 1 − lr·weight_decay, here"
    if product <= 1:
        return ""
    return f"{rule} {1 - product:.3g} at each step: lower either; weight_decay 0.01 is usual"


_SHRUNK = (
    "AdamW divides gradients by their size plus 1e-8: scaled down so far they hardly move the"
    " weights, and little or nothing is learned"
)
REFUSED = (Rule("sample", ("count",), _too_few),)
DOUBTED = (
    Rule("sample", ("count",), _few),
    Rule("train", ("ema", "ema_warmup", "steps"), _initial),
    Rule("train", ("warmup", "steps"), _never_warm),
    Rule("train", ("lr",), _rate),
    Rule("train", ("grad_clip",), _clipped),
    Rule("train", ("weight",), _weighed),
    Rule("", ("b", "schedule"), _seldom_seen),
    Rule("train", ("lr", "weight_decay"), _growing),
)
