"""Writes a sweep's report: an HTML page, Markdown, LaTeX, CSV, Parquet and figures."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sched_lab.analysis.figures import static
from sched_lab.analysis.report.drawings import static_figures
from sched_lab.analysis.report.findings import (
    Analysis,
    Findings,
    analyse,
    findings_tables,
    report_tables,
)
from sched_lab.analysis.report.page import page
from sched_lab.analysis.report.samples import Samples, fetch_samples
from sched_lab.analysis.runs import SubmittedSweep, load_sweep
from sched_lab.analysis.statistics import law, reference
from sched_lab.analysis.text import render, tables, wording
from sched_lab.names import ENVIRONMENT_FILE, REPORT_FILE, SECONDS, SWEEP_FILE
from sched_lab.text import counted, facts_text, no_longer_belong
from sched_lab.tracking.reader import artifact_text, data_shown
from sched_lab.trainers.files import replacing
from sched_lab.trainers.results import State

ROWS = 300  # of a table on the page or in Markdown; the files of values hold all
PRINTED_ROWS = 40  # of a LaTeX table, which has to fit a sheet
OWNED = ("cells-*.csv", "cells-*.parquet", "figures/*.svg", "figures/*.png")


@dataclass(frozen=True)
class WrittenReport:
    """Where a report was written, and what it says."""

    analysis: Analysis
    files: dict[str, Path]
    """By content: html, markdown, latex, yaml, runs, cells, best, runs.parquet, figures' names."""


def write_report(
    name: str, tracking_uri: str, out: Path, where: Sequence[str] = ()
) -> WrittenReport:
    """Write everything about the sweep into the folder `out`, over an older report.

    `where` are the options that name its store to the commands that run it again. Raises
    UnknownSweepError, naming the sweeps there are.
    """
    analysis = analyse(load_sweep(name, tracking_uri))
    samples = fetch_samples(analysis.main, tracking_uri)
    environment = _environment(analysis.main, tracking_uri)
    return WrittenReport(analysis, write(analysis, samples, environment, out, where))


def write(
    analysis: Analysis,
    samples: Sequence[Samples],
    environment: Mapping[str, str],
    out: Path,
    where: Sequence[str] = (),
) -> dict[str, Path]:
    """Write the files of a report into the folder `out`; their paths by content."""
    drawn = static_figures(analysis)
    svg = {name: static.render(ax, "svg", salt=name).decode() for name, ax in drawn.items()}
    titles = {name: ax.get_title(loc="left") for name, ax in drawn.items()}
    about, frames = summary(analysis, environment, out, where), _frames(analysis)
    latex = [render.PREAMBLE, *map(render.latex, _printed_tables(analysis))]
    texts = {
        "html": (REPORT_FILE, page(analysis, about, svg, samples, ROWS)),
        "markdown": ("report.md", _markdown(analysis, about, titles)),
        "latex": ("tables.tex", "\n".join(latex)),
        "yaml": (SWEEP_FILE, analysis.sweep.yaml),
        **{f"{name}.svg": (f"figures/{name}.svg", text) for name, text in svg.items()},
        **{name: (f"{name}.csv", csv(frame)) for name, frame in frames.items()},
    }
    contents = {name: (path, text.encode()) for name, (path, text) in texts.items()}
    for name, ax in drawn.items():
        ax.figure.set_layout_engine("none")  # type: ignore[union-attr]  # the SVG's layout stays
        contents[f"{name}.png"] = f"figures/{name}.png", static.render(ax, "png")
    for name, frame in frames.items():
        contents[f"{name}.parquet"] = f"{name}.parquet", frame.to_parquet(index=False)
    for pattern in OWNED:  # an older report may have had more of them
        for file in out.glob(pattern):
            file.unlink()
    for path, content in contents.values():
        with replacing(out / path) as part:
            part.write_bytes(content)
    return {name: out / path for name, (path, _) in contents.items()}


