"""The frozen, validated description of one trial, its canonical form and its key. Imports no torch.

Everything that can change a trial's result is in `TrialSpec`. Where it runs and how often it
reports are not. Which source, network and detector a spec names is looked up in registries that
plug-ins extend.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache, reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sched_lab.trainers import schedules
from sched_lab.trainers.errors import FieldError, in_part
from sched_lab.trainers.plugins import Family, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sched_lab.trainers.images import DataFacts, RawImages

SCIENCE_VERSION = 2
"""Raised whenever the same spec would give another result; part of every trial key."""

SOURCES = Family(
    what="data source",
    selector="source",
    builtin={
        "digits": "sched_lab.trainers.data.builtin:Digits",
        "photos": "sched_lab.trainers.data.builtin:Photos",
        "shapes": "sched_lab.trainers.data.builtin:Shapes",
        "folder": "sched_lab.trainers.data.user:Folder",
        "array": "sched_lab.trainers.data.user:ArrayFile",
        "huggingface": "sched_lab.trainers.data.user:HuggingFace",
    },
    default="digits",
)
NETWORKS = Family(
    what="network",
    selector="kind",
    builtin={"unet": "sched_lab.trainers.networks.options:UNetSpec"},
    default="unet",
)
DETECTORS = Family(
    what="detector",
    selector="kind",
    builtin={
        "classifier": "sched_lab.trainers.scoring.options:ClassifierSpec",
        "random": "sched_lab.trainers.scoring.options:RandomSpec",
        "inception": "sched_lab.trainers.scoring.options:InceptionSpec",
    },
    default="classifier",
)

Positive = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=10**6)]
"""Of something that is held in memory at once."""
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

    `elsewhere` names the fields that say where the content lies, not what it is. `policies` names
    those that say what is done about content that is broken. The trial key leaves both out; it
    holds the content's fingerprint.
    """

    elsewhere: ClassVar[frozenset[str]] = frozenset()
    policies: ClassVar[frozenset[str]] = frozenset()

    source: str
    """The name under which the source is registered."""
    flip: bool = False
    """Flip training images horizontally at random, each with probability one half."""

    @property
    def image_channels(self) -> int:
        """Channels of every image: 1 or 3."""
        raise NotImplementedError

    def fingerprint(self, cache: Path) -> str:
        """A hex digest of the images' content; `cache` is a folder for costly digests.

        Raises ValueError where the content is missing or broken. A FieldError may name a field.
        """
        raise NotImplementedError

    def facts(self, cache: Path) -> DataFacts | None:
        """Which images there are, before any is resized; None where only preparing them tells.

        Raises what `fingerprint` does.
        """
        return None

    def images(self, size: int) -> RawImages:
        """All images, square at `size`, in a fixed order, with labels where the source has them."""
        raise NotImplementedError


class NetworkSpec(Part):
    """Which network denoises. A network is a subclass: its options are its fields."""

    kind: str
    """The name under which the network is registered."""

    def build(self, *, channels: int, resolution: int, classes: int) -> nn.Module:
        """The network, its weights drawn from torch's default generator.

        Its `forward(x, gamma, label)` returns an output shaped as x. x is (B, channels, resolution,
        resolution), gamma (B,) and label, given where classes > 0, (B,) int64. Raises ValueError
        when the options do not fit these arguments.
        """
        raise NotImplementedError

    def idle(self, *, channels: int, resolution: int) -> frozenset[str]:
        """The fields whose values make the network that they would make if left out.

        The trial key leaves them out. Called with images that the options fit.
        """
        return frozenset()

    def check(self, *, channels: int, resolution: int) -> None:
        """Raise ValueError when the options do not fit images of this shape.

        Called before anything is spent. A FieldError may name a field of this spec, or
        "resolution".
        """


class Detector(Protocol):
    """A network whose features images are compared by, loaded and on its device."""

    @property
    def name(self) -> str:
        """As registered; part of every score's name."""

    @property
    def fingerprint(self) -> str:
        """A hex digest that changes whenever the features would."""

    def features(self, pixels: Tensor) -> Tensor:
        """Features (B, d) float32 of images (B, C, H, W) uint8: H and W are any, C the source's."""


