"""The command line: finds the command, runs it, and turns every outcome into an exit code and one message."""

from __future__ import annotations

import gc
import sys
import traceback
from importlib.metadata import entry_points
from typing import NoReturn

import click

from sched_lab import __version__
from sched_lab.commands import illustrations, looking, sweeps, tools
from sched_lab.commands.answers import DONE, INTERRUPTED, OUT_OF_REACH, SOME_FAILED, WRONG_INPUT
from sched_lab.located_yaml import SweepError
from sched_lab.redaction import redacted
from sched_lab.store import OutOfReach


class _Group(click.Group):
    """The project's commands, and those that packages register as `sched_lab.commands`, loaded when named."""

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


for _command in (
    sweeps.plan,
    sweeps.submit,
    looking.status,
    looking.show,
    looking.logs,
    sweeps.stop,
    sweeps.retry,
    looking.dashboard,
    tools.schedule,
    illustrations.illustrate,
    tools.yaml_schema,
    tools.doctor,
    tools.gc,
):
    cli.add_command(_command)


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
    gc.freeze()  # or Python would look through all of it once more, for most of a second, before it ends
    sys.exit(code or DONE)


def _fail(message: str, code: int, debug: bool, ctx: click.Context | None = None) -> NoReturn:
    if debug:
        click.echo(redacted(traceback.format_exc()), err=True, nl=False)
    help_hint = f" (see {ctx.command_path} --help)" if ctx is not None else ""
    click.echo(redacted(f"error: {message}{help_hint}"), err=True)
    sys.exit(code)
