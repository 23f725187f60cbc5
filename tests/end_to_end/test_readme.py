"""The README is short, and what it points to is there."""

from __future__ import annotations

import re

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def test_the_readme_is_no_longer_than_a_reader_has_time_for() -> None:
    assert len(README.encode()) <= 8000


def test_every_link_to_a_file_of_the_checkout_resolves() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in pages if f"](docs/{name})" not in README} == set()


def test_the_result_is_the_one_that_its_sweep_tells_of() -> None:
    row = r"^\| ([\d.]+) \| (.+) \| (.+) \| (.+) \|$"
    table = {b: sizes for b, *sizes in re.findall(row, README, flags=re.MULTILINE)}
    assert set(table) == {"0.25", "0.5", "1", "2", "4"}
    head = (ROOT / "sweeps" / "headline.yaml").read_text("utf-8")
    rows = re.findall(r"^# +(?:8|16|32)² +(.+?)(?: {4}best|$)", head, flags=re.MULTILINE)
    for size, told in enumerate(rows):
        shown = [
            re.sub(r"[*† ]", "", sizes[size])
            for _, sizes in sorted(table.items(), key=lambda item: float(item[0]))
        ]
        assert told.split()[:5] == shown
    assert len(rows) == 3


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"(?:\$ |`)make ([a-z]+)", README))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
