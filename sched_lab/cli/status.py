"""`sched-lab status`: how sweeps and their cells stand."""

from __future__ import annotations

from collections import Counter

import click

from sched_lab.cli.answers import print_json, unknown
from sched_lab.cli.options import as_utf8, json_option, store_option
from sched_lab.store.folder import Store


@click.command(short_help="How sweeps stand.")
@click.argument("sweep", required=False, callback=as_utf8)
@store_option
@json_option
def status(sweep: str | None, store: str | None, as_json: bool) -> None:
    """How the sweeps of a store stand, or the cells of one SWEEP.

    \b
    Example:
      sched-lab status
      sched-lab status quickstart
    """
    from sched_lab.store.inspection import cell_states
    from sched_lab.text import no_longer_belong

    where = Store.at(store)
    sweeps = where.sweeps()
    if sweep is not None:
        if sweep not in sweeps:
            unknown("sweep", sweep, sweeps, where)
        rows = cell_states(where, sweeps[sweep])
        if as_json:
            return print_json([row.as_json() for row in rows])
        for row in rows:
            click.echo(str(row))
        if former := no_longer_belong(len(where.former(sweep))):
            click.echo(former)
        return None
    counts = {
        name: Counter(row.state for row in cell_states(where, cells))
        for name, cells in sweeps.items()
    }
    if as_json:
        return print_json({name: dict(count) for name, count in counts.items()})
    for name, count in counts.items():
        former = no_longer_belong(len(where.former(name)))
        parts = [*(f"{n} {state}" for state, n in sorted(count.items())), *filter(None, [former])]
        click.echo(f"{name}: {', '.join(parts)}")
    if not counts:
        click.echo(f"no sweep has been submitted to {where.root}")
    return None
