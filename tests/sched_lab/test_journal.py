"""The journal: what is written is read once, a torn line is dropped, and a step told again is not
written again.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from sched_lab.store.journal import Journal, identity, read


def test_events_are_read_in_order_and_only_beyond_the_offset(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(state="running")
        events, end = read(tmp_path / "j")
        assert [event.state for event in events] == [
            None,
            "running",
        ]  # the first line names the journal
        journal.write(step=5, metrics={"loss": 0.5})
    events, end = read(tmp_path / "j", end)
    assert [(event.step, event.metrics) for event in events] == [(5, {"loss": 0.5})]
    assert read(tmp_path / "j", end) == ([], end)


def test_a_line_cut_short_is_not_read_and_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.write(step=1, metrics={"loss": 1.0})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "metr')
    assert len(read(path)[0]) == 2
    with Journal(path) as journal:
        journal.write(step=2, metrics={"loss": 2.0})
    assert [event.step for event in read(path)[0]] == [0, 1, 2]


def test_a_resumed_trial_does_not_tell_a_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        for step in (10, 20):
            journal.write(step=step, metrics={"loss": 1.0})
    with Journal(path) as journal:
        for step in (10, 20, 30):
            journal.write(step=step, metrics={"loss": 1.0})
        journal.write(step=20, metrics={"fd_random": 3.0})
    told = [(event.step, *event.metrics) for event in read(path)[0][1:]]
    assert told == [(10, "loss"), (20, "loss"), (30, "loss"), (20, "fd_random")]


def test_a_resumed_trial_does_not_name_a_grid_twice(tmp_path: Path) -> None:
    grid = {"step": 20, "file": "samples/step_20.png"}
    for _ in range(2):
        with Journal(tmp_path / "j") as journal:
            journal.write(**grid, metrics={"fd_random": 3.0})
            journal.write(step=20, file=None)
    with Journal(tmp_path / "j") as journal:
        journal.write(**grid, state="stopped")
    told = [(event.file, event.state) for event in read(tmp_path / "j")[0][1:]]
    assert told == [("samples/step_20.png", None), (None, "stopped")]


def test_a_value_that_is_not_a_number_stays_one(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(step=1, metrics={"loss": math.nan})
    assert math.isnan(read(tmp_path / "j")[0][1].metrics["loss"])


def test_a_missing_journal_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == ([], 0)


def test_an_end_that_repeats_known_metrics_is_still_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for _ in range(2):  # a trial that fails twice at the same step
        with Journal(path) as journal:
            journal.write(state="running")
            journal.write(step=3, metrics={"seconds/total": 1.0}, state="failed")
    assert [event.state for event in read(path)[0][1:]] == [
        "running",
        "failed",
        "running",
        "failed",
    ]


def test_a_journal_keeps_its_identity_and_a_new_one_has_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Journal(tmp_path / name) as journal:
            journal.write(state="running")
    _, end = read(tmp_path / "a")
    before = identity(tmp_path / "a", end)
    with Journal(tmp_path / "a") as journal:
        journal.write(state="stopped")
    assert identity(tmp_path / "a", end) == before != identity(tmp_path / "b", end)
    assert identity(tmp_path / "none", end) == ""


def test_a_journal_whose_lines_were_lost_and_replaced_is_another_from_there_on(
    tmp_path: Path,
) -> None:
    with Journal(tmp_path / "a") as journal:
        journal.write(step=1, state="failed")
    whole = (tmp_path / "a").read_bytes()
    begun, last = whole.splitlines(keepends=True)
    before = identity(tmp_path / "a", len(whole)), identity(tmp_path / "a", len(begun))
    body = last.rpartition(b', "crc"')[0].replace(b"1", b"2", 1)
    (tmp_path / "a").write_bytes(begun + body + b', "crc": %d}\n' % zlib.crc32(body))
    assert identity(tmp_path / "a", len(whole)) != before[0]
    assert identity(tmp_path / "a", len(begun)) == before[1]


def test_every_line_is_one_json_object(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(state="failed", reason='two\nlines, "crc": 5}')
    assert (
        json.loads((tmp_path / "j").read_text("utf-8").splitlines()[1])["reason"]
        == 'two\nlines, "crc": 5}'
    )
    assert read(tmp_path / "j")[0][1].reason == 'two\nlines, "crc": 5}'


@pytest.mark.parametrize("damage", [b"\0" * 8, b"7", b"\n", b"\xff\r{"])
def test_a_damaged_line_is_left_out_named_and_told_again(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        for step in (1, 2, 3):
            journal.write(step=step, metrics={"loss": 0.25})
    content = path.read_bytes()
    at = content.index(b"0.25", content.index(b'"step": 2'))
    path.write_bytes(content[:at] + damage + content[at + len(damage) :])
    assert [event.step for event in read(path)[0]] == [0, 1, 3]
    with caplog.at_level(logging.WARNING), Journal(path) as journal:
        for step in (1, 2, 3, 4):
            journal.write(step=step, metrics={"loss": 0.25})
    assert str(path) in caplog.text
    assert "[3" in caplog.text
    assert [event.step for event in read(path)[0]] == [0, 1, 3, 2, 4]


def test_a_journal_that_is_shorter_than_what_was_read_is_read_from_its_first_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.write(step=1, metrics={"loss": 1.0})
        journal.write(step=2, metrics={"loss": 1.0})
    _, end = read(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert [event.step for event in read(path, end)[0]] == [0, 1]


FILL = """
import resource, sys
from pathlib import Path
from sched_lab.store.journal import Journal
path = Path(sys.argv[1])
with Journal(path) as journal:
    journal.write(step=1, metrics={"loss": 1.0})
    room = path.stat().st_size + 40  # half a line
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        journal.write(step=2, metrics={"loss": 2.0})
    except OSError as error:
        print(type(error).__name__, path.read_bytes().endswith(b"}\\n"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.write(step=2, metrics={"loss": 2.0})
"""


def test_a_write_that_does_not_fit_leaves_nothing_behind_and_can_be_made_again(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path / "j")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "OSError True\n"
    assert [event.step for event in read(tmp_path / "j")[0]] == [0, 1, 2]


def test_what_was_written_can_be_read_before_the_journal_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(step=1, metrics={"loss": 1.0})
        journal.sync()
        assert len(read(tmp_path / "j", durable=True)[0]) == 2
