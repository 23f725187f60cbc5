"""The data sources that read the user's own images: a folder, a NumPy file, a Hugging Face data
set.

Light to import: Pillow and `datasets` are imported only when images are asked for.
"""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache as once
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from sched_lab.trainers.caching import digest, listing, remembered, sha256
from sched_lab.trainers.data.survey import SHOWN, Candidate, Survey, listed, survey
from sched_lab.trainers.errors import counted
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.images import DataFacts, Item, RawImages
from sched_lab.trainers.plugins import nearest
from sched_lab.trainers.remote import reachable
from sched_lab.trainers.spec import SCIENCE_VERSION, DataSpec

if TYPE_CHECKING:
    from datasets import Dataset

_SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What NumPy and zipfile raise for a file that is damaged or of another kind."""
_AS_PIXELS = {
    "O": "np.stack(images), of images that all have one shape",
    "b": "images.astype(np.uint8) * 255",
    "c": "images.real, scaled to [0, 1]",
    "V": "its fields as channels of one array",
}
"""What to store in place of another type, by its NumPy kind."""
_log = logging.getLogger(__name__)

Location = Annotated[
    str, Field(min_length=1), AfterValidator(lambda path: os.path.abspath(os.path.expanduser(path)))
]


def _raised(error: OSError) -> None:
    """Have a folder that cannot be listed be an error, as its images would be left out unseen."""
    raise BadData(f"{error.filename} can't be read: {error.strerror}", "path") from error


@dataclass
class _Found:
    """The files of a folder; images by their paths relative to it."""

    images: list[Path] = field(default_factory=list)
    hidden: int = 0
    unknown: Counter[str] = field(default_factory=Counter)

    def unknown_kinds(self) -> dict[str, int]:
        """How many files of the commonest other formats there are, and of all further ones."""
        common = dict(self.unknown.most_common(SHOWN))
        rest = self.unknown.total() - sum(common.values())
        return common | ({"others": rest} if rest else {})


class Folder(DataSpec):
    """Image files in a folder and all folders below, cropped to their central square and resized.

    When the images lie in sub-folders, the first level of these gives the labels. Hidden files and
    links to folders are left out. Transparent pixels are laid on white, and rotation in EXIF is
    obeyed. Grey of more than 8 bits is scaled by the depth that the file declares. Colour profiles
    are not applied; of several frames the first is taken, of a TIFF's pages the first that is no
    thumbnail. HEIC needs the extra `heic`.
    """

    elsewhere: ClassVar[frozenset[str]] = frozenset({"path"})
    policies: ClassVar[frozenset[str]] = frozenset({"on_broken"})

    source: Literal["folder"] = "folder"
    path: Location
    """The folder."""
    channels: Literal[1, 3] = 3
    """1 turns all images grey, 3 into RGB."""
    on_broken: Literal["error", "skip"] = "error"
    """What to do about a file that cannot be read as an image: stop and name it, or leave it out
    with a warning.
    """

    @property
    def image_channels(self) -> int:
        return self.channels

    def _found(self) -> _Found:
        """What the folder holds, in a fixed order."""
        if not os.path.isdir(self.path):
            taken = "; it is taken as written" if re.search(r"\$|://", self.path) else ""
            rule = f"{self.path} is not a folder; expected a folder of images on this machine"
            raise BadData(rule + taken, "path")
        found = _Found()
        files = sorted(
            Path(folder, name).relative_to(self.path)
            for folder, _, names in os.walk(self.path, onerror=_raised)
            for name in names
        )
        for file in files:
            if any(part.startswith(".") for part in file.parts):
                found.hidden += 1
            elif file.name.lower().endswith(_SUFFIXES):
                found.images.append(file)
            else:
                found.unknown[_one_line(Path(file.suffix.lower() or file.name))] += 1
        if not found.images:
            rule = f"{self.path} holds no images; expected files in {', '.join(_SUFFIXES)}"
            kinds = ", ".join(f"{count} {end}" for end, count in found.unknown_kinds().items())
            raise BadData(f"{rule}; it holds {kinds}" if kinds else rule, "path")
        return found

    def _unlabelled(self, found: _Found) -> str:
        """What is wrong with images beside sub-folders of images; "" where there are none."""
        loose = [_one_line(file) for file in found.images if len(file.parts) == 1]
        if len(loose) in (0, len(found.images)):
            return ""
        rule = (
            f"{self.path} holds images in sub-folders, whose names are labels, and beside them"
            f" {len(loose)} without a label; put all images in sub-folders, or none"
        )
        return f"{rule}:{listed(loose, len(loose))}"

    def _survey(self, cache: Path) -> Survey:
        found = self._found()
        candidates = [self._candidate(file) for file in found.images]
        key = digest([(each.name, each.state) for each in candidates])
        made = survey(cache, self.source, self.path, key, lambda: candidates)
        others = {"hidden": found.hidden, "unknown": found.unknown_kinds()}
        facts = made.facts.model_copy(update=others)
        _judge(facts, self.path, self.on_broken, "path", self._unlabelled(found))
        return made.model_copy(update={"facts": facts})

    def _candidate(self, file: Path) -> Candidate:
        path, name = Path(self.path, file), _one_line(file)
        label = _one_line(Path(file.parts[0])) if len(file.parts) > 1 else None
        return Candidate(name, label, name, partial(_content, path), _state(path))

    def fingerprint(self, cache: Path) -> str:
        return self._survey(cache).fingerprint

    def facts(self, cache: Path) -> DataFacts:
        return self._survey(cache).facts

    def images(self, size: int) -> RawImages:
        from sched_lab.trainers.data.pictures import decode, square

        found = self._found()
        if unlabelled := self._unlabelled(found):  # put there since its fingerprint was taken
            raise BadData(unlabelled, "path")
        files = found.images
        classes = sorted({file.parts[0] for file in files if len(file.parts) > 1})

        def items() -> Iterator[Item]:
            for file in files:
                try:
                    image = decode(io.BytesIO(_content(Path(self.path, file))), self.channels)
                except (OSError, ValueError) as error:
                    if self.on_broken == "error":  # broken since its fingerprint was taken
                        rule = f"{Path(self.path, file)} cannot be read as an image: {error}"
                        raise BadData(rule, "path") from error
                else:
                    yield square(image, size), classes.index(file.parts[0]) if classes else None

        return RawImages(items(), tuple(classes))


class ArrayFile(DataSpec):
    """Images in one NumPy file: an array in .npy, or the arrays `images` and, where there are
    labels, `labels` in .npz.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; where both last fit, the
    channels come last. They are uint8, or floats in [0, 1]. Labels are (N,) integers of any value.
    Nothing that NumPy has pickled is read: arrays of Python objects are refused.
    """

    elsewhere: ClassVar[frozenset[str]] = frozenset({"path"})

    source: Literal["array"] = "array"
    path: Location
    """The file; its name ends in .npy or .npz."""

    @property
    def image_channels(self) -> int:
        return self._layout()[0]

    def fingerprint(self, cache: Path) -> str:
        self._layout()
        file = Path(self.path)

        def compute() -> str:
            self._check()
            return sha256(file)

        return remembered(cache, digest(listing([file]), SCIENCE_VERSION), compute)

    def facts(self, cache: Path) -> DataFacts:
        self.fingerprint(cache)
        noted = list(DataFacts.model_fields)
        key = digest(listing([Path(self.path)]), SCIENCE_VERSION, noted)
        told = remembered(cache, key, lambda: self._facts().model_dump_json(), "facts")
        return DataFacts.model_validate_json(told)

    def _facts(self) -> DataFacts:
        (count, *shape), _ = self._header()
        _, (rows, columns, *_) = self._layout()
        size = shape[columns], shape[rows]
        labels = self._labels(count)
        classes, indices = _classes(labels) if labels is not None else ((), np.empty(0, int))
        counts = np.bincount(indices, minlength=len(classes)).tolist()
        images = self._images()
        return DataFacts(
            source=self.source,
            images=count,
            classes=dict(zip(classes, counts, strict=True)),
            smallest=size,
            largest=size,
            span=(int(_eight_bits(images.min())), int(_eight_bits(images.max()))),
            identical=count > 1 and all(np.array_equal(image, images[0]) for image in images),
        )

    def images(self, size: int) -> RawImages:
        _, order = self._layout()
        images = self._images()
        labels = self._labels(len(images))
        classes, indices = _classes(labels) if labels is not None else ((), None)

        def items() -> Iterator[Item]:
            from PIL import Image

            from sched_lab.trainers.data.pictures import square

            for index, stored in enumerate(images):
                pixels = _eight_bits(stored).transpose(order)  # (H, W) or (H, W, C)
                if pixels.ndim == 3 and pixels.shape[-1] == 1:
                    pixels = pixels[..., 0]
                yield (
                    square(Image.fromarray(pixels), size),
                    None if indices is None else int(indices[index]),
                )

        return RawImages(items(), classes)

    def _error(self, problem: str) -> BadData:
        return BadData(f"{self.path} {problem}", "path")

    def _layout(self) -> tuple[int, tuple[int, ...]]:
        """How many channels, and the order that puts an image's axes as (H, W) or (H, W, C); reads
        only a header.
        """
        shape, dtype = self._header()
        if dtype != np.uint8 and dtype.kind != "f":
            advice = _AS_PIXELS.get(dtype.kind, "images.astype(np.uint8), of grey levels 0 to 255")
            raise self._error(f"must hold images of uint8 or floats, got {dtype}: store {advice}")
        if not all(shape):
            raise self._error(f"holds no images: its shape is {shape}")
        if len(shape) == 3:
            return 1, (0, 1)
        if len(shape) == 4 and shape[3] in (1, 3):
            return shape[3], (0, 1, 2)
        if len(shape) == 4 and shape[1] in (1, 3):
            return shape[1], (1, 2, 0)
        raise self._error(
            "must hold images of shape (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3, got"
            f" {shape}"
        )

    def _header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            if self.path.endswith(".npy"):
                with open(self.path, "rb") as stream:
                    return _npy_header(stream)
            if self.path.endswith(".npz"):
                with zipfile.ZipFile(self.path) as archive, archive.open("images.npy") as stream:
                    return _npy_header(stream)
        except KeyError:
            with zipfile.ZipFile(self.path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
            advice = "np.savez(path, images=images, labels=labels)"
            held = f"it holds {', '.join(names) or 'none'}"
            raise self._error(f"has no array named images, {held}: save it by {advice}") from None
        except FileNotFoundError:
            raise self._error("does not exist; expected a .npy or .npz file of images") from None
        except _UNREADABLE as error:
            raise self._error(f"cannot be read as a NumPy file: {error}") from error
        raise self._error("is not a NumPy file; its name must end in .npy or .npz")

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except BadData:
            raise
        except _UNREADABLE as error:
            raise self._error(f"holds {what} that cannot be read: {error}; save it anew") from error

    def _images(self) -> NDArray[Any]:
        """All images, mapped from disk where the file allows it."""
        images: NDArray[Any]
        with self._reading("images"):
            if self.path.endswith(".npy"):
                images = np.load(self.path, mmap_mode="r", allow_pickle=False)
            else:
                with np.load(self.path, allow_pickle=False) as arrays:
                    images = arrays["images"]
        return images

    def _labels(self, count: int) -> NDArray[np.int64] | None:
        """The labels of so many images, where there are any."""
        if self.path.endswith(".npy"):
            return None
        must = f"must hold {counted(count, 'integer label')}"
        with self._reading("labels"):
            with zipfile.ZipFile(self.path) as archive:
                if "labels.npy" not in archive.namelist():
                    return None
                with archive.open("labels.npy") as stream:
                    shape, dtype = _npy_header(stream)
            if shape != (count,):
                advice = "store labels of shape (N,), one for each image"
                raise self._error(f"{must}, got {dtype} of shape {shape}: {advice}")
            if dtype.kind not in "iu":
                codes = "np.unique(labels.astype(str), return_inverse=True)[1]"
                advice = f"store labels.astype(int), or of names {codes}"
                raise self._error(f"{must}, got {dtype}: {advice}")
            with np.load(self.path, allow_pickle=False) as arrays:
                labels: NDArray[np.int64] = arrays["labels"]
        return labels

    def _check(self) -> None:
        """Raise BadData that names the images whose values are no pixels, or wrong labels."""
        images = self._images()
        self._labels(len(images))
        if images.dtype == np.uint8:
            return
        wrong = [
            f"image {index} spans [{values.min():g}, {values.max():g}]"
            for index, values in enumerate(images)
            if not ((values >= 0) & (values <= 1)).all()
        ]
        if wrong:
            off = f"{counted(len(wrong), 'image')} {'does' if len(wrong) == 1 else 'do'} not"
            rule = f"must hold floats in [0, 1], {off}"
            advice = "scale the images, or store uint8"
            raise self._error(f"{rule}; {advice}:{listed(wrong, len(wrong))}")


def _eight_bits(stored: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 as it is, floats in [0, 1] scaled."""
    return (stored if stored.dtype == np.uint8 else np.rint(stored * 255)).astype(np.uint8)


