"""The commands beside sweeps: schedule, yaml-schema, doctor, gc."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import click

from sched_lab.commands.answers import DONE, OUT_OF_REACH, print_json
from sched_lab.options import json_option, store_option, tracking_option
from sched_lab.store import Store


@click.command(short_help="γ, log-SNR and density of a noise schedule.")
@click.argument("spec")
@click.option("--t", "times", metavar="T,T,…", default="0,0.1,0.25,0.5,0.75,0.9,1", show_default=True)
@click.option("--b", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Input scale.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture of it to this file.")
@json_option
def schedule(spec: str, times: str, b: float, plot: Path | None, as_json: bool) -> None:
    """γ(t), log-SNR and the density over log-SNR of a noise schedule SPEC.

    \b
    Example:
      sched-lab schedule cosine@0.2,1,1 --b 0.5
      sched-lab schedule sigmoid@-3,3,0.9 --t 0,0.5,1 --json
    """
    from trainers.schedules import ScheduleError, parse

    try:
        found = parse(spec)
        t = [float(value) for value in times.split(",")]
        if not math.isfinite(b):
            raise ScheduleError(f"--b must be finite, got {b:g}")
        gamma, log_snr = found.gamma(t).tolist(), found.log_snr(t, b).tolist()
        density = found.density(t).tolist()
    except ScheduleError as error:
        raise click.UsageError(str(error)) from None
    except ValueError:
        raise click.UsageError(f"--t takes numbers with commas between them, got {times!r}") from None
    if plot is not None:
        from sched_lab.plots import schedule_figure

        schedule_figure(found, b).savefig(plot)
        click.echo(f"wrote {plot}", err=True)
    if as_json:
        return click.echo(_with_infinities({"t": t, "gamma": gamma, "log_snr": log_snr}))
    click.echo(f"{found}  b = {b:g}\n{'t':>8} {'gamma':>12} {'log-SNR':>10} {'density':>10}")
    for row in zip(t, gamma, log_snr, density, strict=True):
        click.echo("{:>8g} {:>12.6g} {:>10.4g} {:>10.4g}".format(*row))
    return None


def _with_infinities(value: object) -> str:
    """JSON in which an infinity is a number out of range, which readers take for one; JSON has no other way."""
    return json.dumps(value).replace("-Infinity", "-1e999").replace("Infinity", "1e999")


@click.command("yaml-schema", short_help="The JSON Schema of sweep files, for editors.")
def yaml_schema() -> None:
    """Print the JSON Schema of sweep files, for editors that complete and check YAML.

    \b
    Example:
      sched-lab yaml-schema > sweep.schema.json
    """
    from sched_lab.yaml_schema import json_schema

    print_json(json_schema())


@click.command(short_help="Check what a sweep needs on this machine.")
@store_option
@tracking_option
@json_option
def doctor(store: str | None, tracking_uri: str | None, as_json: bool) -> None:
    """Check what a sweep needs on this machine: torch and GPU, Ray, MLflow, disk, Inception weights.

    \b
    Example:
      sched-lab doctor
    """
    from sched_lab.doctor import examine

    findings = examine(Store.at(store, tracking_uri))
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.verdict:<8} {finding.what:<18} {finding.detail}")
    sys.exit(OUT_OF_REACH if any(finding.verdict == "missing" for finding in findings) else DONE)


@click.command(short_help="Delete what nothing needs any more.")
@store_option
@click.option("--cache", is_flag=True, help="Also images, detectors and statistics; they are made again when needed.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
def gc(store: str | None, cache: bool, yes: bool, as_json: bool) -> None:
    """List what nothing in a store needs any more, such as checkpoints of finished trials; delete it after asking.

    \b
    Example:
      sched-lab gc
      sched-lab gc --cache --yes
    """
    from sched_lab.housekeeping import delete, leftovers

    where = Store.at(store)
    found = leftovers(where, cache)
    total = _human(sum(each.size for each in found))
    if not as_json:
        for each in found:
            click.echo(f"{_human(each.size):>10}  {each.what:<32}  {each.path.relative_to(where.root)}")
        click.echo(f"{total:>10}  in all, in {where.root}" if found else f"nothing to delete in {where.root}")
    wanted = yes or (bool(found) and not as_json and sys.stdin.isatty() and click.confirm("delete all of it?"))
    gone = delete(where, found) if wanted else []
    if as_json:
        print_json({"found": [{**each.__dict__, "path": str(each.path)} for each in found], "deleted": len(gone)})
    elif wanted and found:
        click.echo(f"deleted {len(gone)} of {len(found)}")
    elif found and not sys.stdin.isatty():
        click.echo("deleted nothing: --yes deletes it without asking")


def _human(size: float) -> str:
    """Bytes in the largest unit that keeps the number above one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
