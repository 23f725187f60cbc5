"""A store is one folder, wherever it lies: what it holds is found from its present place, and
nothing outside it is ever written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sched_lab import names
from sched_lab.errors import OutOfReach, StoreError
from sched_lab.redaction import redacted
from sched_lab.store import database
from sched_lab.store.folder import Store
from sched_lab.store.journal import Journal
from sched_lab.store.records import CellRow
from sched_lab.sweep.grid import Trial
from sched_lab.tracking.client import connect
from sched_lab.tracking.reader import (
    UnknownSweepError,
    artifact_text,
    read_sweep_run,
    sample_grid,
)
from sched_lab.tracking.tracker import Tracker, publish_report
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import TrialSpec
from tests.servers import MlflowServer, mlflow_server, postgres_server

SWEEP = "tracked"
PLACES = ("plain", "50% off%41 a#b?mode=memory", "Größe-数 'quoted\"")


def submit(store: Store, *keys: str, sweep: str = SWEEP) -> None:
    """Run these trials as a submit would, and bring MLflow up to date."""
    store.check_writable(sweep, keys)
    for key in keys:
        if store.result(key) is None and not store.trial(key).exists():
            grid = store.trial(key) / names.SAMPLES_FOLDER / "step-000001.png"
            grid.parent.mkdir(parents=True)
            Image.fromarray(np.full((4, 4), len(key), np.uint8)).save(grid)
            with Journal(store.trial(key) / names.JOURNAL_FILE) as journal:
                journal.write(state=State.RUNNING)
                journal.write(step=1, metrics={"fd": 1.0}, file=f"samples/{grid.name}")
                journal.write(state=State.FINISHED, reason="")
    cells = [CellRow(key=key, settings={}, params={"resolution": "8"}) for key in keys]
    with store.held(sweep):
        store.write_sweep(sweep, f"name: {sweep}", cells)
    tracker = Tracker(store, sweep)
    tracker.open("", f"name: {sweep}", cells, "fd")
    assert all(tracker.deliver(Trial(key, TrialSpec(), {})) for key in keys)
    tracker.close(State.FINISHED)


def check(store: Store, *keys: str, sweep: str = SWEEP) -> None:
    """Everything that a report reads is there, once."""
    found = read_sweep_run(sweep, store.tracking_uri)
    assert [cell.key for cell in found.cells] == list(keys)
    assert found.yaml == f"name: {sweep}"
    for key in keys:
        run = found.trials[key]
        assert (run.tags[names.STATE], run.metrics["fd"]) == ("finished", 1.0)
        assert artifact_text(run.id, names.SPEC_FILE, store.tracking_uri)
        with tempfile.TemporaryDirectory() as folder:
            assert sample_grid(run.id, store.tracking_uri, Path(folder)) is not None


def run_count(store: Store, sweep: str = SWEEP) -> int:
    with closing(sqlite3.connect(store.root / "mlflow.db")) as connection:
        query = "SELECT count(*) FROM tags WHERE key = ? AND value = ?"
        (number,) = connection.execute(query, (names.SWEEP, sweep)).fetchone()
    return int(number)


def contents(folder: Path) -> dict[str, str]:
    """The digest of each file below a folder, by its path; links are not followed."""
    return {
        str(Path(parent, name).relative_to(folder)): hashlib.sha256(
            Path(parent, name).read_bytes()
        ).hexdigest()
        for parent, _, files in os.walk(folder)
        for name in files
        if not Path(parent, name).is_symlink()
    }


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which nothing may appear."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_a_copy_is_continued_alone_and_a_move_loses_nothing(
    store: Store, tmp_path: Path, place: str
) -> None:
    submit(store, "a", "b")
    before = contents(store.root)
    copy = Store.at(shutil.copytree(store.root, tmp_path / place))
    check(copy, "a", "b")
    submit(copy, "a", "c")
    check(copy, "a", "c")
    assert run_count(copy) == 4  # the sweep's own, and a, b, c
    assert contents(store.root) == before
    check(store, "a", "b")
    moved = Store.at(shutil.move(copy.root, tmp_path / f"{place} moved"))
    check(moved, "a", "c")
    submit(moved, "a", "c", "d")
    check(moved, "a", "c", "d")
    assert run_count(moved) == 5
    assert contents(store.root) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["lab", "work", f"{place} moved"]
    )
    assert contents(tmp_path / "work") == {}


@pytest.mark.parametrize("linked", ["mlflow.db", "trials/a/journal.jsonl", "sweeps/tracked"])
def test_a_copy_of_hard_links_is_read_and_not_written(
    store: Store, tmp_path: Path, linked: str
) -> None:
    """As `cp -al` makes one: databases and journals are written in place, the other copy's too."""
    submit(store, "a", "b")
    copy = Store.at(shutil.copytree(store.root, tmp_path / "copy"))
    found = store.root / linked
    for file in found.iterdir() if found.is_dir() else [found]:
        there = copy.root / file.relative_to(store.root)
        there.unlink()
        os.link(file, there)
    before = contents(store.root)
    check(copy, "a", "b")
    with pytest.raises(OutOfReach, match=f"{linked}.* is one file with another, as `cp -al` makes"):
        submit(copy, "a", "c")
    assert contents(store.root) == contents(copy.root) == before
    if linked == "mlflow.db":
        with pytest.raises(OutOfReach, match="cp -al"):
            Tracker(copy, SWEEP)
    own = Store.at(shutil.copytree(copy.root, tmp_path / "own"))
    submit(own, "a", "c")
    check(own, "a", "c")
    assert contents(store.root) == before


