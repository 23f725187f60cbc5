"""Real servers for tests, each on its own free loopback port: MLflow's, and PostgreSQL where it is
installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

START_SECONDS = 120.0


class Server:
    """A server that can be stopped, killed, paused, and started again."""

    def __init__(
        self, uri: str, command: Sequence[str], log: Path, user: str | None = None
    ) -> None:
        self.uri, self._command, self._log, self._user = uri, command, log, user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        kept = {
            n: v for n, v in os.environ.items() if not n.startswith(("SCHED_LAB", "MLFLOW", "PG"))
        }
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._log.parent,
                env=kept | quiet,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            assert self._process.poll() is None, (
                f"ended at once: {self._log.read_text('utf-8')[-2000:]}"
            )
            assert time.monotonic() < deadline, (
                f"does not answer: {self._log.read_text('utf-8')[-2000:]}"
            )
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it can be used now."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ask it to end, and wait for that."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would: nothing is finished or written."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: connections are taken and never answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after a pause."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> list[psutil.Process]:
        """Signal the server and all its descendants: PostgreSQL's leave its process group."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        family = [server, *server.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return family

    def _end(self, number: int) -> None:
        """End all of it, with force where it does not go; without effect where it has ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            family = self._signal(signal.SIGCONT)
            self._process.send_signal(number)
            if number != signal.SIGKILL:
                psutil.wait_procs(family, timeout=20)
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
            psutil.wait_procs(family, timeout=20)
        self._process = None


class MlflowServer(Server):
    """`mlflow server` over a database; artifacts go through it into its folder."""

    def __init__(self, folder: Path, database: str, login: str = "", remembers: int = 0) -> None:
        """With a `login`, a user's name and password, it takes nobody without, and remembers for so
        many seconds that they were right.
        """
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += ["--workers", "1", "--backend-store-uri", database]
        command += ["--artifacts-destination", (folder / "served").as_uri()]
        if login:
            name, password = login.split(":")
            (folder / "login.ini").write_text(
                "[mlflow]\ndefault_permission = READ\n"
                f"database_uri = sqlite:///{folder / 'users.db'}\n"
                f"admin_username = {name}\nadmin_password = {password}\n"
                f"auth_cache_ttl_seconds = {remembers}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
                encoding="utf-8",
            )
            settings = f"MLFLOW_AUTH_CONFIG_PATH={folder / 'login.ini'}"
            key = "MLFLOW_FLASK_SERVER_SECRET_KEY=of-a-test"
            command = ["env", settings, key, *command, "--app-name", "basic-auth"]
        self._health = f"http://127.0.0.1:{port}/health"
        uri = f"http://{login}@127.0.0.1:{port}" if login else f"http://127.0.0.1:{port}"
        super().__init__(uri, command, folder / "mlflow-server.log")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._health, timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class PostgresServer(Server):
    """A PostgreSQL cluster of its own, whose superuser is `lab` with any password."""

    def __init__(self, folder: Path, binaries: Path, user: str | None) -> None:
        self._port = free_port()
        data = folder / "data"
        setup = [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "lab",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(setup, check=True, capture_output=True, user=user, cwd=folder)
        command = [
            str(binaries / "postgres"),
            "-D",
            str(data),
            "-h",
            "127.0.0.1",
            "-p",
            str(self._port),
        ]
        command += ["-c", "unix_socket_directories=", "-c", "fsync=off"]
        uri = f"postgresql://lab:secret@127.0.0.1:{self._port}/postgres"
        super().__init__(uri, command, folder / "postgres.log", user)

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.uri, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def mlflow_server(
    folder: Path, database: str | None = None, login: str = "", remembers: int = 0
) -> Iterator[MlflowServer]:
    """A running MLflow server over `database`, else over an SQLite file in `folder`; with a
    `login`, a name and a password, behind that; see `MlflowServer`.
    """
    server = MlflowServer(folder, database or f"sqlite:///{folder / 'server.db'}", login, remembers)
    with _running(server):
        yield server


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running, empty PostgreSQL; skips the test where it is not installed."""
    pytest.importorskip("psycopg")
    found = shutil.which("initdb")
    folders = (
        [Path(found).resolve().parent]
        if found
        else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    )
    if not folders or not (folders[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed: no initdb")
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="sched-lab-postgres-"))
    try:
        if user:
            shutil.chown(folder, user)
        server = PostgresServer(folder, folders[-1], user)
        with _running(server):
            yield server
    finally:
        shutil.rmtree(folder)


@contextmanager
def _running(server: Server) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.kill()


def free_port() -> int:
    """A port of this machine's that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
