"""A store's database is read without a trace, rebuilt where it is lost or damaged, and shared with
who may write the store; no message holds SQL.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sched_lab.errors import OutOfReach
from sched_lab.store.folder import Store
from sched_lab.tracking.reader import UnknownSweepError, read_sweep_run
from tests.conftest import ROOT
from tests.sched_lab.test_place import SWEEP, check, contents, earlier, run_count, submit


@pytest.fixture
def delivered(store: Store) -> Store:
    """A store whose sweep of two trials has run."""
    submit(store, "a", "b")
    return store


def page_size(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[16:18], "big")


DAMAGE = {
    "deleted": lambda content, page: None,
    "emptied": lambda content, page: b"",
    "cut within its head": lambda content, page: content[:50],
    "cut after a page": lambda content, page: content[:page],
    "cut in half": lambda content, page: content[: len(content) // 2 // page * page],
    "cut by a page": lambda content, page: content[:-page],
    "noise": lambda content, page: b"\x17" * 5000,
    "zeros": lambda content, page: bytes(len(content)),
    "a page of zeros": lambda content, page: content[:page] + bytes(page) + content[2 * page :],
    "text": lambda content, page: b"version https://git-lfs.github.com/spec/v1\n" * 30,
}


def begun(file: Path) -> None:
    """A database as a full disk or a kill leaves it while tables are made."""
    file.unlink()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        connection.execute("CREATE TABLE datasets (dataset_id INTEGER)")


def damage(store: Store, how: str) -> bytes:
    """Damage a store's database; what is left of it."""
    file = store.root / "mlflow.db"
    if how == "begun":
        begun(file)
        return file.read_bytes()
    content: bytes | None = DAMAGE[how](file.read_bytes(), page_size(file))
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    return content or b""


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_database_is_named_with_what_to_do(delivered: Store, how: str) -> None:
    damage(delivered, how)
    before = contents(delivered.root)
    with pytest.raises((OutOfReach, UnknownSweepError), match="submitting a sweep again") as told:
        read_sweep_run(SWEEP, delivered.tracking_uri)
    assert "mlflow.db" in str(told.value)
    assert "SQL" not in str(told.value)
    assert contents(delivered.root) == before


def test_a_database_that_outgrows_the_limit_on_files_is_named_with_it(delivered: Store) -> None:
    size = (delivered.root / "mlflow.db").stat().st_size
    script = f"""
import resource, sys
from sched_lab.errors import OutOfReach
from sched_lab.store.folder import Store
from sched_lab.tracking.tracker import Tracker
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try:
    for number in range(500):
        Tracker(Store.at({str(delivered.root)!r}), f"another {{number}}")
except OutOfReach as error:
    print(error)
"""
    said = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, encoding="utf-8")
    assert (
        f"mlflow.db can't be written (disk I/O error): a process may write files of {size:,}"
        in said
    )
    assert "ulimit -f unlimited" in said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "emptied", "cut in half", "noise", "begun"])
def test_a_lost_database_is_set_aside_and_rebuilt(delivered: Store, how: str) -> None:
    left = damage(delivered, how)
    submit(delivered, "a", "b")
    check(delivered, "a", "b")
    assert run_count(delivered) == 3  # the sweep's own and two trials
    aside = delivered.root / "mlflow.db.bad"
    assert (aside.read_bytes() if aside.exists() else b"") == left


@pytest.mark.slow
def test_a_journal_left_of_a_lost_database_is_not_played_into_the_next(delivered: Store) -> None:
    file = delivered.root / "mlflow.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("UPDATE runs SET name = hex(zeroblob(100000))")
        shutil.copy(f"{file}-journal", delivered.root / "left")
        connection.rollback()
    file.unlink()
    (delivered.root / "left").rename(f"{file}-journal")
    submit(delivered, "a", "b")
    check(delivered, "a", "b")


def crashed(store: Store) -> None:
    """Leave the database as a process that was killed in the middle of writing leaves it."""
    script = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE tags SET value = 'damaged'")
connection.execute("UPDATE runs SET name = hex(zeroblob(100000))")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script, str(store.root / "mlflow.db")], check=True)
    assert (store.root / "mlflow.db-journal").exists()