def test_a_store_reached_by_several_paths_at_once_is_one(store: Store, tmp_path: Path) -> None:
    """As from a container and from its host, or through a link."""
    (tmp_path / "link").symlink_to(store.root)
    linked = Store.at(tmp_path / "link")
    tracker = Tracker(store, SWEEP)
    submit(linked, "a")
    tracker.open("", "", [], "fd")
    submit(store, "a", "b")
    submit(linked, "a", "b", "c")
    check(store, "a", "b", "c")
    check(linked, "a", "b", "c")
    assert run_count(store) == 4
    same = Store.at(linked.root, store.tracking_uri)
    assert same.local_tracking
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab", "link", "work"]


@pytest.mark.parametrize("sweep", ["Default", "..", ".", "a/../../b", "%2e%2e", "x" * 200])
def test_whatever_a_sweep_is_called_its_artifacts_lie_in_the_store(
    store: Store, tmp_path: Path, sweep: str
) -> None:
    submit(store, "a", sweep=sweep)
    check(store, "a", sweep=sweep)
    written = [path for path in contents(tmp_path) if not path.startswith("lab/")]
    assert written == []
    specs = [path for path in contents(store.artifacts) if path.endswith(names.SPEC_FILE)]
    assert len(specs) == 1


@pytest.mark.parametrize("uri", ["mlflow-artifacts:/../x", "mlflow-artifacts:/a/%2e%2e/%2e%2e/x"])
def test_a_location_that_leads_out_of_the_store_is_refused(store: Store, uri: str) -> None:
    with pytest.raises(ValueError, match="leads out of"):
        database.artifact_folder(store.root / "mlflow.db", uri)


def earlier(store: Store, old: str) -> None:
    """Give a store the absolute locations that earlier versions wrote."""
    with closing(sqlite3.connect(store.root / "mlflow.db")) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, 'mlflow-artifacts:', ?)", (old,)
            )
        connection.execute("DELETE FROM experiment_tags WHERE key = ?", (names.SWEEP,))


def locations(store: Store) -> set[str]:
    with closing(sqlite3.connect(store.root / "mlflow.db")) as connection:
        rows = connection.execute("SELECT artifact_uri FROM runs").fetchall()
    return {uri.partition(":")[0] for (uri,) in rows}


@pytest.mark.parametrize("old", ["file:///srv/lab/artifacts", "/srv/lab/artifacts", "original"])
def test_an_earlier_store_is_read_as_it_is_and_mended_when_it_is_written(
    store: Store, tmp_path: Path, old: str
) -> None:
    submit(store, "a", "b")
    copy = Store.at(shutil.copytree(store.root, tmp_path / "copy"))
    for each in (store, copy):
        earlier(each, store.artifacts.as_uri() if old == "original" else old)
    before = contents(store.root), contents(copy.root)
    check(copy, "a", "b")
    assert (contents(store.root), contents(copy.root)) == before
    submit(copy, "a", "b", "c")
    check(copy, "a", "b", "c")
    assert locations(copy) == {"mlflow-artifacts"}
    assert contents(store.root) == before[0]
    assert not Path("/srv/lab").exists()


