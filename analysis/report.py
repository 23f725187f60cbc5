"""Assembles a sweep's report: one HTML page that needs no other file, Markdown, LaTeX, CSV, figures and samples."""

from __future__ import annotations

import base64
import json
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import figures, stats, tables
from analysis.runs import Sweep, artifact_text, read_sweep, sample_grid
from sched_lab.names import ENVIRONMENT_FILE, FINISHED, SECONDS, SWEEP_FILE
from trainers import schedules

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The figures' colours become the page's, so that they follow its light and dark themes.
THEME = {
    figures.INK: "var(--ink)",
    figures.MUTED: "var(--muted)",
    figures.RULE: "var(--rule)",
    figures.PAPER: "var(--card)",
    **{color: f"var(--c{i})" for i, color in enumerate(figures.COLORS)},
}
LONG = 24  # rows above which the page folds a table


@dataclass(frozen=True)
class Analysis:
    """A sweep, and what its scores say. Schedules go by the names of `tables.schedule_names`."""

    sweep: Sweep
    runs: pd.DataFrame
    columns: list[str]
    """The settings that tell cells apart."""
    cells: pd.DataFrame
    """See `stats.summarize`."""
    best: pd.DataFrame
    """See `stats.best_cells`."""

    @property
    def answer(self) -> tables.Table:
        """The best cell per image size, as a table."""
        return tables.best_table(self.cells, self.best, self.sweep.ranked_by, self.columns)


@dataclass(frozen=True)
class Report:
    """Where a report was written, and what it says."""

    analysis: Analysis
    files: dict[str, Path]
    """By what they are: html, markdown, latex, runs, cells, best, yaml, and the name of each figure's file."""


def analyse(sweep: Sweep) -> Analysis:
    """Statistics of a sweep's ranking score."""
    runs = sweep.runs.assign(schedule=tables.schedule_names(sweep.runs))
    columns = stats.cell_columns(runs, sweep.settings)
    return Analysis(
        sweep,
        runs,
        columns,
        stats.summarize(runs, sweep.ranked_by, columns),
        stats.best_cells(runs, sweep.ranked_by, columns),
    )


def write_report(name: str, tracking_uri: str, out: Path) -> Report:
    """Write everything about the sweep into the folder `out`, over an older report.

    Raises UnknownSweepError, naming the sweeps there are.
    """
    analysis = analyse(read_sweep(name, tracking_uri))
    samples, environment = _from_best(analysis, tracking_uri)
    scores, curves = _score_figures(analysis), _schedule_figures(analysis)
    drawn = (
        scores
        | curves
        | ({"samples": figures.sample_grids([(each.size, each.png) for each in samples])} if samples else {})
    )
    svg = {name: figures.render(ax, "svg", salt=name).decode() for name, ax in drawn.items()}
    content = {
        "html": (
            "index.html",
            _html(analysis, [svg[name] for name in scores], [svg[name] for name in curves], samples, environment),
        ),
        "markdown": ("report.md", _markdown(analysis, list(drawn))),
        "latex": ("tables.tex", "\n".join(map(tables.latex, _tables(analysis)))),
        "runs": ("runs.csv", csv(analysis.sweep.runs)),
        "cells": ("cells.csv", csv(analysis.cells)),
        "best": ("best.csv", csv(analysis.best.assign(ties=analysis.best["ties"].map(len)))),
        "yaml": (SWEEP_FILE, analysis.sweep.yaml),
        **{f"{name}.svg": (f"figures/{name}.svg", text) for name, text in svg.items()},
    }
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for path, text in content.values():
        (out / path).write_text(text, encoding="utf-8")
    for name, ax in drawn.items():
        (out / f"figures/{name}.png").write_bytes(figures.render(ax, "png"))
    files = {name: path for name, (path, _) in content.items()} | {
        f"{name}.png": f"figures/{name}.png" for name in drawn
    }
    return Report(analysis, {name: out / path for name, path in files.items()})


def answer_records(analysis: Analysis) -> list[dict[str, Any]]:
    """The best cell per image size as JSON can hold it; missing is null, `ties` are the settings of the tied cells."""
    columns = analysis.columns
    rows = _records(analysis.best.drop(columns="ties"))
    ties = [_records(analysis.cells.loc[list(found), columns]) for found in analysis.best["ties"]]
    return [row | {"ties": tied} for row, tied in zip(rows, ties, strict=True)]


def csv(frame: pd.DataFrame) -> str:
    """Comma-separated values that read back as the same numbers; missing is empty."""
    return str(frame.to_csv(index=False))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows


def _tables(analysis: Analysis) -> list[tables.Table]:
    """The report's tables: the answer first, every cell last."""
    cells, columns, score = analysis.cells, analysis.columns, analysis.sweep.ranked_by
    by_schedule = tables.size_table(cells, "schedule", score, columns, "Schedule by image size")
    by_b = [
        tables.size_table(part, "b", score, columns, f"Input scale b by image size, {schedule}")
        for schedule, part in _with_b(cells)
    ]
    several = tables.varies(cells["schedule"])
    return [analysis.answer, *([by_schedule] if several else []), *by_b, tables.cells_table(cells, score, columns)]


