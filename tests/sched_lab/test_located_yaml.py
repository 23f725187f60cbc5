"""YAML is read as plain data with lines, and everything that could surprise is refused at its
line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sched_lab.errors import Problem, SweepError, visible
from sched_lab.sweep.located_yaml import MAX_BYTES, MAX_DEPTH, Place, load, loads


def refusals(text: str) -> list[str]:
    try:
        problems = loads(text, "x.yaml").problems
    except SweepError as error:
        problems = error.problems
    assert problems
    return str(SweepError(problems)).splitlines()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-3", 1e-3),
        (".5", 0.5),
        ("3.", 3.0),
        ("-7", -7),
        ("012", 12),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("12:30:45", "12:30:45"),
        ("2026-01-31", "2026-01-31"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("cosine@0.2,1,1", "cosine@0.2,1,1"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them(written: str, value: object) -> None:
    found = loads(f"a: {written}").data["a"]
    assert (found, type(found)) == (value, type(value))


def test_every_value_and_key_knows_where_it_is_written() -> None:
    read = loads("name: x\ngrid:\n  b: [0.5,\n      1e0]\n  schedule:\n    - {kind: sigmoid}\n")
    assert read.data == {"name": "x", "grid": {"b": [0.5, 1.0], "schedule": [{"kind": "sigmoid"}]}}
    assert read.values["grid", "b", 1] == Place(4, 7, "1e0")
    assert read.values["grid", "schedule", 0] == Place(6, 7, "{kind: sigmoid}")
    assert read.keys["grid", "schedule"] == Place(5, 3, "schedule")


def test_a_problem_names_file_line_column_key_value_and_rule() -> None:
    problem = loads("grid:\n  b: [1, -1]\n", "x.yaml").problem(("grid", "b", 1), "must be above 0")
    assert str(problem) == "x.yaml:2:10: grid.b[1] = -1: must be above 0"


def test_a_problem_with_what_is_not_written_stands_at_what_holds_it() -> None:
    problem = loads("a: 1\ndata: {source: folder}\n", "x.yaml").problem(
        ("data", "path"), "is required"
    )
    assert str(problem) == "x.yaml:2:7: data.path: is required"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", ["x.yaml:3:1: a: duplicate key: it is on line 1 already"]),
        (
            "a: !!python/object:os.system x",
            ["x.yaml:1:4: a: tags are not allowed, got tag:yaml.org,2002:python/object"],
        ),
        ("a: !secret x", ["x.yaml:1:4: a: tags are not allowed, got !secret"]),
        ("!!map {a: 1}", ["x.yaml:1:1: tags are not allowed"]),
        (
            "a: &x [1]\nb: *x\n",
            ["x.yaml:1:4: a: anchors and aliases", "x.yaml:2:4: b: anchors and aliases"],
        ),
        ("&k a: 1", ["x.yaml:1:1: a: a key takes no anchor and no tag"]),
        ("<<: {a: 1}", ["x.yaml:1:1: <<: merge keys are not allowed"]),
        ("1: x", ["x.yaml:1:1: 1: keys must be text, got 1"]),
        ("? [a]\n: 1", ["x.yaml:1:3: keys must be text, not a list or a mapping"]),
        ("a: 1\n---\nb: 1", ["x.yaml:2:1: must hold one document, not several"]),
        ("[1, 2]", ["x.yaml:1:1: must be a mapping of keys to values"]),
        ("just text", ["x.yaml:1:1: must be a mapping of keys to values"]),
        ("", ["x.yaml: is empty"]),
        ("# nothing\n", ["x.yaml: is empty"]),
        (
            "a: [.nan,\n .inf, -.INF, 1e999]",
            ["x.yaml:1:5: a[0]: must be finite", *["x.yaml:2:"] * 3],
        ),
        ("a: 99999999999999999999", ["x.yaml:1:4: a: must be a whole number within 64 bits"]),
        (
            "a: [1,\nb: 2",
            ["x.yaml:3:1: the list that opens on line 1 lacks a comma before this, or"],
        ),
        ("a: {b: 1\nc: 2", ["x.yaml:2:2: the mapping that opens on line 1 lacks a comma before"]),
        ("a: b: c", ["x.yaml:1:5: a key can't stand here: text with a colon needs quotes"]),
        ("a: 1\n b: 2", ["x.yaml:2:3: a key can't stand here"]),
        ("a:\n\tb: 1", ["x.yaml:2:1: a tab: YAML is indented with spaces"]),
        ("a: @x", ["x.yaml:1:4: text that begins with @ needs quotes"]),
        ("a: 1\nb: 'x\nc: 1", ["x.yaml:2:4: the quote that opens here is never closed"]),
        ("a: 1\nb\nc: 2", ["x.yaml:2:1: a key without a colon and a space after it"]),
        ("a:\n  b: 1\n c: 2", ["x.yaml:3:2: not a key of the mapping that begins on line 1"]),
        ("a:\n  - b\n c: 1", ["x.yaml:3:2: not a key of the mapping that begins on line 1"]),
        ("a: ]", ["x.yaml:1:4: a ] that closes nothing"]),
        ("{a: 1}}", ["x.yaml:1:7: a } that closes nothing"]),
        ("a: >2x", ["x.yaml:1:6: after | or > the text begins on the next line, indented"]),
        ("a: |0\n b", ["x.yaml:1:5: after | or > the text begins on the next line, indented"]),
        ('a: {b: "C:\\pics"}', ["x.yaml:1:11: not an escape of double quotes: there a backslash"]),
        ('a: "\\uZZZZ"', ["x.yaml:1:7: not an escape of double quotes"]),
        ("%FOO bar\n---\na: x", ["x.yaml:1:5: directives are not allowed"]),
        ("%YAML 9.9\n---\na: x", ["x.yaml:1:1: directives are not allowed"]),
        ("a: & x", ["x.yaml:1:5: anchors are not allowed: text that begins with & needs quotes"]),
        ("a: *\n", ["x.yaml:1:5: aliases are not allowed"]),
        ("a: !<\n", ["x.yaml:1:6: tags are not allowed: text that begins with ! needs quotes"]),
        ("a: x\r\tb: y", ["x.yaml:2:1: a tab: YAML is indented with spaces"]),
        ("a: 1\n...\nfoo", ["x.yaml:3:1: text after the end of the document"]),
        ("a: [1],, b: 2", ["x.yaml:1:7: not a key of the mapping that begins on line 1"]),
        ("{a: [1],, b: 2}", ["x.yaml:1:9: , can't stand here: a value is missing before it"]),
        ("a: .nan\nb: [", ["x.yaml:1:4: a: must be finite", "x.yaml:3:1: the text ends inside"]),
        ("a: 1\nb: \x07", ["x.yaml:2:4: the character '\\x07', which YAML does not allow"]),
    ],
)
def test_what_could_surprise_is_refused_at_its_line(text: str, told: list[str]) -> None:
    found = refusals(text)
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True))


@given(
    st.lists(
        st.sampled_from(
            [*"abc1:,-?#&*!|>'\"%@`[]{}\\\n\n \t\r\x00\x1b\x85\ufeff", ": ", "\n  ", "..."]
        ),
        max_size=30,
    ).map("".join)
)
def test_no_text_is_refused_without_its_line_or_in_the_words_of_a_parser(text: str) -> None:
    try:
        problems = loads(text, "x.yaml").problems
    except SweepError as error:
        problems = error.problems
    for problem in problems:
        assert problem.line or problem.rule == "is empty"
        assert not re.search("while |did not find|unicode string|could not|got$", problem.rule)


@given(st.text(), st.text(), st.text())
def test_no_message_steers_a_terminal(file: str, key: str, value: str) -> None:
    told = str(Problem(file, 1, 1, key, value, "must be a name"))
    assert told.isprintable()
    for part in (file, key, value):
        assert not part.isprintable() or part in told
    assert visible("\x1b[31m\u202e", "") == r"\x1b[31m\u202e"


def test_all_problems_of_a_text_are_told_at_once() -> None:
    assert len(refusals("a: !x 1\na: .nan\nb: &y 2\n")) == 4


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_absurd_nesting_is_refused_and_not_recursed_into(opening: str) -> None:
    (told,) = refusals(opening * 100_000)
    assert told.endswith(f"is nested more than {MAX_DEPTH} levels deep")


def test_exponential_aliases_are_refused_in_no_time() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    assert "anchors and aliases are not allowed" in refusals(bomb)[0]


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: é\n".encode("latin-1"))
    (tmp_path / "huge.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, told in {
        "none.yaml": ": no such file",
        "": ": is not a regular file",
        "latin.yaml": ":2: is not UTF-8",
        "huge.yaml": ": is larger than 1,000,000 bytes",
        "pipe.yaml": ": is not a regular file",
    }.items():
        with pytest.raises(SweepError) as caught:
            load(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}{told}"


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("\ufeffa: 1\r\nb: [2]\r\n".encode())
    assert load(tmp_path / "x.yaml").data == {"a": 1, "b": [2]}


def test_thousands_of_problems_are_cut_to_a_readable_number() -> None:
    assert refusals("a: [" + ".nan, " * 1000 + "]")[-1] == "… and 980 more"
