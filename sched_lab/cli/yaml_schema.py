"""`sched-lab yaml-schema`: the JSON Schema of sweep files."""

from __future__ import annotations

import click

from sched_lab.cli.answers import print_json


@click.command("yaml-schema", short_help="The JSON Schema of sweep files, for editors.")
def yaml_schema() -> None:
    """Print the JSON Schema of sweep files, for editors that complete and check YAML.

    \b
    Example:
      sched-lab yaml-schema > sweep.schema.json
    """
    from sched_lab.sweep.schema import json_schema

    print_json(json_schema())
