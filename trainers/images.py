"""The types in which images pass between sources, preparation, training and scoring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Item = tuple[Pixels, int | None]
"""An image's pixels (channels, size, size) and its label, an index into the source's class
names.
"""


@dataclass(frozen=True)
class RawImages:
    """What a source gives: images one by one, so that a source may be larger than memory."""

    items: Iterable[Item]
    class_names: tuple[str, ...] = ()
    """One name per label; empty for a source without labels, whose items then carry None."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """All images of a source at one size."""

    pixels: Pixels
    """(N, C, H, W), a memory map whose writes stay in this process and never reach the file."""
    labels: NDArray[np.int64] | None
    """(N,), indices into `class_names`; None for a source without labels."""
    class_names: tuple[str, ...]
    """One name per label; empty for a source without labels."""

    def __len__(self) -> int:
        return len(self.pixels)
