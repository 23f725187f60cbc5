"""The store's own MLflow database as a file: made for all who may write its folder, set aside where
it is damaged, read without a trace, and free of the store's place.

MLflow records where a run's artifacts lie. In a store's own database that is
`mlflow-artifacts:/SWEEP/RUN/artifacts`, which whoever opens the database resolves within the
store's folder of artifacts. Databases of earlier versions hold absolute paths.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, unquote, urlsplit

from sched_lab import names
from sched_lab.errors import OutOfReach
from sched_lab.store.records import warn
from sched_lab.trainers.files import replacing
from sched_lab.trainers.results import SET_ASIDE

DATABASE = "mlflow.db"  # in the root folder of a store
ARTIFACTS = "artifacts"  # the folder beside it
SCHEME = "mlflow-artifacts"  # of locations that MLflow resolves where it serves them
RELATIVE = f"{SCHEME}:"
_SQLITE = "sqlite:///"
_BESIDE = ("-journal", "-wal")  # end the names of what SQLite keeps beside a database
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
FILE_SIZE = 2**26  # bytes that a database and a checkpoint soon take
REBUILT = "submitting a sweep again rebuilds its runs from the store's journals"


def database_uri(file: Path) -> str:
    """The address of an SQLite database, whatever its path holds."""
    # SQLAlchemy gives a meaning to these two characters alone
    return _SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def database_file(uri: str) -> Path | None:
    """The file of an SQLite database, absolute; None for any other address."""
    return Path(unquote(uri.removeprefix(_SQLITE))).absolute() if uri.startswith(_SQLITE) else None


def missing(file: Path) -> str:
    """Why nothing can be read from a database that is not there or empty, and what to do."""
    if not (file.parent / "trials").is_dir():
        return (
            f"{file.parent} holds no runs yet: submit a sweep first, or name the store with --store"
        )
    return f"{file} {'is empty' if file.exists() else 'does not exist'}: {REBUILT}"


def location(*parts: str) -> str:
    """Where these parts of a path lie within a store's folder of artifacts, as MLflow holds it."""
    return f"{RELATIVE}/{'/'.join(map(quote, parts))}"


def artifact_folder(database: Path, uri: str) -> Path:
    """The folder that such a location means to a database. Raises ValueError where it leads out
    of the folder of artifacts.
    """
    parts = unquote(urlsplit(uri).path).strip("/").split("/")
    if ".." in parts:
        raise ValueError(f"{uri} leads out of {database.parent / ARTIFACTS}")
    return database.parent.joinpath(ARTIFACTS, *parts)


def is_own(database: Path) -> bool:
    """Whether a database is some store's own, and not one that the user shares among tools."""
    return database.name == DATABASE and (database.parent / names.STORE_FILE).exists()


def prepare(file: Path) -> bool:
    """Make a database ready to be written: whole and, as a store's own, with locations that do not
    depend on the store's place. The caller holds its lock.

    False where it is still to be made, as after a damaged one of a store was set aside. Raises
    OutOfReach where it can't be written.
    """
    for each in (file, file.parent):
        if each.exists() and not os.access(each, os.W_OK):
            raise OutOfReach(not_writable(each))
    if is_own(file) and _is_begun(file):
        if damage := _damage(file, "rw"):
            file.replace(f"{file}{SET_ASIDE}")
            warn(file, f"damaged ({damage}) and set aside as {file.name}{SET_ASIDE}; {REBUILT}")
        else:
            with _opened(file, "rw") as connection:
                _retarget(connection, RELATIVE)
    if _is_begun(file):
        return True
    for left in _beside(file):  # of another database: SQLite would play it back into the next one
        left.unlink(missing_ok=True)
    return False


@contextmanager
def making(file: Path) -> Iterator[Path]:
    """A path at which to make a database that will stand at `file`, whole or not at all."""
    with replacing(file) as part:
        # SQLite keeps others of the group from writing a file that it makes itself
        os.close(os.open(part, os.O_CREAT | os.O_RDWR, 0o666))
        yield part


def _is_begun(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def place_experiment(file: Path, experiment: str, folder: str) -> None:
    """Have an experiment's artifacts lie in this folder of the store's folder of artifacts."""
    with _opened(file, "rw") as connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
            (location(folder), int(experiment)),
        )


def place_default(file: Path) -> None:
    """Have the artifacts of the experiment that MLflow makes by itself lie in the store, where no
    tool has used that yet. MLflow would write into the folder in which the database was made.
    """
    with _opened(file, "rw") as connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0"
            " AND artifact_location NOT LIKE ? AND experiment_id NOT IN"
            " (SELECT experiment_id FROM runs)",
            (location("Default"), f"{RELATIVE}%"),
        )