def _printed_tables(analysis: Analysis) -> list[render.Table]:
    """The tables of all populations; those of the ones set apart name them."""
    apart = [
        replace(table, title=f"{table.title} of {other.name}")
        for other in analysis.others
        for table in _warned(other, findings_tables(other, PRINTED_ROWS))
    ]
    return [*_warned(analysis.main, report_tables(analysis, PRINTED_ROWS)), *apart]


def _warned(findings: Findings, tables: Sequence[render.Table]) -> list[render.Table]:
    """The tables, the first with the warnings in its caption, which goes where the table goes."""
    answer, *rest = tables
    caption = " ".join([*findings.warnings, answer.caption])
    return [replace(answer, caption=caption), *rest]


def answer_records(analysis: Analysis) -> list[dict[str, Any]]:
    """The best cell per image size for JSON: missing is null, `ties` the tied cells' settings."""
    main = analysis.main
    rows = _records(main.best.drop(columns="ties"))
    ties = [_records(main.cells.loc[list(tied), main.columns]) for tied in main.best["ties"]]
    return [row | {"ties": tied} for row, tied in zip(rows, ties, strict=True)]


def sizes_without_best(analysis: Analysis) -> list[dict[str, Any]]:
    """The image sizes where no cell is best, each with the reason."""
    return [
        {"resolution": size, "why": why}
        for size, cells in analysis.main.cells.groupby("resolution")
        if (why := wording.none_ranks(cells))
    ]


def csv(frame: pd.DataFrame) -> str:
    """Comma-separated values that read back as the same numbers; missing is empty."""
    return str(frame.to_csv(index=False))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    missing = frame.isna()
    rows: list[dict[str, Any]] = frame.astype(object).mask(missing, None).to_dict("records")  # type: ignore[assignment]
    return rows


