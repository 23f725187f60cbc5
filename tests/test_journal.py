"""The journal: what is written is read once, a torn line is dropped, and a step told again is not written again."""

from __future__ import annotations

import math
from pathlib import Path

from sched_lab.journal import Journal, identity, read


def test_events_are_read_in_order_and_only_beyond_the_offset(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(state="running")
        events, end = read(tmp_path / "j")
        assert [event.get("state") for event in events] == [None, "running"]  # the first line names the journal
        journal.write(step=5, metrics={"loss": 0.5})
    events, end = read(tmp_path / "j", end)
    assert [(event["step"], event["metrics"]) for event in events] == [(5, {"loss": 0.5})]
    assert read(tmp_path / "j", end) == ([], end)


def test_a_line_cut_short_is_not_read_and_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.write(step=1, metrics={"loss": 1.0})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "metr')
    assert len(read(path)[0]) == 2
    with Journal(path) as journal:
        journal.write(step=2, metrics={"loss": 2.0})
    assert [event.get("step") for event in read(path)[0]] == [None, 1, 2]


def test_a_resumed_trial_does_not_tell_a_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        for step in (10, 20):
            journal.write(step=step, metrics={"loss": 1.0})
    with Journal(path) as journal:
        for step in (10, 20, 30):
            journal.write(step=step, metrics={"loss": 1.0})
        journal.write(step=20, metrics={"fd_random": 3.0})
    told = [(event["step"], *event["metrics"]) for event in read(path)[0][1:]]
    assert told == [(10, "loss"), (20, "loss"), (30, "loss"), (20, "fd_random")]


def test_a_value_that_is_not_a_number_stays_one(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(step=1, metrics={"loss": math.nan})
    assert math.isnan(read(tmp_path / "j")[0][1]["metrics"]["loss"])


def test_a_missing_journal_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == ([], 0)


def test_an_end_that_repeats_known_metrics_is_still_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for _ in range(2):  # a trial that fails twice at the same step
        with Journal(path) as journal:
            journal.write(state="running")
            journal.write(step=3, metrics={"seconds/total": 1.0}, state="failed")
    assert [event["state"] for event in read(path)[0][1:]] == ["running", "failed", "running", "failed"]


def test_a_journal_keeps_its_identity_and_a_new_one_has_another(tmp_path: Path) -> None:
    for name in ("a", "a", "b"):
        with Journal(tmp_path / name) as journal:
            journal.write(state="running")
    assert identity(tmp_path / "a") == read(tmp_path / "a")[0][0]["journal"]
    assert identity(tmp_path / "a") != identity(tmp_path / "b")
    assert identity(tmp_path / "none") == ""
