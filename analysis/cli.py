"""The command `sched-lab report`. Light: what reads, computes and draws is imported when the command runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

WRONG_INPUT = 2  # the exit code


@click.command()
@click.argument("name")
@click.option(
    "--store", type=click.Path(file_okay=False), help="The lab's folder [default: $SCHED_LAB_STORE or ./lab]."
)
@click.option("--tracking-uri", help="An MLflow server to read instead of the store's own database.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write into [default: reports/NAME in the store].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer and the files as JSON.")
def report(name: str, store: str | None, tracking_uri: str | None, out: Path | None, as_json: bool) -> None:
    """Write the report of sweep NAME: an HTML page, Markdown, LaTeX, CSV and figures.

    Prints the best schedule and input scale b for each image size.
    """
    from analysis.report import answer, write_report
    from analysis.runs import UnknownSweepError
    from analysis.tables import terminal
    from sched_lab.store import Store

    lab = Store.at(store, tracking_uri)
    try:
        written = write_report(name, lab.tracking_uri, out or lab.report(name))
    except UnknownSweepError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(WRONG_INPUT) from None
    if as_json:
        found = {
            "sweep": name,
            "ranked_by": written.analysis.sweep.ranked_by,
            "best": answer(written.analysis),
            "files": {what: str(path) for what, path in written.files.items()},
        }
        click.echo(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    console.print(terminal(written.analysis.answer))
    console.print(f"Report: {written.files['html']}", markup=False, highlight=False, soft_wrap=True)
