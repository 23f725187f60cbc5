"""`sched-lab plan`: what submitting a sweep would run, and what that would cost."""

from __future__ import annotations

from pathlib import Path

import click

from sched_lab.cli.answers import print_json
from sched_lab.cli.options import file_argument, json_option, store_option
from sched_lab.errors import visible
from sched_lab.store.folder import Store


@click.command(short_help="Say what submitting a sweep would run and cost.")
@file_argument
@store_option
@click.option("--cells", is_flag=True, help="List every cell.")
@click.option(
    "--measure",
    is_flag=True,
    help="Time a few training steps of each network and size for the estimate.",
)
@json_option
def plan(file: Path, store: str | None, cells: bool, measure: bool, as_json: bool) -> None:
    """Validate a sweep FILE and say what submitting it would run, and what that would cost.

    \b
    Example:
      sched-lab plan sweeps/headline.yaml --cells
    """
    print_plan(file, Store.at(store), cells, measure, as_json)


def print_plan(file: Path, store: Store, cells: bool, measure: bool, as_json: bool) -> None:
    from sched_lab.run import plan_text
    from sched_lab.run.plan import make, warnings

    plan = make(file, store)
    seconds = plan.expected
    if measure and plan.to_run:
        from sched_lab.run.probe import probe

        specs = [trial.spec for trial in plan.to_run]
        try:
            seconds = probe(specs, store).total(specs)
        except ValueError as error:  # of images that can't be prepared
            raise click.UsageError(str(error)) from error
    if as_json:
        return print_json(plan_text.record(plan, seconds))
    for warning in warnings(plan):
        click.echo(visible(f"warning: {warning}", keep="\n"), err=True)
    for line in plan_text.lines(plan, seconds, cells):
        click.echo(line)
    return None
