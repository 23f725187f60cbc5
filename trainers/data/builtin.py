"""The data sources that every installation has: scans, photographs and drawn shapes.

Light to import: Pillow and scikit-learn's files are loaded only when images are asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sched_lab.trainers.images import DataFacts, Item, Pixels, RawImages
from sched_lab.trainers.spec import DataSpec

Count = Annotated[int, Field(ge=2, le=10**7)]


def _sklearn(name: str) -> Path:
    """A data file inside scikit-learn. The package is not imported, which would take a second."""
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ValueError("this data source comes with scikit-learn, which is not installed")
    return Path(package.submodule_search_locations[0], "datasets", name)


def _in_turn(source: str, count: int, classes: tuple[str, ...]) -> DataFacts:
    """The facts of images whose classes take turns."""
    counts = {name: len(range(i, count, len(classes))) for i, name in enumerate(classes)}
    return DataFacts(source=source, images=count, classes=counts)


class Digits(DataSpec):
    """1,797 real scans of handwritten digits, 8 x 8 and grey, that come with scikit-learn; labels 0
    to 9.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998.
    """

    source: Literal["digits"] = "digits"

    @property
    def image_channels(self) -> int:
        return 1

    def _table(self) -> bytes:
        return gzip.decompress(_sklearn("data/digits.csv.gz").read_bytes())

    def fingerprint(self, cache: Path) -> str:
        return hashlib.sha256(self._table()).hexdigest()

    def facts(self, cache: Path) -> DataFacts:
        digits = Counter(line.rpartition(b",")[2].decode() for line in self._table().splitlines())
        classes = {digit: digits[digit] for digit in "0123456789"}
        return DataFacts(
            source=self.source,
            images=digits.total(),
            classes=classes,
            smallest=(8, 8),
            largest=(8, 8),
        )

    def images(self, size: int) -> RawImages:
        from PIL import Image

        from sched_lab.trainers.data.pictures import square

        table = np.loadtxt(
            io.BytesIO(self._table()), delimiter=",", dtype=np.int64
        )  # (1797, 65), ink from 0 to 16
        scans = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        items = (
            (square(Image.fromarray(scan), size), int(label))
            for scan, label in zip(scans, table[:, 64], strict=True)
        )
        return RawImages(items, tuple("0123456789"))


class Photos(DataSpec):
    """Random square crops of the two photographs that come with scikit-learn; the label says of
    which.

    Crop i is the same whatever the size and count.
    """

    source: Literal["photos"] = "photos"
    count: Count = 2000
    """How many crops."""

    _NAMES: ClassVar[tuple[str, ...]] = ("china", "flower")
    _SIDES: ClassVar[tuple[int, int]] = (
        128,
        384,
    )  # of the crop, in pixels of the 640 x 427 photographs

    @property
    def image_channels(self) -> int:
        return 3

    def fingerprint(self, cache: Path) -> str:
        content = b"".join(_sklearn(f"images/{name}.jpg").read_bytes() for name in self._NAMES)
        return hashlib.sha256(content).hexdigest()

    def facts(self, cache: Path) -> DataFacts:
        return _in_turn(self.source, self.count, self._NAMES)

    def images(self, size: int) -> RawImages:
        from sched_lab.trainers.data.pictures import decode, square

        photos = [decode(_sklearn(f"images/{name}.jpg"), 3) for name in self._NAMES]

        def items() -> Iterator[Item]:
            for index in range(self.count):
                photo, random = photos[index % len(photos)], np.random.default_rng(index)
                side = int(random.integers(*self._SIDES, endpoint=True))
                left, top = (
                    int(random.integers(extent - side, endpoint=True)) for extent in photo.size
                )
                yield (
                    square(photo.crop((left, top, left + side, top + side)), size),
                    index % len(photos),
                )

        return RawImages(items(), self._NAMES)


class Shapes(DataSpec):
    """Bright coloured shapes on a dark coloured ground, drawn sharp at any size; the label is the
    kind of shape.

    Shape i is the same whatever the size and count.
    """

    source: Literal["shapes"] = "shapes"
    count: Count = 2000
    """How many images."""

    # Each is a star: how many points it has, and its inner radius as a fraction of the outer one.
    _STARS: ClassVar[dict[str, tuple[int, float]]] = {
        "circle": (60, math.cos(math.pi / 60)),
        "triangle": (3, math.cos(math.pi / 3)),
        "square": (4, math.cos(math.pi / 4)),
        "star": (5, 0.4),
    }

    @property
    def image_channels(self) -> int:
        return 3

    def fingerprint(self, cache: Path) -> str:
        return hashlib.sha256(
            b"shapes, first edition"
        ).hexdigest()  # change it when the drawing changes

    def facts(self, cache: Path) -> DataFacts:
        return _in_turn(self.source, self.count, tuple(self._STARS))

    def images(self, size: int) -> RawImages:
        classes = tuple(self._STARS)
        items = (
            (self._draw(index, classes[index % len(classes)], size), index % len(classes))
            for index in range(self.count)
        )
        return RawImages(items, classes)

    def _draw(self, index: int, name: str, size: int) -> Pixels:
        from PIL import Image, ImageDraw

        from sched_lab.trainers.data.pictures import square

        random = np.random.default_rng(index)
        ground, colour = random.integers(0, 96, size=3), random.integers(128, 256, size=3)
        radius, turn = random.uniform(0.2, 0.45), random.uniform(0, 2 * math.pi)
        centre = random.uniform(radius, 1 - radius, size=2)

        points, inner = self._STARS[name]
        angles = turn + np.arange(2 * points) * (math.pi / points)
        radii = radius * np.where(np.arange(2 * points) % 2, inner, 1.0)
        corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)

        factor = max(4, math.ceil(128 / size))  # drawn this many times larger, then averaged
        canvas = Image.new("RGB", (size * factor, size * factor), tuple(ground.tolist()))
        outline = [tuple(corner) for corner in (corners * canvas.width).tolist()]
        ImageDraw.Draw(canvas).polygon(outline, fill=tuple(colour.tolist()))
        return square(canvas.reduce(factor), size)
