"""What the pages show is true: their sweeps are valid, their examples run, and every command,
option, file and name that they mention is there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import click
import pytest

from sched_lab.cli.program import cli
from sched_lab.sweep.located_yaml import loads
from sched_lab.sweep.settings import settings
from sched_lab.sweep.spec import validated
from sched_lab.trainers.schedules import kinds
from tests.conftest import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
ARCHITECTURE = PAGES["docs/architecture.md"]
PACKAGES = ("trainers", "sched_lab", "analysis")
EVERYWHERE = {"--help", "-h", "--debug", "--version"}  # options that any command has


def fenced(text: str, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [code for of, code in blocks if of == language]


def examples(text: str) -> list[str]:
    return [code for code in fenced(text, "python") if code.startswith("# example\n")]


def spans(text: str) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if fenced(text, "yaml")])
def test_every_sweep_in_the_pages_is_valid(page: str) -> None:
    for text in fenced(PAGES[page], "yaml"):
        sweep = validated(loads(text, page))
        assert sweep.grid.warnings == ()


def test_the_readme_shows_a_sweep() -> None:
    assert fenced(PAGES["README.md"], "yaml")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if examples(text)])
def test_the_examples_of_a_page_run_one_after_another(page: str, small_lab: Path) -> None:
    code = "\n".join(examples(PAGES[page]))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=small_lab, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_of_a_face_is_in_the_python_api() -> None:
    import sched_lab
    from sched_lab import analysis, trainers

    told = " ".join(spans(PAGES["docs/python-api.md"]))
    for face in (sched_lab, analysis, trainers):
        names = set(face.__all__)
        assert {name for name in names if not re.search(rf"\b{name}\b", told)} == set()


def invocations(text: str) -> Iterator[tuple[list[click.Command], str]]:
    """Each line that shows commands of sched-lab: these commands, and the line."""
    for line in text.splitlines():
        shown = re.findall(r"(?:^\$ |`)sched-lab ([^`#|>]*)", line)
        found = [command for words in shown for command in _commands(words)]
        if found:
            yield found, line


def _commands(words: str) -> list[click.Command]:
    command: click.Command = cli
    for word in shlex.split(words):
        context = click.Context(command, info_name="sched-lab")
        if not isinstance(command, click.Group):
            break
        inner = command.get_command(context, word.strip("[]"))
        assert inner is not None, f"sched-lab {words}: there is no command {word}"
        command = inner
    return [command]


def test_every_command_in_the_pages_exists_with_its_options() -> None:
    shown: set[str | None] = set()
    for page, text in PAGES.items():
        for commands, line in invocations(text):
            shown |= {command.name for command in commands}
            known = {
                option
                for command in commands
                for each in (command, *getattr(command, "commands", {}).values())
                for parameter in each.params
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
            used = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line))
            assert used <= known | EVERYWHERE, f"{page}: {line}"
    listed = cli.list_commands(click.Context(cli))
    assert {name for name in listed if name != "illustrate"} <= shown


def test_every_file_and_name_in_the_pages_exists() -> None:
    place = re.compile(
        r"((?:trainers|sched_lab|analysis|tests|sweeps|docker|docs)/[\w./]*)(?::(\w+))?"
    )
    checked = 0
    for page, text in PAGES.items():
        for match in filter(None, map(place.fullmatch, spans(text))):
            path, name = match.groups()
            assert (ROOT / path).exists(), f"{page}: {path}"
            if name:
                defined = rf"^\s*(?:class|def) {name}\b|^{name}\b.* = "
                content = (ROOT / path).read_text("utf-8")
                assert re.search(defined, content, flags=re.MULTILINE), f"{page}: {match[0]}"
            checked += 1
    assert checked > 100


def test_every_module_is_in_the_map() -> None:
    start, end = ARCHITECTURE.index("## The map"), ARCHITECTURE.index("### Beside the packages")
    mapped = {span for span in spans(ARCHITECTURE[start:end]) if span.endswith(".py")}
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not path.name.startswith("__") and path.resolve() == path
    }
    assert mapped == modules


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built strictly: a warning, such as a link that leads nowhere, is an error."""
    for package in ("mkdocs", "material"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: it comes with sched-lab[docs]")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("page", ["sweep-file.md", "schedules.md"])
def test_what_a_page_holds_of_the_code_is_what_the_code_says(page: str) -> None:
    pytest.importorskip("mkdocs")
    hooks = run_path(str(ROOT / "docs" / "hooks.py"))
    text = PAGES[f"docs/{page}"]
    assert "<!-- end -->" in text
    assert hooks["up_to_date"](text, page) == text, "run make reference"


@pytest.mark.slow
def test_the_pages_name_every_setting_schedule_and_command(site: Path) -> None:
    reference = (site / "sweep-file.html").read_text("utf-8")
    named = set(re.findall(r"<code>([\w.]+)</code>", reference))
    assert set(settings()) - named == set()
    assert {"run.early_stop", "run.retries.bug", "resources.gpu"} <= named
    schedules = (site / "schedules.html").read_text("utf-8")
    assert {kind for kind in kinds() if f"<code>{kind}" not in schedules} == set()
    commands = (site / "commands.html").read_text("utf-8")
    assert "Usage: sched-lab illustrate noise" in commands


@pytest.mark.slow
def test_the_pages_fetch_nothing_from_another_host(site: Path) -> None:
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]*src=[\"']?https?:|<link[^>]*href=[\"']?https?:"
    )
    for page in site.rglob("*.html"):
        assert fetched.search(page.read_text("utf-8")) is None, page.name
    styles = [sheet.read_text("utf-8") for sheet in site.rglob("*.css")]
    assert styles
    assert not any(re.search(r"url\([\"']?https?:|@import", style) for style in styles)
