"""The project's own files agree with one another: make, CI, hooks, citation, the guide."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from sched_lab import __version__
from tests.conftest import ROOT

CITATION_KEYS = {
    *("abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi"),
    *("identifiers", "keywords", "license", "license-url", "message", "preferred-citation"),
    *("references", "repository", "repository-artifact", "repository-code", "title", "type"),
    *("url", "version"),
}  # of the Citation File Format 1.2.0


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


def commands(target: str) -> list[str]:
    """What a make target runs when all is installed."""
    dry = ["make", "--no-print-directory", "-n", "-o", "setup", "BIN=.venv/bin", target]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.splitlines()


def test_hooks_run_what_make_check_runs() -> None:
    (local,) = loaded(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == commands("check")


@pytest.mark.parametrize("file", [".github/workflows/ci.yml", ".ci/run"])
def test_continuous_integration_calls_make(file: str) -> None:
    called = re.findall(
        r"^\s*(?:- run: )?make (\w+)$", (ROOT / file).read_text("utf-8"), re.MULTILINE
    )
    assert {"check", "test"} <= set(called)
    assert all(commands(target) for target in set(called) - {"setup"})


def test_each_target_is_explained() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    explained = re.findall(
        r"^\| `make (\w+)", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE
    )
    assert set(phony.split()) == set(explained)


def test_the_demo_needs_no_tool_of_developers() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "\ndemo: .venv/installed\n" in makefile
    assert re.search(r"^\.venv/installed:(?:\n|.)*?\$\(PIP\) -e \.\n", makefile, re.MULTILINE)


def test_every_file_that_the_guide_names_is_there() -> None:
    named = re.findall(r"`([\w.]+/[\w./]*)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_citation_has_this_version_and_no_unknown_key() -> None:
    citation = loaded("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() <= CITATION_KEYS
    assert (citation["version"], citation["license"]) == (__version__, "Apache-2.0")
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    for work in (citation, *citation["references"]):
        for author in work["authors"]:
            assert author.keys() in ({"name"}, {"family-names", "given-names"})
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2301.10972"}]
