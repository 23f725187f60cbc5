"""The command line: runs a command, and turns its outcome into an exit code and one message."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import NoReturn

import click

from sched_lab import __version__, streams
from sched_lab.errors import STOPPING, ExitCode, OutOfReach, StoreError, SweepError, visible
from sched_lab.redaction import redacted
from sched_lab.run.interrupts import unwind

COMMANDS = (
    "plan",
    "submit",
    "status",
    "show",
    "logs",
    "stop",
    "retry",
    "dashboard",
    "schedule",
    "illustrate",
    "yaml-schema",
    "doctor",
    "gc",
)
"""In the order of `--help`: each names its module in this package, and the function in it."""

GARBAGE = 20_000  # objects made since the last look for garbage that call for the next


class _Group(click.Group):
    """These commands and those that packages register as `sched_lab.commands`, loaded by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [
            *COMMANDS,
            *sorted(entry.name for entry in entry_points(group="sched_lab.commands")),
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command: click.Command
        if cmd_name in COMMANDS:
            name = cmd_name.replace("-", "_")
            command = getattr(import_module(f"sched_lab.cli.{name}"), name)
            return command
        for entry in entry_points(group="sched_lab.commands", name=cmd_name):
            command = entry.load()
            return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from sched_lab.trainers.plugins import nearest

            raise click.UsageError(
                f"unknown command {args[0]!r}{nearest(args[0], self.list_commands(ctx))}", ctx
            ) from None


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="sched-lab")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Show the traceback of an error; may stand anywhere.",
)
def cli() -> None:
    """Find the diffusion noise schedule and input scale b that suit your images.

    \b
    Example:
      sched-lab plan sweeps/quickstart.yaml      what it would run
      sched-lab submit sweeps/quickstart.yaml    run what is missing
      sched-lab report quickstart                the best b for each image size
      sched-lab dashboard                        every run, in the browser
    """


def run() -> NoReturn:
    """Run the command of `sys.argv`: an outcome becomes an exit code, an error one message."""
    streams.prepare()
    # What imports make is no garbage: to look for some takes a fifth of their time, and a second
    # at the end.
    gc.set_threshold(GARBAGE)
    atexit.register(gc.freeze)
    debug = "--debug" in sys.argv
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, unwind)
    try:
        _check_folder()
        code = cli.main(
            standalone_mode=False,
            args=[argument for argument in sys.argv[1:] if argument != "--debug"],
        )
        sys.stdout.flush()
    except SystemExit as end:
        _end(end.code)
    except (KeyboardInterrupt, click.Abort) as error:
        signum = getattr(error.__cause__ or error, "signum", signal.SIGINT)
        _fail(f"interrupted by {signal.Signals(signum).name}", 128 + signum, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        _end(ExitCode.WRONG_INPUT)
    except click.ClickException as error:
        where = getattr(error, "ctx", None) if _is_about_the_form(error) else None
        _fail(error.format_message(), ExitCode.WRONG_INPUT, debug, where)
    except (SweepError, StoreError) as error:
        _fail(str(error), ExitCode.WRONG_INPUT, debug)
    except OutOfReach as error:
        _fail(str(error), ExitCode.OUT_OF_REACH, debug)
    except OSError as error:
        from sched_lab.store.database import in_words

        _fail(in_words(error), ExitCode.OUT_OF_REACH, debug)
    except Exception as error:
        _fail(
            f"{type(error).__name__}: {error}\nThis is a bug of sched-lab; --debug shows where",
            ExitCode.SOME_FAILED,
            debug,
        )
    _end(code)


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OutOfReach("the working folder has been deleted: change to one that exists") from None


def _is_about_the_form(error: click.ClickException) -> bool:
    """Whether click itself found a command wrong, so that its help tells more: not its values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    by_click = trace is not None and trace.tb_frame.f_globals["__name__"].startswith("click.")
    is_value = isinstance(error, click.BadParameter)
    return by_click and (not is_value or isinstance(error, click.MissingParameter))


def _fail(message: str, code: int, debug: bool, ctx: click.Context | None = None) -> NoReturn:
    if debug:
        click.echo(redacted(traceback.format_exc()), err=True, nl=False)
    help_hint = f" (see {ctx.command_path} --help)" if ctx is not None else ""
    click.echo(visible(redacted(f"error: {message}{help_hint}"), keep="\n"), err=True)
    _end(code)


def _end(code: str | int | None) -> NoReturn:
    """End this process with this code, whatever signal comes now.

    Where other threads are there, they may be inside MLflow or Ray, and would crash the process
    when the interpreter takes down what they use.
    """
    with suppress(KeyboardInterrupt):  # of a signal that came just before
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if threading.active_count() == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    os._exit(code if isinstance(code, int) else code is not None)
