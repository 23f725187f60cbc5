"""Detectors: the networks whose features images are compared by, loaded once per process. Imports
torch when used.

A detector decides the ranking as much as the samples do: features of a random and of a trained
network can rank one set of samples in opposite order. Its name is therefore part of every score's
name.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sched_lab.trainers.caching import cached, digest
from sched_lab.trainers.data.prepare import content_key, prepare
from sched_lab.trainers.scoring.weights import (
    INCEPTION_SHA256,
    INCEPTION_URL,
    download_path,
    inception_weights,
    verify,
)
from sched_lab.trainers.spec import SCIENCE_VERSION, DataSpec, Detector, DetectorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkDetector:
    """A detector that is one function of the pixels, on one device."""

    name: str
    fingerprint: str
    network: Callable[[Tensor], Tensor]
    device: torch.device
    accuracy: float | None = None
    """Of a classifier: the share of images held out from its training that it tells."""

    def features(self, pixels: Tensor) -> Tensor:
        import torch

        with torch.inference_mode():
            return self.network(pixels.to(self.device)).float()


_loaded: dict[tuple[object, ...], Detector] = {}


def load_detector(
    detector: DetectorSpec,
    data: DataSpec,
    cache: Path,
    device: torch.device,
    weights: str | None = None,
) -> Detector:
    """The detector for images of this source; a process loads each only once."""
    key = (detector.model_dump_json(), content_key(data, cache), cache, device, weights)
    if key not in _loaded:
        _loaded[key] = detector.load(data, cache, device, weights)
    return _loaded[key]


def classifier(data: DataSpec, classes: int, cache: Path, device: torch.device) -> Detector:
    """The classifier of a source's own labels, trained on the first call and read from the cache
    ever after.
    """
    import safetensors.torch

    from sched_lab.trainers.scoring.classifier import SIDE, Classifier, train

    accuracy = "held_out_accuracy"

    def make(folder: Path) -> None:
        network, share = train(prepare(data, SIDE, cache))
        about = {accuracy: f"{share:.4f}"}
        (folder / "weights.safetensors").write_bytes(
            safetensors.torch.save(network.state_dict(), about)
        )

    key = digest(content_key(data, cache), SCIENCE_VERSION)
    file = cached(cache / "detectors" / key, make) / "weights.safetensors"
    network = Classifier(data.image_channels, classes)
    network.load_state_dict(safetensors.torch.load_file(file))
    with safetensors.safe_open(file, "pt") as content:
        return _frozen("classifier", network, device, float(content.metadata()[accuracy]))


def random(data: DataSpec, device: torch.device) -> Detector:
    """The classifier's network for a source's channels, untrained."""
    from sched_lab.trainers.scoring.classifier import Classifier

    return _frozen("random", Classifier(data.image_channels, classes=1), device)


def inception(weights: str | None, device: torch.device) -> Detector:
    """Inception-v3 with the published weights, downloaded where they are not there; `weights` is
    `score.weights`.
    """
    import torch

    from sched_lab.trainers.scoring.torchvision_compat import import_torchvision

    file = inception_weights(weights)
    if file is None:
        file = download_path()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            INCEPTION_URL,
            str(file),
            hash_prefix=INCEPTION_SHA256,
            progress=False,
        )
    content = file.read_bytes()  # unpickled below: what is verified must be what is loaded
    verify(file, hashlib.sha256(content).hexdigest(), weights)
    import_torchvision()
    network = inception_network(io.BytesIO(content), device)
    return NetworkDetector("inception", INCEPTION_SHA256, network, device)


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


def _frozen(
    name: str, network: nn.Module, device: torch.device, accuracy: float | None = None
) -> Detector:
    import safetensors.torch

    fingerprint = hashlib.sha256(safetensors.torch.save(network.state_dict())).hexdigest()
    return NetworkDetector(
        name, fingerprint, network.eval().requires_grad_(False).to(device), device, accuracy
    )
