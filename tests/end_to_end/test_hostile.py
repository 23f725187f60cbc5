"""Odd names, files that are not what they seem and a store full of garbage: messages, and nothing
outside the store.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sched_lab import names
from sched_lab.store.folder import Store
from sched_lab.store.records import CellRow, Holder, JournalEvent, Sheet, TrialResult
from sched_lab.trainers.spec import TrialSpec
from tests.conftest import SMALL_SWEEP, Command

TINY = {
    "data": "digits",
    "grid": {"b": [0.5, 1.0]},
    "train": {
        "steps": 2,
        "batch": 8,
        "network": {"kind": "unet", "width": 16, "multipliers": [1], "attention": 0},
    },
    "sample": {"count": 32, "steps": 2},
    "score": {"detector": "random"},
    "resources": {"cpu": 1},
}
SCRIPT = "<script>alert(1)</script>"


def tiny(folder: Path, name: str, **settings: object) -> Path:
    """A sweep of two short trials; JSON is YAML."""
    file = folder / "tiny.yaml"
    file.write_text(
        json.dumps({"name": name, **TINY, **settings}, ensure_ascii=False), encoding="utf-8"
    )
    return file


@pytest.fixture(scope="module")
def lab(sched_lab: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store `lab`, in which one tiny sweep has run."""
    folder = tmp_path_factory.mktemp("hostile")
    done = sched_lab("submit", tiny(folder, "plain"), "--inline", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "..",
        "../../over",
        SCRIPT,
        "🎲 dice",
        "😀" * 200,
        'it\'s "so"',
        "[/a] [red]x :dice:",
        "%s{}{{7*7}}$HOME`id`",
    ],
)
def test_any_printable_name_runs_and_is_reported_inside_the_store(
    sched_lab: Command, lab: Path, name: str
) -> None:
    outside = {path for path in lab.parent.rglob("*") if lab / "lab" not in path.parents}
    file = tiny(lab, name, description=f"{SCRIPT}\n```\n{SCRIPT}")
    for arguments in (
        ("submit", file, "--inline"),
        ("status", name),
        ("stop", name),
        ("report", name),
        ("gc",),
    ):
        done = sched_lab(*arguments, cwd=lab)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout or arguments[0] not in ("submit", "stop")
    report = Store.at(lab / "lab").report(name)
    page = (report / "index.html").read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    assert {path for path in lab.parent.rglob("*") if lab / "lab" not in path.parents} == outside


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("x" * 201, "must have at most 200 characters"),
        ("x" * 300, "must have at most 200 characters"),
        ("a\nb", "must be printable"),
        ("a\u202eb", "must be printable"),
        (" a", "without spaces around it"),
        ("-x", "must not begin with a dash"),
        ("", "must not be empty"),
    ],
)
def test_a_name_that_would_mislead_is_refused_at_its_line(
    sched_lab: Command, tmp_path: Path, name: str, rule: str
) -> None:
    done = sched_lab("submit", tiny(tmp_path, name), "--inline", cwd=tmp_path)
    assert done.returncode == 2
    assert "tiny.yaml:1:" in done.stderr
    assert rule in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_folders_of_any_two_names_differ_and_are_plain(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    odd = [
        "a/b",
        "a\\b",
        "a b",
        "..",
        ".",
        "A b",
        "😀" * 200,
        "é" * 200,
        "x" * 200,
        "x" * 199,
        "con.",
        SCRIPT,
        "a-b",
    ]
    folders = [store.sweep(name) for name in odd]
    assert len({str(folder).lower() for folder in folders}) == len(odd)
    for folder in folders:
        assert folder.parent == tmp_path / "sweeps"
        assert len(folder.name.encode()) < 100


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
}


