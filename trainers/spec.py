"""The frozen, validated description of one trial, its canonical form and its key. Imports no torch.

Everything that can change a trial's result is in `TrialSpec`; everything that cannot (where it
runs, how often it reports) is not. Which data source and network a spec names is looked up in
registries that plug-ins extend.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from sched_lab.trainers import schedules
from sched_lab.trainers.plugins import lookup, names, nearest

if TYPE_CHECKING:
    from torch import nn

    from sched_lab.trainers.images import RawImages

SCIENCE_VERSION = 1
"""Raised whenever the same spec would give another result; part of every trial key."""

SOURCES = {
    "digits": "sched_lab.trainers.data.builtin:Digits",
    "photos": "sched_lab.trainers.data.builtin:Photos",
    "shapes": "sched_lab.trainers.data.builtin:Shapes",
    "folder": "sched_lab.trainers.data.user:Folder",
    "array": "sched_lab.trainers.data.user:ArrayFile",
    "huggingface": "sched_lab.trainers.data.user:HuggingFace",
}
NETWORKS = {"unet": "sched_lab.trainers.networks.options:UNetSpec"}
DETECTORS = {
    "classifier": "sched_lab.trainers.scoring.detectors:classifier",
    "random": "sched_lab.trainers.scoring.detectors:random",
    "inception": "sched_lab.trainers.scoring.detectors:inception",
}

Positive = Annotated[int, Field(ge=1, le=2**63 - 1)]  # sums of products stay floats
Fraction = Annotated[float, Field(ge=0, lt=1)]
Predict = Literal["v", "eps", "x0"]
Normalize = Literal["none", "input", "analytic", "state"]
Sampler = Literal["ddim", "ddpm_large", "ddpm_small"]


class Part(BaseModel):
    """A frozen piece of a spec: no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataSpec(Part):
    """Where images come from. A source is a subclass: its options are its fields.

    `elsewhere` names the fields that say where the content lies, not what it is: they are left out
    of the trial key, which holds the content's fingerprint instead.
    """

    elsewhere: ClassVar[frozenset[str]] = frozenset()

    source: str
    """The name under which the source is registered."""
    flip: bool = False
    """Flip training images horizontally at random, each with probability one half."""

    @property
    def image_channels(self) -> int:
        """Channels of every image: 1 or 3."""
        raise NotImplementedError

    def fingerprint(self, cache: Path) -> str:
        """A hex digest of the images' content; `cache` is a folder where costly digests may be
        kept.
        """
        raise NotImplementedError

    def images(self, size: int) -> RawImages:
        """All images, square at `size`, in a fixed order, with labels where the source has them."""
        raise NotImplementedError


class NetworkSpec(Part):
    """Which network denoises. A network is a subclass: its options are its fields."""

    kind: str
    """The name under which the network is registered."""

    def build(self, *, channels: int, resolution: int, classes: int) -> nn.Module:
        """The network, its weights drawn from torch's default generator.

        Its `forward(x, gamma, label)` maps x (B, channels, resolution, resolution), gamma (B,) and,
        where classes > 0, label (B,) int64, to an output shaped as x. Raises ValueError when the
        options do not fit these arguments.
        """
        raise NotImplementedError

    def check(self, *, channels: int, resolution: int) -> None:
        """Raise ValueError when the options do not fit images of this shape; called before anything
        is spent.
        """


def _by_name(
    what: str, key: str, registry: Mapping[str, str], base: type[Part]
) -> Callable[[Any], Any]:
    """A validator that reads `{key: name, …}`, or a bare name, into the registered subclass of
    `base`.
    """

    def read(value: Any) -> Any:
        if isinstance(value, base):
            return value
        if isinstance(value, str):
            value = {key: value}
        if not isinstance(value, Mapping):
            raise ValueError(f"must be the name of a {what}, or a mapping with {key!r}")
        if key not in value:
            raise ValueError(f"needs {key!r}{nearest('', registry)}")
        found = lookup(what, registry, str(value[key]))
        return found.model_validate(dict(value))

    return read


AnyData = Annotated[
    SerializeAsAny[DataSpec], BeforeValidator(_by_name("data source", "source", SOURCES, DataSpec))
]
AnyNetwork = Annotated[
    SerializeAsAny[NetworkSpec], BeforeValidator(_by_name("network", "kind", NETWORKS, NetworkSpec))
]


def _notation(value: Any) -> Any:
    """A schedule in canonical notation, from notation or a mapping."""
    if not isinstance(value, str | Mapping):
        raise ValueError("a schedule is written as a string or a mapping")
    return str(schedules.parse(value))


Notation = Annotated[str, BeforeValidator(_notation)]


def _loss_weight(value: Any) -> Any:
    kind, at, limit = str(value).partition("@")
    if value == "none":
        return value
    try:
        if kind == "min_snr" and 0 < (number := float(limit) if at else 5.0) < float("inf"):
            return f"min_snr@{number:g}"
    except ValueError:
        pass
    raise ValueError("must be none or min_snr@G with G above 0, such as min_snr@5")


