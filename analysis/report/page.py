"""The report as one HTML page that fetches nothing: figures, script and style are inline."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from sched_lab import colors
from sched_lab.analysis.figures import interactive
from sched_lab.analysis.report.findings import (
    SIZES,
    Analysis,
    Findings,
    b_panels,
    findings_tables,
    report_tables,
)
from sched_lab.analysis.report.samples import Samples
from sched_lab.analysis.statistics import ranking
from sched_lab.analysis.text import render, wording

if TYPE_CHECKING:
    from jinja2 import Template

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


class Figure(NamedTuple):
    """A figure of the page: by plotly where scripts run, else the SVG, where there is one."""

    title: str
    json: str = ""
    svg: str = ""


class Group(NamedTuple):
    """Figures of the page under one title."""

    title: str
    caption: str
    figures: list[Figure]


def page(
    analysis: Analysis,
    about: Mapping[str, Any],
    svg: Mapping[str, str],
    samples: Sequence[Samples],
    rows: int,
) -> str:
    """The page's HTML.

    `about` is `write.summary`, `svg` holds the static figures by name; tables have at most `rows`
    rows. Only plotly and the page's own script may run, by their hashes. Styles may be inline, as
    plotly writes some. What plotly draws with WebGL, the parallel coordinates, needs 'unsafe-eval':
    it compiles the callers of its shaders.
    """
    from markupsafe import Markup

    groups = _groups(analysis, {name: inline_svg(text) for name, text in svg.items()})
    drawn = [figure.json for group in groups for figure in group.figures if figure.json]
    webgl = any(PARCOORDS in json for json in drawn)
    scripts = [
        *([interactive.library()] if drawn else []),
        (TEMPLATES / "page.js").read_text("utf-8"),
    ]
    main = analysis.main
    answer, *rest = report_tables(analysis, rows)
    return _template().render(
        **about,
        answers=wording.answers(main.cells, main.best, main.score, main.varied, main.sizes),
        main_name=main.name,
        score=main.score,
        meaning=answer.caption,
        warnings=main.warnings,
        tables=rest,
        others=[(other, findings_tables(other, rows)) for other in analysis.others],
        long=LONG,
        words=render.WORDS,
        groups=[
            (title, text, [(name, Markup(json), Markup(svg)) for name, json, svg in figures])
            for title, text, figures in groups
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


def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return jinja.get_template("report.html.j2")


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def inline_svg(svg: str) -> str:
    """An SVG file's text as an element of the page, with its colours and without ids."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return re.sub("|".join(THEME), lambda color: f"var({THEME[color[0]]})", svg)


def _groups(analysis: Analysis, svg: Mapping[str, str]) -> list[Group]:
    """The page's figures; `svg` are the static ones by name. Groups without a figure are left
    out.
    """
    main = analysis.main
    order = ranking.scored(main.cells, main.score).sort_values("resolution", kind="stable")
    sizes = [(wording.size_text(size), cells) for size, cells in order.groupby("resolution")]
    groups = [
        _score_group(main, svg),
        Group(
            "Best b by image size",
            "Where a curve through each size's scores is best, with its interval; dots are seeds,"
            " the line is the law.",
            _static_figures(svg, "law"),
        ),
        _heat_group(main, sizes[:SIZES]),
        _settings_group(main),
        _loss_group(main, sizes[:SIZES]),
        Group(
            "The best schedules",
            "Of the best cell at each image size, with its b.",
            _static_figures(svg, "gamma", "log-snr", "density"),
        ),
    ]
    return [group for group in groups if group.figures]


def _static_figures(svg: Mapping[str, str], *names: str) -> list[Figure]:
    return [Figure("", svg=svg[name]) for name in names if name in svg]


def _score_group(main: Findings, svg: Mapping[str, str]) -> Group:
    figures = []
    for i, (title, cells, by) in enumerate(b_panels(main)):
        runs = main.runs.merge(cells[main.columns])
        figure = interactive.score_against_b(runs, cells, main.best, main.score, by)
        figures.append(Figure(title, interactive.as_json(figure), svg.get(f"b-{i}", "")))
    intervals = "and one seed has no interval over seeds"
    if main.cells["half_width"].notna().any():
        intervals = "bands and bars the intervals over seeds"
    caption = (
        f"Points are seeds, lines their means, {intervals}; a ring marks the best cell of a size."
    )
    if main.cells["untrained"].notna().any():
        caption += " Dotted: the networks before training; dashed: held-out real images."
    return Group("Scores", caption, [*figures, *_static_figures(svg, "schedules")])


def _heat_group(main: Findings, sizes: Sequence[tuple[str, pd.DataFrame]]) -> Group:
    """Heat maps of schedule and b, where both were swept."""
    both = wording.varies(main.cells["schedule"]) and wording.varies(main.cells["b"])
    figures = [
        Figure(size, interactive.as_json(interactive.heat_map(cells, main.best, main.score)))
        for size, cells in (sizes if both else ())
    ]
    caption = (
        f"Darker is better; the frame is the best cell of the size, {render.DAGGER} marks those"
        " that can't be told from it. Where other settings vary, the best of them."
    )
    return Group("Schedule and b together", caption, figures)


def _settings_group(main: Findings) -> Group:
    """Parallel coordinates, where several settings were swept."""
    axes = [name for name in main.columns if wording.varies(main.cells[name])]
    figures = []
    if len(axes) > 1 and (main.cells["n"] > 0).any():
        figure = interactive.parallel_coordinates(main.cells, main.score, axes)
        figures.append(Figure("", interactive.as_json(figure)))
    caption = (
        "A thread is a cell; its colour is its rank within its image size, orange the best, grey"
        " the last and those that do not rank. Drag along an axis to pick threads, drag a name to"
        " move its axis."
    )
    return Group("All settings", caption, figures)


def _loss_group(main: Findings, sizes: Sequence[tuple[str, pd.DataFrame]]) -> Group:
    """The loss of each schedule's best cell at each image size, or of each b of one schedule."""
    apart = "schedule" if wording.varies(main.cells["schedule"]) else "b"
    figures = []
    for size, cells in sizes:
        chosen = cells.drop_duplicates(apart)[: interactive.LINES].sort_values(apart)
        runs = main.runs.merge(chosen[main.columns])
        if interactive.bins(runs):
            figure = interactive.loss_by_log_snr(runs, chosen, main.varied)
            figures.append(Figure(size, interactive.as_json(figure)))
    caption = (
        "Loss at the end of training by log-SNR, above the density that the schedule puts there:"
        " training seldom sees what lies outside it. How high a loss is also depends on b and on"
        " what is predicted."
    )
    return Group("Why a schedule loses", caption, figures)
