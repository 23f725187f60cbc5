"""MLflow's own pages on a store, for this machine only."""

from __future__ import annotations

import os
import sys

import click

from sched_lab.store import OutOfReach, Store


def serve(store: Store, port: int) -> None:
    """Replace this process by MLflow's server on the store, on loopback; with a server elsewhere, say where."""
    if not store.local_tracking:
        click.echo(f"the runs are on {store.tracking_uri}: open that address")
        return
    if not (store.root / "mlflow.db").exists():
        raise OutOfReach(f"{store.root} holds no runs yet: submit a sweep first, or name the store with --store")
    hosts = f"localhost:{port},127.0.0.1:{port}"
    arguments = [
        "server",
        "--backend-store-uri",
        store.tracking_uri,
        "--default-artifact-root",
        store.artifacts.as_uri(),
    ]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--allowed-hosts", hosts, "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    click.echo(f"dashboard: http://127.0.0.1:{port}   (Ctrl-C ends it)", err=True)
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", *arguments], {**quiet, **os.environ})
