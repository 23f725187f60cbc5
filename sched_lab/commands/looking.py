"""The commands that look at what has run: status, show, logs, dashboard."""

from __future__ import annotations

from collections import Counter

import click

from sched_lab import names
from sched_lab.commands.answers import print_json, the_one, unknown
from sched_lab.options import json_option, store_option, tracking_option
from sched_lab.store import Store


@click.command(short_help="How sweeps stand.")
@click.argument("sweep", required=False)
@store_option
@json_option
def status(sweep: str | None, store: str | None, as_json: bool) -> None:
    """How the sweeps of a store stand, or the cells of one SWEEP.

    \b
    Example:
      sched-lab status
      sched-lab status quickstart
    """
    from sched_lab.inspection import cell_states, trial_line

    where = Store.at(store)
    sweeps = where.sweeps()
    if sweep is not None:
        if sweep not in sweeps:
            unknown("sweep", sweep, sweeps, where)
        rows = cell_states(where, sweeps[sweep])
        if as_json:
            return print_json(rows)
        for row in rows:
            click.echo(trial_line(row))
        return None
    counts = {name: Counter(row["state"] for row in cell_states(where, cells)) for name, cells in sweeps.items()}
    if as_json:
        return print_json({name: dict(count) for name, count in counts.items()})
    for name, count in counts.items():
        click.echo(f"{name}: {', '.join(f'{n} {state}' for state, n in sorted(count.items()))}")
    if not counts:
        click.echo(f"no sweep has been submitted to {where.root}")
    return None


@click.command(short_help="One trial: settings, state, scores, files.")
@click.argument("key")
@store_option
@json_option
def show(key: str, store: str | None, as_json: bool) -> None:
    """One trial: its settings, state, scores and files. KEY may be the first digits of a key.

    \b
    Example:
      sched-lab show 3f2a
    """
    from sched_lab.inspection import describe, find

    where = Store.at(store)
    trial = describe(where, the_one(find(where, key), key, where))
    if as_json:
        return print_json(trial)
    for name in ("key", "state", "failure", "reason", "step", "loss"):
        if trial.get(name) not in (None, ""):
            value = trial[name]
            click.echo(f"{name:<10} {f'{value:.6g}' if isinstance(value, float) else value}")
    for name, value in {**trial["scores"], **{f"seconds {k}": v for k, v in trial["seconds"].items()}}.items():
        click.echo(f"{name:<24} {'missing' if value is None else f'{value:.6g}'}")
    for name, value in trial["params"].items():
        click.echo(f"{name:<28} {value}")
    click.echo(f"folder     {trial['folder']}")
    return None


@click.command(short_help="What a trial printed and logged.")
@click.argument("key")
@store_option
def logs(key: str, store: str | None) -> None:
    """What a trial printed and logged, with the traceback of any error.

    \b
    Example:
      sched-lab logs 3f2a
    """
    from sched_lab.inspection import find

    where = Store.at(store)
    log = where.trial(the_one(find(where, key), key, where)) / names.LOG_FILE
    text = log.read_text(errors="replace") if log.exists() else ""
    click.echo(text or "nothing was printed or logged\n", nl=False)


@click.command(short_help="MLflow's pages on the store.")
@store_option
@tracking_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; any other asks to log in.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def dashboard(store: str | None, tracking_uri: str | None, host: str, port: int) -> None:
    """Open MLflow's pages on this store until Ctrl-C: on this machine only, unless --host says otherwise.

    With another --host, $MLFLOW_AUTH_ADMIN_PASSWORD is the password of the user admin, who can add others.

    \b
    Example:
      sched-lab dashboard --port 5001
    """
    from sched_lab.dashboard import serve

    serve(Store.at(store, tracking_uri), host, port)
