"""`sched-lab submit`: runs what is missing of a sweep."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from sched_lab.cli.answers import print_json
from sched_lab.cli.options import file_argument, json_option, store_option, tracking_option
from sched_lab.cli.plan import print_plan
from sched_lab.errors import ExitCode
from sched_lab.redaction import redacted
from sched_lab.store.folder import Store
from sched_lab.trainers.results import State


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

    Ctrl-C lets running trials write a checkpoint and stop; submit again to go on. A second Ctrl-C
    stops at once.

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
    from rich.console import Console

    from sched_lab.run import plan as planning
    from sched_lab.run.submit import submit as run

    console = Console(file=sys.stderr, markup=False, emoji=False)
    plan = planning.make(file, where)
    outcome = run(plan, inline=inline, address=address, console=console)
    if plan.to_confirm and not (outcome.undelivered or where.stop_file(plan.sweep.name).exists()):
        following = planning.make(file, where)
        if following.stages != plan.stages:
            plan = following
            outcome = run(plan, inline=inline, address=address, console=console)
    states = outcome.states
    counts = Counter(states.values())
    failed = [trial for trial in plan.trials if states[trial.key] == State.FAILED]
    interrupted = where.stop_file(plan.sweep.name).exists()
    if as_json:
        print_json(
            {
                "sweep": plan.sweep.name,
                "states": counts,
                "failed": [trial.key for trial in failed],
            }
        )
    else:
        _print_outcome(plan.sweep.name, plan.trials, counts, failed, where, interrupted)
    if outcome.undelivered:
        safe = "the results are safe in the store; submit again to deliver them"
        click.echo(redacted(f"error: {outcome.undelivered}: {safe}"), err=True)
    code = (
        ExitCode.INTERRUPTED
        if interrupted
        else (
            ExitCode.OUT_OF_REACH
            if outcome.undelivered
            else ExitCode.SOME_FAILED
            if failed
            else ExitCode.DONE
        )
    )
    if outcome.stuck:  # a thread inside MLflow's code would bring the interpreter down otherwise
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _print_outcome(
    name: str,
    trials: Any,
    counts: Counter[State],
    failed: list[Any],
    store: Store,
    interrupted: bool,
) -> None:
    from sched_lab.text import label

    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    click.echo(f"{name}: {len(trials)} cells: {summary}")
    for trial in failed:
        result = store.result(trial.key)
        why = f"{result.failure}: {result.reason}" if result else ": "
        click.echo(f"  failed  {trial.key}  {label(trial)}: {why}", err=True)
    if failed:
        click.echo(f"  see     sched-lab logs {failed[0].key}", err=True)
    if interrupted:
        click.echo("submit again to go on with what was stopped")
    if counts[State.FINISHED]:
        where = "" if store.root == Store.at().root else f" --store {shlex.quote(str(store.root))}"
        if not store.local_tracking and store.tracking_uri != os.environ.get("MLFLOW_TRACKING_URI"):
            where += f" --tracking-uri {shlex.quote(redacted(store.tracking_uri))}"
        click.echo(
            f"report:    sched-lab report {shlex.quote(name)}{where}\ndashboard: sched-lab"
            f" dashboard{where}"
        )
