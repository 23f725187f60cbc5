"""The commands `report` and `recommend`; what they read, compute and draw with loads when run."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sched_lab.cli.answers import command, print_json, tracking
from sched_lab.cli.options import as_utf8, json_option, store_option, tracking_option
from sched_lab.redaction import redacted

if TYPE_CHECKING:
    from sched_lab.analysis.report.write import WrittenReport
    from sched_lab.store.folder import Store


@click.command(short_help="Write the report of a sweep: the best at each size.")
@click.argument("name", callback=as_utf8)
@store_option
@tracking_option
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write into; default reports/NAME in the store, and the sweep's page in MLflow.",
)
@json_option
def report(
    name: str, store: str | None, tracking_uri: str | None, out: Path | None, as_json: bool
) -> None:
    """Write the report of sweep NAME: an HTML page, Markdown, LaTeX, CSV and figures.

    Prints the best schedule and input scale b for each image size.

    \b
    Example:
      sched-lab report quickstart
    """
    from sched_lab.analysis.report.write import answer_records, sizes_without_best, write_report
    from sched_lab.errors import OutOfReach
    from sched_lab.store.database import in_words
    from sched_lab.store.folder import Store
    from sched_lab.tracking.client import garbage_collection_disabled
    from sched_lab.tracking.reader import UnknownSweepError
    from sched_lab.tracking.tracker import publish_report

    lab = Store.at(store, tracking_uri)
    try:
        with garbage_collection_disabled():
            written = write_report(name, lab.tracking_uri, out or lab.report(name), _where(lab))
    except UnknownSweepError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        hint = "" if out else "; --out names another folder for the report"
        raise OutOfReach(f"{in_words(error)}{hint}") from error
    if out is None:
        try:
            analysis = written.analysis
            publish_report(
                lab,
                analysis.sweep.run_id,
                written.files["html"],
                analysis.main.warnings,
            )
        except OutOfReach as error:  # such as a server that lets this user read only
            click.echo(
                f"warning: the sweep's page in MLflow does not show this report: {error}", err=True
            )
    if not as_json:
        _print_answer(written, [name, *(["--store", store] if store else []), *tracking(lab)])
        return
    print_json(
        {
            "sweep": name,
            "ranked_by": written.analysis.main.score,
            "population": written.analysis.main.name,
            "warnings": list(written.analysis.main.warnings),
            "trials": _state_counts(written),
            "former_trials": written.analysis.sweep.former,
            "without_best": sizes_without_best(written.analysis),
            "best": answer_records(written.analysis),
            "files": {content: str(path) for content, path in written.files.items()},
        }
    )


def _where(lab: Store) -> list[str]:
    """The options that name this store from any folder."""
    served = [] if lab.local_tracking else ["--tracking-uri", redacted(lab.tracking_uri)]
    return ["--store", str(lab.root), *served]


def _print_answer(written: WrittenReport, where: list[str]) -> None:
    from rich.console import Console

    from sched_lab.analysis.text.render import terminal
    from sched_lab.text import counted, no_longer_belong

    console = Console(markup=False, emoji=False)
    for warning in written.analysis.main.warnings:
        console.print(warning, style="bold", highlight=False, soft_wrap=True)
    console.print(terminal(written.analysis.answer))
    counts = [f"{count} {state}" for state, count in _state_counts(written).items()]
    former = no_longer_belong(written.analysis.sweep.former)
    click.echo(f"trials:    {', '.join(filter(None, [*counts, former]))}")
    if written.analysis.others:
        apart = sum(len(other.runs) for other in written.analysis.others)
        click.echo(
            f"answer of: {written.analysis.main.name}; set apart, as scores do not compare:"
            f" {counted(apart, 'trial')}"
        )
    click.echo(f"report:    {written.files['html']}\ndashboard: {command('dashboard', *where)}")


def _state_counts(written: WrittenReport) -> dict[str, int]:
    counts = written.analysis.runs["state"].value_counts()
    return {str(state): int(count) for state, count in counts.items()}


@click.command(short_help="The best b for images of one size.")
@click.argument("name", callback=as_utf8)
@click.option(
    "--size",
    type=click.IntRange(1),
    required=True,
    metavar="N",
    help="Height and width of the images.",
)
@click.option(
    "--schedule",
    metavar="SPEC",
    help="Read at this schedule; default the best over the sizes swept.",
)
@store_option
@tracking_option
@json_option
def recommend(
    name: str,
    size: int,
    schedule: str | None,
    store: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Say which b suits images of one size, by the scores of sweep NAME.

    Where that size was swept, b comes from its own scores; else from the law b = c·size^k through
    the sizes that were. Exit code 1, with the reason, where the scores do not say.

    \b
    Example:
      sched-lab recommend headline --size 64
    """
    from sched_lab.analysis.report.findings import fitted, warnings
    from sched_lab.analysis.runs import load_sweep
    from sched_lab.analysis.statistics import law
    from sched_lab.store.folder import Store
    from sched_lab.tracking.reader import UnknownSweepError

    try:
        sweep = load_sweep(name, Store.at(store, tracking_uri).tracking_uri)
        best, warned = fitted(sweep, schedule), warnings(sweep)
    except (UnknownSweepError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    for warning in warned:
        click.echo(warning, err=True)
    try:
        advice = law.recommend(best, size)
    except law.Unsupported as error:
        click.echo(f"no recommendation: {error}", err=True)
        raise click.exceptions.Exit(1) from error
    at = str(best["schedule"].iloc[0])
    if as_json:
        ends = {"low": advice.low, "high": advice.high}
        known = {end: None if math.isnan(value) else value for end, value in ends.items()}
        print_json({"warnings": warned, "schedule": at, **asdict(advice), **known})
        return
    interval = f"{advice.low:.3g} to {advice.high:.3g}"
    interval = "no interval" if math.isnan(advice.low) else interval
    click.echo(f"{size}×{size}: b = {advice.b:.3g} ({interval}) for {at}\n{advice.basis}")
    if advice.extrapolated:
        click.echo(
            f"extrapolated: {name} has no scores beyond {law.fit(best).span}; try some around it",
            err=True,
        )
