"""The types in which images pass between sources, preparation, training and scoring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sched_lab.trainers.results import Record

Pixels = NDArray[np.uint8]
Item = tuple[Pixels, int | None]
"""An image's pixels (channels, size, size) and its label, an index into the source's class
names.
"""


class DataFacts(Record):
    """Which images a source gives, and what it leaves out."""

    source: str
    images: int
    """How many are used."""
    classes: Mapping[str, int] = {}
    """How many of each class; empty for a source without labels."""
    smallest: tuple[int, int] | None = None
    """Width and height in pixels, before resizing, of the image with the fewest pixels; None where
    that is not known.
    """
    largest: tuple[int, int] | None = None
    """The same, of the image with the most."""
    span: tuple[int, int] | None = None
    """The lowest and highest value of all their pixels, before resizing, from 0 to 255; None where
    that is not known.
    """
    identical: bool = False
    """Whether they are several and known to be one and the same."""
    broken: int = 0
    """How many could not be read, or have no label where they need one."""
    examples: tuple[str, ...] = ()
    """The first of these, each with what is wrong."""
    hidden: int = 0
    """How many files were left out since they are hidden."""
    unknown: Mapping[str, int] = {}
    """How many files of other formats were left out, by the ends of their names."""


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
