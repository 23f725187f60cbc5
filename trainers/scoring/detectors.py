"""Detectors: the networks whose features images are compared by, loaded once per process. Imports
torch when used.

A detector decides the ranking as much as the samples do: features of a random and of a trained
network can rank one set of samples in opposite order. Its name is therefore part of every score's
name.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from sched_lab.trainers.caching import cached, digest, listing, remembered, sha256
from sched_lab.trainers.data.prepare import blaming_data, content_key, prepare
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.plugins import lookup
from sched_lab.trainers.remote import reachable
from sched_lab.trainers.spec import DETECTORS, SCIENCE_VERSION, DataSpec, ScoreSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

INCEPTION_VARIABLE = "SCHED_LAB_INCEPTION"
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Detector(Protocol):
    """What a score needs to know of a network. Another package adds one through
    ``sched_lab.detectors``.
    """

    @property
    def name(self) -> str:
        """As registered; part of every score's name."""

    @property
    def fingerprint(self) -> str:
        """A hex digest that changes whenever the features would."""

    def features(self, pixels: Tensor) -> Tensor:
        """Features (B, d) float32 of images (B, C, H, W) uint8 of any size, C as the source's
        images have it.
        """


Factory = Callable[[DataSpec, Path, "torch.device", str | None], Detector]
"""Makes a detector from the source it will judge, the cache folder, the device and, where given,
its weights' path.
"""


class WeightsMissing(ValueError):
    """A detector's weights are not there and can't be fetched."""


@dataclass(frozen=True)
class NetworkDetector:
    """A detector that is one function of the pixels, on one device."""

    name: str
    fingerprint: str
    network: Callable[[Tensor], Tensor]
    device: torch.device

    def features(self, pixels: Tensor) -> Tensor:
        import torch

        with torch.inference_mode():
            return self.network(pixels.to(self.device)).float()


_loaded: dict[tuple[object, ...], Detector] = {}


def load_detector(
    name: str, data: DataSpec, cache: Path, device: torch.device, weights: str | None = None
) -> Detector:
    """The detector registered as `name`, for images of this source; a process loads each only
    once.
    """
    key = (name, content_key(data, cache), cache, device, weights)
    if key not in _loaded:
        factory: Factory = lookup("detector", DETECTORS, name)
        _loaded[key] = factory(data, cache, device, weights)
    return _loaded[key]


def check(score: ScoreSpec, data: DataSpec, cache: Path) -> None:
    """Raise ValueError if this detector cannot judge this source, WeightsMissing if only its
    weights are not there.

    Trains and downloads nothing.
    """
    if score.detector == "classifier":
        _class_names(data)
    elif score.detector == "inception" and (weights := _inception_weights(score.weights)):
        _verify(weights, remembered(cache, listing([weights]), lambda: sha256(weights)))


def classifier(data: DataSpec, cache: Path, device: torch.device, weights: str | None) -> Detector:
    """Penultimate features (64) of a small CNN trained on the labels of the source's own images,
    once per source.
    """
    import safetensors.torch

    from sched_lab.trainers.scoring.classifier import SIDE, Classifier, train

    def make(folder: Path) -> None:
        network, accuracy = train(prepare(data, SIDE, cache))
        about = {"held_out_accuracy": f"{accuracy:.4f}"}
        (folder / "weights.safetensors").write_bytes(
            safetensors.torch.save(network.state_dict(), about)
        )

    classes = len(_class_names(data))
    file = (
        cached(cache / "detectors" / digest(content_key(data, cache), SCIENCE_VERSION), make)
        / "weights.safetensors"
    )
    network = Classifier(data.image_channels, classes)
    network.load_state_dict(safetensors.torch.load_file(file))
    return _frozen("classifier", network, device)


def random(data: DataSpec, cache: Path, device: torch.device, weights: str | None) -> Detector:
    """The classifier's network untrained, from a fixed seed. Weak: made for trying things out."""
    from sched_lab.trainers.scoring.classifier import Classifier

    return _frozen("random", Classifier(data.image_channels, classes=1), device)


def inception(data: DataSpec, cache: Path, device: torch.device, weights: str | None) -> Detector:
    """Inception-v3 (2015-12-05), 2048 features after the last pooling, as torch-fidelity runs it;
    grey becomes RGB.
    """
    import torch

    from sched_lab.trainers.scoring.torchvision_compat import import_torchvision

    file = _inception_weights(weights)
    if file is None:
        file = _torch_hub()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            INCEPTION_URL, str(file), hash_prefix=INCEPTION_SHA256, progress=False
        )
    content = file.read_bytes()  # unpickled below: what is verified must be what is loaded
    _verify(file, hashlib.sha256(content).hexdigest())
    import_torchvision()
    return NetworkDetector(
        "inception", INCEPTION_SHA256, inception_network(io.BytesIO(content), device), device
    )


def inception_network(weights: BinaryIO, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Images (B, 1 or 3, H, W) uint8 to features (B, 2048). The weights are unpickled: verify them
    first.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=weights
    ).to(device)

    def features(pixels: Tensor) -> Tensor:
        output: Tensor = network(pixels.expand(-1, 3, -1, -1))[0]
        return output

    return features


def _frozen(name: str, network: nn.Module, device: torch.device) -> Detector:
    import safetensors.torch

    fingerprint = hashlib.sha256(safetensors.torch.save(network.state_dict())).hexdigest()
    return NetworkDetector(
        name, fingerprint, network.eval().requires_grad_(False).to(device), device
    )


def _class_names(data: DataSpec) -> tuple[str, ...]:
    with blaming_data():
        names = data.images(8).class_names  # no image is decoded until one is asked for
    if len(names) < 2:
        others = ", ".join(name for name in DETECTORS if name != "classifier")
        raise BadData(
            "score.detector: classifier needs a source with at least two labels, "
            f"{data.source!r} has {len(names) or 'none'} here; valid for it: {others}"
        )
    return names


def _inception_weights(given: str | None) -> Path | None:
    """Where the weights lie; None when they can be downloaded. Raises WeightsMissing when they are
    out of reach.
    """
    for origin, path in (
        ("score.weights", given),
        (INCEPTION_VARIABLE, os.environ.get(INCEPTION_VARIABLE)),
    ):
        if path:
            file = Path(os.path.expanduser(path))
            if not file.is_file():
                raise WeightsMissing(
                    f"{origin}: there is no file {file}; expected the weights of {INCEPTION_URL}"
                )
            return file
    if _torch_hub().is_file():
        return _torch_hub()
    if reachable(INCEPTION_URL):
        return None
    raise WeightsMissing(
        f"the inception detector needs its weights and {INCEPTION_URL} cannot be reached; give"
        f" their path as score.weights, or in the variable {INCEPTION_VARIABLE}, or download them"
        f" to {_torch_hub()}"
    )


def _torch_hub() -> Path:
    """Where torch-fidelity's download is kept: torch.hub's folder, found without importing
    torch.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints" / INCEPTION_URL.rpartition("/")[2]


def _verify(weights: Path, found: str) -> None:
    if found != INCEPTION_SHA256:
        raise ValueError(
            f"{weights} is not {INCEPTION_URL}: its SHA-256 is {found}, expected {INCEPTION_SHA256}"
        )