def readable(file: Path) -> Path:
    """A database that holds what `file` does and can be read without writing to its folder:
    `file` itself, or a private copy.

    Raises FileNotFoundError where there is no database or nothing in it yet, and OutOfReach where
    it is damaged.
    """
    stats = [file.stat(), *(each.stat() for each in _beside(file) if each.exists())]
    return _readable(file, *((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats))


@lru_cache(maxsize=8)
def _readable(file: Path, *version: tuple[int, ...]) -> Path:
    if damage := _damage(file, "ro"):
        raise OutOfReach(f"{file} is damaged ({damage}): {REBUILT}")
    try:
        with _opened(file, "ro") as connection:
            if not _has_experiments(connection):
                raise FileNotFoundError(f"nothing in {file} yet")
            if not is_own(file) or not list(_misplaced(connection, RELATIVE)):
                return file
    except sqlite3.OperationalError:  # such as a journal that a crash left in a read-only folder
        pass
    return private_copy(file)


def private_copy(file: Path) -> Path:
    """A copy of a database in a folder of this process's own, with locations in the store's present
    folder of artifacts.
    """
    folder = TemporaryDirectory(prefix="sched-lab-read-")
    _copies.append(folder)
    copy = Path(folder.name, file.name)
    try:
        with _opened(file, "ro") as source, _opened(copy, "rwc") as target:
            source.backup(target)
    except sqlite3.OperationalError:
        for each in (file, *_beside(file)):
            if each.exists():
                shutil.copyfile(each, copy.with_name(each.name))
    if damage := _damage(copy, "rw"):
        raise OutOfReach(f"{file} is damaged ({damage}): {REBUILT}")
    if is_own(file):
        with _opened(copy, "rw") as connection:
            _retarget(connection, (file.parent / ARTIFACTS).as_uri())
    return copy


_copies: list[TemporaryDirectory[str]] = []  # until the process ends


def not_writable(path: Path) -> str:
    """Why this process may not write a file or folder, and what to do."""
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path} is on a disk that is read-only: write to another folder, or copy the store"
    if path.stat().st_uid == os.getuid():
        return f"{path} is read-only: `chmod -R u+w` it, or write to another folder"
    try:
        owner = path.owner()
    except KeyError:  # a user without a name
        owner = f"user {path.stat().st_uid}"
    return (
        f"{path} belongs to {owner} and can't be written by this user: ask {owner} to `chmod -R"
        f" g+rwX` it for a group that both are in, or write to another folder"
    )


def size_limit(enough: float = math.inf) -> str:
    """How large a file this process may write, and what to do; empty where that is `enough`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY or soft >= enough:
        return ""
    return f"a process may write files of {soft:,} bytes at most: raise it with ulimit -f unlimited"


def shared_by_links(file: Path) -> str:
    """What to do about a file that hard links share with another folder; empty where none does."""
    if not file.is_file() or file.stat().st_nlink == 1:
        return ""
    return (
        f"{file} is one file with another, as `cp -al` makes: what is written here would be written"
        " there. Copy the store with `cp -r`, and use that copy"
    )


def in_words(error: OSError) -> str:
    """What an error of the operating system says: of a file that can't be written, whose it is."""
    if error.errno == errno.EFBIG:
        return f"{error}: {size_limit()}"
    path = Path(os.fsdecode(error.filename)) if error.filename is not None else None
    if path is not None and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        there = next((each for each in (path, *path.parents) if _is_there(each)), path)
        if _is_there(there) and not os.access(there, os.W_OK):
            return not_writable(there)
    return str(error)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def _beside(file: Path) -> list[Path]:
    return [file.with_name(f"{file.name}{end}") for end in _BESIDE]


def _damage(file: Path, mode: str) -> str:
    """What is wrong with a database; empty where nothing is, or where it can't be known."""
    try:
        with _opened(file, mode) as connection:
            (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if told == "ok":
                return (
                    "" if mode == "ro" or _has_experiments(connection) else "it was never finished"
                )
        return str(told).splitlines()[-1]
    except sqlite3.OperationalError:
        return ""
    except sqlite3.DatabaseError as error:
        return str(error) if is_damage(error) else ""


def _has_experiments(connection: sqlite3.Connection) -> bool:
    """Whether MLflow has made all its tables: the last thing is to put its own experiment there."""
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'")
    return bool(tables.fetchone() and connection.execute("SELECT 1 FROM experiments").fetchone())


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the database is not whole."""
    return getattr(error, "sqlite_errorname", "").startswith(_DAMAGE)


@contextmanager
def _opened(file: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(file))}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=20)) as connection, connection:
        yield connection


def _retarget(connection: sqlite3.Connection, base: str) -> None:
    """Have all locations of this project's experiments and runs begin with `base`."""
    for table, column, key, row, uri in list(_misplaced(connection, base)):
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (uri, row))


def _misplaced(
    connection: sqlite3.Connection, base: str
) -> Iterable[tuple[str, str, str, object, str]]:
    """The locations that do not begin with `base`: their table, column, key and row, and what they
    should be.

    The runs of other tools in the database, and what lies on no disk, keep theirs.
    """
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'tags'").fetchone():
        return
    ours = f"SELECT run_uuid FROM tags WHERE key = '{names.ROLE}'"
    for table, column, key, which, depth in (
        ("runs", "artifact_uri", "run_uuid", f"run_uuid IN ({ours})", 3),
        (
            "experiments",
            "artifact_location",
            "experiment_id",
            f"experiment_id IN (SELECT experiment_id FROM runs WHERE run_uuid IN ({ours}))",
            1,
        ),
    ):
        query = f"SELECT {key}, {column} FROM {table} WHERE {which}"
        for row, uri in connection.execute(query):
            if not uri.startswith(f"{base}/") and urlsplit(uri).scheme in ("", "file", SCHEME):
                yield table, column, key, row, "/".join([base, *uri.split("/")[-depth:]])