def _with_b(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The cells of each schedule for which several b were swept."""
    groups = cells.groupby("schedule", sort=False)
    return [(str(name), part) for name, part in groups if tables.varies(part["b"])]


def _score_figures(analysis: Analysis) -> dict[str, Axes]:
    """The scores against b for each schedule, and by schedule, where these were swept; by file name."""
    score, ranked = analysis.sweep.ranked_by, stats.ranked(analysis.cells, analysis.sweep.ranked_by)
    drawn = {}
    for i, (schedule, part) in enumerate(_with_b(ranked)):
        line = part.drop_duplicates(["resolution", "b"])  # the best of the other settings
        seeds = analysis.runs.merge(line[analysis.columns])
        title = f"{score} against b, {schedule}"
        drawn[f"b-{i}"] = figures.score_against_b(seeds, line, analysis.best, score, title)
    if tables.varies(ranked["schedule"]):
        drawn["schedules"] = figures.score_by_schedule(ranked, score)
    return drawn


def _schedule_figures(analysis: Analysis) -> dict[str, Axes]:
    """The schedule and b of the best cell at each image size, sizes that share them as one curve; by file name."""
    colors = figures.palette(analysis.best["resolution"])
    sizes: dict[tuple[schedules.Schedule, float], list[int]] = {}
    for _, row in analysis.best.iterrows():
        with suppress(schedules.ScheduleError):  # a plug-in's schedule, read where the plug-in is not installed
            schedule = schedules.parse(row["schedule"]).at_size(row["resolution"])
            sizes.setdefault((schedule, row["b"]), []).append(row["resolution"])
    curves = [
        figures.Curve(f"{', '.join(map(tables.size, at))}: {schedule} · b {b:g}", schedule, b, colors[at[0]])
        for (schedule, b), at in sizes.items()
    ]
    if not curves:
        return {}
    return {"gamma": figures.gamma(curves), "log-snr": figures.log_snr(curves), "density": figures.density(curves)}


@dataclass(frozen=True)
class _Samples:
    size: str
    label: str
    png: bytes


def _from_best(analysis: Analysis, tracking_uri: str) -> tuple[list[_Samples], dict[str, str]]:
    """The samples of each best cell's first seed, and the environment of one of these trials."""
    samples, environment = [], ""
    finished = analysis.runs[analysis.runs["state"] == FINISHED].sort_values("seed")
    varied = tables.varied_columns(analysis.cells, analysis.columns)
    for index, row in analysis.best.iterrows():
        trial = finished.merge(analysis.best.loc[[index], analysis.columns]).iloc[0]
        with tempfile.TemporaryDirectory() as folder:
            if path := sample_grid(trial["run_id"], tracking_uri, Path(folder)):
                size, name = tables.size(row["resolution"]), tables.cell_name(row, varied)
                samples.append(_Samples(size, f"{size}: {name} · seed {trial['seed']}", path.read_bytes()))
        environment = environment or artifact_text(trial["run_id"], ENVIRONMENT_FILE, tracking_uri)
    return samples, json.loads(environment or "{}")


def _html(
    analysis: Analysis,
    scores: Sequence[str],
    curves: Sequence[str],
    samples: Sequence[_Samples],
    environment: Mapping[str, str],
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    answer, *rest = _tables(analysis)
    return jinja.get_template("report.html.j2").render(
        **_summary(analysis),
        answer=answer,
        tables=rest,
        long=LONG,
        scores=[Markup(_inline(svg)) for svg in scores],  # Matplotlib has escaped the text
        curves=[Markup(_inline(svg)) for svg in curves],
        samples=[(each.label, base64.b64encode(each.png).decode()) for each in samples],
        environment=environment,
        theme=[(f"--c{i}", color) for i, color in enumerate(figures.COLORS)],
    )


def _markdown(analysis: Analysis, drawn: Sequence[str]) -> str:
    about = _summary(analysis)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", about["yaml"])), default=0))
    parts = [
        f"# {tables.markdown_text(about['name'])}",
        tables.markdown_text(about["description"]),
        tables.markdown_text(f"{about['finished']} of {about['trials']} trials finished; {about['cost']}."),
        *map(tables.markdown, _tables(analysis)),
        *(f"![{name}](figures/{name}.png)" for name in drawn),
        tables.markdown(about["unfinished"]) if about["unfinished"].rows else "",
        "### To run it again",
        f"{fence}sh\n{about['command']}\n{fence}",
        f"{fence}yaml\n{about['yaml'].rstrip()}\n{fence}",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _summary(analysis: Analysis) -> dict[str, Any]:
    """What both the page and the Markdown say about the sweep as a whole."""
    sweep, runs = analysis.sweep, analysis.runs
    name = shlex.quote(sweep.name)
    return {
        "name": sweep.name,
        "description": sweep.description,
        "trials": len(runs),
        "finished": int((runs["state"] == FINISHED).sum()),
        "unfinished": tables.unfinished_table(runs, analysis.columns),
        "cost": _cost(runs),
        "yaml": sweep.yaml,
        "command": f"sched-lab submit {SWEEP_FILE}\nsched-lab report {name}",
    }


def _cost(runs: pd.DataFrame) -> str:
    total = f"{SECONDS}total"
    seconds = runs[total].dropna() if total in runs else pd.Series(dtype=float)
    if seconds.empty:
        return "their cost was not recorded"
    parts = [
        f"{column.removeprefix(SECONDS)} {_duration(runs[column].sum())}"
        for column in map(str, runs.columns)
        if column.startswith(SECONDS) and column != total
    ]
    spent = f"{_duration(seconds.sum())} of trial time over {len(seconds)} trials, {_duration(seconds.mean())} each"
    return f"{spent} ({', '.join(parts)})" if parts else spent


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _inline(svg: str) -> str:
    """An SVG file's text as an element of a page: its colours the page's, no ids that another figure has too."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return re.sub("|".join(THEME), lambda found: THEME[found[0]], svg)
