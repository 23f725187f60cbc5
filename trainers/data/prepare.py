"""Image sources become one memory-mapped array per (source, size), prepared once and shared by
every trial.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sched_lab.trainers.caching import cached, digest
from sched_lab.trainers.cancellation import check
from sched_lab.trainers.errors import fields_of, rule_of
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.images import DataFacts, ImageSet
from sched_lab.trainers.spec import SCIENCE_VERSION, DataSpec


def content_key(data: DataSpec, cache: Path) -> str:
    """32 hex digits that name a source's images before resizing: their fingerprint and the options
    that shape them.

    Raises BadData when the source's content is missing or broken.
    """
    options = data.model_dump(mode="json", exclude={"flip", *data.elsewhere, *data.policies})
    with blaming_data():
        return digest(data.fingerprint(cache), options)


@contextmanager
def blaming_data() -> Iterator[None]:
    """Turn every ValueError that a source raises into BadData about the same fields."""
    try:
        yield
    except BadData:
        raise
    except ValueError as error:
        raise BadData(rule_of(error), *fields_of(error)) from error


def prepare(data: DataSpec, size: int, cache: Path) -> ImageSet:
    """The source's images, square at `size` pixels: decoded once, then mapped from disk.

    Several processes may ask at once; a damaged cache entry is made again. Raises BadData when the
    source's content is missing or broken, or gives no images.
    """
    key = digest(content_key(data, cache), size, SCIENCE_VERSION)
    with blaming_data():
        folder = cached(cache / "data" / key, lambda folder: _write(data, size, folder))
    class_names = tuple(json.loads((folder / "class_names.json").read_text(encoding="utf-8")))
    return ImageSet(
        pixels=np.load(
            folder / "pixels.npy", mmap_mode="c"
        ),  # torch warns of an array it may not write to
        labels=np.load(folder / "labels.npy") if class_names else None,
        class_names=class_names,
    )


def facts(data: DataSpec, images: ImageSet, cache: Path) -> DataFacts:
    """Which images a source gives: in its own words, or else what is counted in those prepared.

    Raises BadData when the source's content is missing or broken.
    """
    with blaming_data():
        known = data.facts(cache)
    if known is not None:
        return known
    classes = images.class_names
    counts = np.bincount(images.labels, minlength=len(classes)) if images.labels is not None else ()
    return DataFacts(
        source=data.source,
        images=len(images),
        classes={name: int(count) for name, count in zip(classes, counts, strict=True)},
    )


def _write(data: DataSpec, size: int, folder: Path) -> None:
    raw, shape = data.images(size), (data.image_channels, size, size)
    labels: list[int] = []
    count = 0
    with (folder / "pixels.npy").open("wb") as file:
        _write_header(file, 0, shape)
        for pixels, label in raw.items:
            check()
            if pixels.shape != shape or pixels.dtype != np.uint8:
                raise ValueError(
                    f"data source {data.source!r} must give uint8 images of shape {shape}, "
                    f"image {count} is {pixels.dtype} of shape {pixels.shape}"
                )
            if raw.class_names:
                if label is None or not 0 <= label < len(raw.class_names):
                    raise ValueError(
                        f"data source {data.source!r} must label every image from 0 to"
                        f" {len(raw.class_names) - 1}, the label of image {count} is {label}"
                    )
                labels.append(label)
            file.write(pixels.tobytes())
            count += 1
        file.seek(0)
        _write_header(file, count, shape)
    if not count:
        raise ValueError(f"data source {data.source!r} gives no images")
    if raw.class_names:
        np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    (folder / "class_names.json").write_text(json.dumps(raw.class_names), encoding="utf-8")


def _write_header(file: BinaryIO, count: int, shape: tuple[int, int, int]) -> None:
    """The .npy header; NumPy pads it so that it keeps its length when the count grows."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
