"""`sched-lab schedule`: γ, log-SNR and density of a noise schedule."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from sched_lab.cli.options import Picture, json_option


@click.command(short_help="γ, log-SNR and density of a noise schedule.")
@click.argument("spec")
@click.option(
    "--t", "times", metavar="T,T,…", default="0,0.1,0.25,0.5,0.75,0.9,1", show_default=True
)
@click.option(
    "--b",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Input scale.",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=Picture(),
    help="Write a picture of it to this PNG, SVG or PDF.",
)
@json_option
def schedule(spec: str, times: str, b: float, plot: Path | None, as_json: bool) -> None:
    """γ(t), log-SNR and the density over log-SNR of a noise schedule SPEC.

    \b
    Example:
      sched-lab schedule cosine@0.2,1,1 --b 0.5
      sched-lab schedule sigmoid@-3,3,0.9 --t 0,0.5,1 --json
    """
    from sched_lab.trainers.schedules import ScheduleError, parse

    try:
        parsed = parse(spec)
        t = [float(value) for value in times.split(",")]
        if not math.isfinite(b):
            raise ScheduleError(f"--b must be finite, got {b:g}")
        gamma, log_snr = parsed.gamma(t).tolist(), parsed.log_snr(t, b).tolist()
        density = parsed.density(t).tolist()
    except ScheduleError as error:
        raise click.UsageError(str(error)) from None
    except ValueError:
        raise click.UsageError(
            f"--t takes numbers with commas between them, got {times!r}"
        ) from None
    if plot is not None:
        from sched_lab.tracking.plots import schedule_figure

        schedule_figure(parsed, b).savefig(plot)
        click.echo(f"wrote {plot}", err=True)
    if as_json:
        return click.echo(_with_infinities({"t": t, "gamma": gamma, "log_snr": log_snr}))
    click.echo(f"{parsed}  b = {b:g}\n{'t':>8} {'gamma':>12} {'log-SNR':>10} {'density':>10}")
    for row in zip(t, gamma, log_snr, density, strict=True):
        click.echo("{:>8g} {:>12.6g} {:>10.4g} {:>10.4g}".format(*row))
    return None


def _with_infinities(value: object) -> str:
    """JSON has no infinity: write a number that is out of range, which readers take for one."""
    return json.dumps(value).replace("-Infinity", "-1e999").replace("Infinity", "1e999")