def test_artifacts_that_an_earlier_version_put_elsewhere_are_delivered_again(store: Store) -> None:
    submit(store, "a", "b")
    shutil.rmtree(next(store.artifacts.glob(f"{SWEEP}/*/artifacts/{names.SPEC_FILE}")).parent)
    submit(store, "a", "b")
    check(store, "a", "b")
    assert run_count(store) == 3


def test_other_tools_experiments_in_a_stores_database_keep_their_places(
    store: Store, tmp_path: Path
) -> None:
    submit(store, "a")
    client = connect(store.tracking_uri)
    theirs = client.create_experiment("theirs", (tmp_path / "theirs").as_uri())
    run = client.create_run(theirs)
    earlier(store, "file:///srv/lab/artifacts")
    submit(store, "a")
    check(store, "a")
    place = client.get_run(run.info.run_id).info.artifact_uri
    assert place.startswith((tmp_path / "theirs").as_uri())


@pytest.mark.parametrize("made", ["now", "by an earlier version", "and used by another tool"])
def test_mlflows_own_experiment_lies_in_the_store_unless_a_tool_has_used_it(
    tmp_path: Path, made: str
) -> None:
    store = Store.at(tmp_path / "new")
    submit(store, "a")
    client = connect(store.tracking_uri)
    if made != "now":
        with closing(sqlite3.connect(store.root / "mlflow.db")) as connection, connection:
            connection.execute(
                "UPDATE experiments SET artifact_location = '/srv/mlruns/0' WHERE experiment_id = 0"
            )
        if "tool" in made:
            client.create_run("0")
        submit(store, "a", "b")
    place = client.get_experiment("0").artifact_location
    assert place == ("/srv/mlruns/0" if "tool" in made else "mlflow-artifacts:/Default")


