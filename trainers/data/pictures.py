"""One picture of any sort becomes one square array of pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageFile,
    ImageOps,
    ImagePalette,
    TiffImagePlugin,
    TiffTags,
    UnidentifiedImageError,
)

from sched_lab.trainers.images import Pixels

_ADVICE = "save it as PNG, or as TIFF of 8 or 16 unsigned bits"
_LARGEST_GREY = 2**16 - 1
_NAMES = {number: tag.name for number, tag in TiffTags.TAGS_V2.items()}
_NEW_SUBFILE_TYPE = 254
_REDUCED = 1
# What a TIFF declares of its samples.
_DECLARED = (
    TiffImagePlugin.BITSPERSAMPLE,
    TiffImagePlugin.SAMPLEFORMAT,
    TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
    TiffImagePlugin.PLANAR_CONFIGURATION,
    TiffImagePlugin.EXTRASAMPLES,
    TiffImagePlugin.COMPRESSION,
)


def decode(file: Path | BinaryIO, channels: int) -> Image.Image:
    """The picture in `file`, upright, 8 bits deep, opaque on white, in grey (1 channel) or RGB (3).

    Of several frames the first is taken, of a TIFF's pages the first that is no thumbnail. Grey of
    more than 8 bits is scaled by the depth that the file declares, whatever values it holds. Colour
    profiles are not applied. Raises ValueError with the reason: the file is damaged, of no known
    format, or larger than Pillow's limit against decompression bombs. Samples without an agreed
    black and white are refused too.
    """
    with strictly():
        return decoded(file, channels)


@contextmanager
def strictly() -> Iterator[None]:
    """Have what may be a decompression bomb be an error, and oddities in metadata nothing at all.

    It holds for all threads, so it is entered by one of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decoded(file: Path | BinaryIO, channels: int) -> Image.Image:
    """As `decode`, for several threads at once; called within `strictly`."""
    try:
        # From a path Pillow maps uncompressed pixels into memory, and scrambles turned ones.
        with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
            return _flat(stream, channels)
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # on damaged files Pillow raises errors of any type
        raise ValueError(f"{type(error).__name__}: {error}") from error


def square(image: Image.Image, size: int) -> Pixels:
    """The largest centred square of an L or RGB image, resized to (channels, size, size).

    Shrinking uses Lanczos and enlarging bicubic interpolation; Pillow widens the filter's support
    by the factor of shrinking, so nothing aliases.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    method = Image.Resampling.LANCZOS if size < side else Image.Resampling.BICUBIC
    resized = image.resize((size, size), method, box=(left, top, left + side, top + side))
    return np.asarray(resized).reshape(size, size, -1).transpose(2, 0, 1)


def _flat(stream: BinaryIO, channels: int) -> Image.Image:
    with _opened(stream) as opened:
        if isinstance(opened, TiffImagePlugin.TiffImageFile):
            _turn_to_picture(opened)
        black, white = _range(opened, stream)
        if opened.format == "PNG" and "transparency" in opened.info:
            _apply_exact_key(opened, stream)
        if isinstance(opened, TiffImagePlugin.TiffImageFile):
            _apply_old_palette(opened)
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        image = _eight_bits(image, black, white)
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow turns premultiplied grey into
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    if image.mode != "L":
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _opened(stream: BinaryIO) -> ImageFile.ImageFile:
    """The image, not yet decoded. Raises ValueError, with what the file declares where it does."""
    try:
        return Image.open(stream)
    except UnidentifiedImageError as error:
        stream.seek(0)
        head = stream.read(16)
        if head[4:8] == b"ftyp":
            return _opened_heif(stream)
        if head[:4] in TiffImagePlugin.PREFIXES:
            rule = f"a TIFF that can't be read: {_declaration(stream)}; {_ADVICE}"
            raise ValueError(rule) from error
        raise ValueError("no known image format") from error


def _opened_heif(stream: BinaryIO) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        rule = "HEIC images need the package pillow-heif: install sched-lab[heic]"
        raise ValueError(rule) from error
    stream.seek(0)
    opened: ImageFile.ImageFile = HeifImageFile(stream)
    return opened


def _turn_to_picture(image: TiffImagePlugin.TiffImageFile) -> None:
    """Go to the first page that is no thumbnail, where there is one."""
    with suppress(EOFError):
        while image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED:
            image.seek(image.tell() + 1)
        return
    image.seek(0)


def _declaration(stream: BinaryIO) -> str:
    stream.seek(0)
    head = stream.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head + (stream.read(8) if head[2] == 43 else b""))
    stream.seek(tags.next)
    tags.load(stream)
    return _said(tags)


def _said(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    """What a TIFF declares of its samples."""
    return ", ".join(f"{_NAMES[tag]} {tags[tag]}" for tag in _DECLARED if tag in tags)


def _range(image: ImageFile.ImageFile, stream: BinaryIO) -> tuple[int, int]:
    """The values of black and white in deep grey, as the file declares them.

    Raises ValueError where it declares none, and for files that Pillow misreads.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _range_of_tiff(image)
    if image.format == "JPEG2000":
        _check_jpeg_2000(stream)
    # Pillow's readers of these scale each depth that may be declared to 16 bits.
    scaled = image.format in ("PNG", "PPM", "HEIF", "JPEG2000")
    if image.mode == "F" or (image.mode.startswith("I") and not scaled):
        rule = f"its samples, of mode {image.mode}, have no agreed black and white; {_ADVICE}"
        raise ValueError(rule)
    return 0, _LARGEST_GREY


