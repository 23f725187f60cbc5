"""The data sources that read the user's own images: a folder, a NumPy file, a Hugging Face data
set.

Light to import: Pillow and `datasets` are imported only when images are asked for.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from sched_lab.trainers.caching import digest, listing, remembered, sha256
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.images import Item, Pixels, RawImages
from sched_lab.trainers.plugins import nearest
from sched_lab.trainers.remote import reachable
from sched_lab.trainers.spec import DataSpec

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
_log = logging.getLogger(__name__)

Location = Annotated[
    str, Field(min_length=1), AfterValidator(lambda path: os.path.abspath(os.path.expanduser(path)))
]


def _raised(error: OSError) -> None:
    """Have a folder that cannot be listed be an error, as its images would be left out unseen."""
    raise BadData(f"{error.filename} can't be read: {error.strerror}", "path") from error


class Folder(DataSpec):
    """Image files in a folder and all folders below, cropped to their central square and resized.

    When the images lie in sub-folders, the first level of these gives the labels. Hidden files and
    links to folders are left out. Transparent pixels are laid on white, and rotation in EXIF is
    obeyed. Grey of more than 8 bits is scaled by the depth that the file declares. Colour profiles
    are not applied; of several frames the first is taken. HEIC needs the extra `heic`.
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

    def _files(self) -> list[Path]:
        """The images' paths relative to the folder, in a fixed order."""
        if not os.path.isdir(self.path):
            raise BadData(f"{self.path} is not a folder; expected a folder of images", "path")
        files = sorted(
            Path(folder, name).relative_to(self.path)
            for folder, _, names in os.walk(self.path, onerror=_raised)
            for name in names
            if name.lower().endswith(_SUFFIXES)
        )
        files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
        for file in [
            file for file in files if not os.path.isfile(Path(self.path, file))
        ]:  # reading it may never end
            odd = (
                f"{Path(self.path, file)} is no regular file, but a dangling link, a pipe or a"
                " device"
            )
            if self.on_broken == "error":
                rule = f"{odd}; mend or remove it, or set data.on_broken to skip"
                raise BadData(rule, "path")
            _log.warning("%s; left out", odd)
            files.remove(file)
        if not files:
            rule = f"{self.path} holds no images; expected files in {', '.join(_SUFFIXES)}"
            raise BadData(rule, "path")
        loose = [file for file in files if len(file.parts) == 1]
        if 0 < len(loose) < len(files):
            raise BadData(
                f"{self.path} holds images both in sub-folders, whose names are labels, and beside"
                f" them ({loose[0]}); put all images in sub-folders, or none",
                "path",
            )
        return files

    def fingerprint(self, cache: Path) -> str:
        files = {file: Path(self.path, file) for file in self._files()}

        def compute() -> str:
            lines = (f"{_one_line(file)}\n{sha256(path)}\n" for file, path in files.items())
            return hashlib.sha256("".join(lines).encode()).hexdigest()

        return remembered(cache, listing(files.values()), compute)

    def images(self, size: int) -> RawImages:
        from sched_lab.trainers.data.pictures import decode, square

        files = self._files()
        classes = sorted({file.parts[0] for file in files if len(file.parts) > 1})

        def items() -> Iterator[Item]:
            for file in files:
                try:
                    image = decode(Path(self.path, file), self.channels)
                except ValueError as error:
                    broken = f"{Path(self.path, file)} cannot be read as an image: {error}"
                    if self.on_broken == "error":
                        raise ValueError(
                            f"{broken}; mend or remove it, or set data.on_broken to skip"
                        ) from error
                    _log.warning("%s; left out", broken)
                else:
                    yield square(image, size), classes.index(file.parts[0]) if classes else None

        return RawImages(items(), tuple(classes))


