"""A small convolutional classifier of a source's images, whose features judge samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sched_lab.trainers.cancellation import check
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.images import ImageSet

# Every image is resized to this side first, so that one classifier serves all resolutions.
SIDE = 32
FEATURES = 64
STEPS, BATCH, LR = 300, 64, 1e-2
HELD_OUT = 10  # every tenth image, in a random order, is kept from training and measures accuracy


class Classifier(nn.Module):
    """Maps images to features (`forward`) and features to logits (`head`)."""

    def __init__(self, channels: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        with _seeded(seed):
            self.body = nn.Sequential(
                *_halve(channels, 16),  # 16 x 16
                *_halve(16, 32),  # 8 x 8
                *_halve(32, FEATURES),  # 4 x 4
                nn.Flatten(),
                nn.Linear(FEATURES * 4 * 4, FEATURES),
                nn.ReLU(),
            )
            self.head = nn.Linear(FEATURES, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, 64) of uint8 images (B, channels, H, W)."""
        features: Tensor = self.body(_resize(pixels.float() / 127.5 - 1, SIDE))
        return features


def train(images: ImageSet, seed: int = 0) -> tuple[Classifier, float]:
    """A classifier of these labelled images, and its accuracy on the tenth of them held out.

    The weights depend on the images alone: training takes one CPU thread and its own seeds. The
    caller's generators and settings stay as they were. Raises BadData for images without labels.
    """
    if images.labels is None:
        raise BadData("a classifier is trained on labelled images, these have no labels")
    random = np.random.default_rng(seed)
    order = random.permutation(len(images))
    held_out, train = np.sort(order[::HELD_OUT]), np.delete(order, np.s_[::HELD_OUT])
    with _one_thread():
        model = Classifier(images.pixels.shape[1], len(images.class_names), seed).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
        for _ in range(STEPS):
            check()
            batch = np.sort(random.choice(train, BATCH))
            pixels = torch.from_numpy(images.pixels[batch])
            labels = torch.from_numpy(images.labels[batch])
            loss = F.cross_entropy(model.head(model(pixels)), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval().requires_grad_(False)
        return model, _accuracy(model, images, held_out)


def _accuracy(model: Classifier, images: ImageSet, chosen: NDArray[np.int64]) -> float:
    assert images.labels is not None
    right = 0
    for batch in np.array_split(chosen, math.ceil(len(chosen) / 256)):
        check()
        logits = model.head(model(torch.from_numpy(images.pixels[batch])))
        right += int((logits.argmax(1).numpy() == images.labels[batch]).sum())
    return right / len(chosen)


def _resize(images: Tensor, side: int) -> Tensor:
    """Bilinear, without aliasing; (B, C, H, W) to (B, C, side, side)."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def _halve(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: a sum's last bits depend on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
