"""`sched-lab gc`: deletes what nothing in a store needs any more."""

from __future__ import annotations

import sys

import click

from sched_lab.cli.answers import print_json
from sched_lab.cli.options import json_option, store_option
from sched_lab.store.folder import Store


@click.command(short_help="Delete what nothing needs any more.")
@store_option
@click.option(
    "--cache",
    is_flag=True,
    help="Also images, detectors and statistics; they are made again when needed.",
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
def gc(store: str | None, cache: bool, yes: bool, as_json: bool) -> None:
    """List what nothing in a store needs any more, such as checkpoints of finished trials; delete
    it after asking.

    \b
    Example:
      sched-lab gc
      sched-lab gc --cache --yes
    """
    from sched_lab.store.housekeeping import delete, leftovers

    where = Store.at(store)
    found = leftovers(where, cache)
    total = _human(sum(each.size for each in found))
    if not as_json:
        for each in found:
            click.echo(
                f"{_human(each.size):>10}  {each.what:<32}  {each.path.relative_to(where.root)}"
            )
        click.echo(
            f"{total:>10}  in all, in {where.root}"
            if found
            else f"nothing to delete in {where.root}"
        )
    wanted = yes or (
        bool(found) and not as_json and sys.stdin.isatty() and click.confirm("delete all of it?")
    )
    gone = delete(where, found) if wanted else []
    if as_json:
        print_json(
            {
                "found": [{**each.__dict__, "path": str(each.path)} for each in found],
                "deleted": len(gone),
            }
        )
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
