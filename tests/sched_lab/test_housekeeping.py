"""gc finds what nothing needs any more, deletes it when told to, and keeps its hands off all
else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock

from sched_lab import names
from sched_lab.errors import OutOfReach
from sched_lab.store.folder import Store, locked
from sched_lab.store.housekeeping import delete, leftovers
from sched_lab.trainers.files import write_json
from sched_lab.trainers.results import CHECKPOINT_FILE, State
from tests.conftest import Command

NOBODY = 999_999_999  # above the largest number of a process


def written(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def result(key: str, state: str) -> dict[str, object]:
    return {"key": key, "state": state, "reason": "", "failure": "", "step": 1, "scores": {}}


def trial(store: Store, key: str, state: str | None) -> Path:
    """The folder of a trial that left everything behind that a trial can."""
    folder = store.trial(key)
    for name in (CHECKPOINT_FILE, "checkpoint.bad", names.LOG_FILE, f"result.json.{NOBODY}.part"):
        written(folder / name)
    written(folder / f"spec.json.{os.getpid()}.part")
    if state:
        write_json(folder / names.RESULT_FILE, result(key, state))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(tmp_path / "lab")


def found(store: Store, cache: bool = False) -> set[str]:
    return {str(each.path.relative_to(store.root)) for each in leftovers(store, cache)}


@pytest.mark.parametrize(
    ("state", "can_go"),
    [
        (State.FINISHED, {CHECKPOINT_FILE, "checkpoint.bad", f"result.json.{NOBODY}.part"}),
        (State.FAILED, {"checkpoint.bad", f"result.json.{NOBODY}.part"}),
        (State.STOPPED, {"checkpoint.bad", f"result.json.{NOBODY}.part"}),
        (None, {f"result.json.{NOBODY}.part"}),
    ],
)
def test_a_trial_keeps_what_it_can_still_go_on_from(
    store: Store, state: str | None, can_go: set[str]
) -> None:
    trial(store, "a", state)
    assert found(store) == {f"trials/a/{name}" for name in can_go}


def test_a_trial_that_a_process_runs_is_not_touched(store: Store) -> None:
    trial(store, "a", State.FINISHED)
    listed = leftovers(store)
    with store.claimed("a"):
        assert found(store) == set()
        assert delete(store, listed) == []
    assert len(delete(store, listed)) == 3
    assert (store.trial("a") / names.RESULT_FILE).exists()
    assert (store.trial("a") / names.LOG_FILE).exists()


def test_the_stop_file_of_a_sweep_goes_unless_a_submit_reads_it(store: Store) -> None:
    for sweep in ("idle", "at work", ".."):
        written(store.stop_file(sweep))
    with store.held("at work"):
        assert found(store) == {f"sweeps/{store.sweep(name).name}/stop" for name in ("idle", "..")}


def test_the_cache_goes_only_when_asked_for_and_only_when_nobody_uses_the_store(
    store: Store,
) -> None:
    written(store.cache / "data/abc/pixels.npy", 1000)
    written(store.cache / "detectors/def/weights.safetensors", 24)
    trial(store, "a", None)
    assert not any(path.startswith("cache") for path in found(store))
    with (
        store.held("small"),
        pytest.raises(OutOfReach, match=rf"submit of small \(process {os.getpid()} on"),
    ):
        leftovers(store, cache=True)
    with store.claimed("a"), pytest.raises(OutOfReach, match="in use by trial a"):
        leftovers(store, cache=True)
    listed = [each for each in leftovers(store, cache=True) if each.what.startswith("cache")]
    assert [each.size for each in listed] == [1000, 24]
    with store.held("small"):
        assert delete(store, listed) == []
    assert delete(store, listed) == listed
    assert [path.suffix for path in store.cache.glob("*/*")] == [".lock"] * 2


def test_a_cache_entry_that_was_never_completed_goes_unless_it_is_being_made(store: Store) -> None:
    written(store.cache / "data/abc.partial/pixels.npy")
    with FileLock(store.cache / "data/abc.lock"):
        assert found(store) == set()
    assert found(store) == {"cache/data/abc.partial"}


def test_nobody_can_take_up_what_is_being_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial(store, "a", State.FINISHED)
    written(store.cache / "data/abc.partial/pixels.npy")
    locks = {
        "trials": lambda: store.busy("a"),
        "cache": lambda: locked(store.cache / "data/abc.lock"),
    }
    seen = []

    def watch(owner: object, name: str) -> None:
        remove = getattr(owner, name)

        def watched(path: Path) -> None:
            kind = path.relative_to(store.root).parts[0]
            seen.append((kind, locks[kind]()))
            remove(path)

        monkeypatch.setattr(owner, name, watched)

    listed = leftovers(store)
    watch(shutil, "rmtree")
    watch(Path, "unlink")
    assert delete(store, listed) == listed
    assert Counter(seen) == {("trials", True): 3, ("cache", True): 1}


def test_a_stop_that_is_asked_for_after_the_listing_stays(store: Store) -> None:
    written(store.stop_file("small"))
    listed = leftovers(store)
    with store.held("small"):
        assert delete(store, listed) == []
    assert delete(store, listed) == listed


def test_links_out_of_the_store_are_never_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in (CHECKPOINT_FILE, f"x.{NOBODY}.part", "stop"):
        written(outside / name)
    write_json(outside / names.RESULT_FILE, result("linked", State.FINISHED))
    written(store.cache / "data/abc/pixels.npy")
    (store.cache / "data/abc/elsewhere").symlink_to(outside)
    trial(store, "inside", State.FINISHED)
    (store.trial("inside") / f"y.{NOBODY}.part").symlink_to(outside / "stop")
    for link in (
        store.trial("linked"),
        store.sweep("linked"),
        store.cache / "linked",
        store.cache / "data/linked",
    ):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside, target_is_directory=True)
    before = sorted(outside.iterdir())
    delete(store, leftovers(store, cache=True))
    assert sorted(outside.iterdir()) == before
    assert not (store.cache / "data/abc").exists()


@pytest.mark.parametrize("kind", ["trials", "sweeps", "cache"])
def test_a_store_whose_folders_are_links_is_left_alone(
    store: Store, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    for name in (f"a/x.{NOBODY}.part", "a/stop", "a/b/c"):
        written(outside / name)
    store.root.mkdir()
    (store.root / kind).symlink_to(outside)
    assert found(store, cache=True) == set()


def test_gc_says_what_it_would_delete_and_deletes_with_yes_alone(
    sched_lab: Command, store: Store
) -> None:
    folder = trial(store, "a", State.FINISHED)
    written(folder / CHECKPOINT_FILE, 3 * 2**20)
    said = sched_lab("gc", "--store", store.root)
    assert said.returncode == 0, said.stderr
    assert f"3 MiB  checkpoint of a finished trial    trials/a/{CHECKPOINT_FILE}" in said.stdout
    assert "deleted nothing: --yes" in said.stdout
    listed = json.loads(sched_lab("gc", "--store", store.root, "--json").stdout)
    assert (len(listed["found"]), listed["deleted"]) == (3, 0)
    assert (folder / CHECKPOINT_FILE).exists()
    assert "deleted 3 of 3" in sched_lab("gc", "--store", store.root, "--yes").stdout
    assert not (folder / CHECKPOINT_FILE).exists()
    assert "nothing to delete" in sched_lab("gc", "--store", store.root, "--yes").stdout


@pytest.mark.parametrize(("answer", "kept"), [("y", False), ("n", True)])
def test_gc_asks_on_a_terminal(store: Store, answer: str, kept: bool) -> None:
    pty = pytest.importorskip("pty")
    checkpoint = trial(store, "a", State.FINISHED) / CHECKPOINT_FILE
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        command = [
            str(Path(sys.executable).with_name("sched-lab")),
            "gc",
            "--store",
            str(store.root),
        ]
        done = subprocess.run(
            command, stdin=theirs, capture_output=True, encoding="utf-8", timeout=60, check=True
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert "delete all of it?" in done.stdout
    assert checkpoint.exists() == kept


def test_gc_of_the_cache_of_a_store_in_use_is_exit_3(sched_lab: Command, store: Store) -> None:
    with store.held("small"):
        done = sched_lab("gc", "--cache", "--yes", "--store", store.root)
    assert done.returncode == 3
    assert f"process {os.getpid()}" in done.stderr


def test_gc_creates_no_store(sched_lab: Command, tmp_path: Path) -> None:
    assert sched_lab("gc", "--cache", "--yes", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_was_set_aside_can_go_and_the_one_in_use_stays(store: Store) -> None:
    kept = [written(store.root / name) for name in ("mlflow.db", "store.id", "notes.bad")]
    gone = ["mlflow.db.bad", f"mlflow.db.{NOBODY}.part", f"mlflow.db.{NOBODY}.part-journal"]
    for name in gone:
        written(store.root / name)
    assert found(store) == set(gone)
    assert len(delete(store, leftovers(store))) == 3
    assert all(path.exists() for path in kept)
    assert found(store) == set()