def _range_of_tiff(image: TiffImagePlugin.TiffImageFile) -> tuple[int, int]:
    tags = image.tag_v2
    largest = 2 ** max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) - 1
    unsigned = set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) == {1}
    if not unsigned or largest > _LARGEST_GREY:
        raise ValueError(f"its samples have no agreed black and white: {_said(tags)}; {_ADVICE}")
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and _misread(image, largest):
        raise ValueError(f"its channels lie in separate planes: {_said(tags)}; {_ADVICE}")
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return (largest, 0) if inverted else (0, largest)


def _misread(image: TiffImagePlugin.TiffImageFile, largest: int) -> bool:
    """Whether Pillow has no reader for the separate planes of this TIFF, or a wrong one."""
    tags = image.tag_v2
    if tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) == 1:
        return False
    if tags.get(TiffImagePlugin.COMPRESSION, 1) == 1:  # read byte by byte, each as a sample
        premultiplied = 1 in tags.get(TiffImagePlugin.EXTRASAMPLES, ())
        return premultiplied or largest > 255 or image.mode not in ("RGB", "RGBA", "CMYK")
    return image.mode in ("La", "LA", "PA", "LAB", "YCbCr")


def _check_jpeg_2000(stream: BinaryIO) -> None:
    """Raise ValueError for signed samples, and for deep ones beside others: of these Pillow turns
    the highest into 0.
    """
    stream.seek(0)
    # ISO/IEC 15444-1, A.5.1: how many components, and three bytes of each, of which depth is one.
    size = stream.read().partition(b"\xff\x4f\xff\x51")[2]
    count = int.from_bytes(size[36:38])
    depths = size[38 : 38 + 3 * count : 3]
    if max(depths, default=0) > 7 and (count > 1 or max(depths) > 127):
        bits = ", ".join(f"{depth % 128 + 1}{' signed' * (depth > 127)}" for depth in depths)
        raise ValueError(f"a JPEG 2000 that can't be read rightly: its bits are {bits}; {_ADVICE}")


def _eight_bits(image: Image.Image, black: int, white: int) -> Image.Image:
    """Deep grey scaled to 8 bits, where Pillow's own conversion would cut off all above 255."""
    values = np.asarray(image).astype(np.int64)
    scaled = Image.fromarray(np.rint((values - black) * 255 / (white - black)).astype(np.uint8))
    key = image.info.get("transparency")
    if key is not None:
        scaled.putalpha(_opaque(values != key))
    return scaled


def _apply_exact_key(image: ImageFile.ImageFile, stream: BinaryIO) -> None:
    """Have the colour that a PNG declares transparent fit the 8 bits that Pillow makes of each
    sample.
    """
    key, raw = image.info["transparency"], image.tile[0].args
    if raw in ("L", "L;2", "L;4"):
        largest = 2 ** int(raw[2:] or 8) - 1
        image.info["transparency"] = (key & largest) * 255 // largest
    elif raw == "RGB;16B":
        image.load()
        stream.seek(0)
        with Image.open(stream) as low:
            # Taken as little-endian, the samples' lower bytes are kept instead of the upper ones.
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            whole = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
        image.putalpha(_opaque((whole != key).any(axis=2)))
        del image.info["transparency"]


def _apply_old_palette(image: TiffImagePlugin.TiffImageFile) -> None:
    """Have a palette of 8 bits be one, where Pillow takes the upper bytes of 16.

    Old writers store such ones; libtiff tells them as here: tif_getimage.c, checkcmap.
    """
    colours = image.tag_v2.get(TiffImagePlugin.COLORMAP, ())
    if image.palette and max(colours, default=256) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def _opaque(where: NDArray[np.bool_]) -> Image.Image:
    """An alpha channel."""
    return Image.fromarray(where.astype(np.uint8) * 255)
