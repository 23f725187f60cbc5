"""The command line: parse, call, print. Torch, Ray and MLflow load in the commands that use them."""

from __future__ import annotations

import json
import math
import shlex
import sys
import traceback
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import click

from sched_lab import __version__, names
from sched_lab.located_yaml import SweepError
from sched_lab.options import json_option, store_option, tracking_option
from sched_lab.store import OutOfReach, Store

DONE, SOME_FAILED, WRONG_INPUT, OUT_OF_REACH, INTERRUPTED = 0, 1, 2, 3, 130


class _Group(click.Group):
    """The commands of this module, and those that packages register as `sched_lab.commands`, loaded when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *sorted(entry.name for entry in entry_points(group="sched_lab.commands"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        for entry in entry_points(group="sched_lab.commands", name=cmd_name):
            command: click.Command = entry.load()
            return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from trainers.plugins import nearest

            raise click.UsageError(
                f"unknown command {args[0]!r}{nearest(args[0], self.list_commands(ctx))}", ctx
            ) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sched-lab")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error; may stand anywhere.")
def cli() -> None:
    """Find the diffusion noise schedule and input scale b that suit your images.

    \b
    Example:
      sched-lab plan sweeps/quickstart.yaml      what it would run
      sched-lab submit sweeps/quickstart.yaml    run what is missing
      sched-lab report quickstart                the best b for each image size
      sched-lab dashboard                        every run, in the browser
    """


_file_argument = click.argument("file", type=click.Path(path_type=Path))


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


@cli.command(short_help="Say what submitting a sweep would run and cost.")
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
        return _print_json(planning.record(plan, seconds))
    for warning in planning.warnings(plan):
        click.echo(f"warning: {warning}", err=True)
    for line in planning.lines(plan, seconds, cells):
        click.echo(line)
    return None


@cli.command(short_help="Run what is missing of a sweep.")
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

    plan = planning.make(file, where)
    states = run(plan, inline=inline, address=address, console=Console(file=sys.stderr))
    counts = Counter(states.values())
    failed = [trial for trial in plan.trials if states[trial.key] == names.FAILED]
    if as_json:
        _print_json({"sweep": plan.sweep.name, "states": dict(counts), "failed": [trial.key for trial in failed]})
    else:
        _print_outcome(plan.sweep.name, plan.trials, counts, failed, where)
    if where.stop_file(plan.sweep.name).exists():
        sys.exit(INTERRUPTED)
    sys.exit(SOME_FAILED if failed else DONE)


def _print_outcome(name: str, trials: Any, counts: Counter[str], failed: list[Any], store: Store) -> None:
    from sched_lab.progress import label

    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    click.echo(f"{name}: {len(trials)} cells: {summary}")
    for trial in failed:
        reason = (store.result(trial.key) or {}).get("reason", "")
        click.echo(f"  failed  {trial.key}  {label(trial)}: {reason}", err=True)
    if failed:
        click.echo(f"  see     sched-lab logs {failed[0].key}", err=True)
    if counts[names.STOPPED]:
        click.echo("submit again to go on with what was stopped")
    if counts[names.FINISHED]:
        where = "" if store.root == Store.at().root else f" --store {shlex.quote(str(store.root))}"
        click.echo(f"report:    sched-lab report {shlex.quote(name)}{where}\ndashboard: sched-lab dashboard{where}")


@cli.command(short_help="How sweeps stand.")
@click.argument("sweep", required=False)
@store_option
@json_option
def status(sweep: str | None, store: str | None, as_json: bool) -> None:
    """How the sweeps of a store stand, or the cells of one SWEEP.

    \b
    Example:
      sched-lab status
      sched-lab status quickstart
    """
    from sched_lab.inspection import cell_states, trial_line

    where = Store.at(store)
    sweeps = where.sweeps()
    if sweep is not None:
        if sweep not in sweeps:
            _unknown("sweep", sweep, sweeps, where)
        rows = cell_states(where, sweeps[sweep])
        if as_json:
            return _print_json(rows)
        for row in rows:
            click.echo(trial_line(row))
        return None
    counts = {name: Counter(row["state"] for row in cell_states(where, cells)) for name, cells in sweeps.items()}
    if as_json:
        return _print_json({name: dict(count) for name, count in counts.items()})
    for name, count in counts.items():
        click.echo(f"{name}: {', '.join(f'{n} {state}' for state, n in sorted(count.items()))}")
    if not counts:
        click.echo(f"no sweep has been submitted to {where.root}")
    return None


@cli.command(short_help="One trial: settings, state, scores, files.")
@click.argument("key")
@store_option
@json_option
def show(key: str, store: str | None, as_json: bool) -> None:
    """One trial: its settings, state, scores and files. KEY may be the first digits of a key.

    \b
    Example:
      sched-lab show 3f2a
    """
    from sched_lab.inspection import describe, find

    where = Store.at(store)
    trial = describe(where, _found(find(where, key), key, where))
    if as_json:
        return _print_json(trial)
    for name in ("key", "state", "reason", "step", "loss"):
        if trial.get(name) not in (None, ""):
            click.echo(f"{name:<10} {trial[name]}")
    for name, value in {**trial["scores"], **{f"seconds {k}": v for k, v in trial["seconds"].items()}}.items():
        click.echo(f"{name:<24} {'missing' if value is None else f'{value:.6g}'}")
    for name, value in trial["params"].items():
        click.echo(f"{name:<28} {value}")
    click.echo(f"folder     {trial['folder']}")
    return None


@cli.command(short_help="What a trial printed and logged.")
@click.argument("key")
@store_option
def logs(key: str, store: str | None) -> None:
    """What a trial printed and logged, with the traceback of any error.

    \b
    Example:
      sched-lab logs 3f2a
    """
    from sched_lab.inspection import find

    where = Store.at(store)
    log = where.trial(_found(find(where, key), key, where)) / names.LOG_FILE
    text = log.read_text(errors="replace") if log.exists() else ""
    click.echo(text or "nothing was printed or logged\n", nl=False)


@cli.command(short_help="Ask a running sweep to checkpoint and stop.")
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
        _unknown("sweep", sweep, where.sweeps(), where)
    if where.holder() is None:
        return click.echo(f"nothing to stop: no submit is at work on {where.root}")
    where.stop_file(sweep).touch()
    return click.echo(f"asked {sweep} to stop; its trials write a checkpoint first")


@cli.command(short_help="MLflow's pages, on this machine only.")
@store_option
@tracking_option
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def dashboard(store: str | None, tracking_uri: str | None, port: int) -> None:
    """Open MLflow's pages on this store, on this machine only, until Ctrl-C.

    \b
    Example:
      sched-lab dashboard --port 5001
    """
    from sched_lab.dashboard import serve

    serve(Store.at(store, tracking_uri), port)


@cli.command(short_help="γ, log-SNR and density of a noise schedule.")
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


@cli.command("yaml-schema", short_help="The JSON Schema of sweep files, for editors.")
def yaml_schema() -> None:
    """Print the JSON Schema of sweep files, for editors that complete and check YAML.

    \b
    Example:
      sched-lab yaml-schema > sweep.schema.json
    """
    from sched_lab.yaml_schema import json_schema

    _print_json(json_schema())


@cli.command(short_help="Check what a sweep needs on this machine.")
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
        _print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.verdict:<8} {finding.what:<18} {finding.detail}")
    sys.exit(OUT_OF_REACH if any(finding.verdict == "missing" for finding in findings) else DONE)


def _unknown(what: str, name: str, options: Any, store: Store) -> NoReturn:
    from trainers.plugins import nearest

    raise click.UsageError(f"no {what} {name!r} in {store.root}{nearest(name, options)}")


def _found(keys: list[str], key: str, store: Store) -> str:
    if len(keys) == 1:
        return keys[0]
    if keys:
        raise click.UsageError(f"{key!r} begins {len(keys)} keys: {', '.join(keys[:5])}{', …' if keys[5:] else ''}")
    raise click.UsageError(f"no trial in {store.root} has a key that begins with {key!r}")


def main() -> NoReturn:
    """The console script: every outcome becomes an exit code, and every error one message on stderr."""
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False, args=[argument for argument in sys.argv[1:] if argument != "--debug"])
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", INTERRUPTED, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(WRONG_INPUT)
    except click.ClickException as error:
        _fail(error.format_message(), WRONG_INPUT, debug, getattr(error, "ctx", None))
    except SweepError as error:
        _fail(str(error), WRONG_INPUT, debug)
    except OutOfReach as error:
        _fail(str(error), OUT_OF_REACH, debug)
    except OSError as error:
        _fail(str(error), OUT_OF_REACH, debug)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}\nThis is a bug of sched-lab; --debug shows where", SOME_FAILED, debug)
    sys.exit(code or DONE)


def _fail(message: str, code: int, debug: bool, ctx: click.Context | None = None) -> NoReturn:
    if debug:
        traceback.print_exc()
    help_hint = f" (see {ctx.command_path} --help)" if ctx is not None else ""
    click.echo(f"error: {message}{help_hint}", err=True)
    sys.exit(code)
