"""Whatever stands in a file of a store, commands answer: each member of each format is left out, of
another type or extreme, and a file that does not fit is named.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner, Result
from filelock import FileLock
from pydantic import BaseModel, ValidationError

from sched_lab import names
from sched_lab.cli.program import cli
from sched_lab.errors import OutOfReach
from sched_lab.run.cost import measured
from sched_lab.run.plan import make
from sched_lab.run.progress import Board
from sched_lab.store import records
from sched_lab.store.ends import complete_journal
from sched_lab.store.folder import Store
from sched_lab.store.inspection import cell_states
from sched_lab.store.journal import Journal, last_state
from sched_lab.store.records import CellRow, Holder, JournalEvent, Sheet, TrialResult
from sched_lab.sweep.grid import Trial
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import TrialSpec

OF_ANOTHER_TYPE = "[[{}]]"  # what no member of any format may be
VALUES = {
    "null": "null",
    "true": "true",
    "an empty text": '""',
    "a number as text": '"1"',
    "below zero": "-1",
    "a fraction": "0.5",
    "huge": "1e308",
    "huge and whole": "9" * 400,
    "of more digits than Python reads": "9" * 5000,
    "NaN": "NaN",
    "infinite": "1e999",
    "long": json.dumps("x" * 100_000),
    "another folder": '"../../x"',
    "not printable": r'"\u0000\u202e"',
    "half a character": r'"\ud800"',
    "a long name": json.dumps({"x" * 100_000: 1}),
    "huge by name": '{"total": 1e308, "fd_random": -1e308, "loss": 1e308}',
    "not finite by name": '{"total": NaN, "fd_random": NaN, "loss": -1e999}',
    "null by name": '{"total": null, "fd_random": null, "loss": null}',
    "deep": '{"x": ' + "[" * 150 + "]" * 150 + "}",
    "too deep": "[" * 100_000 + "]" * 100_000,
    "an empty list": "[]",
    "an empty object": "{}",
    "of another type": OF_ANOTHER_TYPE,
}


class Case(NamedTuple):
    """What a file holds, in JSON, and what was done to which of its members."""

    member: str
    what: str
    text: str


def cases(model: type[BaseModel], valid: dict[str, Any], *path: str) -> Iterator[Case]:
    """A valid value, then with every member of the part of it at `path`, which is a `model`,
    changed.
    """

    def whole(part: dict[str, Any]) -> str:
        for name in reversed(path):
            outer = valid
            for step in path[: path.index(name)]:
                outer = outer[step]
            part = {**outer, name: part}
        return json.dumps(part)

    part = valid
    for name in path:
        part = part[name]
    if isinstance(part, str):  # a detector whose options have their defaults
        part = {"kind": part}
    assert part.keys() <= model.model_fields.keys()
    yield Case("", "as it was", json.dumps(valid))
    for member in model.model_fields:
        for what, value in VALUES.items():
            yield Case(member, what, whole({**part, member: "@"}).replace('"@"', value))
        yield Case(member, "left out", whole({k: v for k, v in part.items() if k != member}))


def fits(model: type[BaseModel], case: Case) -> bool:
    try:
        records.parsed(case.text.encode(), model.model_validate_json)
    except ValidationError:
        assert case.member, "the valid value does not fit"
        return False
    assert case.what != "of another type", case.member
    return True


def said(*arguments: object) -> Result:
    """What a command answers; it may refuse, and must not fail."""
    done = CliRunner().invoke(cli, [*map(str, arguments)], standalone_mode=False)
    refused = isinstance(done.exception, click.UsageError | OutOfReach)
    assert done.exception is None or refused, (arguments, repr(done.exception)[:1000])
    return done


@pytest.fixture(autouse=True)
def _no_file_was_named_before() -> None:
    records.warn.cache_clear()


class Lab(NamedTuple):
    """A store and the trials of a sweep on it: one a case."""

    file: Path
    store: Store
    trials: Sequence[Trial]

    def answers(self, *, shown: bool = True) -> None:
        """Have every command that reads the store answer."""
        at = ("--store", self.store.root)
        for command in ("plan", "submit --dry-run --json"):
            said(*command.split(), self.file, *at)
        for command in ("status", "status lab", "status lab --json", "gc", "gc --json", "stop lab"):
            said(*command.split(), *at)
        for trial in self.trials if shown else ():
            said("show", trial.key, *at)
            said("show", trial.key, "--json", *at)


def lab(folder: Path, count: int, **settings: object) -> Lab:
    file, store = folder / "lab.yaml", Store.at(folder / "lab")
    seeds = {"grid": {"seed": list(range(count))}}
    file.write_text(
        json.dumps({"name": "lab", "score": {"detector": "random"}, **seeds, **settings}), "utf-8"
    )
    trials = make(file, store).trials
    store.write_sweep("lab", "", [CellRow(key=t.key, settings=t.settings) for t in trials])
    for trial in trials:
        write(store.trial(trial.key) / names.SPEC_FILE, trial.spec.model_dump_json())
        write(store.trial(trial.key) / names.RESULT_FILE, json.dumps({**RESULT, "key": trial.key}))
    return Lab(file, store, trials)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


RESULT = {
    "key": "KEY",
    "state": "finished",
    "reason": "",
    "failure": "",
    "step": 20,
    "scores": {"fd_random": 1.5},
    "uncertainty": {"fd_random": 0.5},
    "loss": 0.25,
    "seconds": {"train": 1.0, "total": 2.0},
    "environment": {"torch": "2"},
}


def test_any_result_is_read_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = list(cases(TrialResult, RESULT))
    here = lab(tmp_path, len(every))
    files = {}
    for trial, case in zip(here.trials, every, strict=True):
        file = here.store.trial(trial.key) / names.RESULT_FILE
        files[write(file, case.text.replace("KEY", trial.key))] = case
    here.answers()
    for file, case in files.items():
        read = fits(TrialResult, case) and case.member != "key"
        assert (str(file) in caplog.text) != read, case[:2]
        complete_journal(here.store, file.parent.name)
        assert read == (last_state(file.with_name(names.JOURNAL_FILE)) is not None)
    assert measured(here.store, here.store.trial_keys(), []).seen
    Board(here.store, "lab", here.trials, [], lambda: ()).summary()


def test_any_results_are_ranked_where_the_best_are_confirmed(tmp_path: Path) -> None:
    every = [case for case in cases(TrialResult, RESULT) if fits(TrialResult, case)]
    screen = {"screen": {"seeds": len(every), "keep": 1}, "confirm": {"seeds": 2}}
    here = lab(tmp_path, 0, grid={"b": [0.5, 1.0]}, run=screen)
    for trial, case in zip(here.trials, [*every, *every], strict=True):
        text = json.dumps({**json.loads(case.text), "key": trial.key})
        write(here.store.trial(trial.key) / names.RESULT_FILE, text)
    here.answers(shown=False)
    assert len(make(here.file, here.store).trials) == len(here.trials) + 2


EVENT = {
    "time_ms": 1_700_000_000_000,
    "journal": "0123abcd",
    "step": 20,
    "metrics": {"loss": 0.5},
    "sampled": [1, 2],
    "file": "samples/step-000020.png",
    "state": "running",
    "reason": "",
    "failure": "",
    "pid": 1,
    "host": "here",
    "micro_batches": 1,
}


def test_any_line_of_a_journal_is_read_or_its_journal_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    every = list(cases(JournalEvent, EVENT))
    here = lab(tmp_path, len(every))
    files = {}
    board = Board(here.store, "lab", [], here.trials, lambda: ())
    for trial, case in zip(here.trials, every, strict=True):
        (here.store.trial(trial.key) / names.RESULT_FILE).unlink()
        body = case.text[:-1]
        line = f'{body}, "crc": {zlib.crc32(body.encode())}}}\n'
        files[write(here.store.trial(trial.key) / names.JOURNAL_FILE, line)] = case
        board.started(trial.key)
    here.answers()
    board.summary()
    assert all(str(item) for item in board.running)
    for file, case in files.items():
        assert (str(file) in caplog.text) != fits(JournalEvent, case), case[:2]


ROW = {"key": "a", "settings": {"b": 0.5}, "params": {"b": "0.5"}, "stage": "screen"}


@pytest.mark.parametrize(
    ("model", "path"), [(Sheet, ()), (CellRow, ("cells",))], ids=["sheet", "cell"]
)
def test_any_sheet_is_read_or_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model: type[BaseModel], path: tuple[str, ...]
) -> None:
    here = lab(tmp_path, 1)
    for number, case in enumerate(cases(model, ROW if path else {"name": "NAME", "cells": [ROW]})):
        name = f"sheet{number}"
        text = f'{{"name": "NAME", "cells": [{case.text}]}}' if path else case.text
        file = here.store.sweep(name) / names.CELLS_FILE
        write(file, text.replace("NAME", name))
        for command in ("status", "status --json", "stop"):
            said(*command.split(), name, "--store", here.store.root)
        read = fits(model, case) and case.member != "name"
        assert (str(file) in caplog.text) != read, case[:2]
    here.answers()


def test_any_holder_of_a_sweep_is_told_or_its_file_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = lab(tmp_path, 1)
    every = list(cases(Holder, {"pid": 7, "host": "there"}))
    at = ("--store", here.store.root)
    with ExitStack() as held:
        for number, case in enumerate(every):
            folder = here.store.sweep(f"held{number}")
            file = write(folder / "submit.json", case.text)
            held.enter_context(FileLock(folder / "submit.lock"))
            write(folder / names.CELLS_FILE, json.dumps({"name": folder.name, "cells": []}))
            for command in ("stop", "retry"):
                said(command, folder.name, *at)
            assert (str(file) in caplog.text) != fits(Holder, case), case[:2]
        refused = said("gc", "--cache", "--yes", *at)
        assert "the submit of held0 (process 7 on there)" in str(refused.exception)
        here.answers()


SPEC = TrialSpec()


def parts(value: BaseModel, *path: str) -> Iterator[tuple[type[BaseModel], tuple[str, ...]]]:
    """The models that a value is made of, and where they stand in it."""
    yield type(value), path
    for name in type(value).model_fields:
        if isinstance(part := getattr(value, name), BaseModel):
            yield from parts(part, *path, name)


@pytest.mark.parametrize(
    ("model", "path"), [pytest.param(*part, id=".".join(part[1])) for part in parts(SPEC)]
)
def test_any_spec_is_read_or_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model: type[BaseModel], path: tuple[str, ...]
) -> None:
    every = list(cases(model, SPEC.model_dump(mode="json"), *path))
    here = lab(tmp_path, len(every))
    files = {}
    for trial, case in zip(here.trials, every, strict=True):
        files[write(here.store.trial(trial.key) / names.SPEC_FILE, case.text)] = case
    here.answers()
    for file, case in files.items():
        try:
            TrialSpec.model_validate(records.read_object(file))
        except ValidationError:
            assert str(file) in caplog.text, case[:2]
        else:
            assert case.what != "of another type", case.member
    assert measured(here.store, here.store.trial_keys(), []).seen


def test_a_trial_that_has_lost_its_result_is_missing(tmp_path: Path) -> None:
    store, cell = Store.at(tmp_path), CellRow(key="a", settings={})
    with Journal(store.trial("a") / names.JOURNAL_FILE) as journal:
        journal.write(state=State.FINISHED, step=1)
    (state,) = cell_states(store, [cell])
    assert (state.state, state.scores) == (State.MISSING, {})
    assert "submit again" in state.reason
