"""Writes into the pages what the code itself knows: settings, schedules, commands, figures.

A line `<!-- from code: name argument -->` in a page stands for what the function of that name in
`PARTS` returns. mkdocs calls `on_files` and `on_page_markdown`; nothing is fetched. Where a line
`<!-- end -->` follows, what stands between the two is that text, for readers of the raw page. `make
reference` brings it up to date, and a test compares.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sched_lab.cli.program import cli
from sched_lab.sweep import spec
from sched_lab.sweep.schema import json_schema
from sched_lab.sweep.settings import FAMILIES, SCALARS, part_classes
from sched_lab.trainers import schedules
from sched_lab.trainers.spec import TrialSpec

ROOT = Path(__file__).parents[1]
BESIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    ".github/headline.png": "figures/headline.png",
}
"""Files of the checkout that belong to the pages too, and where."""
HEADER = "| setting | meaning | type | default | range |\n|---|---|---|---|---|"
RANGES = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minItems": "at least {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
    "null": "null",
}
SHOWN = ("linear", "cosine", "sigmoid@-3,3,1", "flow@1", "edm@-1.2,1.2")
"""The schedules of the figures."""


def settings_table(part: str) -> str:
    """The settings of one part of a sweep file; one table for each class that the part can have."""
    if part == "trial":
        return _table(TrialSpec, "", ("schedule", *SCALARS))
    family = FAMILIES.get(part)
    if family is None:
        return "\n".join(_table(model, f"{part}.") for model in part_classes(part))
    sections = []
    for name in family.registered():
        model = family.member(name)
        sections.append(f"#### `{name}`\n\n{_prose(model.__doc__)}\n\n{_table(model, f'{part}.')}")
    return "\n\n".join(sections)


def keys_table(model: str) -> str:
    """The keys of a sweep file that are no settings: those of a model in `sched_lab.sweep.spec`."""
    name, _, prefix = model.partition(" ")
    return _table(getattr(spec, name), prefix)


def parameters_table() -> str:
    """Every parameter of a schedule, which is a setting too, with the kinds that read it."""
    lines = ["| setting | read by, with the default |", "|---|---|"]
    for name in sorted(schedules.all_parameters()):
        readers = ", ".join(
            f"`{kind}` ({json.dumps(schedules.parameters(kind)[name])})"
            for kind in schedules.kinds()
            if kind not in schedules.ALIASES and name in schedules.parameters(kind)
        )
        lines.append(f"| `{name}` | {readers} |")
    return "\n".join(lines)


def schedule_sections() -> str:
    """Each kind of schedule with its notation, formula and parameters."""
    sections = []
    for name, function in schedules.KINDS.items():
        parameters = list(inspect.signature(function).parameters.values())[1:]
        notation = name.rstrip("@") + (
            "@" + ",".join(p.name for p in parameters) if parameters else ""
        )
        defaults = ", ".join(f"`{p.name}` = {json.dumps(p.default)}" for p in parameters)
        told = [f"### `{notation}`", _prose(function.__doc__)]
        sections.append("\n\n".join([*told, f"Left out: {defaults}."] if defaults else told))
    return "\n\n".join(sections)


def figures() -> str:
    """The pictures of schedules, one a paragraph."""
    return "\n\n".join(f"![{name}](<figures/{name}.png>){{ width=480 }}" for name in _figures())


def command_sections() -> str:
    """The help of every command."""
    return "\n\n".join(
        f"### `{path}`\n\n```text\n{help_text}\n```" for path, help_text in _helps(cli, "sched-lab")
    )


PARTS = {
    "settings": settings_table,
    "keys": keys_table,
    "parameters": parameters_table,
    "figures": figures,
    "schedules": schedule_sections,
    "commands": command_sections,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures, and the pages whose text lies elsewhere in the checkout."""
    for path, page in BESIDE.items():
        content = (ROOT / path).read_bytes()
        if path.endswith(".md"):
            content = content.replace(b"](docs/", b"](")
        files.append(File.generated(config, page, content=content))
    for figure, content in _figures().items():
        files.append(File.generated(config, f"figures/{figure}.png", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the parts in their places."""
    for path, own in BESIDE.items():
        markdown = markdown.replace(f"](../{path}", f"]({own}")

    return _PART.sub(lambda part: _written(part, page.file.src_uri), markdown)


_PART = re.compile(
    r"^<!-- from code: (\w+)(?: (.+?))? -->$(?:\n(?:(?!<!-- from code:).*\n)*?(<!-- end -->)$)?",
    flags=re.MULTILINE,
)


def _written(part: re.Match[str], page: str) -> str:
    name, argument = part[1], part[2]
    if name not in PARTS:
        raise PluginError(f"{page}: no part {name!r}; valid: {', '.join(PARTS)}")
    return PARTS[name](argument) if argument else PARTS[name]()


def up_to_date(markdown: str, page: str) -> str:
    """The page with the text of its parts that are kept in it."""

    def kept(part: re.Match[str]) -> str:
        if not part[3]:
            return part[0]
        return f"{part[0].partition(chr(10))[0]}\n\n{_written(part, page)}\n\n{part[3]}"

    return _PART.sub(kept, markdown)


def _table(model: type[BaseModel], prefix: str, only: Iterable[str] = ()) -> str:
    known = _schema()
    own = known if model is spec.SweepSpec else known["$defs"].get(model.__name__)
    schema = own or model.model_json_schema()  # that of a whole trial stands in no sweep file
    definitions = known["$defs"] | schema.get("$defs", {})
    lines = [HEADER]
    for name in only or model.model_fields:
        field = model.model_fields[name]
        said = _said(schema["properties"][name], definitions)
        kind, limits = (", ".join(dict.fromkeys(texts)) for texts in said)
        default = "required" if field.is_required() else _default(f"{prefix}{name}", field)
        meaning = _meaning(model, name).replace("\n", " ")
        row = (f"`{prefix}{name}`", meaning, kind, default, limits)
        lines.append(f"| {' | '.join(text.replace('|', '&#124;') for text in row)} |")
    return "\n".join(lines)


def _meaning(model: type[BaseModel], name: str) -> str:
    """A field's docstring, or the one that it has in the class that it comes from."""
    classes = (each for each in model.__mro__ if issubclass(each, BaseModel))
    fields = (each.model_fields[name] for each in classes if name in each.model_fields)
    return _prose(next((field.description for field in fields if field.description), ""))


@cache
def _schema() -> dict[str, Any]:
    return json_schema()


def _default(name: str, field: FieldInfo) -> str:
    if name in FAMILIES:
        return f"`{FAMILIES[name].default}`"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def _said(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The types that a value may have, and the limits that it must keep."""
    if "$ref" in value:
        value = definitions[value["$ref"].rpartition("/")[2]]
    if "anyOf" in value:
        each = [_said(option, definitions) for option in value["anyOf"]]
        return [t for types, _ in each for t in types], [x for _, limits in each for x in limits]
    limits = [text.format(value[key]) for key, text in RANGES.items() if key in value]
    options = value.get("enum", [value["const"]] if "const" in value else None)
    if options is not None:
        return [", ".join(f"`{option}`" for option in options)], limits
    if value.get("type") == "array":
        types, inner = _said(value.get("items", {}), definitions)
        return [f"list: {', '.join(types)}"], limits + inner
    return [TYPES.get(value.get("type", ""), "any")], limits


def _helps(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=path, terminal_width=88)
    if not isinstance(command, click.Group):
        yield path, command.get_help(context)
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from _helps(inner, f"{path} {name}")


@cache
def _figures() -> dict[str, bytes]:
    """Pictures of schedules, as PNG, by what they show."""
    from sched_lab.analysis.figures import static

    def curves(each: Iterable[tuple[str, float]]) -> list[static.Curve]:
        return [
            static.Curve(f"{notation}, b = {b:g}" if b != 1 else notation, parsed, b, color)
            for (notation, b), color in zip(each, static.COLORS, strict=False)
            for parsed in [schedules.parse(notation)]
        ]

    kinds = curves((notation, 1.0) for notation in SHOWN)
    scales = curves(("linear", b) for b in (0.25, 0.5, 1.0, 2.0))
    axes = {
        "log-SNR of five schedules": static.log_snr(kinds),
        "Where five schedules train": static.density(kinds),
        "Where linear trains at four values of b": static.density(scales),
    }
    return {name: static.render(ax, "png") for name, ax in axes.items()}


def _prose(text: str | None) -> str:
    """A docstring as Markdown on one line a paragraph, its arXiv numbers as links."""
    paragraphs = inspect.cleandoc(text or "").replace("``", "`").split("\n\n")
    whole = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", whole)


if __name__ == "__main__":
    for path in sorted((ROOT / "docs").glob("*.md")):
        path.write_text(up_to_date(path.read_text("utf-8"), path.name), "utf-8")
