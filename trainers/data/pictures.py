"""One picture of any sort becomes one square array of pixels."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from sched_lab.trainers.images import Pixels

_BROKEN = (
    OSError,
    SyntaxError,  # Pillow's word for a damaged PNG
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode(file: Path | BinaryIO, channels: int) -> Image.Image:
    """The picture in `file`, upright, 8 bits deep, opaque on white, in grey (1 channel) or RGB (3).

    Of several frames the first is taken. Raises ValueError with the reason: the file is damaged, of
    no known format, or larger than Pillow's limit against decompression bombs. Pixels without an
    agreed brightest value are refused too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities in metadata do not touch the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return _flat(ImageOps.exif_transpose(image), channels)
    except _BROKEN as error:
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


def _flat(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    if image.mode != "L":
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8, where Pillow's own conversion would cut off all above 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"pixels of mode {image.mode} have no agreed brightest value; save them with 8 or 16"
            " bits"
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))
