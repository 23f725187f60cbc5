"""Images of every source arrive square, in order, labelled and intact, and are prepared only
once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from sched_lab.trainers.data import user
from sched_lab.trainers.data.prepare import content_key, prepare
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.spec import AnyData, DataSpec

ANY_DATA: TypeAdapter[DataSpec] = TypeAdapter(AnyData)


def source(**options: object) -> DataSpec:
    return ANY_DATA.validate_python(options)


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def solid(
    path: Path, colour: object, mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)  # type: ignore[arg-type]
    return path


def colours_in(folder: Path, cache: Path, **options: object) -> list[list[int]]:
    """The colour at the centre of each image of a folder source."""
    pixels = prepare(source(source="folder", path=str(folder), **options), 8, cache).pixels
    return [image[:, 4, 4].tolist() for image in pixels]


@pytest.mark.parametrize(
    ("options", "count", "channels", "classes"),
    [
        ({"source": "digits"}, 1797, 1, 10),
        ({"source": "photos", "count": 6}, 6, 3, 2),
        ({"source": "shapes", "count": 9}, 9, 3, 4),
    ],
)
def test_a_built_in_source_gives_the_same_labelled_images_every_time(
    tmp_path: Path, options: dict[str, object], count: int, channels: int, classes: int
) -> None:
    first, again = (prepare(source(**options), 12, tmp_path / name) for name in ("a", "b"))
    assert first.pixels.shape == (count, channels, 12, 12)
    assert first.pixels.dtype == np.uint8
    assert first.labels is not None
    assert again.labels is not None
    assert set(first.labels.tolist()) == set(range(classes))
    assert len(first.class_names) == classes
    assert source(**options).image_channels == channels
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.labels, again.labels)


def test_digits_at_their_own_size_are_the_scans_scikit_learn_loads(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = prepare(source(source="digits"), 8, tmp_path)
    assert np.array_equal(images.pixels[:, 0], np.rint(scans.images * 255 / 16))
    assert images.labels is not None
    assert np.array_equal(images.labels, scans.target)


@pytest.mark.parametrize("name", ["photos", "shapes"])
def test_image_i_depends_neither_on_the_count_nor_on_the_size(tmp_path: Path, name: str) -> None:
    few, many = (prepare(source(source=name, count=count), 32, tmp_path).pixels for count in (4, 8))
    large = prepare(source(source=name, count=4), 64, tmp_path).pixels
    assert np.array_equal(few, many[:4])
    halved = large.reshape(4, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.abs(halved - few).mean() < 4  # of 255: the same picture, seen closer


def test_shapes_are_anti_aliased_and_differ_from_one_another(tmp_path: Path) -> None:
    pixels = prepare(source(source="shapes", count=20), 32, tmp_path).pixels
    assert len({image.tobytes() for image in pixels}) == 20
    assert all(
        len(np.unique(image[0])) > 8 for image in pixels
    )  # two colours, and the shades between at the edge


def test_a_checkerboard_finer_than_the_pixels_turns_grey_instead_of_aliasing(
    tmp_path: Path,
) -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    np.save(tmp_path / "board.npy", np.repeat(board[None].astype(np.uint8), 2, axis=0))
    pixels = prepare(source(source="array", path=str(tmp_path / "board.npy")), 8, tmp_path).pixels
    assert np.abs(pixels.astype(int) - 127).max() <= 2


def test_what_is_written_to_prepared_images_never_reaches_the_cache(tmp_path: Path) -> None:
    images, untouched = (prepare(source(source="shapes", count=2), 8, tmp_path) for _ in range(2))
    assert isinstance(images.pixels, np.memmap)
    images.pixels[:] = 0
    images.pixels.flush()
    assert untouched.pixels.any()
    assert np.array_equal(
        prepare(source(source="shapes", count=2), 8, tmp_path).pixels, untouched.pixels
    )


def test_a_second_call_is_cheap(tmp_path: Path) -> None:
    prepare(source(source="digits"), 16, tmp_path)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        prepare(source(source="digits"), 16, tmp_path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_flip_is_left_to_training_and_shares_the_prepared_images(tmp_path: Path) -> None:
    plain, flipped = (source(source="shapes", count=4, flip=flip) for flip in (False, True))
    assert content_key(plain, tmp_path) == content_key(flipped, tmp_path)
    assert content_key(plain, tmp_path) != content_key(source(source="shapes", count=5), tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "overwrite", "delete", "seal"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    shapes = source(source="shapes", count=5)
    intact = np.array(prepare(shapes, 8, tmp_path).pixels)
    (folder,) = (path for path in (tmp_path / "data").iterdir() if path.is_dir())
    file = folder / "pixels.npy"
    if damage == "truncate":
        os.truncate(file, 200)
    elif damage == "overwrite":
        file.write_bytes(file.read_bytes()[:-10] + b"0123456789")
    elif damage == "delete":
        (folder / "labels.npy").unlink()
    else:
        (folder / "seal.json").write_text("{", "utf-8")
    again = prepare(shapes, 8, tmp_path)
    assert np.array_equal(again.pixels, intact)
    assert again.labels is not None


def test_processes_that_prepare_at_once_decode_once_and_all_see_the_whole(tmp_path: Path) -> None:
    for index in range(30):
        solid(tmp_path / "images" / f"{index}.png", (index, 0, 0), size=(100, 100))
    program = (
        "import sys, pathlib, logging\n"
        "from sched_lab.trainers.data.user import Folder\n"
        "from sched_lab.trainers.data.prepare import prepare\n"
        "from sched_lab.trainers.data import pictures\n"
        "decode = pictures.decode\n"
        "pictures.decode = lambda *a: (print('decoded'), decode(*a))[1]\n"
        "images = prepare(Folder(path=sys.argv[1]), 64, pathlib.Path(sys.argv[2]))\n"
        "print('sum', int(images.pixels.sum()))\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "images"), str(tmp_path / "cache")]
    running = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(3)
    ]
    printed = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert "".join(printed).count("decoded") == 30
    assert [out.split()[-1] for out in printed] == [str(sum(range(30)) * 64 * 64)] * 3


def test_a_process_killed_while_preparing_leaves_nothing_that_is_taken_for_images(
    tmp_path: Path,
) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from sched_lab.trainers.data.prepare import prepare\n"
        "from sched_lab.trainers.data.builtin import Shapes\n"
        "draw = Shapes._draw\n"
        "Shapes._draw = lambda self, i, n, s: draw(self, i, n, s) if i < 3 else os._exit(9)\n"
        "prepare(Shapes(count=5), 8, pathlib.Path(sys.argv[1]))\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == 9
    )
    assert len(prepare(source(source="shapes", count=5), 8, tmp_path)) == 5
    assert not list((tmp_path / "data").glob("*.partial"))


def test_sub_folders_are_labels_and_files_come_in_sorted_order(tmp_path: Path) -> None:
    solid(tmp_path / "images/dog/deep/2.png", (2, 0, 0))
    solid(tmp_path / "images/dog/1.PNG", (1, 0, 0))
    solid(tmp_path / "images/cat/9.jpg", (200, 200, 200))
    solid(tmp_path / "images/cat/.hidden.png", (9, 9, 9))
    (tmp_path / "images/cat/notes.txt").write_text("not an image", "utf-8")
    (tmp_path / "images/empty").mkdir()
    images = prepare(source(source="folder", path=str(tmp_path / "images")), 8, tmp_path)
    assert images.class_names == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 1]
    assert images.pixels[1:, 0, 0, 0].tolist() == [1, 2]


def test_a_folder_without_sub_folders_has_no_labels(tmp_path: Path) -> None:
    solid(tmp_path / "images/a.png", (1, 2, 3))
    images = prepare(source(source="folder", path=str(tmp_path / "images")), 8, tmp_path)
    assert images.labels is None
    assert images.class_names == ()


def test_images_beside_sub_folders_are_refused_because_their_label_is_unclear(
    tmp_path: Path,
) -> None:
    for name in ("a.png", "c.png", "b/b.png"):
        solid(tmp_path / "images" / name, 0)
    with pytest.raises(BadData, match=r"beside them 2 without a label; .*:\n  a.png\n  c.png$"):
        source(source="folder", path=str(tmp_path / "images")).fingerprint(tmp_path)


@pytest.mark.parametrize("on_broken", ["error", "skip"])
@pytest.mark.parametrize("loose", [0, 1, 12])
@pytest.mark.parametrize("broken", [0, 1, 12])
def test_all_that_is_wrong_with_a_folder_is_told_at_once(
    tmp_path: Path, broken: int, loose: int, on_broken: str
) -> None:
    folder = tmp_path / "images"
    for number in range(loose):
        solid(folder / f"loose{number}.png", 0)
    solid(folder / "a/good.png", 0)
    for number in range(broken):
        (folder / f"a/broken{number}.png").write_bytes(b"no image")
    data = source(source="folder", path=str(folder), on_broken=on_broken)
    told = ""
    try:
        data.fingerprint(tmp_path / "cache")
    except BadData as error:
        told = str(error)
    assert told.count("\n  loose") == min(loose, 10)
    assert (f"{loose} without a label" in told) == (loose > 0)
    named = min(broken, 10) if on_broken == "error" else 0
    assert told.count("\n  a/broken") == named
    whole = f"{broken} of {broken + 1 + loose} images of {folder} cannot be used"
    assert (whole in told) == (named > 0)


def test_a_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        solid(folder / "a.png", (1, 2, 3))
        solid(folder / "b.png", (4, 5, 6))

    def fingerprint(folder: Path) -> str:
        return source(source="folder", path=str(folder)).fingerprint(tmp_path / "cache")

    before = fingerprint(here)
    assert before == fingerprint(there)
    assert content_key(source(source="folder", path=str(here)), tmp_path) == content_key(
        source(source="folder", path=str(there)), tmp_path
    )
    solid(here / "b.png", (4, 5, 7))
    assert fingerprint(here) != before
    (there / "b.png").rename(there / "c.png")
    assert fingerprint(there) != before


def test_a_second_fingerprint_reads_no_file(tmp_path: Path) -> None:
    image = solid(tmp_path / "images/a.png", 0)
    folder, stat = source(source="folder", path=str(image.parent)), image.stat()
    before = folder.fingerprint(tmp_path)
    image.write_bytes(
        b"x" * stat.st_size
    )  # other content behind the same size and time: only reading it could tell
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert folder.fingerprint(tmp_path) == before


def test_two_files_that_look_alike_in_a_listing_keep_their_own_fingerprints(tmp_path: Path) -> None:
    prints = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", noise((2, 4, 4), seed=ord(name)))
        os.utime(tmp_path / name / "x.npy", ns=(0, 0))
        prints.append(
            source(source="array", path=str(tmp_path / name / "x.npy")).fingerprint(tmp_path)
        )
    assert prints[0] != prints[1]


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the picture's right side
    picture = Image.new("RGB", (16, 16), "blue")
    picture.paste((255, 0, 0), (0, 0, 16, 8))
    picture.save(path, exif=exif)


def test_rotation_in_exif_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    _rotated(tmp_path / "images/a.png")
    (image,) = prepare(source(source="folder", path=str(tmp_path / "images")), 16, tmp_path).pixels
    assert image[:, 8, 0].tolist() == [0, 0, 255]
    assert image[:, 8, 15].tolist() == [255, 0, 0]


def _palette(path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4).save(path)


def _transparent(path: Path) -> None:
    solid(path, (10, 20, 30, 0), "RGBA")


def _sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16)).save(path)


@pytest.mark.parametrize(
    ("save", "name", "colour"),
    [
        (_palette, "a.png", [200, 100, 50]),
        (_palette, "a.gif", [200, 100, 50]),
        (_transparent, "a.png", [255, 255, 255]),
        (_sixteen_bits, "a.png", [128, 128, 128]),
        (_sixteen_bits, "a.tif", [128, 128, 128]),
        (_sixteen_bits, "a.pgm", [128, 128, 128]),
        (lambda path: solid(path, (0, 255, 255, 0), "CMYK"), "a.tif", [255, 0, 0]),
        (lambda path: solid(path, 1, "1"), "a.png", [255, 255, 255]),
        (lambda path: solid(path, (70, 255), "LA"), "a.png", [70, 70, 70]),
    ],
)
def test_every_pixel_format_becomes_8_bit_rgb(
    tmp_path: Path, save: Callable[[Path], None], name: str, colour: list[int]
) -> None:
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / name)
    assert colours_in(tmp_path / "images", tmp_path) == [colour]


def test_a_folder_turns_grey_when_one_channel_is_asked_for(tmp_path: Path) -> None:
    solid(tmp_path / "images/a.png", (255, 0, 0))
    assert colours_in(tmp_path / "images", tmp_path, channels=1) == [
        [76]
    ]  # ITU-R 601: 0.299 of red


def test_an_oblong_image_is_cropped_to_its_centre(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    picture = Image.new("RGB", (24, 8), "red")
    picture.paste((0, 0, 255), (8, 0, 16, 8))
    picture.save(tmp_path / "images/a.png")
    (image,) = prepare(source(source="folder", path=str(tmp_path / "images")), 8, tmp_path).pixels
    assert (image.transpose(1, 2, 0) == [0, 0, 255]).all()


def _truncated(path: Path) -> None:
    Image.fromarray(noise((64, 64, 3))).save(path, format="png")
    os.truncate(path, path.stat().st_size // 2)


BROKEN: dict[str, Callable[[Path], object]] = {
    "zero bytes": lambda path: path.touch(),
    "truncated": _truncated,
    "text": lambda path: path.write_text("<html>not found</html>", "utf-8"),
    "a decompression bomb": lambda path: Image.new("1", (20_000, 10_000)).save(path, format="png"),
    "floats": lambda path: Image.new("F", (8, 8), 0.5).save(path, format="tiff"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named_or_left_out(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    solid(tmp_path / "images/a/good.png", (5, 5, 5))
    BROKEN[kind](tmp_path / "images/a/worse.png")
    with pytest.raises(BadData, match=r"1 of 2 images .* data.on_broken to skip:\n  a/worse.png: "):
        colours_in(tmp_path / "images", tmp_path)
    assert not list((tmp_path / "data").glob("*.partial"))
    assert colours_in(tmp_path / "images", tmp_path, on_broken="skip") == [[5, 5, 5]]
    assert "worse.png" in caplog.text


def test_a_folder_of_broken_images_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").touch()
    with pytest.raises(ValueError, match=r"1 of 1 images .* cannot be used, so there are none"):
        colours_in(tmp_path / "images", tmp_path, on_broken="skip")


def test_all_that_is_broken_is_told_at_once_with_names_and_counts(tmp_path: Path) -> None:
    good = solid(tmp_path / "images/good.png", 0)
    for index in range(25):
        (good.parent / f"broken-{index:02}.jpg").write_bytes(b"\xff\xd8\xff")
    (good.parent / "gone.png").symlink_to("nowhere")
    with pytest.raises(BadData, match="26 of 27 images") as told:
        source(source="folder", path=str(good.parent)).fingerprint(tmp_path)
    lines = str(told.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [
        f"broken-{index:02}.jpg" for index in range(10)
    ]
    assert lines[11:] == ["  … and 16 more"]
    assert told.value.fields == ("path",)


def test_what_was_read_once_is_not_read_again_where_another_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = solid(tmp_path / "images/a.png", 1)
    (tmp_path / "images/b.png").touch()
    folder = source(source="folder", path=str(first.parent))
    with pytest.raises(BadData, match=r"b\.png"):
        folder.fingerprint(tmp_path)
    read: list[str] = []
    content = user._content
    monkeypatch.setattr(user, "_content", lambda path: read.append(path.name) or content(path))
    with pytest.raises(BadData, match=r"b\.png"):
        folder.fingerprint(tmp_path)
    assert read == []
    solid(tmp_path / "images/b.png", 2)
    folder.fingerprint(tmp_path)
    assert read == ["b.png"]


def test_a_broken_image_that_is_skipped_leaves_no_trace_in_what_names_the_images(
    tmp_path: Path,
) -> None:
    for name in ("with", "without"):
        solid(tmp_path / name / "a" / "1.png", 1)
        solid(tmp_path / name / "b" / "1.png", 2)
    (tmp_path / "with/b/2.png").touch()
    kept, skipping = (
        source(source="folder", path=str(tmp_path / name), on_broken=on_broken)
        for name, on_broken in (("without", "error"), ("with", "skip"))
    )
    assert kept.fingerprint(tmp_path) == skipping.fingerprint(tmp_path)
    assert content_key(kept, tmp_path) == content_key(skipping, tmp_path)
    # A class whose only image is broken is one to the network.
    (tmp_path / "with/c").mkdir()
    (tmp_path / "with/c/1.png").touch()
    assert kept.fingerprint(tmp_path) != skipping.fingerprint(tmp_path)
    assert prepare(skipping, 8, tmp_path).class_names == ("a", "b", "c")


def test_the_facts_say_which_images_are_used_and_what_is_left_out(tmp_path: Path) -> None:
    solid(tmp_path / "images/cat/1.png", 1, size=(30, 20))
    solid(tmp_path / "images/dog/1.png", 1, size=(9, 50))
    solid(tmp_path / "images/dog/2.png", 1, size=(7, 7))
    (tmp_path / "images/dog/3.png").touch()
    solid(tmp_path / "images/dog/.4.png", 1)
    for name in ("a.jp2", "b.JP2", "notes.txt", "README"):
        (tmp_path / "images/dog" / name).touch()
    folder = source(source="folder", path=str(tmp_path / "images"), on_broken="skip")
    assert folder.facts(tmp_path) == DataFacts(
        source="folder",
        images=3,
        classes={"cat": 1, "dog": 2},
        smallest=(7, 7),
        largest=(30, 20),
        span=(0, 1),
        broken=1,
        examples=("dog/3.png: no known image format",),
        hidden=1,
        unknown={".jp2": 2, ".txt": 1, "README": 1},
    )


def test_the_facts_are_text_where_names_are_not(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    for name in ("plain", odd):
        solid(tmp_path / f"images/{name}/1.png", 1)
        (tmp_path / f"images/plain/{name}").touch()
    folder = source(source="folder", path=str(tmp_path / "images"))
    facts = folder.facts(tmp_path)
    assert DataFacts.model_validate_json(facts.model_dump_json()) == facts
    assert facts.classes == {ascii(odd): 1, "plain": 1}


@pytest.mark.parametrize(
    "options",
    [{"source": "digits"}, {"source": "photos", "count": 7}, {"source": "shapes", "count": 10}],
)
def test_the_facts_of_built_in_sources_are_those_of_the_images_they_give(
    tmp_path: Path, options: dict[str, object]
) -> None:
    facts, images = source(**options).facts(tmp_path), prepare(source(**options), 8, tmp_path)
    assert facts is not None
    assert images.labels is not None
    assert facts.images == len(images)
    counts = np.bincount(images.labels, minlength=len(images.class_names)).tolist()
    assert dict(facts.classes) == dict(zip(images.class_names, counts, strict=True))


def test_the_facts_of_an_array_are_those_of_its_header_and_labels(tmp_path: Path) -> None:
    images = noise((3, 3, 5, 6))
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([7, -2, 7]))
    assert source(source="array", path=str(tmp_path / "x.npz")).facts(tmp_path) == DataFacts(
        source="array",
        images=3,
        classes={"-2": 1, "7": 2},
        smallest=(6, 5),
        largest=(6, 5),
        span=(int(images.min()), int(images.max())),
    )


@pytest.mark.parametrize("kind", ["folder", "array", "floats"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_facts_tell_the_span_of_all_pixels_and_that_all_images_are_one(
    tmp_path: Path, kind: str, count: int
) -> None:
    rng = np.random.default_rng(count)
    for name, images in {
        "same": np.repeat(rng.integers(40, 60, (1, 8, 8, 3), np.uint8), count, axis=0),
        "differ": np.repeat(noise((1, 8, 8, 3)), count, axis=0) // 2 + np.uint8(9),
        "flags": rng.integers(2, size=(count, 8, 8, 3), dtype=np.uint8),
    }.items():
        if name == "differ":
            images[-1, -1, -1, -1] = 255
        path = tmp_path / (name if kind == "folder" else f"{name}.npy")
        if kind == "folder":
            path.mkdir()
            for index, image in enumerate(images):
                Image.fromarray(image).save(path / f"{index}.png")
        else:
            np.save(path, images if kind == "array" else images.astype(np.float32) / 255)
        data = source(source="folder" if kind == "folder" else "array", path=str(path))
        for _ in range(2):  # also as remembered
            facts = data.facts(tmp_path)
            assert facts is not None
            assert facts.span == (images.min(), images.max())
            assert facts.identical == (name == "same" and count > 1)


def _save_labels_of_another_length(folder: Path) -> DataSpec:
    np.savez(folder / "x.npz", images=noise((3, 8, 8)), labels=np.zeros(2, dtype=int))
    return source(source="array", path=str(folder / "x.npz"))


def _save_a_broken_image(folder: Path) -> DataSpec:
    solid(folder / "images/a.png", 0)
    (folder / "images/b.png").touch()
    return source(source="folder", path=str(folder / "images"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_save_labels_of_another_length, "must hold 3 integer labels"),
        (_save_a_broken_image, r"1 of 2 images of .* cannot be used"),
        (lambda folder: source(source="folder", path=str(folder / "nowhere")), "is not a folder"),
    ],
)
def test_whatever_is_wrong_with_the_content_is_bad_data(
    tmp_path: Path, make: Callable[[Path], DataSpec], said: str
) -> None:
    with pytest.raises(BadData, match=said):
        prepare(make(tmp_path), 8, tmp_path / "cache")


def test_what_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.path: .*/nowhere is not a folder"):
        source(source="folder", path=str(tmp_path / "nowhere")).fingerprint(tmp_path)
    with pytest.raises(ValueError, match=r"holds no images; expected files in .avif"):
        source(source="folder", path=str(tmp_path)).fingerprint(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere.npy does not exist"):
        _ = source(source="array", path=str(tmp_path / "nowhere.npy")).image_channels


def test_a_path_is_made_absolute_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelling in ("x", "./y/../x", "~/x"):
        assert source(source="folder", path=spelling).model_dump()["path"] == str(tmp_path / "x")
    with pytest.raises(ValidationError):
        source(source="folder", path="x", channels=4)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((3, 6, 6), 1), ((3, 6, 6, 1), 1), ((3, 6, 6, 3), 3), ((3, 1, 6, 6), 1), ((3, 3, 6, 6), 3)],
)
def test_an_array_may_have_its_channels_first_last_or_not_at_all(
    tmp_path: Path, shape: tuple[int, ...], channels: int
) -> None:
    values = noise(shape)
    np.save(tmp_path / "x.npy", values)
    data = source(source="array", path=str(tmp_path / "x.npy"))
    assert data.image_channels == channels
    images = prepare(data, 6, tmp_path)
    first = (
        values
        if len(shape) == 4 and shape[1] in (1, 3)
        else values.reshape(3, 6, 6, -1).transpose(0, 3, 1, 2)
    )
    assert np.array_equal(images.pixels, first)
    assert images.labels is None


def test_an_npz_holds_float_images_and_labels_of_any_value(tmp_path: Path) -> None:
    values = noise((3, 6, 6))
    np.savez(
        tmp_path / "x.npz", images=values.astype(np.float32) / 255, labels=np.array([7, -2, 7])
    )
    data = source(source="array", path=str(tmp_path / "x.npz"))
    images = prepare(data, 6, tmp_path)
    assert data.image_channels == 1
    assert np.array_equal(images.pixels[:, 0], values)
    assert images.class_names == ("-2", "7")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "rule"),
    [
        (
            {"images": np.zeros((2, 4, 4)) - 1},
            r"floats in \[0, 1\], 2 images do not.*\n  image 0 spans \[-1, -1\]",
        ),
        ({"images": np.array([[[0.0]], [[2.0]]])}, r"floats in \[0, 1\], 1 image does not"),
        ({"images": np.full((2, 4, 4), np.nan)}, r"floats in \[0, 1\]"),
        ({"images": np.zeros((2, 4, 4), dtype=np.int64)}, "uint8 or floats, got int64"),
        ({"images": np.zeros((2, 4, 4, 5))}, r"got \(2, 4, 4, 5\)"),
        (
            {"images": np.zeros((2, 4, 4)), "labels": np.zeros(3, dtype=int)},
            "must hold 2 integer labels",
        ),
        (
            {"images": np.zeros((2, 4, 4)), "labels": np.array(["a", "b"])},
            "must hold 2 integer labels",
        ),
        (
            {"pictures": np.zeros((2, 4, 4)), "y": np.zeros(2)},
            "no array named images, it holds pictures, y: save it by np.savez",
        ),
        ({"images": np.array([{}, {}], dtype=object)}, "uint8 or floats, got object"),
    ],
)
def test_an_array_that_cannot_be_images_is_refused_with_the_rule(
    tmp_path: Path, arrays: dict[str, NDArray[np.generic]], rule: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rule):
        prepare(source(source="array", path=str(tmp_path / "x.npz")), 8, tmp_path)


ODD = ["O", "?", "c8", "i2", "u2", ">i4", "U3", "S3", "M8[s]", [("r", "u1"), ("g", "u1")]]


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("dtype", ODD)
def test_images_of_a_type_that_is_no_pixels_are_refused_with_what_to_store(
    tmp_path: Path, name: str, dtype: DTypeLike
) -> None:
    images, file = np.zeros((2, 4, 4), dtype), tmp_path / name
    np.save(file, images) if name == "x.npy" else np.savez(file, images=images)
    with pytest.raises(BadData, match=r"must hold images of uint8 or floats, got .*: store ") as at:
        prepare(source(source="array", path=str(file)), 8, tmp_path)
    assert (at.value.field, at.value.rule.startswith(str(file))) == ("path", True)


@pytest.mark.parametrize("dtype", [*(odd for odd in ODD if odd not in ("i2", "u2", ">i4")), "f8"])
def test_labels_that_are_no_integers_are_refused_with_what_to_store(
    tmp_path: Path, dtype: DTypeLike
) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, images=np.zeros((2, 4, 4)), labels=np.zeros(2, dtype))
    with pytest.raises(BadData, match=r"2 integer labels, got .*labels.astype\(int\)") as at:
        prepare(source(source="array", path=str(file)), 8, tmp_path)
    assert (at.value.field, at.value.rule.startswith(str(file))) == ("path", True)


@pytest.mark.parametrize("pixels", ["u1", "<f2", ">f4", ">f8"])
@pytest.mark.parametrize("labels", ["u1", "<i2", ">i4", ">u8"])
def test_the_order_of_an_arrays_bytes_changes_nothing(
    tmp_path: Path, pixels: str, labels: str
) -> None:
    values, largest = noise((3, 6, 6)), 255 if pixels == "u1" else 1
    stored = (values / 255 * largest).round(4).astype(pixels)
    np.savez(tmp_path / "x.npz", images=stored, labels=np.array([7, 2, 7], labels))
    images = prepare(source(source="array", path=str(tmp_path / "x.npz")), 6, tmp_path)
    assert np.array_equal(images.pixels[:, 0], values)
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("key", ["images", "labels"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_that_is_damaged_behind_its_header_is_named(
    tmp_path: Path, save: Callable[..., None], key: str
) -> None:
    file = tmp_path / "x.npz"
    save(file, images=noise((3, 6, 6)), labels=np.arange(3))
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo(f"{key}.npy")
    content = bytearray(file.read_bytes())
    end = entry.header_offset + 30 + len(entry.filename) + 20 + entry.compress_size
    content[end - 6 : end] = bytes(byte ^ 255 for byte in content[end - 6 : end])
    file.write_bytes(content)
    with pytest.raises(BadData, match=r"x\.npz (holds|cannot be read)"):
        prepare(source(source="array", path=str(file)), 6, tmp_path)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv"])
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1,2,3", "utf-8")
    with pytest.raises(ValueError, match=f"{name} (cannot be read as|is not) a NumPy file"):
        source(source="array", path=str(tmp_path / name)).fingerprint(tmp_path)


def test_naming_a_source_and_its_fingerprint_import_no_heavy_library(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, sched_lab.trainers.data.user\n"
        "from sched_lab.trainers.data.builtin import Digits, Photos, Shapes\n"
        "[s().fingerprint(pathlib.Path(sys.argv[1])) for s in (Digits, Photos, Shapes)]\n"
        "print({'torch', 'sklearn', 'PIL', 'scipy', 'datasets', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout.strip() == "set()"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small data set of images as the `datasets` library itself saves it."""
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        word=datasets.Value("string"),
    )
    rows = {
        "image": [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (10, 20, 30)],
        "label": [1, 0, 1],
        "word": ["y", "x", "y"],
    }
    dataset = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(
        str(tmp_path / "saved")
    )
    return tmp_path / "saved"