@pytest.mark.parametrize("tagged", [True, False], ids=["now", "earlier"])
def test_an_experiment_renamed_in_mlflow_is_found(
    store: Store, tagged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    submit(store, "a")
    if not tagged:
        earlier(store, store.artifacts.as_uri())
    client = connect(store.tracking_uri)
    experiment = client.get_experiment_by_name(SWEEP)
    client.rename_experiment(experiment.experiment_id, "better name")
    check(store, "a")
    submit(store, "a", "b")
    check(store, "a", "b")
    assert "the experiment of tracked is called better name in MLflow" in caplog.text
    assert len(client.search_experiments()) == 2  # with MLflow's own
    client.create_experiment(SWEEP)  # by another tool
    check(store, "a", "b")


def test_a_name_that_another_sweeps_experiment_was_given_is_not_taken_over(store: Store) -> None:
    submit(store, "a")
    client = connect(store.tracking_uri)
    client.rename_experiment(client.get_experiment_by_name(SWEEP).experiment_id, "other")
    with pytest.raises(OutOfReach, match="experiment of tracked was renamed to 'other' in MLflow"):
        Tracker(store, "other")


def test_a_deleted_experiment_says_so_and_comes_back(store: Store) -> None:
    submit(store, "a")
    client = connect(store.tracking_uri)
    client.delete_experiment(client.get_experiment_by_name(SWEEP).experiment_id)
    with pytest.raises(UnknownSweepError, match=r"'tracked' .* was deleted in MLflow: submit it"):
        read_sweep_run(SWEEP, store.tracking_uri)
    submit(store, "a", "b")
    check(store, "a", "b")
    assert run_count(store) == 3


def test_a_copy_is_another_store_and_a_moved_one_is_not(store: Store, tmp_path: Path) -> None:
    (name,) = store.identities()
    (store.root / names.STORE_FILE).write_text(name, "utf-8")  # as an earlier version wrote it
    assert store.identities() == [name]
    copy = Store.at(shutil.copytree(store.root, tmp_path / "copy"))
    assert copy.identities()[1:] == [name]
    assert copy.identities() == copy.identities()
    second = Store.at(shutil.copytree(copy.root, tmp_path / "second"))
    assert second.identities()[1:] == copy.identities()
    moved = Store.at(shutil.move(store.root, tmp_path / "moved"))
    assert moved.identities() == [name]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[str]:
    """The address of a database outside every store."""
    if request.param == "postgresql":
        with postgres_server() as server:
            yield server.uri
        return
    file = tmp_path_factory.mktemp("shared") / "shared.db"
    shutil.copy(empty_database, file)
    yield f"sqlite:///{file}"


@pytest.fixture(params=["now", "earlier"])
def sharing(store: Store, shared: str, request: pytest.FixtureRequest) -> Store:
    """A store whose sweep lies in the shared database; earlier versions did not name the store."""
    at = Store.at(store.root, shared)
    submit(at, "a", "b")
    if request.param == "earlier":
        client = connect(shared)
        found = client.get_experiment_by_name(SWEEP)
        client.delete_experiment_tag(found.experiment_id, names.STORE)
    return at


def test_nothing_is_written_into_another_store_of_the_same_database(
    sharing: Store, tmp_path: Path, shared: str
) -> None:
    original = sharing
    before = contents(original.root)
    copy = Store.at(shutil.copytree(original.root, tmp_path / "copy"), shared)
    for other in (copy, Store.at(tmp_path / "independent", shared)):
        with pytest.raises(OutOfReach) as caught:
            submit(other, "a", "c")
        said = redacted(f"'{SWEEP}' in {shared} has its artifacts in {original.artifacts / SWEEP}")
        assert said in str(caught.value)
        assert f"another store than {other.root}" in str(caught.value)
        run = read_sweep_run(SWEEP, shared).id
        with pytest.raises(OutOfReach, match="outside the store"):
            publish_report(other, run, other.sweep(SWEEP) / names.SWEEP_FILE, [])
        submit(other, "a", "c", sweep=f"of {other.root.name}")
        check(other, "a", "c", sweep=f"of {other.root.name}")
    assert contents(original.root) == before
    check(original, "a", "b")
    submit(original, "a", "d")
    check(original, "a", "d")


def test_a_moved_store_takes_its_artifacts_in_a_shared_database_along(
    sharing: Store, tmp_path: Path, shared: str
) -> None:
    before = run_ids(shared)
    old = sharing.root
    moved = Store.at(shutil.move(old, tmp_path / PLACES[1]), shared)
    with pytest.raises(UnknownSweepError, match=r"not there\. Where their store was moved"):
        read_sweep_run(SWEEP, shared)
    shutil.copytree(moved.root, old)  # which is not the store, but may become one
    with pytest.raises(OutOfReach, match="was submitted from another store"):
        submit(moved, "a", "b")
    shutil.rmtree(old)
    submit(moved, "a", "b")
    check(moved, "a", "b")
    assert run_ids(shared) == before
    publish_report(moved, read_sweep_run(SWEEP, shared).id, tmp_path / PLACES[1] / "store.id", [])
    submit(moved, "a", "b", "c")
    check(moved, "a", "b", "c")
    again = Store.at(shutil.move(moved.root, tmp_path / "again"), shared)
    submit(again, "a", "b", "c")
    check(again, "a", "b", "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "work"]


def run_ids(uri: str) -> set[str]:
    return {run.id for run in read_sweep_run(SWEEP, uri).trials.values()}


def test_a_store_reached_by_a_link_keeps_its_place_in_a_shared_database(
    store: Store, tmp_path: Path, shared: str
) -> None:
    (tmp_path / "link").symlink_to(store.root)
    linked = Store.at(tmp_path / "link", shared)
    submit(linked, "a")
    submit(Store.at(store.root, shared), "a", "b")
    submit(linked, "a", "b", "c")
    check(linked, "a", "b", "c")
    assert len(run_ids(shared)) == 3


def test_mlflows_own_experiment_in_a_shared_database_gets_no_artifacts(
    store: Store, shared: str, elsewhere: Path
) -> None:
    with pytest.raises(OutOfReach, match=r"'Default' in .* has its artifacts in .*/mlruns"):
        submit(Store.at(store.root, shared), "a", sweep="Default")
    assert contents(elsewhere) == {}


def test_another_stores_own_database_is_not_written(store: Store, tmp_path: Path) -> None:
    submit(store, "a")
    before = contents(store.root)
    other = Store.at(tmp_path / "other", store.tracking_uri)
    check(other, "a")
    for act in (
        lambda: submit(other, "a"),
        lambda: Tracker(other, SWEEP),
        lambda: publish_report(other, "0" * 32, tmp_path, []),
    ):
        with pytest.raises(OutOfReach, match="is the own database of another store than"):
            act()
    assert contents(store.root) == before


@pytest.mark.slow
def test_a_copy_leaves_the_originals_runs_on_a_shared_server_alone(
    store: Store, tmp_path: Path, server: MlflowServer
) -> None:
    shared = server.uri
    original = Store.at(store.root, shared)
    tracker = Tracker(original, SWEEP)
    tracker.open("", "", [], "fd")
    with Journal(original.trial("a") / names.JOURNAL_FILE) as journal:
        journal.write(state=State.RUNNING)
    tracker.deliver(Trial("a", TrialSpec(), {}))
    copy = Store.at(shutil.copytree(original.root, tmp_path / "copy"), shared)
    with original.claimed("a"):  # the original runs it still
        Tracker(copy, SWEEP).close(State.STOPPED)
    client = connect(shared)
    experiment = client.get_experiment_by_name(SWEEP).experiment_id
    (run,) = client.search_runs([experiment], f"tags.`{names.ROLE}` = 'trial'")
    assert run.info.status == "RUNNING"


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as running:
        yield running


def s3(folder: Path) -> str:
    return "s3://bucket/lab"


def a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file")


def below_a_file(folder: Path) -> str:
    return f"{a_file(folder)}/lab/deep"


def a_dead_link(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "gone")
    return str(folder / "link")


def into_proc(folder: Path) -> str:
    (folder / "link").symlink_to("/proc")
    return str(folder / "link" / "lab")


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (s3, "object stores are not supported"),
        (lambda folder: "s3:bucket", "s3:… is an address"),
        (lambda folder: "user@host:/srv/lab", "user@host:… is an address"),
        (lambda folder: "host:lab", "host:… is an address"),
        (lambda folder: "$HOME/lab", r"no shell has replaced \$HOME: "),
        (lambda folder: f"{folder}/${{USER}}", r"no shell has replaced \$\{USER\}: "),
        (lambda folder: "/proc/lab", "/proc is the system's own"),
        (lambda folder: f"/proc/self/cwd/{folder.name}", "/proc is the system's own"),
        (lambda folder: "/sys/kernel/lab", "/sys is the system's own"),
        (lambda folder: "/dev/null", "/dev is the system's own"),
        (into_proc, "/proc is the system's own"),
        (lambda folder: "gs://bucket", "object stores are not supported"),
        (lambda folder: f"file://{folder}", "is an address"),
        (lambda folder: "http://host:5000", "is an address"),
        (a_file, "must be a folder, and .*/file is a file"),
        (below_a_file, "must be a folder, and .*/file is a file"),
        (a_dead_link, "is a link to .*/gone, which does not exist"),
        (lambda folder: "", "must be the path of a folder"),
        (lambda folder: "  ", "must be the path of a folder"),
        (lambda folder: "a\0b", "must be the path of a folder"),
        (lambda folder: "~nobody-of-this-name/lab", "must be the path of a folder"),
        (lambda folder: "x" * 300, "must be the path of a folder"),
    ],
)
def test_a_place_that_can_be_no_store_is_refused(
    tmp_path: Path, given: Callable[[Path], str], rule: str
) -> None:
    value = given(tmp_path)
    before = list(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=rule) as caught:
        Store.at(value)
    assert repr(value) in str(caught.value)
    assert list(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["lab:1", "a$b", "50$", "proc", "/dev/shm/lab"])
