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
from sched_lab.tracking.pages import LIST
from sched_lab.tracking.reader import entry_page

LOOPBACK = "127.0.0.1"
USER, USERS = "admin", "users.db"
ADMIN_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
TOKEN = "SCHED_LAB_DASHBOARD_TOKEN"  # the variable in which the server finds the token
BY_PASSWORD = "mlflow.server.auth:authenticate_request_basic_auth"


def serve(
    store: Store, host: str, port: int, sweep: str | None = None, *, password: bool = True
) -> None:
    """Run MLflow's server on the store until a signal ends it; with a server elsewhere, say where.

    The address that is printed opens on the trials of `sweep`, or of the only sweep there is. On
    loopback, visitors need the token in it unless `password` is off; at any other host they are
    asked for a password. Raises OutOfReach where none was set up, the store holds no runs, or the
    server does not start, UnknownSweepError, and Interrupted at a signal other than Ctrl-C.
    """
    if not is_database(store.tracking_uri):
        elsewhere = redacted(store.tracking_uri).rstrip("/")
        if elsewhere.startswith("http"):
            elsewhere += f"/{entry_page(sweep, store.tracking_uri) if sweep else LIST}"
        click.echo(f"the runs are on another server: open {elsewhere}")
        return
    if store.local_tracking and not (file := store.root / database.DATABASE).exists():
        raise OutOfReach(database.missing(file))
    _check_free(host, port)
    served, addresses = _served(store), _addresses(host, port)
    # Not in the arguments, which every user of the machine can read.
    environment = _environment(addresses) | {
        "MLFLOW_BACKEND_STORE_URI": served,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"{database.RELATIVE}/",
        "MLFLOW_ARTIFACTS_DESTINATION": store.artifacts.as_uri(),
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1", "--app-name", "basic-auth"]
    command += ["--uvicorn-opts", "--log-level warning"]
    with ExitStack() as stack:
        token = ""
        if is_loopback(host):
            token = secrets.token_urlsafe(24) if password else ""
            folder = stack.enter_context(TemporaryDirectory(prefix="sched-lab-dashboard-"))
            environment |= _login(Path(folder), "sched_lab.tracking.door:authorize")
            environment |= {ADMIN_PASSWORD: secrets.token_urlsafe(24), TOKEN: token}
        else:
            _check_password(store.root / "dashboard")
            environment |= _login(store.root / "dashboard", BY_PASSWORD)
        click.echo("starting MLflow's server …", err=True)
        server = stack.enter_context(_running(command, environment))
        page = entry_page(sweep, served)  # while the server starts
        _await(server, host, port)
        entry = f"?token={token}" if token else ""
        click.echo(f"dashboard: http://{addresses[0]}/{entry}{page}   (Ctrl-C ends it)", err=True)
        sys.stderr.flush()
        with suppress(KeyboardInterrupt):
            if code := server.wait():
                raise OutOfReach(f"MLflow's server ended with exit code {code}")


def _environment(addresses: list[str]) -> dict[str, str]:
    """The environment of a server at these addresses that says little and runs no commands."""
    return {
        **mlflow_environment(),
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "MLFLOW_ENABLE_ASSISTANT_SANDBOX": "true",  # else its commands run on this machine
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(addresses),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{each}" for each in addresses),
        **os.environ,
    }


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
    # Its standard output says who asked for what, the token among it.
    server = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
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
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise OutOfReach(
            f"no server can listen: {error.strerror}; choose another --port or --host"
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


def _login(folder: Path, authorization: str) -> dict[str, str]:
    """The environment of a server whose users stand in `folder`, and that lets in by a function."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = folder / "login.ini"
    settings.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database_uri(folder / USERS).replace('%', '%%')}\n"
        f"admin_username = {USER}\n"
        f"authorization_function = {authorization}\n",
        encoding="utf-8",
    )
    secret = os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret,
    }


def _check_password(folder: Path) -> None:
    """Say how to log in. Raises OutOfReach where no password is set."""
    users = folder / USERS
    if not users.exists() and len(os.environ.get(ADMIN_PASSWORD, "")) < 12:
        raise OutOfReach(
            f"a dashboard that others can reach needs a login: set {ADMIN_PASSWORD} to a"
            f" password of 12 characters or more for the user {USER}, or leave --host out to open"
            " it on this machine only"
        )
    click.echo(
        f"login: {USER}, with the password first set; users are kept in {users} (delete it to set"
        " the password anew)\nwarning: plain HTTP does not hide passwords and pages on their way;"
        " keep to networks you trust, or put a proxy with TLS before it",
        err=True,
    )