class HuggingFace(DataSpec):
    """A data set of the Hugging Face Hub, or one on disk that `datasets` can read; needs the extra
    `huggingface`.
    """

    elsewhere: ClassVar[frozenset[str]] = frozenset(
        {"name", "config", "revision", "split", "image"}
    )
    policies: ClassVar[frozenset[str]] = frozenset({"on_broken"})

    source: Literal["huggingface"] = "huggingface"
    name: Annotated[
        str, Field(min_length=1), AfterValidator(lambda name: _absolute_where_local(name))
    ]
    """The data set's name on the Hub, or a folder: one saved by `save_to_disk` or one that
    `load_dataset` reads.
    """
    config: str | None = None
    """The configuration, for data sets that have several."""
    split: str = "train"
    """The split, or a slice of one such as train[:5000]."""
    revision: str | None = None
    """A commit, tag or branch on the Hub; null for the newest."""
    image: str = "image"
    """The column of images."""
    label: str | None = None
    """The column of labels; null for none."""
    channels: Literal[1, 3] = 3
    """1 turns all images grey, 3 into RGB."""
    on_broken: Literal["error", "skip"] = "error"
    """What to do about a row without an image or a label, or whose image cannot be read: stop and
    name it, or leave it out with a warning.
    """

    @property
    def image_channels(self) -> int:
        return self.channels

    def _survey(self, cache: Path) -> Survey:
        rows = self._rows()
        # `datasets` derives its own fingerprint from the rows' origin and transforms.
        key = digest(rows._fingerprint, self.image, self.label)
        made = survey(cache, self.source, key, key, lambda: self._candidates(rows))
        where = f"{self.name}, {self.split}, columns {self.image!r} and {self.label!r}"
        if self.label is None:
            where = f"{self.name}, {self.split}, column {self.image!r}"
        _judge(made.facts, where, self.on_broken, "image")
        return made

    def _candidates(self, rows: Dataset) -> list[Candidate]:
        classes, indices = self._labels(rows)
        lock = threading.Lock()  # whether its readers may work at once, `datasets` does not say

        def load(index: int) -> bytes:
            if indices is not None and indices[index] is None:
                raise ValueError(f"no label in column {self.label!r}")
            with lock:
                row = rows[index]
            return self._content(row)

        def candidate(index: int) -> Candidate:
            label = indices[index] if indices is not None else None
            name = None if label is None else classes[label]
            return Candidate(f"row {index}", name, f"{name}", partial(load, index), "")

        return [candidate(index) for index in range(len(rows))]

    def fingerprint(self, cache: Path) -> str:
        return self._survey(cache).fingerprint

    def facts(self, cache: Path) -> DataFacts:
        return self._survey(cache).facts

    def images(self, size: int) -> RawImages:
        rows = self._rows()
        classes, indices = self._labels(rows)

        def items() -> Iterator[Item]:
            from sched_lab.trainers.data.pictures import decode, square

            for index, row in enumerate(rows):
                label = None if indices is None else indices[index]
                if indices is not None and label is None:
                    continue
                try:
                    image = decode(io.BytesIO(self._content(row)), self.channels)
                except (OSError, ValueError) as error:
                    if self.on_broken == "error":  # broken since its fingerprint was taken
                        rule = f"image {index} of {self.name}, {self.split}, cannot be read"
                        raise BadData(f"{rule}: {error}", "image") from error
                else:
                    yield square(image, size), label

        return RawImages(items(), classes)

    def _labels(self, rows: Dataset) -> tuple[tuple[str, ...], list[int | None] | None]:
        """The classes, and each row's as an index into these; None for a row without one."""
        if self.label is None:
            return (), None
        labels = rows[self.label][:]
        if names := getattr(rows.features[self.label], "names", None):
            known = range(len(names))  # `datasets` itself writes -1 where there is no label
            return tuple(names), [label if label in known else None for label in labels]
        odd = {type(label) for label in labels} - {int, str, type(None)}
        if odd:
            held = ", ".join(sorted(kind.__name__ for kind in odd))
            rule = f"column {self.label!r} must hold integers or strings, got {held}"
            raise BadData(rule, "label")
        values = sorted({label for label in labels if label is not None})
        index = {value: place for place, value in enumerate(values)}
        return tuple(str(value) for value in values), [index.get(label) for label in labels]

    def _content(self, row: dict[str, Any]) -> bytes:
        """An image's file. Raises ValueError where there is none."""
        stored = row[self.image] or {}
        if stored.get("bytes") is not None:
            content: bytes = stored["bytes"]
            return content
        if stored.get("path") is None:
            raise ValueError(f"no image in column {self.image!r}")
        return _content(Path(stored["path"]))

    def _rows(self) -> Dataset:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                "data source 'huggingface' needs the package datasets: install"
                " sched-lab[huggingface]"
            ) from error

        rows = self._load()
        images = [
            name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)
        ]
        if self.image not in images:
            raise BadData(
                f"{self.name} has no column of images {self.image!r}{nearest(self.image, images)}",
                "image",
            )
        if self.label is not None and self.label not in rows.features:
            raise BadData(
                f"{self.name} has no column {self.label!r}{nearest(self.label, rows.features)}",
                "label",
            )
        return rows.cast_column(self.image, datasets.Image(decode=False))

    def _load(self) -> Dataset:
        import datasets

        local = os.path.isabs(self.name)
        if local and not os.path.isdir(self.name):
            raise BadData(f"{self.name} is not a folder", "name")
        try:
            if local and any(
                Path(self.name, name).is_file() for name in ("state.json", "dataset_dict.json")
            ):
                saved = datasets.load_from_disk(self.name)
                return saved[self.split] if isinstance(saved, datasets.DatasetDict) else saved
            with nullcontext() if local else _hub(datasets):
                return datasets.load_dataset(
                    self.name, self.config, split=self.split, revision=self.revision
                )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"data set {self.name}, split {self.split}, cannot be loaded: {error}"
            ) from error


