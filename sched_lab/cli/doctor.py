"""`sched-lab doctor`: checks what a sweep needs on this machine."""

from __future__ import annotations

import sys

import click

from sched_lab.cli.answers import print_json
from sched_lab.cli.options import json_option, store_option, tracking_option
from sched_lab.errors import ExitCode
from sched_lab.store.folder import Store


@click.command(short_help="Check what a sweep needs on this machine.")
@store_option
@tracking_option
@json_option
def doctor(store: str | None, tracking_uri: str | None, as_json: bool) -> None:
    """Check what a sweep needs on this machine: torch and GPU, Ray, MLflow, disk, Inception
    weights.

    \b
    Example:
      sched-lab doctor
    """
    from sched_lab.run.doctor import examine

    findings = examine(Store.at(store, tracking_uri))
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.verdict:<8} {finding.what:<18} {finding.detail}")
    sys.exit(
        ExitCode.OUT_OF_REACH
        if any(finding.verdict == "missing" for finding in findings)
        else ExitCode.DONE
    )
