"""The options of the built-in detectors, and whether each can judge a source. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from sched_lab.trainers.caching import listing, remembered, sha256
from sched_lab.trainers.data.prepare import blaming_data
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.scoring.weights import inception_weights, verify
from sched_lab.trainers.spec import DETECTORS, DataSpec, Detector, DetectorSpec

if TYPE_CHECKING:
    import torch


class NoLabels(BadData):
    """A detector or a network needs labels, and the source has none."""

    part = "score"


class ClassifierSpec(DetectorSpec):
    """Penultimate features (64) of a small CNN, trained once on the labels of the source's own
    images.
    """

    dimension: ClassVar[int | None] = 64
    reads_weights: ClassVar[bool] = False
    kind: Literal["classifier"] = "classifier"

    def check(self, data: DataSpec, cache: Path, weights: str | None) -> None:
        classes(data)

    def load(
        self, data: DataSpec, cache: Path, device: torch.device, weights: str | None
    ) -> Detector:
        from sched_lab.trainers.scoring import detectors

        return detectors.classifier(data, len(classes(data)), cache, device)


class RandomSpec(DetectorSpec):
    """The classifier's network untrained, from a fixed seed. Weak: made for trying things out."""

    dimension: ClassVar[int | None] = 64
    reads_weights: ClassVar[bool] = False
    kind: Literal["random"] = "random"

    def load(
        self, data: DataSpec, cache: Path, device: torch.device, weights: str | None
    ) -> Detector:
        from sched_lab.trainers.scoring import detectors

        return detectors.random(data, device)


class InceptionSpec(DetectorSpec):
    """Inception-v3 (2015-12-05), 2048 features after the last pooling, as torch-fidelity runs it;
    grey becomes RGB.
    """

    dimension: ClassVar[int | None] = 2048
    kind: Literal["inception"] = "inception"

    def check(self, data: DataSpec, cache: Path, weights: str | None) -> None:
        file = inception_weights(weights)
        if file is not None:
            verify(file, remembered(cache, listing([file]), lambda: sha256(file)), weights)

    def load(
        self, data: DataSpec, cache: Path, device: torch.device, weights: str | None
    ) -> Detector:
        from sched_lab.trainers.scoring import detectors

        return detectors.inception(weights, device)


def classes(data: DataSpec) -> tuple[str, ...]:
    """The names of a source's classes. Raises NoLabels where a classifier cannot be trained."""
    with blaming_data():
        class_names = data.images(8).class_names  # no image is decoded until one is asked for
    if len(class_names) < 2:
        others = ", ".join(name for name in DETECTORS.builtin if name != "classifier")
        raise NoLabels(
            "classifier needs a source with at least two labels, "
            f"{data.source!r} has {len(class_names) or 'none'} here; valid for it: {others}",
            "detector",
        )
    return class_names