class ArrayFile(DataSpec):
    """Images in one NumPy file: an array in .npy, or the arrays `images` and, where there are
    labels, `labels` in .npz.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; where both last fit, the
    channels come last. They are uint8, or floats in [0, 1]. Labels are (N,) integers of any value.
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
        return remembered(cache, listing([file]), lambda: sha256(file))

    def images(self, size: int) -> RawImages:
        _, order = self._layout()
        images, labels = self._arrays()
        classes, indices = _classes(labels) if labels is not None else ((), None)

        def items() -> Iterator[Item]:
            from PIL import Image

            from sched_lab.trainers.data.pictures import square

            for index, values in enumerate(images):
                pixels = self._bytes(index, values).transpose(order)  # (H, W) or (H, W, C)
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
            raise self._error(f"must hold uint8 or floats, got {dtype}")
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
            raise self._error("has no array named images") from None
        except FileNotFoundError:
            raise self._error("does not exist; expected a .npy or .npz file of images") from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise self._error(f"cannot be read as a NumPy file: {error}") from error
        raise self._error("is not a NumPy file; its name must end in .npy or .npz")

    def _arrays(self) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """All images, mapped from disk where the file allows it, and the labels where there are
        any.
        """
        if self.path.endswith(".npy"):
            return np.load(self.path, mmap_mode="r", allow_pickle=False), None
        with np.load(self.path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays.get("labels")
        if labels is not None and (
            labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"
        ):
            raise self._error(
                f"must hold {len(images)} integer labels, got {labels.dtype} of shape"
                f" {labels.shape}"
            )
        return images, labels

    def _bytes(self, index: int, values: NDArray[Any]) -> Pixels:
        if values.dtype == np.uint8:
            return values
        if not ((values >= 0) & (values <= 1)).all():
            raise self._error(
                f"must hold floats in [0, 1], image {index} spans [{values.min():g},"
                f" {values.max():g}]; scale the images, or store uint8"
            )
        scaled: Pixels = np.rint(values * 255).astype(np.uint8)
        return scaled


class HuggingFace(DataSpec):
    """A data set of the Hugging Face Hub, or one on disk that `datasets` can read; needs the extra
    `huggingface`.
    """

    elsewhere: ClassVar[frozenset[str]] = frozenset(
        {"name", "config", "revision", "split", "image"}
    )

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

    @property
    def image_channels(self) -> int:
        return self.channels

    def fingerprint(self, cache: Path) -> str:
        rows = self._rows()

        def compute() -> str:
            total = hashlib.sha256()
            for row in rows:
                label = row[self.label] if self.label else None
                total.update(
                    f"{hashlib.sha256(self._file(row).getbuffer()).hexdigest()} {label}\n".encode()
                )
            return total.hexdigest()

        # `datasets` derives its own fingerprint from the rows' origin and transforms.
        return remembered(cache, digest(rows._fingerprint, self.image, self.label), compute)

    def images(self, size: int) -> RawImages:
        rows = self._rows()
        classes, labels = self._labels(rows)

        def items() -> Iterator[Item]:
            from sched_lab.trainers.data.pictures import decode, square

            for index, row in enumerate(rows):
                try:
                    image = decode(self._file(row), self.channels)
                except ValueError as error:
                    raise ValueError(
                        f"image {index} of {self.name}, {self.split}, cannot be read: {error}"
                    ) from error
                yield square(image, size), None if labels is None else int(labels[index])

        return RawImages(items(), classes)

    def _labels(self, rows: Dataset) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
        if self.label is None:
            return (), None
        labels = np.asarray(rows[self.label][:])
        if classes := getattr(rows.features[self.label], "names", None):
            return tuple(classes), labels
        if labels.dtype.kind not in "iuU":
            raise BadData(
                f"column {self.label!r} must hold integers or strings, got {labels.dtype}", "label"
            )
        return _classes(labels)

    def _file(self, row: dict[str, Any]) -> io.BytesIO:
        stored = row[self.image]
        return io.BytesIO(
            stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
        )

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