class DetectorSpec(Part):
    """By which network's features images are compared. A detector is a subclass: its options are
    its fields.

    It serialises as its bare name while all options have their defaults, and else as a mapping.
    """

    dimension: ClassVar[int | None] = None
    """Features of an image, d; None where the options do not say."""
    reads_weights: ClassVar[bool] = True
    """Whether `score.weights` means something to it."""

    kind: str
    """The name under which the detector is registered; part of every score's name."""

    def check(self, data: DataSpec, cache: Path, weights: str | None) -> None:
        """Raise ValueError when the detector cannot judge this source, WeightsMissing when only its
        weights are not there.

        Called before anything is spent: it trains and downloads nothing. `weights` is
        `score.weights`. A FieldError may name a field of this spec, or "weights".
        """

    def load(
        self, data: DataSpec, cache: Path, device: torch.device, weights: str | None
    ) -> Detector:
        """The detector on `device`, for images of this source; `cache` is a folder for what is
        costly to make.
        """
        raise NotImplementedError

    @model_serializer(mode="wrap")
    def _bare_where_default(self, dump: SerializerFunctionWrapHandler) -> Any:
        options = {name: f for name, f in type(self).model_fields.items() if name != "kind"}
        default = all(
            getattr(self, name) == field.get_default(call_default_factory=True)
            for name, field in options.items()
        )
        return self.kind if default else dump(self)


def _one_of(family: Family, base: type[Part]) -> BeforeValidator:
    """A validator that reads a mapping, or a bare name, into the registered subclass of `base`."""

    def read(value: Any) -> Any:
        if isinstance(value, base):
            return value
        values = family.spelled_out(value)
        if family.selector not in values:
            rule = f"needs {family.selector!r}{nearest('', family.registered())}"
            raise FieldError(rule, family.selector)
        return family.class_for(values).model_validate(values)

    return BeforeValidator(read)


AnyData = Annotated[SerializeAsAny[DataSpec], _one_of(SOURCES, DataSpec)]
AnyNetwork = Annotated[SerializeAsAny[NetworkSpec], _one_of(NETWORKS, NetworkSpec)]
AnyDetector = Annotated[SerializeAsAny[DetectorSpec], _one_of(DETECTORS, DetectorSpec)]


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
        if kind == "min_snr" and 1e-9 <= (number := float(limit) if at else 5.0) <= 1e9:
            return f"min_snr@{repr(number).removesuffix('.0')}"
    except ValueError:
        pass
    raise ValueError("must be none or min_snr@G with G from 1e-9 to 1e9, such as min_snr@5")


class TrainSpec(Part):
    """How the network is trained."""

    network: AnyNetwork = Field(default_factory=NETWORKS.fresh)
    """The denoising network: its name, or a mapping of `kind` and its options."""
    steps: Positive = 1500
    """Optimizer steps."""
    batch: Size = 64
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
    ema_warmup: bool = True
    """Decay by min(ema, (1 + n)/(10 + n)) after n steps, so that the initial weights are soon
    forgotten; without it, ema^steps of them is left.
    """
    predict: Predict = "v"
    """What the network predicts."""
    normalize: Normalize = "input"
    """What is divided by its standard deviation: the network's input (per example), the same from b
    and gamma alone, or the state itself (Algorithm 3 of 2301.10972 as printed).
    """
    weight: Annotated[str, BeforeValidator(_loss_weight)] = "none"
    """Loss weight: none, or min_snr@G with the SNR taken at this b; bare min_snr has G = 5."""
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

    count: Annotated[int, Field(ge=1, le=10**7)] = 1000
    """Samples drawn, and scored, at every evaluation."""
    sampler: Sampler = "ddim"
    """The update rule; ddpm_large and ddpm_small name its variance."""
    steps: Size = 50
    """Network evaluations per sample."""
    schedule: Annotated[str, BeforeValidator(lambda v: v if v == "train" else _notation(v))] = (
        "cosine"
    )
    """The schedule sampled along, apart from the one trained on; `train` takes that one."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the noise; sample i has a stream of its own, shared by all trials with this seed."""
    batch: Size = 256
    """Samples drawn together; only rounding depends on it."""


Metric = Literal["fid", "fd", "kid", "precision", "recall"]
JACKKNIFE_GROUPS = 20
"""Groups of samples behind a score's standard error: one left out at a time."""


