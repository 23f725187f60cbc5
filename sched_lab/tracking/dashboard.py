"""MLflow's own pages on a store: for its user on this machine, or for others behind a password."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import FrameType

import click
from filelock import FileLock

from sched_lab.errors import Interrupted, OutOfReach
from sched_lab.redaction import redacted
from sched_lab.store import database
from sched_lab.store.database import database_uri
from sched_lab.store.folder import Store
from sched_lab.tracking.client import environment as mlflow_environment
from sched_lab.tracking.client import is_database
from sched_lab.tracking.pages import TRAINING

LOOPBACK = "127.0.0.1"
USER = "admin"
TOKEN = "SCHED_LAB_DASHBOARD_TOKEN"  # the variable in which the server finds the token


def serve(store: Store, host: str, port: int, *, password: bool = True) -> None:
    """Run MLflow's server on the store until a signal ends it; with a server elsewhere, say where.

    On loopback, visitors need the token of the printed address unless `password` is off; at any
    other host they are asked for a password. Raises OutOfReach where none was set up, the store
    holds no runs, or the server does not start, and Interrupted at a signal other than Ctrl-C.
    """
    if not is_database(store.tracking_uri):
        click.echo(f"the runs are on {redacted(store.tracking_uri)}: open that address")
        return
    if store.local_tracking and not (store.root / "mlflow.db").exists():
        raise OutOfReach(
            f"{store.root} holds no runs yet: submit a sweep first, or name the store with --store"
        )
    addresses = _addresses(host, port)
    # Not in the arguments, which every user of the machine can read.
    environment = {
        **mlflow_environment(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(addresses),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
            f"http://{address}" for address in addresses
        ),
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": _served(store),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"{database.RELATIVE}/",
        "MLFLOW_ARTIFACTS_DESTINATION": store.artifacts.as_uri(),
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1"]
    with ExitStack() as stack:
        token = ""
        if not is_loopback(host):
            environment |= _login(store.root / "dashboard")
        elif password:
            token = secrets.token_urlsafe(24)
            folder = stack.enter_context(TemporaryDirectory(prefix="sched-lab-dashboard-"))
            environment |= _token_login(Path(folder), token)
        if password:
            command += ["--app-name", "basic-auth"]
        _check_free(host, port)
        server = stack.enter_context(_running(command, environment))
        _await(server, host, port)
        entry = f"?token={token}" if token else ""
        click.echo(
            f"dashboard: http://{addresses[0]}/{entry}#/experiments?{TRAINING}   (Ctrl-C ends it)",
            err=True,
        )
        sys.stderr.flush()
        with suppress(KeyboardInterrupt):
            if code := server.wait():
                raise OutOfReach(f"MLflow's server ended with exit code {code}")


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server, which ends with its children when the context does, and when a signal says so."""
    received: list[int] = []

    def end(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.signal(number, end) for number in numbers}
    # In a group of its own: it hears of the end from us, once.
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        yield server
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                server.wait(patience)
        for number, handler in before.items():
            signal.signal(number, handler)
    if received and received[0] != signal.SIGINT:
        raise Interrupted(received[0])


def _await(server: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Return once the server listens. Raises OutOfReach where it ends before that."""
    here = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    while True:
        with suppress(OSError), socket.create_connection((here, port), timeout=5):
            return
        if server.poll() is not None:
            raise OutOfReach(f"MLflow's server ended with exit code {server.returncode}")
        time.sleep(0.1)


def _served(store: Store) -> str:
    """The address of the database to serve: a private copy where the store can't be written."""
    if not store.local_tracking:
        return store.tracking_uri
    file = store.root / database.DATABASE
    if not (os.access(file, os.W_OK) and os.access(store.root, os.W_OK)):
        return database_uri(database.private_copy(file))
    with FileLock(f"{file}.lock"):
        if not database.prepare(file):
            raise OutOfReach(f"{file} holds nothing: {database.REBUILT}")
    if "%" in store.tracking_uri:  # of which MLflow would make a folder
        link = Path(mkdtemp(prefix="sched-lab-"), "store")
        link.symlink_to(store.root)
        return database_uri(link / file.name)
    return store.tracking_uri


def _check_free(host: str, port: int) -> None:
    """Raise OutOfReach where nothing can listen at this address; MLflow only logs that."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probe.bind(address)
    except OSError as error:
        raise OutOfReach(
            f"nothing can listen at {host}:{port} ({error.strerror}): choose another --port or"
            " --host"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _addresses(host: str, port: int) -> list[str]:
    """HOST:PORT as browsers may write it for a server that listens at `host`, the likeliest
    first.
    """
    if is_loopback(host):
        hosts = [host, LOOPBACK, "localhost"]
    elif host in ("0.0.0.0", "::"):
        hosts = [_address_outside(), socket.gethostname(), socket.getfqdn(), LOOPBACK, "localhost"]
    else:
        hosts = [host]
    return [
        f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in dict.fromkeys(hosts)
    ]


def _address_outside() -> str:
    """This machine's address in its default network; to learn it sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: nobody's
        except OSError:
            return LOOPBACK
        return str(probe.getsockname()[0])


def _token_login(folder: Path, token: str) -> dict[str, str]:
    """The environment of a server that takes whoever has the token; its files are in `folder`."""
    settings = folder / "login.ini"
    _write_login(settings, folder / "users.db", "sched_lab.tracking.door:authorize")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(24),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        TOKEN: token,
    }


def _write_login(settings: Path, users: Path, authorization: str) -> None:
    settings.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database_uri(users).replace('%', '%%')}\n"
        f"admin_username = {USER}\n"
        f"authorization_function = {authorization}\n",
        encoding="utf-8",
    )


def _login(folder: Path) -> dict[str, str]:
    """The environment of MLflow's login, whose users stand in `folder`. Raises OutOfReach where no
    password is set.
    """
    users = folder / "users.db"
    if not users.exists() and len(os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")) < 12:
        raise OutOfReach(
            "a dashboard that others can reach needs a login: set MLFLOW_AUTH_ADMIN_PASSWORD to a"
            " password of 12 characters or more for the user admin, or leave --host out to open it"
            " on this machine only"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = folder / "login.ini"
    _write_login(settings, users, "mlflow.server.auth:authenticate_request_basic_auth")
    click.echo(
        f"login: admin, with the password first set; users are kept in {users} (delete it to set"
        " the password anew)\nwarning: plain HTTP does not hide passwords and pages on their way;"
        " keep to networks you trust, or put a proxy with TLS before it",
        err=True,
    )
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": (
            os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32)
        ),
    }