def test_a_hugging_face_data_set_gives_its_images_and_labels(saved: Path, tmp_path: Path) -> None:
    images = prepare(source(source="huggingface", name=str(saved), label="label"), 8, tmp_path)
    assert images.pixels[:, 0, 4, 4].tolist() == [10, 20, 30]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]
    assert images.class_names == ("cat", "dog")
    words = prepare(source(source="huggingface", name=str(saved), label="word"), 8, tmp_path)
    assert words.class_names == ("x", "y")
    test = source(source="huggingface", name=str(saved), split="test", channels=1)
    assert prepare(test, 8, tmp_path).pixels.shape == (1, 1, 8, 8)


def test_rows_without_an_image_or_a_label_are_named_or_left_out(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        word=datasets.Value("string"),
    )
    red = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in range(6)]
    rows = {
        "image": [red[0], None, red[2], red[3], {"bytes": b"no image", "path": None}, red[5]],
        "label": [0, 1, None, -1, 1, 1],
        "word": ["b", "b", "a", None, "b", "c"],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    options = {"source": "huggingface", "name": str(tmp_path / "saved")}
    faults = {
        None: ["row 1: no image in column 'image'", "row 4: no known image format"],
        "label": [
            "row 1: no image in column 'image'",
            "row 2: no label in column 'label'",
            "row 3: no label in column 'label'",
            "row 4: no known image format",
        ],
        "word": [
            "row 1: no image in column 'image'",
            "row 3: no label in column 'word'",
            "row 4: no known image format",
        ],
    }
    for label, told in faults.items():
        with pytest.raises(BadData, match=f"{len(told)} of 6 images .*'image'") as refused:
            source(**options, label=label).fingerprint(tmp_path)
        assert [line.strip() for line in str(refused.value).splitlines()[1:]] == told
        skipping = source(**options, label=label, on_broken="skip")
        images, facts = prepare(skipping, 8, tmp_path), skipping.facts(tmp_path)
        left = [i for i in range(6) if not any(line.startswith(f"row {i}:") for line in told)]
        assert images.pixels[:, 0, 4, 4].tolist() == left
        assert facts is not None
        assert (facts.images, facts.broken, facts.examples) == (len(left), len(told), tuple(told))


def test_a_hugging_face_fingerprint_follows_the_content(saved: Path, tmp_path: Path) -> None:
    moved = saved.rename(tmp_path / "moved")
    train, again, test = (
        source(source="huggingface", name=str(moved), split=split).fingerprint(tmp_path / cache)
        for split, cache in (("train", "a"), ("train", "b"), ("test", "a"))
    )
    assert train == again != test


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"split": "validation"}, "split validation, cannot be loaded"),
        ({"image": "picture"}, "no column of images 'picture'; valid: image"),
        ({"label": "lable"}, "no column 'lable'; did you mean 'label'"),
    ],
)
def test_a_hugging_face_data_set_says_what_it_lacks(
    saved: Path, tmp_path: Path, options: dict[str, str], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        source(source="huggingface", name=str(saved), **options).fingerprint(tmp_path)


def test_a_hugging_face_name_out_of_reach_fails_soon_and_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    monkeypatch.setattr(
        datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9"
    )  # nothing listens there
    start = time.perf_counter()
    with pytest.raises(ValueError, match="data set nobody/nothing, split train, cannot be loaded"):
        source(source="huggingface", name="nobody/nothing").fingerprint(tmp_path)
    assert time.perf_counter() - start < 15
    assert not datasets.config.HF_HUB_OFFLINE
