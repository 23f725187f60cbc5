"""Every picture that can be written is read as what it shows, or refused with what it declares."""

from __future__ import annotations

import io
import itertools
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sched_lab.trainers.data.pictures import decode

Array = NDArray[np.generic]
SHAPE = HEIGHT, WIDTH = 40, 24  # oblong, and no multiple of a tile
ORIENTATION = 0x0112
COLOUR_MAP = 0x0140


def scene(samples: int, levels: int = 4) -> NDArray[np.float64]:
    """Random samples (HEIGHT, WIDTH, samples) in [0, 1], of few levels, so that all depths hold
    them."""
    return np.random.default_rng(0).integers(levels, size=(*SHAPE, samples)) / (levels - 1)


def on_white(colours: NDArray[Any], alpha: NDArray[Any] | float = 1.0) -> NDArray[Any]:
    """What is seen, 0 to 255, of colours (H, W, 1 or 3) and alpha (H, W, 1) in [0, 1]."""
    return np.broadcast_to((colours * alpha + (1 - alpha)) * 255, (*colours.shape[:2], 3))


def upright(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Stored rows and columns as they are seen, by the table in Exif 2.3, 4.6.4."""
    if orientation >= 5:
        stored = stored.swapaxes(0, 1)
    flipped = stored[::-1] if orientation in (3, 4, 7, 8) else stored
    return flipped[:, ::-1] if orientation in (2, 3, 6, 7) else flipped


def read(file: Path | io.BytesIO) -> NDArray[Any]:
    return np.asarray(decode(file, 3)).astype(float)


def answer(file: Path | io.BytesIO) -> NDArray[Any] | str:
    """What a file shows, or why it is refused."""
    try:
        return read(file)
    except ValueError as error:
        return str(error)


def assert_shows(file: Path | io.BytesIO, expected: NDArray[Any], within: float = 1) -> None:
    """Deep colours lose their lower byte, and alpha is rounded: a level at most."""
    shown = read(file)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= within


# TIFF: name of the photometric interpretation, samples, extra sample.
LAYOUTS = {
    "grey": ("minisblack", 1, None),
    "white is zero": ("miniswhite", 1, None),
    "grey and alpha": ("minisblack", 2, "unassalpha"),
    "premultiplied grey": ("minisblack", 2, "assocalpha"),
    "grey and something": ("minisblack", 2, "unspecified"),
    "white is zero and alpha": ("miniswhite", 2, "unassalpha"),
    "colour": ("rgb", 3, None),
    "colour and alpha": ("rgb", 4, "unassalpha"),
    "premultiplied colour": ("rgb", 4, "assocalpha"),
    "colour and something": ("rgb", 4, "unspecified"),
    "CMYK": ("separated", 4, None),
    "CIELAB": ("cielab", 3, None),
    "YCbCr": ("ycbcr", 3, None),
}
DEPTHS = {  # of a sample: dtype, bits
    "1": ("u1", 1),
    "2": ("u1", 2),
    "4": ("u1", 4),
    "8": ("u1", 8),
    "10": ("u2", 10),
    "12": ("u2", 12),
    "14": ("u2", 14),
    "16": ("u2", 16),
    "32": ("u4", 32),
    "signed 8": ("i1", 8),
    "signed 16": ("i2", 16),
    "signed 32": ("i4", 32),
    "half": ("f2", 16),
    "float": ("f4", 32),
    "double": ("f8", 64),
}
# What is read whatever the compression, tiling and orientation; all else may be refused.
READ = {("8", layout) for layout in LAYOUTS if layout != "white is zero and alpha"}
READ |= {("16", layout) for layout in ("grey", "colour", "colour and alpha", "CMYK")}
READ |= {("16", "premultiplied colour"), ("16", "colour and something")}


def shown(layout: str, samples: NDArray[Any]) -> NDArray[Any]:
    """What samples (H, W, n) in [0, 1] show, in closed form."""
    first, rest = samples[..., :1], samples[..., 1:]
    if layout.startswith("white is zero"):
        first = 1 - first
    if layout == "CIELAB":  # L* to sRGB
        luminance = np.where(first > 0.08, ((first + 0.16) / 1.16) ** 3, first / 9.033)
        dark = luminance * 12.92
        return on_white(np.where(dark < 0.04, dark, 1.055 * luminance ** (1 / 2.4) - 0.055))
    if layout == "YCbCr":  # ITU-R BT.601, full range
        y, cb, cr = first[..., 0], *np.moveaxis(rest - 128 / 255, 2, 0)
        colours = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 2)
        return on_white(colours.clip(0, 1))
    if layout == "CMYK":
        return on_white((1 - samples[..., :3]) * (1 - samples[..., 3:]))
    if "colour" in layout:
        first, rest = samples[..., :3], samples[..., 3:]
    if "alpha" in layout:
        return on_white(first, rest)
    if "premultiplied" in layout:
        return on_white(np.divide(first, rest, out=np.zeros_like(first), where=rest > 0), rest)
    return on_white(first)


def tiffs(depth: str, layout: str) -> Iterator[tuple[io.BytesIO, NDArray[Any], str]]:
    """Every TIFF of this kind that tifffile can write, what it shows, and how it is stored."""
    tifffile = pytest.importorskip("tifffile", reason="the extra dev is not installed")
    (photometric, count, extra), (kind, bits) = LAYOUTS[layout], DEPTHS[depth]
    samples = scene(count, levels=min(4, 2**bits))
    if layout == "CIELAB":
        samples[..., 1:] = 0  # neutral
    if layout.startswith("premultiplied"):
        samples[..., :-1] *= samples[..., -1:]
    largest = 1 if kind[0] == "f" else 2 ** (bits - (kind[0] == "i")) - 1
    planes, codecs = (
        ("contig", "separate")[:count],
        [
            (None, False),
            ("zlib", False),
            ("zlib", True),
            ("lzw", True),
            ("packbits", False),
            ("zstd", False),
            ("lzma", False),
        ],
    )
    codecs = codecs if depth in ("1", "2", "4", "8", "12", "16") else codecs[:2]
    orders, tiles = "<>", (None, (16, 16))
    ways = itertools.product(planes, codecs, tiles, orders)
    for turn, (planar, (codec, predictor), tile, order) in enumerate(ways):
        stored = (samples * largest).round(12 if kind[0] == "f" else 0).astype(order + kind)
        if count == 1:
            stored = stored[..., 0]
        elif planar == "separate":
            stored = np.moveaxis(stored, 2, 0)
        orientation = turn % 8 + 1
        file = io.BytesIO()
        try:
            tifffile.imwrite(
                file,
                stored,
                byteorder=order,
                photometric=photometric,
                planarconfig=planar if count > 1 else None,
                extrasamples=[extra] if extra else None,
                compression=codec,
                predictor=predictor,
                tile=tile,
                bitspersample=bits if bits != stored.dtype.itemsize * 8 else None,
                extratags=[(ORIENTATION, 3, 1, orientation, True)],
            )
        except (ValueError, TypeError, NotImplementedError, RuntimeError):
            continue  # not to be had in this combination
        yield file, upright(shown(layout, samples), orientation), f"{planar} {codec} {tile} {order}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_tiff_shows_what_its_samples_say_or_is_refused(
    tmp_path: Path, depth: str, layout: str
) -> None:
    for file, expected, way in tiffs(depth, layout):
        path = tmp_path / "a.tif"
        path.write_bytes(file.getvalue())
        from_path, from_stream = answer(path), answer(file)
        if isinstance(from_path, str):
            assert from_path == from_stream
            assert "BitsPerSample" in from_path, from_path
            assert way.startswith("separate") or (depth, layout) not in READ, (way, from_path)
        else:
            assert np.array_equal(from_path, from_stream), way
            tolerance = 2 if "premultiplied" in layout or layout == "YCbCr" else 1
            assert np.abs(from_path - expected).max() <= tolerance, way


@pytest.mark.parametrize(
    ("bits", "codec"), [(1, None), (4, None), (8, None), (8, "zlib"), (8, "lzw")]
)
@pytest.mark.parametrize("factor", [1, 256, 257])
def test_a_tiff_s_palette_holds_8_or_16_bits(bits: int, factor: int, codec: str | None) -> None:
    """Factor 1 is what old writers store, as libtiff's checkcmap takes it."""
    tifffile = pytest.importorskip("tifffile", reason="the extra dev is not installed")
    levels = np.linspace(0, 255, 2**bits).round()
    palette = np.stack([levels, levels[::-1], np.roll(levels, 1)]).astype(np.uint16)
    pixels = np.random.default_rng(0).integers(2**bits, size=SHAPE, dtype=np.uint8)
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        pixels,
        photometric="palette",
        bitspersample=bits,
        compression=codec,
        extratags=[
            (ORIENTATION, 3, 1, 6, True),
            (COLOUR_MAP, 3, palette.size, (palette * factor).ravel().tolist(), True),
        ],
    )
    assert np.array_equal(read(file), upright(palette[:, pixels].transpose(1, 2, 0), 6))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("signed", [False, True])
