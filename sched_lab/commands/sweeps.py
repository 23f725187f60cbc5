"""The commands that take a sweep from file to finished trials: plan, submit, stop, retry."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from sched_lab import names
from sched_lab.commands.answers import DONE, INTERRUPTED, OUT_OF_REACH, SOME_FAILED, print_json, the_one, unknown
from sched_lab.options import json_option, store_option, tracking_option
from sched_lab.redaction import redacted
from sched_lab.store import Store
from trainers.failures import KINDS

_file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.command(short_help="Say what submitting a sweep would run and cost.")
@_file_argument
@store_option
@click.option("--cells", is_flag=True, help="List every cell.")
@click.option("--measure", is_flag=True, help="Time a few training steps of each network and size for the estimate.")
@json_option
def plan(file: Path, store: str | None, cells: bool, measure: bool, as_json: bool) -> None:
    """Validate a sweep FILE and say what submitting it would run, and what that would cost.

    \b
    Example:
      sched-lab plan sweeps/headline.yaml --cells
    """
    _plan(file, Store.at(store), cells, measure, as_json)


def _plan(file: Path, store: Store, cells: bool, measure: bool, as_json: bool) -> None:
    from sched_lab import plan as planning

    plan = planning.make(file, store)
    seconds = plan.expected_seconds
    if measure and plan.to_run:
        from sched_lab.probe import probe

        specs = [trial.spec for trial in plan.to_run]
        try:
            seconds = probe(specs, store).total(specs)
        except ValueError as error:  # of images that can't be prepared
            raise click.UsageError(str(error)) from error
    if as_json:
        return print_json(planning.record(plan, seconds))
    for warning in planning.warnings(plan):
        click.echo(f"warning: {warning}", err=True)
    for line in planning.lines(plan, seconds, cells):
        click.echo(line)
    return None


@click.command(short_help="Run what is missing of a sweep.")
@_file_argument
@store_option
@tracking_option
@click.option("--dry-run", is_flag=True, help="Only say what would run, as plan does.")
@click.option("--inline", is_flag=True, help="Run in this process, one trial after another, without Ray.")
@click.option("--address", metavar="ADDRESS", help="Join this Ray cluster, or `auto`, instead of starting Ray here.")
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

    Ctrl-C lets running trials write a checkpoint and stop; submit again to go on. A second Ctrl-C stops at once.

    \b
    Example:
      sched-lab submit sweeps/quickstart.yaml
      sched-lab submit sweeps/headline.yaml --store /data/lab --address auto
    """
    where = Store.at(store, tracking_uri)
    if dry_run:
        return _plan(file, where, cells=False, measure=False, as_json=as_json)
    if inline and address:
        raise click.UsageError("--inline runs without Ray: it takes no --address")
    from rich.console import Console

    from sched_lab import plan as planning
    from sched_lab.submission import submit as run

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
    failed = [trial for trial in plan.trials if states[trial.key] == names.FAILED]
    interrupted = where.stop_file(plan.sweep.name).exists()
    if as_json:
        print_json({"sweep": plan.sweep.name, "states": dict(counts), "failed": [trial.key for trial in failed]})
    else:
        _print_outcome(plan.sweep.name, plan.trials, counts, failed, where, interrupted)
    if outcome.undelivered:
        safe = "the results are safe in the store; submit again to deliver them"
        click.echo(redacted(f"error: {outcome.undelivered}: {safe}"), err=True)
    code = INTERRUPTED if interrupted else OUT_OF_REACH if outcome.undelivered else SOME_FAILED if failed else DONE
    if outcome.stuck:  # a thread inside MLflow's code would bring the interpreter down otherwise
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _print_outcome(
    name: str, trials: Any, counts: Counter[str], failed: list[Any], store: Store, interrupted: bool
) -> None:
    from sched_lab.progress import label

    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    click.echo(f"{name}: {len(trials)} cells: {summary}")
    for trial in failed:
        result = store.result(trial.key) or {"failure": "", "reason": ""}
        click.echo(f"  failed  {trial.key}  {label(trial)}: {result['failure']}: {result['reason']}", err=True)
    if failed:
        click.echo(f"  see     sched-lab logs {failed[0].key}", err=True)
    if interrupted:
        click.echo("submit again to go on with what was stopped")
    if counts[names.FINISHED]:
        where = "" if store.root == Store.at().root else f" --store {shlex.quote(str(store.root))}"
        if not store.local_tracking and store.tracking_uri != os.environ.get("MLFLOW_TRACKING_URI"):
            where += f" --tracking-uri {shlex.quote(redacted(store.tracking_uri))}"
        click.echo(f"report:    sched-lab report {shlex.quote(name)}{where}\ndashboard: sched-lab dashboard{where}")


@click.command(short_help="Ask a running sweep to checkpoint and stop.")
@click.argument("sweep")
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


@click.command(short_help="Have failed trials run again.")
@click.argument("sweep")
@click.argument("keys", nargs=-1)
@click.option("--kind", type=click.Choice(KINDS), help="Only those that failed in this way.")
@store_option
@json_option
def retry(sweep: str, keys: tuple[str, ...], kind: str | None, store: str | None, as_json: bool) -> None:
    """Have the failed trials of a SWEEP run again, or those of these KEYS: by the submit at work, or by the next one.

    Needed for trials that diverged, which submitting again leaves as they are, and while a submit is at work.

    \b
    Example:
      sched-lab retry quickstart
      sched-lab retry quickstart 3f2a --kind out_of_memory
    """
    from sched_lab.inspection import cell_states, find
    from sched_lab.worker import reopen

    where = Store.at(store)
    sweeps = where.sweeps()
    if sweep not in sweeps:
        unknown("sweep", sweep, sweeps, where)
    meant = {the_one(find(where, key), key, where) for key in keys}
    failed = [
        row["key"]
        for row in cell_states(where, sweeps[sweep])
        if row["state"] == names.FAILED and kind in (None, row["failure"]) and (not meant or row["key"] in meant)
    ]
    reopened = [key for key in failed if reopen(where, key)]
    if as_json:
        return print_json({"sweep": sweep, "retried": reopened})
    if not reopened:
        return click.echo(f"{sweep}: no failed trial {'of those ' if meant or kind else ''}to run again")
    by = where.holder(sweep)
    when = (
        f"by the submit at work (process {by.get('pid')}), or the next one"
        if by is not None
        else "when the sweep is submitted again"
    )
    many = "1 failed trial" if len(reopened) == 1 else f"{len(reopened)} failed trials"
    return click.echo(f"{sweep}: {many} will be run again {when}")
