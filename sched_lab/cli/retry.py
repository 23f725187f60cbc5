"""`sched-lab retry`: has failed trials run again."""

from __future__ import annotations

import click

from sched_lab.cli.answers import print_json, the_one, unknown
from sched_lab.cli.options import as_utf8, json_option, store_option
from sched_lab.store.folder import Store
from sched_lab.trainers.failures import FailureKind
from sched_lab.trainers.results import State


@click.command(short_help="Have failed trials run again.")
@click.argument("sweep", callback=as_utf8)
@click.argument("keys", nargs=-1)
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in FailureKind]),
    help="Only those that failed in this way.",
)
@store_option
@json_option
def retry(
    sweep: str, keys: tuple[str, ...], kind: str | None, store: str | None, as_json: bool
) -> None:
    """Have the failed trials of a SWEEP run again, or those of these KEYS: by the submit at work,
    or by the next one.

    Needed for trials that diverged, which submitting again leaves as they are, and while a submit
    is at work.

    \b
    Example:
      sched-lab retry quickstart
      sched-lab retry quickstart 3f2a --kind out_of_memory
    """
    from sched_lab.store.ends import remove_result
    from sched_lab.store.inspection import cell_states, find

    where = Store.at(store)
    sweeps = where.sweeps()
    if sweep not in sweeps:
        unknown("sweep", sweep, sweeps, where)
    meant = {the_one(find(where, key), key, where) for key in keys}
    failed = [
        each.cell.key
        for each in cell_states(where, sweeps[sweep])
        if each.state == State.FAILED
        and kind in (None, each.failure)
        and (not meant or each.cell.key in meant)
    ]
    reopened = [key for key in failed if remove_result(where, key)]
    if as_json:
        return print_json({"sweep": sweep, "retried": reopened})
    if not reopened:
        return click.echo(
            f"{sweep}: no failed trial {'of those ' if meant or kind else ''}to run again"
        )
    by = where.holder(sweep)
    when = (
        f"by the submit at work (process {by.pid}), or the next one"
        if by is not None
        else "when the sweep is submitted again"
    )
    many = "1 failed trial" if len(reopened) == 1 else f"{len(reopened)} failed trials"
    return click.echo(f"{sweep}: {many} will be run again {when}")
