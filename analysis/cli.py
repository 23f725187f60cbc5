"""The command `sched-lab report`. Light: what reads, computes and draws is imported when the command runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from sched_lab.options import json_option, store_option, tracking_option


@click.command()
@click.argument("name")
@store_option
@tracking_option
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write into; default reports/NAME in the store.",
)
@json_option
def report(name: str, store: str | None, tracking_uri: str | None, out: Path | None, as_json: bool) -> None:
    """Write the report of sweep NAME: an HTML page, Markdown, LaTeX, CSV and figures.

    Prints the best schedule and input scale b for each image size.

    \b
    Example:
      sched-lab report quickstart
    """
    from analysis.report import answer_records, write_report
    from analysis.runs import UnknownSweepError
    from analysis.tables import terminal
    from sched_lab.store import Store

    lab = Store.at(store, tracking_uri)
    try:
        written = write_report(name, lab.tracking_uri, out or lab.report(name))
    except UnknownSweepError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        found = {
            "sweep": name,
            "ranked_by": written.analysis.sweep.ranked_by,
            "best": answer_records(written.analysis),
            "files": {what: str(path) for what, path in written.files.items()},
        }
        click.echo(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    Console(markup=False, emoji=False).print(terminal(written.analysis.answer))
    where = f" --store {shlex.quote(store)}" if store else ""
    click.echo(f"report:    {written.files['html']}\ndashboard: sched-lab dashboard{where}")