def _frames(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """The values of the report by file name: all trials, each population's cells, the best."""
    populations = pd.Series("", analysis.runs.index, dtype=str)
    cells = {}
    for i, findings in enumerate((analysis.main, *analysis.others), 1):
        populations[findings.runs.index] = findings.name
        cells["cells" if i == 1 else f"cells-{i}"] = findings.cells
    runs, best = analysis.sweep.runs.assign(population=populations), analysis.main.best
    edge = best["edge"].where(best["edge"] != "")  # as CSV reads it back
    best = best.assign(ties=best["ties"].map(len), edge=edge)
    without = pd.DataFrame(sizes_without_best(analysis), columns=["resolution", "why"])
    return {"runs": runs, **cells, "best": pd.concat([best, without], ignore_index=True)}


def _environment(findings: Findings, tracking_uri: str) -> dict[str, str]:
    """The versions and images that a trial ran with: of a best cell, where there is one."""
    finished = findings.runs[findings.runs["state"] == State.FINISHED]
    best = finished.merge(findings.best[findings.columns][:1])
    ran = best if len(best) else finished
    if ran.empty:
        return {}
    run_id = ran["run_id"].iloc[0]
    versions = json.loads(artifact_text(run_id, ENVIRONMENT_FILE, tracking_uri) or "{}")
    facts, _ = data_shown(run_id, tracking_uri)
    return {**versions, "images": facts_text(facts)} if facts else versions


def _markdown(analysis: Analysis, about: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The report in Markdown; `titles` are those of the figures by file name."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", about["yaml"])), default=0))
    answer, *rest = report_tables(analysis, ROWS)
    text = render.markdown_text
    apart = (
        f"Set apart below are trials whose scores do not compare; this is of {analysis.main.name}."
    )
    unfinished = [table for table in (about["failures"], about["unfinished"]) if table.rows]
    versions = sorted(about["environment"].items())
    parts = [
        f"# {text(about['name'])}",
        text(about["description"]),
        *_warnings(analysis.main),
        text(f"{about['standing']}; {about['cost']}."),
        text(apart) if analysis.others else "",
        render.markdown(answer),
        text(about["law"]),
        *map(render.markdown, rest),
        text(about["paper"]),
        *(f"![{text(title)}](figures/{name}.png)" for name, title in titles.items()),
        *(part for other in analysis.others for part in _other_markdown(other)),
        *map(render.markdown, unfinished),
        "### To run it again",
        f"{fence}sh\n{about['command']}\n{fence}",
        f"{fence}yaml\n{about['yaml'].rstrip()}\n{fence}",
        "\n".join(f"- {text(name)}: {text(version)}" for name, version in versions),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _other_markdown(findings: Findings) -> list[str]:
    return [
        f"## {render.markdown_text(findings.name)}",
        render.markdown_text(f"Set apart: {'; '.join(findings.why)}."),
        *_warnings(findings),
        *map(render.markdown, findings_tables(findings, ROWS)),
    ]


def _warnings(findings: Findings) -> list[str]:
    return [f"> **{render.markdown_text(warning)}**" for warning in findings.warnings]


def _commands(sweep: SubmittedSweep, out: Path, where: Sequence[str]) -> list[str]:
    """What runs the sweep again and reports it, from any folder, by the file of this report."""
    submit = shlex.join(["sched-lab", "submit", str(out.absolute() / SWEEP_FILE), *where])
    report = shlex.join(["sched-lab", "report", sweep.name, *where])
    if sweep.folder and _has_relative_paths(sweep):
        submit = f"cd {shlex.quote(sweep.folder)}\n{submit}"
    return [submit, report]


def _has_relative_paths(sweep: SubmittedSweep) -> bool:
    """Whether a setting is an absolute path that the sweep's file does not spell so."""
    named = [name for name in map(str, sweep.runs) if name.startswith(("data.", "score."))]
    values = {value for name in named for value in sweep.runs[name] if isinstance(value, str)}
    return any(os.path.isabs(value) and value not in sweep.yaml for value in values)


def summary(
    analysis: Analysis, environment: Mapping[str, str], out: Path, where: Sequence[str]
) -> dict[str, Any]:
    """What both the page and the Markdown say about the sweep as a whole."""
    sweep, runs = analysis.sweep, analysis.runs
    name, further = shlex.quote(sweep.name), 2 * int(max(analysis.main.sizes, default=0))
    try:
        law.recommend(analysis.fitted, further)
    except law.Unsupported:
        further = 0
    sentence = f"No law of b over image size: {analysis.no_law}."
    if analysis.law:
        sentence = f"{analysis.law.sentence[:1].upper()}{analysis.law.sentence[1:]}."
    finished = int((runs["state"] == State.FINISHED).sum())
    standing = f"{finished} of {counted(len(runs), 'trial')} finished"
    return {
        "name": sweep.name,
        "description": sweep.description,
        "standing": "; ".join(filter(None, [standing, no_longer_belong(sweep.former)])),
        "law": sentence,
        "paper": "" if len(analysis.beside) else reference.nothing_beside(),
        "unfinished": tables.unfinished_table(runs, analysis.main.varied, ROWS),
        "failures": tables.failures_table(runs),
        "cost": _cost(runs),
        "costs": tables.costs_table(runs),
        "yaml": sweep.yaml,
        "command": "\n".join(_commands(sweep, out, where)),
        "recommend": f"sched-lab recommend {name} --size {further}" if further else "",
        "environment": environment,
    }


def _cost(runs: pd.DataFrame) -> str:
    total = tables.TOTAL
    seconds = runs[total].dropna() if total in runs else pd.Series(dtype=float)
    if seconds.empty:
        return "their cost was not recorded"
    parts = [
        f"{column.removeprefix(SECONDS)} {_duration(runs[column].sum())}"
        for column in map(str, runs.columns)
        if column.startswith(SECONDS) and column != total
    ]
    spent = f"{_duration(seconds.sum())} of trial time over {counted(len(seconds), 'trial')}"
    spent += f", {_duration(seconds.mean())} each"
    return f"{spent} ({', '.join(parts)})" if parts else spent


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