def test_an_unusual_name_is_a_place(tmp_path: Path, place: str) -> None:
    assert Store.at(tmp_path / place).root == tmp_path / place


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://x", "s3://bucket", "runs.db", "./mlruns", "file:///srv/mlruns", "sqlite://",
        "sqlite:/x.db", "sqlite+pysqlite:///x.db", "postgres://u:sesame@h/db", "http:", "https://",
        "localhost:5000", "oracle://h/db", "databricksx",
    ],
)  # fmt: skip
def test_an_address_that_mlflow_does_not_take_is_refused_with_those_it_does(
    tmp_path: Path, uri: str
) -> None:
    with pytest.raises(StoreError, match=r"^tracking URI '.*must be http://.*sqlite:///FILE") as e:
        Store.at(tmp_path, uri)
    assert "sesame" not in str(e.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000", "https://u:p@host/x", "databricks", "databricks://profile",
        "sqlite:////x/y.db", "sqlite:///y.db", "postgresql://h/db", "postgresql+psycopg2://h/db",
        "mysql+pymysql://h/db", "mssql+pyodbc://h/db",
    ],
)  # fmt: skip
def test_an_address_that_mlflow_takes_is_taken(tmp_path: Path, uri: str) -> None:
    assert Store.at(tmp_path, uri).tracking_uri == uri
