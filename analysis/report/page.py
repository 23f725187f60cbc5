"""The report as one HTML page that needs no other file: figures, script and style are inline,
nothing is fetched.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sched_lab import colors
from sched_lab.analysis.figures import interactive
from sched_lab.analysis.report.findings import (
    SIZES,
    Analysis,
    Findings,
    findings_tables,
    lines,
    report_tables,
)
from sched_lab.analysis.statistics import ranking
from sched_lab.analysis.text import render, wording

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# The figures' colours become the page's, so that they follow its light and dark themes.
THEME = {
    colors.INK: "--ink",
    colors.MUTED: "--muted",
    colors.RULE: "--rule",
    colors.PAPER: "--card",
    **{color: f"--c{i}" for i, color in enumerate(colors.COLORS)},
}
LONG = 24  # rows above which a table is folded
PARCOORDS = '"type":"parcoords"'
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Samples:
    """A cell's grid of samples, all of one image size from the same noise."""

    size: str
    label: str
    best: bool
    png: bytes


@dataclass(frozen=True)
class Shown:
    """A figure of the page: drawn by plotly on a screen with scripts, else the SVG, where there is
    one.
    """

    title: str
    json: str = ""
    svg: str = ""


def page(
    analysis: Analysis,
    about: Mapping[str, Any],
    svg: Mapping[str, str],
    samples: Sequence[Samples],
    rows: int,
) -> str:
    """The page's HTML: `about` is `report.summary`, `svg` the static figures by name; tables of at
    most `rows` rows.

    Only plotly and the page's own script may run, by their hashes. Styles may be inline, since
    plotly writes some; what plotly draws with WebGL, the parallel coordinates, needs 'unsafe-eval',
    as it compiles its shaders' callers.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(TEMPLATES)
    jinja = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inline = {name: inline_svg(text) for name, text in svg.items()}
    groups = _figures(analysis, inline)
    scripts = [(TEMPLATES / "page.js").read_text("utf-8")]
    drawn = [shown.json for _, _, group in groups for shown in group if shown.json]
    webgl = any(PARCOORDS in json for json in drawn)
    if drawn:
        scripts.insert(0, interactive.library())
    main = analysis.main
    answer, *rest = report_tables(analysis, rows)
    return jinja.get_template("report.html.j2").render(
        **about,
        answers=wording.answers(main.cells, main.best, main.score, main.varied, main.sizes),
        main_name=main.name,
        score=main.score,
        meaning=answer.caption,
        tables=rest,
        others=[(found, findings_tables(found, rows)) for found in analysis.others],
        long=LONG,
        words=render.WORDS,
        groups=[
            (title, text, [(shown.title, Markup(shown.json), Markup(shown.svg)) for shown in group])
            for title, text, group in groups
        ],
        samples=[
            (size, [(each.label, each.best, b64encode(each.png).decode()) for each in grids])
            for size, grids in groupby(samples, key=lambda each: each.size)
        ],
        palette=[(f"--c{i}", color) for i, color in enumerate(colors.COLORS)],
        theme=Markup(json.dumps(THEME)),
        parcoords=PARCOORDS,
        scripts=[Markup(script) for script in scripts],
        allowed=Markup(" ".join([*map(_hash, scripts), *(["'unsafe-eval'"] if webgl else [])])),
    )


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def inline_svg(svg: str) -> str:
    """An SVG file's text as an element of a page: its colours the page's, no ids that another
    figure has too.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return re.sub("|".join(THEME), lambda found: f"var({THEME[found[0]]})", svg)


def _figures(analysis: Analysis, svg: Mapping[str, str]) -> list[tuple[str, str, list[Shown]]]:
    """The page's figures in groups: (title, what they show, figures) each; empty groups are left
    out.
    """
    main = analysis.main
    sizes = [
        (wording.size(size), at)
        for size, at in (
            ranking.ranked(main.cells, main.score)
            .sort_values("resolution", kind="stable")
            .groupby("resolution")
        )
    ][:SIZES]
    several = wording.varies(main.cells["schedule"]) and wording.varies(main.cells["b"])
    axes = [name for name in main.columns if wording.varies(main.cells[name])]
    static = [Shown("", svg=svg[name]) for name in ("gamma", "log-snr", "density") if name in svg]
    known = main.cells["half_width"].notna().any()
    intervals = (
        "bands and bars the intervals over seeds"
        if known
        else "and one seed has no interval over seeds"
    )
    groups = [
        (
            "Scores",
            (
                f"Points are seeds, lines their means, {intervals}; a ring marks the best cell of a"
                " size."
            ),
            [
                *_against_b(main, svg),
                *([Shown("", svg=svg["schedules"])] if "schedules" in svg else []),
            ],
        ),
        (
            "Best b by image size",
            (
                "Where a curve through each size's scores is best, with its interval; dots are"
                " seeds, the line is the law."
            ),
            [Shown("", svg=svg["law"])] if "law" in svg else [],
        ),
        (
            "Schedule and b together",
            (
                f"Darker is better; the frame is the best cell of the size, {render.DAGGER} marks"
                " those that can't be told from it. Where other settings vary, the best of them."
            ),
            (
                [
                    Shown(
                        size, interactive.as_json(interactive.heat_map(at, main.best, main.score))
                    )
                    for size, at in sizes
                ]
                if several
                else []
            ),
        ),
        (
            "All settings",
            (
                "A thread is a cell; its colour is its rank within its image size, orange the best,"
                " grey the last. Drag along an axis to pick threads, drag a name to move its axis."
            ),
            (
                [
                    Shown(
                        "",
                        interactive.as_json(
                            interactive.parallel_coordinates(main.cells, main.score, axes)
                        ),
                    )
                ]
                if len(axes) > 1 and len(sizes)
                else []
            ),
        ),
        (
            "Why a schedule loses",
            (
                "Loss at the end of training by log-SNR, above the density that the schedule puts"
                " there: training seldom sees what lies outside it. How high a loss is also depends"
                " on b and on what is predicted."
            ),
            [
                Shown(size, interactive.as_json(figure))
                for size, at in sizes
                if (figure := _loss(main, at))
            ],
        ),
        ("The best schedules", "Of the best cell at each image size, with its b.", static),
    ]
    return [group for group in groups if group[2]]


def _against_b(main: Findings, svg: Mapping[str, str]) -> list[Shown]:
    shown = []
    for i, (title, cells, by) in enumerate(lines(main)):
        seeds = main.runs.merge(cells[main.columns])
        figure = interactive.score_against_b(seeds, cells, main.best, main.score, by)
        shown.append(Shown(title, interactive.as_json(figure), svg.get(f"b-{i}", "")))
    return shown


def _loss(main: Findings, at: pd.DataFrame) -> Figure | None:
    """Of the best cell of each schedule at one image size, or of each b where one schedule was
    swept.
    """
    apart = "schedule" if wording.varies(main.cells["schedule"]) else "b"
    chosen = at.drop_duplicates(apart)[: interactive.LINES].sort_values(apart)
    runs = main.runs.merge(chosen[main.columns])
    return (
        interactive.loss_by_log_snr(runs, chosen, main.varied) if interactive.bins(runs) else None
    )
