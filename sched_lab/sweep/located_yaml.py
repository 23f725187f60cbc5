"""YAML as plain data that remembers the line of everything in it, for errors that name such places.

A strict subset of YAML 1.2: mappings with text keys, lists and scalars, in one document. `1e-4` is
a number; only `true` and `false` are booleans. Tags, anchors, merge keys, duplicate keys and NaN
are refused. The parser's events are read, so that depth is checked before anything recurses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sched_lab.errors import Problem, SweepError

KeyPath = tuple[str | int, ...]
"""Where a value stands: ("grid", "b", 2) is the third item of `b` in `grid`."""

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONSTANTS = {word: value for name, value in (("true", True), ("false", False), ("null", None))
              for word in (name, name.title(), name.upper())} | {"~": None, "": None}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_FORBIDDEN = re.compile(
    "[^\\t\\n\\r -~\\x85\\xa0-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]|\\ufeff"
)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Place:
    """A position in the file, line and column from 1, and the beginning of what is written
    there.
    """

    line: int
    column: int
    text: str


@dataclass(frozen=True)
class Located:
    """A file's data, and where every value and every key of it is written."""

    file: str
    text: str
    data: dict[str, Any]
    values: dict[KeyPath, Place]
    keys: dict[KeyPath, Place]
    problems: tuple[Problem, ...] = ()
    """What is wrong with the text itself, where the rest could be read all the same."""

    def problem(self, path: KeyPath, rule: str, *, at_key: bool = False) -> Problem:
        """A broken rule at a path, or at the nearest part of it that the file holds."""
        key = key_text(path)
        if at_key and path in self.keys:
            return Problem(self.file, self.keys[path].line, self.keys[path].column, key, None, rule)
        place = next(
            self.values[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.values
        )
        value = (place.text or None) if path and path in self.values else None
        return Problem(self.file, place.line, place.column, key, value, rule)


def key_text(path: KeyPath) -> str:
    """A path as people write it: grid.b[2]."""
    return "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in path
    ).removeprefix(".")


