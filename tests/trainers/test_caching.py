"""What is kept on disk is found whole or made again, and a folder that was damaged is named."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sched_lab.trainers.caching import cached

CONTENT = "0123456789"


def make(folder: Path) -> None:
    (folder / "a.txt").write_text(CONTENT, "utf-8")
    (folder / "b.txt").write_text(CONTENT, "utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: os.truncate(f / "b.txt", 4), "b.txt has changed since it was sealed"),
    "scribbled": (
        lambda f: (f / "b.txt").write_text("9876543210", "utf-8"),
        "b.txt has changed since it was sealed",
    ),
    "without a file": (lambda f: (f / "b.txt").unlink(), "b.txt: No such file"),
    "without its seal": (lambda f: (f / "seal.json").unlink(), "seal.json: No such file"),
    "a seal cut short": (lambda f: os.truncate(f / "seal.json", 5), "seal.json can't be read"),
    "a seal of another sort": (
        lambda f: (f / "seal.json").write_text("[1]", "utf-8"),
        "seal.json can't be read",
    ),
    "a seal without numbers": (
        lambda f: (f / "seal.json").write_text('{"a.txt": 1}', "utf-8"),
        "seal.json can't be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_again_with_a_warning_that_says_what_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = cached(tmp_path / "x", make)
    assert not caplog.records  # a folder that is new is not a damaged one
    break_it, wrong = DAMAGES[damage]
    break_it(folder)
    assert (cached(folder, make) / "b.txt").read_text("utf-8") == CONTENT
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(folder) in record.message
    assert wrong in record.message


def test_a_whole_folder_is_not_made_again(tmp_path: Path) -> None:
    def forbidden(folder: Path) -> None:
        raise AssertionError

    assert cached(cached(tmp_path / "x", make), forbidden) == tmp_path / "x"


def test_what_a_killed_process_left_is_never_part_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "half.txt").write_text("01234", "utf-8")
    folder = cached(tmp_path / "x", make)
    assert sorted(json.loads((folder / "seal.json").read_text("utf-8"))) == ["a.txt", "b.txt"]
    assert not (folder / "half.txt").exists()
    assert not (tmp_path / "x.partial").exists()


def test_an_error_leaves_neither_a_folder_nor_a_part_of_one(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        make(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached(tmp_path / "x", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]