@contextmanager
def _hub(datasets: ModuleType) -> Iterator[None]:
    """Without the Hub, make `datasets` read its cache at once; it would retry for minutes."""
    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not reachable(datasets.config.HF_ENDPOINT)
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _absolute_where_local(name: str) -> str:
    path = Path(os.path.expanduser(name))
    return os.path.abspath(path) if path.is_dir() or name.startswith(("/", ".", "~")) else name


def _judge(facts: DataFacts, where: str, on_broken: str, field: str, unlabelled: str = "") -> None:
    """Raise BadData that names what is broken in a source, or warn of it where that is skipped.

    `unlabelled` is what else is wrong, which nothing lets pass; both are told at once.
    """
    wrong = [unlabelled] if unlabelled else []
    count = facts.broken + facts.images
    rule = f"{facts.broken} of {count} images of {where} cannot be used"
    told = listed(facts.examples, facts.broken)
    if facts.broken and on_broken == "error":
        advice = "mend or remove them, or set data.on_broken to skip"
        wrong.append(f"{rule}; {advice}:{told}")
    elif facts.broken and not facts.images:
        wrong.append(f"{rule}, so there are none:{told}")
    if wrong:
        raise BadData("\n".join(wrong), field)
    if facts.broken:
        _warn_once(f"{rule}, and are left out:{told}")


@once
def _warn_once(text: str) -> None:
    _log.warning("%s", text)


def _content(path: Path) -> bytes:
    if not path.is_file():  # reading it may never end
        raise ValueError("no regular file, but a dangling link, a pipe or a device")
    return path.read_bytes()


def _state(path: Path) -> str:
    """Changes whenever the file may have: its size and time of change."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _one_line(file: Path) -> str:
    """A path as text that no other path has, even with line breaks or bytes that are no text."""
    name = file.as_posix()
    return name if name.isprintable() and "\\" not in name else ascii(name)


def _classes(labels: NDArray[Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The distinct labels in order, and each label as an index into these."""
    values, indices = np.unique(labels, return_inverse=True)
    return tuple(str(value) for value in values), indices


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(stream)
    return shape, dtype