class ScoreSpec(Part):
    """How samples are judged against real images."""

    detector: AnyDetector = Field(default_factory=DETECTORS.fresh)
    """The network whose features are compared: its name, or a mapping of `kind` and its options."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, strict=False)] = ("fd",)
    """What is computed; the first ranks the trials. fid is fd on the inception detector, and only
    there.
    """
    every: Positive | None = None
    """Evaluate each time this many training steps are done, and at the end; null for that alone."""
    weights: str | None = None
    """Path of the inception detector's weights; null for SCHED_LAB_INCEPTION, or torch-fidelity's
    download.
    """

    @model_validator(mode="after")
    def _metrics_fit_the_detector(self) -> Self:
        kind = self.detector.kind
        if not re.fullmatch(r"[\w.-]+", kind, re.ASCII):  # or its scores could not be logged
            raise FieldError(
                f"a detector's name may hold letters, digits, _, . and -, got {kind!r}", "detector"
            )
        if "fid" in self.metrics and kind != "inception":
            raise FieldError(
                f"fid is defined on the inception detector only; with detector {kind!r} write fd",
                "detector",
                "metrics",
            )
        if len(set(self.metric_names)) != len(self.metrics):
            raise FieldError(
                f"metrics must differ from one another, got {', '.join(self.metrics)}", "metrics"
            )
        return self

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The scores' names as they are logged."""
        return tuple(metric_name(metric, self.detector.kind) for metric in self.metrics)


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

    data: AnyData = Field(default_factory=SOURCES.fresh)
    """The images."""
    resolution: Annotated[int, Field(ge=4, le=1024)] = 8
    """Height and width in pixels that images are resized to; smaller ones are enlarged."""
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
        own = self.sample.schedule != "train"
        sampled = self.sample.schedule if own else self.schedule
        sampling = _at_size(sampled, self.resolution)
        _set(self, "schedule", _at_size(self.schedule, self.resolution))
        if sampling != self.sample.schedule:
            _set(self, "sample", self.sample.model_copy(update={"schedule": sampling}))
        if self.score.every is not None and self.score.every >= self.train.steps:
            _set(self, "score", self.score.model_copy(update={"every": None}))
        schedules.check_visible(self.schedule, self.b, sampled=False)
        with in_part("sample" if own else ""):
            schedules.check_visible(sampling, self.b, sampled=True)
        with in_part("data"):
            channels = self.data.image_channels
        with in_part("train.network"):
            self.train.network.check(channels=channels, resolution=self.resolution)
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


_IDLE: dict[str, Callable[[TrialSpec], bool]] = {
    "score.weights": lambda spec: not spec.score.detector.reads_weights,
    # The step after the warm-up has the peak rate, however it falls then.
    "train.decay": lambda spec: spec.train.steps <= spec.train.warmup + 1,
    # The warm-up's decay is the smaller in every step.
    "train.ema": lambda spec: (
        spec.train.ema_warmup and spec.train.ema >= spec.train.steps / (9 + spec.train.steps)
    ),
    # The warm-up's decay, 1/10 at first, is the larger in every step.
    "train.ema_warmup": lambda spec: spec.train.ema <= 0.1,
    # The only step's clean image is the sample; no state follows.
    "sample.sampler": lambda spec: spec.sample.steps == 1,
    # All samples are drawn together.
    "sample.batch": lambda spec: spec.sample.batch >= spec.sample.count,
}
"""When a setting changes nothing. The options of a network are told by the network."""


def idle_settings(spec: TrialSpec) -> set[str]:
    """The settings, by their dotted names, that change nothing in a trial like this."""
    network = spec.train.network.idle(channels=spec.data.image_channels, resolution=spec.resolution)
    return {
        *(name for name, is_idle in _IDLE.items() if is_idle(spec)),
        *(f"train.network.{name}" for name in network),
    }


def canonical_json(spec: TrialSpec) -> str:
    """The spec with defaults filled in, keys sorted, and without what cannot change its result."""
    values = spec.model_dump(mode="json")
    # What the data are is in their fingerprint, and which weights is fixed by a published digest.
    elsewhere = {f"data.{name}" for name in spec.data.elsewhere | spec.data.policies}
    for setting in idle_settings(spec) | elsewhere | {"score.weights"}:
        *parts, name = setting.split(".")
        del reduce(getitem, parts, values)[name]
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def trial_key(spec: TrialSpec, fingerprint: str) -> str:
    """16 hex digits that name the work: same key, same result. `fingerprint` is that of the spec's
    data.
    """
    identity = f"{SCIENCE_VERSION}\n{fingerprint}\n{canonical_json(spec)}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
