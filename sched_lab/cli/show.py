"""`sched-lab show`: one trial."""

from __future__ import annotations

import click

from sched_lab.cli.answers import print_json, the_one
from sched_lab.cli.options import json_option, store_option
from sched_lab.store.folder import Store


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
    from sched_lab.store.inspection import describe, find

    where = Store.at(store)
    trial = describe(where, the_one(find(where, key), key, where))
    if as_json:
        return print_json(vars(trial))
    for name in ("key", "state", "failure", "reason", "step", "loss"):
        if (value := getattr(trial, name)) not in (None, ""):
            click.echo(f"{name:<10} {f'{value:.6g}' if isinstance(value, float) else value}")
    for name, value in {
        **trial.scores,
        **{f"seconds {k}": v for k, v in trial.seconds.items()},
    }.items():
        click.echo(f"{name:<24} {'missing' if value is None else f'{value:.6g}'}")
    for name, value in trial.params.items():
        click.echo(f"{name:<28} {value}")
    click.echo(f"folder     {trial.folder}")
    return None