def image(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format="png")
    return path


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_named_at_once_or_left_out(
    sched_lab: Command, tmp_path: Path, kind: str
) -> None:
    for index in range(4):
        image(tmp_path / "images" / f"good-{index}.png")
    ODD[kind](tmp_path / "images/odd.png")
    data = {"source": "folder", "path": "images"}
    start = time.monotonic()
    done = sched_lab("plan", tiny(tmp_path, "odd", data=data), cwd=tmp_path)
    assert time.monotonic() - start < 30
    assert done.returncode == 2
    assert "  odd.png: no regular file" in done.stderr
    done = sched_lab(
        "plan", tiny(tmp_path, "odd", data={**data, "on_broken": "skip"}), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_folders_named_as_images_and_loops_of_folders_are_no_images(
    sched_lab: Command, tmp_path: Path
) -> None:
    for index in range(4):
        image(tmp_path / "images/a" / f"good-{index}.png")
    (tmp_path / "images/a/folder.png").mkdir()
    (tmp_path / "images/a/loop.png").symlink_to(tmp_path / "images")
    done = sched_lab(
        "plan", tiny(tmp_path, "odd", data={"source": "folder", "path": "images"}), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_image_files_and_classes_may_have_any_name_and_each_has_its_fingerprint(
    tmp_path: Path,
) -> None:
    from sched_lab.trainers.data.prepare import prepare
    from sched_lab.trainers.data.user import Folder

    classes = [
        SCRIPT.replace("/", "\u2215"),
        "🎲",
        "two\nlines",
        "a..\u2215..",
        "%s{{7*7}}",
        os.fsdecode(b"\xff"),
    ]
    for i, name in enumerate(classes):
        image(tmp_path / "images" / name / f"{name}.png", colour=f"#0000{i:02x}")
    folder = Folder(path=str(tmp_path / "images"))
    images = prepare(folder, 8, tmp_path / "cache")
    assert images.class_names == tuple(sorted(classes))
    assert sorted(images.pixels[:, 2, 0, 0].tolist()) == list(range(len(classes)))
    before = folder.fingerprint(tmp_path / "cache")
    (tmp_path / "images" / "two\nlines").rename(tmp_path / "images" / "two\\nlines")
    assert folder.fingerprint(tmp_path / "cache") != before


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_images_of_one_pixel_or_of_one_line_become_squares(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    from sched_lab.trainers.data.prepare import prepare
    from sched_lab.trainers.data.user import Folder

    image(tmp_path / "images/a.png", "blue", size)
    (pixels,) = prepare(Folder(path=str(tmp_path / "images")), 8, tmp_path / "cache").pixels
    assert (pixels.transpose(1, 2, 0) == [0, 0, 255]).all()


def test_of_an_animation_the_first_picture_is_taken_and_transparent_colours_of_a_palette_are_white(
    tmp_path: Path,
) -> None:
    from sched_lab.trainers.data.prepare import prepare
    from sched_lab.trainers.data.user import Folder

    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (tmp_path / "images").mkdir()
    frames[0].save(tmp_path / "images/a.gif", save_all=True, append_images=frames[1:])
    Image.new("P", (8, 8), 0).save(tmp_path / "images/b.png", transparency=0)
    first, second = prepare(Folder(path=str(tmp_path / "images")), 8, tmp_path / "cache").pixels
    assert first[:, 4, 4].tolist() == [255, 0, 0]
    assert second[:, 4, 4].tolist() == [255, 255, 255]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(sched_lab: Command, tmp_path: Path) -> None:
    image(tmp_path / "images/closed.png").chmod(0)
    done = sched_lab(
        "plan", tiny(tmp_path, "odd", data={"source": "folder", "path": "images"}), cwd=tmp_path
    )
    assert done.returncode == 2
    assert "closed.png" in done.stderr


GARBAGE = {
    "no JSON": b"\x00\xff garbage",
    "a list": b"[1, 2]",
    "wrong types": json.dumps(
        {
            name: [[{}]]
            for model in (TrialResult, TrialSpec, JournalEvent, Sheet, CellRow, Holder)
            for name in model.model_fields
        }
    ).encode(),
    "cells of nothing": b'{"name": "plain", "cells": [{}, 3, null]}',
    "too deep": b"[" * 100_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GARBAGE)
def test_a_store_full_of_garbage_is_answered_with_messages(
    sched_lab: Command, lab: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(lab / "lab", tmp_path / "lab", ignore=shutil.ignore_patterns("cache"))
    file = tiny(tmp_path, "plain")
    (key, *_) = Store.at(tmp_path / "lab").trial_keys()
    trials = [path for path in (tmp_path / "lab/trials").rglob("*.json*") if path.is_file()]
    sweeps = [path for path in (tmp_path / "lab/sweeps").rglob("*") if path.is_file()]
    assert {path.name for path in trials} == {
        names.FACTS_FILE,
        names.RESULT_FILE,
        names.SPEC_FILE,
        names.JOURNAL_FILE,
    }
    assert names.CELLS_FILE in {path.name for path in sweeps}
    for path in trials:
        path.write_bytes(GARBAGE[kind])
    commands = [
        ("status",),
        ("status", "plain"),
        ("show", key),
        ("logs", key),
        ("plan", file),
        ("stop", "plain"),
    ]
    for damaged in ([], sweeps):
        for path in damaged:
            path.write_bytes(GARBAGE[kind])
        for arguments in [*commands, ("gc", "--cache", "--yes")]:
            done = sched_lab(*arguments, cwd=tmp_path)
            assert "This is a bug" not in done.stderr, (arguments, done.stderr)
            assert done.returncode in (0, 2, 3), (arguments, done.stderr)
            if arguments == ("plan", file):
                assert names.RESULT_FILE in done.stderr


@pytest.mark.slow
def test_the_report_of_a_store_full_of_garbage_needs_mlflow_alone(
    sched_lab: Command, lab: Path, tmp_path: Path
) -> None:
    shutil.copytree(lab / "lab", tmp_path / "lab")
    for path in [*(tmp_path / "lab/trials").rglob("*"), *(tmp_path / "lab/sweeps").rglob("*")]:
        if path.is_file():
            path.write_bytes(b"\x00 garbage")
    assert sched_lab("report", "plain", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_a_ray_started_here_listens_on_loopback_only(tmp_path: Path) -> None:
    import psutil

    (tmp_path / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    command = [str(Path(sys.executable).with_name("sched-lab")), "submit", "small.yaml"]
    driver = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    listening: dict[str, str] = {}
    try:
        while driver.poll() is None:
            try:
                for process in [
                    psutil.Process(driver.pid),
                    *psutil.Process(driver.pid).children(recursive=True),
                ]:
                    open_now = [
                        c for c in process.net_connections() if c.status == psutil.CONN_LISTEN
                    ]
                    listening |= {c.laddr.ip: process.name() for c in open_now}
            except psutil.Error:  # it ended while we looked
                pass
            time.sleep(0.2)
    finally:
        driver.terminate()
        driver.wait(60)
    assert driver.returncode == 0
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    assert listening
