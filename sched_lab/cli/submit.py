"""`sched-lab submit`: runs what is missing of a sweep."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from sched_lab.cli.answers import command, print_json, tracking
from sched_lab.cli.options import file_argument, json_option, store_option, tracking_option
from sched_lab.cli.plan import print_plan
from sched_lab.errors import ExitCode
from sched_lab.redaction import redacted
from sched_lab.store.folder import Store
from sched_lab.streams import lasting
from sched_lab.trainers.results import State

if TYPE_CHECKING:
    from sched_lab.run.submit import Outcome


@click.command(short_help="Run what is missing of a sweep.")
@file_argument
@store_option
@tracking_option
@click.option("--dry-run", is_flag=True, help="Only say what would run, as plan does.")
@click.option(
    "--inline", is_flag=True, help="Run in this process, one trial after another, without Ray."
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Join this Ray cluster, or `auto`, instead of starting Ray here.",
)
@json_option
def submit(
    file: Path,
    store: str | None,
    tracking_uri: str | None,
    dry_run: bool,
    inline: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Run what is missing of the sweep in FILE; what has finished in this store is never run again.

    Ctrl-C, SIGTERM or SIGHUP lets running trials write a checkpoint and stop; submit again to go
    on. A second one stops at once.

    \b
    Example:
      sched-lab submit sweeps/quickstart.yaml
      sched-lab submit sweeps/headline.yaml --store /data/lab --address auto
    """
    where = Store.at(store, tracking_uri)
    if dry_run:
        return print_plan(file, where, cells=False, measure=False, as_json=as_json)
    if inline and address:
        raise click.UsageError("--inline runs without Ray: it takes no --address")
    from sched_lab.run.interrupts import divert
    from sched_lab.run.plan import make
    from sched_lab.run.submit import submit as run

    if not inline:
        divert()
    sys.stdout = lasting(sys.stdout)  # the exit code tells of the sweep, also to a lost terminal
    outcome = run(
        make(file, where), inline=inline, address=address, progress=sys.stderr, abandon=_abandon
    )
    if as_json:
        print_json(
            {
                "sweep": outcome.plan.sweep.name,
                "states": dict(Counter(outcome.states.values())),
                "failed": [trial.key for trial in outcome.failed],
                "left_out": list(outcome.left_out),
            }
        )
    else:
        _print_outcome(outcome, ["--store", str(where.root)] if store else [])
    if outcome.undelivered:
        safe = "the results are safe in the store; submit again to deliver them"
        click.echo(redacted(f"error: {outcome.undelivered}: {safe}"), err=True)
    sys.exit(_exit_code(outcome))


def _abandon(reason: str) -> NoReturn:
    click.echo(redacted(f"error: {reason}"), err=True)
    os._exit(ExitCode.OUT_OF_REACH)


def _exit_code(outcome: Outcome) -> ExitCode:
    if outcome.interrupted:
        return ExitCode(128 + (outcome.signum or signal.SIGINT))
    if outcome.undelivered:
        return ExitCode.OUT_OF_REACH
    return ExitCode.SOME_FAILED if outcome.failed else ExitCode.DONE


def _print_outcome(outcome: Outcome, where: list[str]) -> None:
    from sched_lab.text import counted, label

    store, name = outcome.plan.store, outcome.plan.sweep.name
    counts = Counter(outcome.states.values())
    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    click.echo(f"{name}: {counted(len(outcome.states), 'cell')}: {summary}")
    for trial in outcome.failed:
        result = store.result(trial.key)
        reason = f"{result.failure}: {result.reason}" if result else ": "
        click.echo(f"  failed  {trial.key}  {label(trial)}: {reason}", err=True)
    if outcome.failed:
        click.echo(f"  see     {command('logs', outcome.failed[0].key, *where)}", err=True)
    for told in outcome.left_out:
        click.echo(f"  left out  {told}", err=True)
    if counts[State.STOPPED] or counts[State.MISSING]:
        click.echo("submit again to go on with what was stopped")
    if counts[State.FINISHED]:
        where = [*where, *tracking(store)]
        click.echo(f"report:    {command('report', name, *where)}")
        click.echo(f"dashboard: {command('dashboard', name, *where)}")
