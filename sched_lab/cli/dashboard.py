"""`sched-lab dashboard`: MLflow's pages on a store."""

from __future__ import annotations

import click

from sched_lab.cli.options import as_utf8, store_option, tracking_option
from sched_lab.store.folder import Store


@click.command(short_help="MLflow's pages on the store.")
@click.argument("name", required=False, callback=as_utf8)
@store_option
@tracking_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; any other asks to log in.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option(
    "--password/--no-password",
    default=True,
    help="Whether other users of this machine are kept out. With another --host it is always so.",
)
def dashboard(
    name: str | None,
    store: str | None,
    tracking_uri: str | None,
    host: str,
    port: int,
    password: bool,
) -> None:
    """Open MLflow's pages on this store until Ctrl-C: on this machine only, unless --host says
    otherwise. They open on the trials of sweep NAME, the best first.

    The address that is printed holds a token, without which no other user of the machine gets in.
    With another --host, $MLFLOW_AUTH_ADMIN_PASSWORD is the password of the user admin, who can add
    others.

    \b
    Example:
      sched-lab dashboard quickstart --port 5001
    """
    from sched_lab.tracking.dashboard import is_loopback, serve
    from sched_lab.tracking.reader import UnknownSweepError

    if not (password or is_loopback(host)):
        raise click.UsageError("--no-password is for this machine alone: leave out --host")
    try:
        serve(Store.at(store, tracking_uri), host, port, name, password=password)
    except UnknownSweepError as error:
        raise click.UsageError(str(error)) from error
