"""MLflow's own pages on a store: for this machine only, or for others behind a password."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import click
from filelock import FileLock

from sched_lab.errors import OutOfReach
from sched_lab.redaction import redacted
from sched_lab.store import database
from sched_lab.store.database import database_uri
from sched_lab.store.folder import Store
from sched_lab.tracking.client import environment as mlflow_environment
from sched_lab.tracking.client import is_database

LOOPBACK = "127.0.0.1"


def serve(store: Store, host: str, port: int) -> None:
    """Replace this process by MLflow's server on the store; with a server elsewhere, say where.

    Any host but loopback asks visitors for a password. Raises OutOfReach where none was set up, or
    the store holds no runs.
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
    arguments = ["server", "--host", host, "--port", str(port), "--workers", "1"]
    if not _is_loopback(host):
        environment |= _login(store.root / "dashboard")
        arguments += ["--app-name", "basic-auth"]
    _check_free(host, port)
    click.echo(
        f"dashboard: http://{addresses[0]}   (Ctrl-C ends it; choose Model training, top left)",
        err=True,
    )
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", *arguments], environment)


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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _addresses(host: str, port: int) -> list[str]:
    """HOST:PORT as browsers may write it for a server that listens at `host`, the likeliest
    first.
    """
    if _is_loopback(host):
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


def _login(folder: Path) -> dict[str, str]:
    """The environment of MLflow's login, whose users stand in `folder`. Raises OutOfReach where no
    password is set.
    """
    users = folder / "users.db"
    if find_spec("flask_wtf") is None:
        raise OutOfReach(
            "a dashboard that others can reach needs a login: pip install"
            " 'sched-lab[dashboard-auth]', or leave --host out to open it on this machine only"
        )
    if not users.exists() and len(os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")) < 12:
        raise OutOfReach(
            "a dashboard that others can reach needs a login: set MLFLOW_AUTH_ADMIN_PASSWORD to a"
            " password of 12 characters or more for the user admin, or leave --host out to open it"
            " on this machine only"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = folder / "login.ini"
    settings.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database_uri(users).replace('%', '%%')}\n"
        "admin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
        "utf-8",
    )
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