def test_a_jpeg_2000_shows_what_its_samples_say_or_is_refused(
    bits: int, samples: int, signed: bool
) -> None:
    codecs = pytest.importorskip("imagecodecs", reason="the extra dev is not installed")
    fractions = scene(samples, levels=256)
    levels = np.rint(fractions * (2**bits - 1)) - 2 ** (bits - 1) * signed
    stored = levels.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    stored = stored[..., 0] if samples == 1 else stored
    file = codecs.jpeg2k_encode(
        stored, level=0, reversible=True, bitspersample=bits, codecformat="jp2"
    )
    seen = answer(io.BytesIO(file))
    if isinstance(seen, str):
        assert "JPEG 2000" in seen
        assert signed or (samples > 1 and bits > 8)
    else:
        colours = 1 if samples < 3 else 3
        alpha = fractions[..., colours:] if samples in (2, 4) else 1.0
        assert np.abs(seen - on_white(fractions[..., :colours], alpha)).max() <= 1


@pytest.mark.parametrize("value", [0, 255, 4095, 65535])
@pytest.mark.parametrize("bits", [12, 16])
def test_grey_is_scaled_by_the_depth_that_is_declared_and_not_by_what_it_holds(
    bits: int, value: int
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="the extra dev is not installed")
    largest = 2**bits - 1
    value = min(value, largest)
    flat, file = np.full(SHAPE, value, dtype=np.uint16), io.BytesIO()
    tifffile.imwrite(file, flat, bitspersample=bits, photometric="minisblack")
    assert (read(file) == round(value * 255 / largest)).all()
    pgm = f"P5 {WIDTH} {HEIGHT} {largest}\n".encode() + flat.astype(">u2").tobytes()
    assert (read(io.BytesIO(pgm)) == round(value * 255 / largest)).all()


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint32", "float32"])
def test_samples_whose_black_and_white_are_not_agreed_are_refused_whatever_they_hold(
    kind: str,
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="the extra dev is not installed")
    for value in (0, 1, 127):
        file = io.BytesIO()
        tifffile.imwrite(file, np.full(SHAPE, value, dtype=kind), photometric="minisblack")
        with pytest.raises(ValueError, match=r"BitsPerSample .*; save it as PNG, or as TIFF of 8"):
            read(file)


@pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp", "avif"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / f"a.{suffix}") >= 254).all()


@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("thumbnails", [0, 1, 3])
def test_a_tiff_s_thumbnails_are_not_its_picture(thumbnails: int, codec: str | None) -> None:
    tifffile = pytest.importorskip("tifffile", reason="the extra dev is not installed")
    small, picture = np.zeros((8, 6), np.uint16), np.rint(scene(3) * 255).astype(np.uint8)
    turned = [(ORIENTATION, 3, 1, 6, True)]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for _ in range(thumbnails):
            writer.write(small, subfiletype=1, compression=codec)
        writer.write(picture, compression=codec, extratags=turned, metadata=None)
        writer.write(small, compression=codec, metadata=None)
    assert np.array_equal(read(file), upright(picture, 6))


def test_a_tiff_of_thumbnails_alone_shows_the_first() -> None:
    tifffile = pytest.importorskip("tifffile", reason="the extra dev is not installed")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for grey in (255, 0):
            writer.write(np.full(SHAPE, grey, np.uint8), subfiletype=1)
    assert (read(file) == 255).all()


PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
]


def png(
    samples: Array, depth: int, kind: int, interlaced: bool, *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG of integer samples (H, W, n), by the specification; `chunks` stand before the data."""
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    rows = b""
    for x, y, across, down in passes:
        part = samples[y::down, x::across]
        bits = np.unpackbits(part.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., -depth:]
        packed = np.packbits(bits.reshape(len(part), -1), axis=1)
        rows += b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(itertools.starmap(chunk, body))


def test_every_kind_of_png_shows_what_its_samples_say(tmp_path: Path) -> None:
    kinds = [(kind, depth) for kind, depths in PNG_DEPTHS.items() for depth in depths]
    ways = itertools.product(kinds, (False, True), (False, True), range(1, 9))
    for (kind, depth), transparent, interlaced, orientation in ways:
        largest = 2**depth - 1
        # Neighbouring deep samples, one of which is transparent, differ in their lower byte alone.
        levels = [0, largest // 3, largest // 3 + (depth > 2), largest]
        samples = np.random.default_rng(depth).choice(levels, size=(*SHAPE, PNG_SAMPLES[kind]))
        key = samples[0, 0]
        chunks: list[tuple[bytes, bytes]] = []
        colours, alpha = samples / largest, np.ones((*SHAPE, 1))
        if kind == 3:
            palette = np.random.default_rng(1).integers(256, size=(largest + 1, 3), dtype=np.uint8)
            opacity = np.random.default_rng(2).integers(256, size=largest + 1, dtype=np.uint8)
            chunks.append((b"PLTE", palette.tobytes()))
            colours = palette[samples[..., 0]] / 255
            if transparent:
                chunks.append((b"tRNS", opacity.tobytes()))
                alpha = opacity[samples] / 255
        elif kind >= 4:
            colours, alpha = colours[..., :-1], colours[..., -1:]
        elif transparent:
            chunks.append((b"tRNS", key.astype(">u2").tobytes()))
            alpha = (samples != key).any(axis=2, keepdims=True)
        exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + bytes(6)
        chunks.append((b"eXIf", exif))
        path = tmp_path / "a.png"
        path.write_bytes(png(samples, depth, kind, interlaced, *chunks))
        assert_shows(path, upright(on_white(colours, alpha), orientation))
        assert_shows(io.BytesIO(path.read_bytes()), upright(on_white(colours, alpha), orientation))


def test_only_the_low_bits_of_a_png_s_transparent_colour_count() -> None:
    for kind, depth in ((0, 2), (0, 4), (0, 8), (2, 8)):
        samples = np.zeros((4, 4, PNG_SAMPLES[kind]), dtype=int)
        key = np.full(PNG_SAMPLES[kind], 256, dtype=">u2")
        file = png(samples, depth, kind, False, (b"tRNS", key.tobytes()))
        assert (read(io.BytesIO(file)) == 255).all()


GREY_AND_COLOUR = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "La", "RGBa", "YCbCr")
EXACT = {
    "bmp": {},
    "gif": {},
    "jp2": {"irreversible": False},
    "pbm": {},
    "pgm": {},
    "png": {},
    "ppm": {},
    "tga": {},
    **{
        f"tiff {name}": {"compression": name}
        for name in ("raw", "group3", "group4", "packbits", "tiff_lzw", "tiff_adobe_deflate")
    },
    "webp": {"lossless": True, "exact": True},
}
LOSSY = {
    "avif": {"quality": 100, "subsampling": "4:4:4"},
    "jpeg": {"quality": 100, "subsampling": 0},
}


# What Pillow writes without its alpha, or its lower byte, as the format has no place for these.
LOST = {("bmp", "RGBA"), ("gif", "LA"), ("gif", "RGBA")}
LOST |= {(suffix, "RGBA") for suffix in ("pbm", "pgm", "ppm")}
LOST |= {(suffix, "I;16") for suffix in ("gif", "webp", "avif")}


def of_mode(mode: str) -> tuple[Image.Image, NDArray[Any]]:
    """A picture of this mode, and what it shows."""
    blocks = np.random.default_rng(3).integers(2, size=(HEIGHT // 8, WIDTH // 8, 4))
    flat = (blocks * 3 + 1) / 5  # 8 x 8 pixels alike, which JPEG keeps
    samples = flat.repeat(8, 0).repeat(8, 1)
    alpha = samples[..., 3:]
    bytes_ = np.rint(samples * 255).astype(np.uint8)
    if mode == "1":
        grey = samples[..., :1] > 0.5
        return Image.fromarray(grey[..., 0]), on_white(grey.astype(float))
    if mode == "I;16":
        deep = np.rint(samples[..., 0] * 65535).astype(np.uint16)
        return Image.fromarray(deep), on_white(samples[..., :1])
    if mode in ("P", "PA"):
        few = Image.fromarray(bytes_[..., :3]).quantize(8)
        if mode == "PA":
            few = few.convert("PA")
            few.putalpha(Image.fromarray(bytes_[..., 3]))
        return few, on_white(samples[..., :3], alpha if mode == "PA" else 1.0)
    if mode == "CMYK":
        return Image.fromarray(bytes_, "CMYK"), on_white((1 - samples[..., :3]) * (1 - alpha))
    if mode in ("L", "LA", "La"):
        grey = Image.fromarray(bytes_[..., 0])
        grey = grey if mode == "L" else Image.merge("LA", [grey, Image.fromarray(bytes_[..., 3])])
        return grey.convert(mode), on_white(samples[..., :1], 1.0 if mode == "L" else alpha)
    colour = Image.fromarray(bytes_ if "A" in mode.upper() else bytes_[..., :3])
    return colour.convert(mode), on_white(samples[..., :3], alpha if "A" in mode.upper() else 1.0)


@pytest.mark.parametrize("way", [*EXACT, *LOSSY])
def test_whatever_pillow_writes_is_read_as_it_was_from_a_path_and_from_a_stream(
    tmp_path: Path, way: str
) -> None:
    suffix, written = way.split()[0], 0
    for mode, orientation in itertools.product(GREY_AND_COLOUR, range(1, 9)):
        if (suffix, mode) in LOST or ("group" in way and mode != "1"):
            continue
        picture, expected = of_mode(mode)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        path = tmp_path / f"a.{suffix}"
        try:
            picture.save(path, exif=exif, **(EXACT | LOSSY)[way])  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, SystemError, RuntimeError):
            continue  # not to be had in this mode
        written += 1
        if suffix in ("png", "tiff", "webp", "avif", "jpeg"):  # what Pillow writes EXIF to
            expected = upright(expected, orientation)
        assert_shows(path, expected, within=6 if way in LOSSY else 2)
        assert np.array_equal(read(path), read(io.BytesIO(path.read_bytes())))
    assert written >= 8


def test_a_heic_is_read_and_without_its_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    for mode in ("L", "LA", "RGB", "RGBA", "I;16"):
        picture, expected = of_mode(mode)
        if mode == "I;16":
            deep = np.asarray(picture).tobytes()
            written = heif.from_bytes(mode="L;16", size=picture.size, data=deep)  # 10 bits are kept
        else:
            written = heif.from_pillow(picture)
        written.save(tmp_path / "a.heic", quality=-1, chroma=444)
        assert_shows(tmp_path / "a.heic", expected, within=6)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"install sched-lab\[heic\]"):
        read(tmp_path / "a.heic")


@pytest.mark.parametrize("way", [*EXACT, *LOSSY, "tiff jpeg", "heic"])
def test_a_file_cut_short_is_refused_or_shows_the_same(tmp_path: Path, way: str) -> None:
    suffix, options = way.split()[0], (EXACT | LOSSY).get(way, {"compression": way.split()[-1]})
    if suffix == "heic":
        pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
        options = {}
    grey = suffix in ("pbm", "pgm") or "group" in way
    picture, _ = of_mode("1" if grey else "RGB")
    path = tmp_path / f"a.{suffix}"
    if suffix == "heic":
        sys.modules["pillow_heif"].from_pillow(picture).save(path)
    else:
        picture.save(path, **options)  # type: ignore[arg-type]
    whole, shown = path.read_bytes(), read(path)
    for length in sorted({*range(0, len(whole), len(whole) // 60 + 1), len(whole) - 1}):
        path.write_bytes(whole[:length])
        for file in (path, io.BytesIO(whole[:length])):
            answered = answer(file)
            assert isinstance(answered, str) or np.array_equal(answered, shown), length