def load(path: str | Path) -> Located:
    """The data of a YAML file with its places. Raises SweepError as `loads` does, and where the
    file can't be read.
    """

    def refuse(rule: str) -> SweepError:
        return SweepError([Problem(str(path), None, None, "", None, rule)])

    file = Path(path)
    if not file.is_file():
        raise refuse("is not a regular file" if file.exists() else f"no such file{_meant(file)}")
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise refuse(f"is larger than {MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SweepError([Problem(str(path), line, None, "", None, "is not UTF-8")]) from None
    return loads(text, str(path))


def _meant(file: Path) -> str:
    """The tail of an error message: a file of that name in the folder where sweeps are kept."""
    there = Path("sweeps", file.name).with_suffix(".yaml")
    return f"; did you mean {there}?" if there.is_file() else ""


def loads(text: str, file: str = "<text>") -> Located:
    """The data of a YAML text with its places, and what is wrong with it; `file` names it there.

    Raises SweepError, with all that is wrong so far, where the text can't be read to its end.
    """
    reading = _Reading(file, text)
    try:
        data = reading.document(iter(yaml.parse(text, Loader=_LOADER)))
    except yaml.MarkedYAMLError as error:
        raise SweepError([*reading.problems, _syntax(file, text, error)]) from None
    except yaml.YAMLError:  # the parser gives no line of it
        raise SweepError([_forbidden(file, text)]) from None
    if not isinstance(data, dict):
        raise SweepError(reading.problems)
    return Located(file, text, data, reading.values, reading.keys, tuple(reading.problems))


def _forbidden(file: str, text: str) -> Problem:
    """The first character of the text that YAML has no place for."""
    found = _FORBIDDEN.search(text)
    if found is None:
        return Problem(file, None, None, "", None, "is not YAML")
    before = text[: found.start()]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    rule = f"the character {found[0]!a}, which YAML does not allow: delete it"
    return Problem(file, line, column, "", None, rule)


_CONSTRUCTS = {
    "directive": "directives are not allowed: text that begins with % needs quotes",
    "anchor": "anchors are not allowed: text that begins with & needs quotes",
    "alias": "aliases are not allowed: text that begins with * needs quotes",
    "tag": "tags are not allowed: text that begins with ! needs quotes",
    "block scalar": "after | or > the text begins on the next line, indented",
    "quoted scalar": (
        "not an escape of double quotes: there a backslash is written twice; in single quotes it"
        " is itself"
    ),
}
"""By what libyaml calls what it reads: what is wrong where it can't."""


def _syntax(file: str, text: str, error: yaml.MarkedYAMLError) -> Problem:
    """What a parser's error means, in words for people who write sweeps."""
    mark, opening = error.problem_mark, error.context_mark
    problem, at = error.problem or "", f" on line {opening.line + 1}" if opening else ""
    character = text[mark.index : mark.index + 1] if mark else ""
    match problem:
        case "found character that cannot start any token" if character == "\t":
            rule = "a tab: YAML is indented with spaces"
        case "found character that cannot start any token":
            rule = f"text that begins with {character} needs quotes"
        case "did not find expected ',' or ']'":
            rule = f"the list that opens{at} lacks a comma before this, or its closing ]"
        case "did not find expected ',' or '}'":
            rule = f"the mapping that opens{at} lacks a comma before this, or its closing }}"
        case "found unexpected end of stream":
            rule, mark = "the quote that opens here is never closed", opening
        case "could not find expected ':'":
            rule, mark = "a key without a colon and a space after it", opening
        case "did not find expected key":
            rule = (
                f"not a key of the mapping that begins{at}: its indentation differs, or a bracket"
                " or quote before it is wrong"
            )
        case "did not find expected '-' indicator":
            rule = f"not an item, with a dash, of the list that begins{at}: its indentation differs"
        case "mapping values are not allowed in this context":
            rule = "a key can't stand here: text with a colon needs quotes, or a line is indented"
        case "did not find expected node content" | "did not find expected <document start>" if (
            character in {"]", "}"}
        ):
            rule = f"a {character} that closes nothing"
        case "did not find expected node content" if not character:
            rule = "the text ends inside a list or a mapping: its closing ] or } is missing"
        case "did not find expected node content":
            rule = f"{character} can't stand here: a value is missing before it"
        case "did not find expected <document start>":
            rule = "text after the end of the document"
        case "found a tab character that violates indentation":
            rule = "a tab: YAML is indented with spaces"
        case "found incompatible YAML document":
            rule = _CONSTRUCTS["directive"]
        case _:
            within = (error.context or "").removeprefix("while ")
            rule = next(
                (rule for construct, rule in _CONSTRUCTS.items() if within.endswith(construct)),
                "is not YAML: look for a quote, bracket or indentation that is wrong",
            )
    line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
    return Problem(file, line, column, "", None, rule)


class _Reading:
    """The reading of one text: the places and the problems so far.

    Events are typed Any, because PyYAML's stubs leave their attributes out.
    """

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text = file, text
        self.values: dict[KeyPath, Place] = {}
        self.keys: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []

    def document(self, events: Iterator[Any]) -> Any:
        next(events)  # the start of the stream
        if isinstance(next(events), yaml.StreamEndEvent):
            raise SweepError([Problem(self.file, None, None, "", None, "is empty")])
        top = next(events)
        data = self.node(top, events, ())
        if not isinstance(top, yaml.MappingStartEvent):
            self.refuse(top, (), "must be a mapping of keys to values")
        next(events)  # the end of the document
        if not isinstance(after := next(events), yaml.StreamEndEvent):
            self.refuse(after, (), "must hold one document, not several")
        return data

    def node(self, event: Any, events: Iterator[Any], path: KeyPath) -> Any:
        if len(path) > MAX_DEPTH:
            self.refuse(event, path[:1], f"is nested more than {MAX_DEPTH} levels deep")
            raise SweepError(self.problems)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self.refuse(event, path, "anchors and aliases are not allowed: write the value out")
        elif event.tag is not None:
            self.refuse(event, path, f"tags are not allowed, got {event.tag}")
        data: Any = None
        end = event
        if isinstance(event, yaml.MappingStartEvent):
            data, end = self.mapping(events, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            data = []
            while not isinstance(end := next(events), yaml.SequenceEndEvent):
                data.append(self.node(end, events, (*path, len(data))))
        elif isinstance(event, yaml.ScalarEvent):
            data = self.scalar(event, path)
        self.values[path] = self.place(event, end)
        return data

    def mapping(self, events: Iterator[Any], path: KeyPath) -> tuple[dict[str, Any], Any]:
        data: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse(event, path, "keys must be text, not a list or a mapping")
                raise SweepError(self.problems)
            key, at = event.value, (*path, event.value)
            if event.anchor is not None or event.tag is not None:
                self.refuse(event, at, "a key takes no anchor and no tag")
            elif not isinstance(self.scalar(event, at), str):
                self.refuse(
                    event,
                    at,
                    f"keys must be text, got {_short(key) or 'nothing'} (inside braces, a value"
                    " with commas needs quotes)",
                )
            elif key == "<<" and event.implicit[0]:
                self.refuse(event, at, "merge keys are not allowed: write the values out")
            elif key in data:
                self.refuse(event, at, f"duplicate key: it is on line {self.keys[at].line} already")
            else:
                self.keys[at] = self.place(event, event)
            data[key] = self.node(next(events), events, at)
        return data, event

    def scalar(self, event: Any, path: KeyPath) -> Any:
        text = event.value
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            if len(text) <= 20 and abs(number := int(text)) < 2**63:
                return number
            self.refuse(event, path, "must be a whole number within 64 bits")
        elif _NOT_FINITE.fullmatch(text) or (
            _FLOAT.fullmatch(text) and not math.isfinite(float(text))
        ):
            self.refuse(event, path, f"must be finite, got {_short(text)}")
        elif _FLOAT.fullmatch(text):
            return float(text)
        return text

    def place(self, start: Any, end: Any) -> Place:
        first, last = start.start_mark, min(end.end_mark.index, start.start_mark.index + 200)
        return Place(first.line + 1, first.column + 1, _short(self.text[first.index : last]))

    def refuse(self, event: Any, path: KeyPath, rule: str) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        self.problems.append(Problem(self.file, line, column, key_text(path), None, rule))


def _short(text: str) -> str:
    """The text on one line, cut to 40 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:39] + "…"
