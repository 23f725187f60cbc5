"""`sched-lab logs`: what a trial printed and logged."""

from __future__ import annotations

import click

from sched_lab import names
from sched_lab.cli.answers import the_one
from sched_lab.cli.options import store_option
from sched_lab.store.folder import Store


@click.command(short_help="What a trial printed and logged.")
@click.argument("key")
@store_option
def logs(key: str, store: str | None) -> None:
    """What a trial printed and logged, with the traceback of any error.

    \b
    Example:
      sched-lab logs 3f2a
    """
    from sched_lab.store.inspection import find

    where = Store.at(store)
    log = where.trial(the_one(find(where, key), key, where)) / names.LOG_FILE
    text = log.read_text("utf-8", errors="replace") if log.exists() else ""
    click.echo(text or "nothing was printed or logged\n", nl=False)