def test_a_database_that_a_crash_left_half_written_is_read_without_mending_it(
    delivered: Store,
) -> None:
    crashed(delivered)
    before = contents(delivered.root)
    check(delivered, "a", "b")
    assert contents(delivered.root) == before
    submit(delivered, "a", "b", "c")
    check(delivered, "a", "b", "c")
    assert not (delivered.root / "mlflow.db.bad").exists()


def test_tables_of_an_earlier_mlflow_are_read_from_a_copy_and_brought_up_to_date(
    delivered: Store,
) -> None:
    """The last migration only: it is taken back as MLflow's own script says."""
    from alembic import command
    from mlflow.store.db import utils
    from sqlalchemy import create_engine

    engine = create_engine(delivered.tracking_uri)
    configured = utils._get_alembic_config(delivered.tracking_uri)
    with engine.begin() as connection:
        configured.attributes["connection"] = connection
        try:
            command.downgrade(configured, "-1")
        except NotImplementedError:
            pytest.skip("MLflow's last migration can't be taken back")
    engine.dispose()
    before = contents(delivered.root)
    check(delivered, "a", "b")
    assert contents(delivered.root) == before
    submit(delivered, "a", "c")
    check(delivered, "a", "c")


READS = """
from tests.sched_lab.test_place import check
check(Store.at(sys.argv[1]), "a", "b")
"""
SUBMITS = """
from tests.sched_lab.test_place import submit
submit(Store.at(sys.argv[1]), *sys.argv[2:])
"""


def as_user(user: int, script: str, *arguments: object, umask: int) -> tuple[int, str]:
    """Run a script as a user of the group 4242: the exit code, and what it said last.

    The user may read everything, as the interpreter may lie in a folder of root's.
    """
    only = "-all,+dac_read_search"
    command = [
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--groups=4242"),
        *(f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}"),
        *(sys.executable, "-c", f"import sys\nfrom sched_lab.store.folder import Store{script}"),
        *map(str, arguments),
    ]
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, user, -1)
        done = subprocess.run(
            command, cwd=ROOT, umask=umask, capture_output=True, encoding="utf-8", check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": home},
        )  # fmt: skip
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


def may_change_user() -> bool:
    return os.geteuid() == 0 and shutil.which("setpriv") is not None


only_root = pytest.mark.skipif(not may_change_user(), reason="only root may become another user")


@pytest.fixture
def shared(delivered: Store) -> Iterator[Store]:
    """The store, in a folder that two users of a group share, and that others may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder, "lab")
        shutil.copytree(delivered.root, root)
        yield Store.at(root)


@only_root
@pytest.mark.slow
@pytest.mark.parametrize("state", ["now", "earlier", "crashed"])
def test_reading_writes_nothing_and_needs_no_right_to(shared: Store, state: str) -> None:
    if state == "earlier":
        earlier(shared, "file:///srv/lab/artifacts")
    elif state == "crashed":
        crashed(shared)
    before = contents(shared.root)
    stamps = {path: path.stat().st_mtime_ns for path in shared.root.rglob("*")}
    assert as_user(4001, READS, shared.root, umask=0o022) == (0, "")
    assert contents(shared.root) == before
    assert {path: path.stat().st_mtime_ns for path in shared.root.rglob("*")} == stamps


@only_root
@pytest.mark.slow
def test_two_users_of_a_group_share_a_store(shared: Store) -> None:
    shutil.rmtree(shared.root)
    shared.root.mkdir()
    os.chown(shared.root, -1, 4242)
    shared.root.chmod(0o2775)
    assert as_user(4001, SUBMITS, shared.root, "a", "b", umask=0o002) == (0, "")
    assert as_user(4002, SUBMITS, shared.root, "a", "c", umask=0o002) == (0, "")
    assert as_user(4001, SUBMITS, shared.root, "a", "b", "c", umask=0o002) == (0, "")
    check(shared, "a", "b", "c")
    for path in (shared.root, *shared.root.rglob("*")):
        assert path.stat().st_gid == 4242
        assert path.stat().st_mode & stat.S_IWGRP, path


@only_root
@pytest.mark.slow
def test_what_another_user_keeps_to_himself_is_named_with_its_owner(shared: Store) -> None:
    os.chown(shared.root, -1, 4242)
    shared.root.chmod(0o2775)
    code, said = as_user(4001, SUBMITS, shared.root, "a", "b", umask=0o002)
    assert code
    assert "belongs to root and can't be written by this user: ask root to `chmod -R g+rwX`" in said
    assert "SQL" not in said