class TrainSpec(Part):
    """How the network is trained."""

    network: AnyNetwork = Field(default_factory=lambda: lookup("network", NETWORKS, "unet")())
    """The denoising network: its name, or a mapping of `kind` and its options."""
    steps: Positive = 1500
    """Optimizer steps."""
    batch: Positive = 64
    """Images per step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of AdamW."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["none", "cosine"] = "none"
    """How the learning rate falls after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """The gradient norm above which gradients are scaled down; null for no limit."""
    ema: Fraction = 0.995
    """Decay, per step, of the exponential moving average of the weights that is sampled from."""
    predict: Predict = "v"
    """What the network predicts."""
    normalize: Normalize = "input"
    """What is divided by its standard deviation: the network's input (per example), the same from b
    and gamma alone, or the state itself (Algorithm 3 of 2301.10972 as printed).
    """
    weight: Annotated[str, BeforeValidator(_loss_weight)] = "none"
    """Loss weight: none, or min_snr@G with the SNR taken at this b."""
    class_conditional: bool = False
    """Give the network the image's label, in training and in sampling."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network's forward pass; auto is bf16 autocast on a GPU that has it and fp32
    elsewhere.
    """
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto compiles on a GPU when training is long enough to repay it."""


class SampleSpec(Part):
    """How samples are drawn from the trained network."""

    count: Positive = 1000
    """Samples drawn, and scored, at every evaluation."""
    sampler: Sampler = "ddim"
    """The update rule; ddpm_large and ddpm_small name its variance."""
    steps: Positive = 50
    """Network evaluations per sample."""
    schedule: Annotated[str, BeforeValidator(lambda v: v if v == "train" else _notation(v))] = (
        "cosine"
    )
    """The schedule sampled along, apart from the one trained on; `train` takes that one."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the noise; sample i has a stream of its own, shared by all trials with this seed."""
    batch: Positive = 256
    """Samples drawn together; only rounding depends on it."""


Metric = Literal["fid", "fd", "kid", "precision", "recall"]
JACKKNIFE_GROUPS = 20
"""Groups of samples behind a score's standard error: one left out at a time."""


class ScoreSpec(Part):
    """How samples are judged against real images."""

    detector: str = "classifier"
    """The network whose features are compared; its name is part of every score's name."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, strict=False)] = ("fd",)
    """What is computed; the first ranks the trials. fid is fd on the inception detector, and only
    there.
    """
    every: Positive | None = None
    """Evaluate each time this many training steps are done; null for once, at the end."""
    weights: str | None = None
    """Path of the inception detector's weights; null for SCHED_LAB_INCEPTION, or torch-fidelity's
    download.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.detector not in (
            known := names("detector", DETECTORS)
        ):  # named only: detectors import torch
            raise ValueError(f"unknown detector {self.detector!r}{nearest(self.detector, known)}")
        if not re.fullmatch(
            r"[\w.-]+", self.detector, re.ASCII
        ):  # or its scores could not be logged
            raise ValueError(
                f"a detector's name may hold letters, digits, _, . and -, got {self.detector!r}"
            )
        if "fid" in self.metrics and self.detector != "inception":
            raise ValueError(
                f"fid is defined on the inception detector only; with detector {self.detector!r}"
                " write fd"
            )
        if len(set(self.metric_names)) != len(self.metrics):
            raise ValueError(f"metrics must differ from one another, got {', '.join(self.metrics)}")
        return self

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The scores' names as they are logged."""
        return tuple(metric_name(metric, self.detector) for metric in self.metrics)


def metric_name(metric: str, detector: str) -> str:
    """A score's name as it is logged: fid for the Fréchet distance on inception, else
    metric_detector.
    """
    return "fid" if detector == "inception" and metric in ("fid", "fd") else f"{metric}_{detector}"


@lru_cache(maxsize=4096)
def _at_size(notation: str, resolution: int) -> str:
    return str(schedules.parse(notation).at_size(resolution))


class TrialSpec(Part):
    """One cell of a sweep: all that its result depends on."""

    data: AnyData = Field(default_factory=lambda: lookup("data source", SOURCES, "digits")())
    """The images."""
    resolution: Annotated[int, Field(ge=4, le=1024)] = 8
    """Height and width in pixels that images are resized to."""
    schedule: Notation = "linear"
    """The noise schedule trained on, in the authors' notation."""
    b: Annotated[float, Field(gt=0)] = 1.0
    """The factor that scales the images, in [-1, 1], before noise is added."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the weights, the data order, t and the noise in training."""
    train: TrainSpec = Field(default_factory=TrainSpec)
    sample: SampleSpec = Field(default_factory=SampleSpec)
    score: ScoreSpec = Field(default_factory=ScoreSpec)

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        sampled = self.schedule if self.sample.schedule == "train" else self.sample.schedule
        sampling = _at_size(sampled, self.resolution)
        _set(self, "schedule", _at_size(self.schedule, self.resolution))
        if sampling != self.sample.schedule:
            _set(self, "sample", self.sample.model_copy(update={"schedule": sampling}))
        if self.score.every is not None and self.score.every >= self.train.steps:
            _set(self, "score", self.score.model_copy(update={"every": None}))
        self.train.network.check(channels=self.data.image_channels, resolution=self.resolution)
        return self

    @cached_property
    def noise_schedule(self) -> schedules.Schedule:
        """The schedule trained on."""
        return schedules.parse(self.schedule)

    @cached_property
    def sampling_schedule(self) -> schedules.Schedule:
        """The schedule sampled along."""
        return schedules.parse(self.sample.schedule)


def _set(spec: Part, name: str, value: object) -> None:
    """Replace a field of a frozen spec while it is being validated, and only then."""
    object.__setattr__(spec, name, value)
    spec.__dict__[name] = value


def canonical_json(spec: TrialSpec) -> str:
    """The spec with defaults filled in, keys sorted, and without the fields that only say where
    content lies.
    """
    values = spec.model_dump(mode="json")
    for name in spec.data.elsewhere:
        del values["data"][name]
    del values["score"]["weights"]  # the weights' content is fixed by their published digest
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def trial_key(spec: TrialSpec, fingerprint: str) -> str:
    """16 hex digits that name the work: same key, same result. `fingerprint` is that of the spec's
    data.
    """
    identity = f"{SCIENCE_VERSION}\n{fingerprint}\n{canonical_json(spec)}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
