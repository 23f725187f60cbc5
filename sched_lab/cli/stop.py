"""`sched-lab stop`: asks a running sweep to checkpoint and stop."""

from __future__ import annotations

import click

from sched_lab.cli.answers import unknown
from sched_lab.cli.options import as_utf8, store_option
from sched_lab.store.folder import Store


@click.command(short_help="Ask a running sweep to checkpoint and stop.")
@click.argument("sweep", callback=as_utf8)
@store_option
def stop(sweep: str, store: str | None) -> None:
    """Ask a running SWEEP to checkpoint its trials and stop; submit it again to go on.

    \b
    Example:
      sched-lab stop quickstart
    """
    where = Store.at(store)
    if sweep not in where.sweeps():
        unknown("sweep", sweep, where.sweeps(), where)
    if where.holder(sweep) is None:
        return click.echo(f"nothing to stop: no submit of {sweep} is at work on {where.root}")
    where.stop_file(sweep).touch()
    return click.echo(f"asked {sweep} to stop; its trials write a checkpoint first")
