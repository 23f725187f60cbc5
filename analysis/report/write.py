"""Assembles a sweep's report: one HTML page that needs no other file, Markdown, LaTeX, CSV, Parquet
and figures.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sched_lab.analysis.figures import static
from sched_lab.analysis.report.findings import (
    SIZES,
    Analysis,
    Findings,
    analyse,
    findings_tables,
    lines,
    report_tables,
)
from sched_lab.analysis.report.page import Samples, page
from sched_lab.analysis.runs import read_sweep
from sched_lab.analysis.statistics import law, ranking
from sched_lab.analysis.text import render, tables, wording
from sched_lab.names import ENVIRONMENT_FILE, FINISHED, SECONDS, SWEEP_FILE
from sched_lab.tracking.reader import artifact_text, sample_grid
from sched_lab.trainers import schedules

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 300  # of a table on the page or in Markdown; the files of values hold all
PRINTED_ROWS = 40  # of a LaTeX table, which has to fit a sheet
SAMPLED = 8  # cells of an image size whose samples are shown, the best first
OWNED = ("cells-*.csv", "cells-*.parquet", "figures/*.svg", "figures/*.png")
PIXELS = 528  # of a side, above which samples are shown smaller


@dataclass(frozen=True)
class Report:
    """Where a report was written, and what it says."""

    analysis: Analysis
    files: dict[str, Path]
    """By what they are: html, markdown, latex, yaml, runs, cells, best, runs.parquet, and the names
    of the figures.
    """


def write_report(name: str, tracking_uri: str, out: Path) -> Report:
    """Write everything about the sweep into the folder `out`, over an older report.

    Raises UnknownSweepError, naming the sweeps there are.
    """
    analysis = analyse(read_sweep(name, tracking_uri))
    samples = fetch_samples(analysis.main, tracking_uri)
    return Report(
        analysis, write(analysis, samples, _environment(analysis.main, tracking_uri), out)
    )


def write(
    analysis: Analysis, samples: Sequence[Samples], environment: Mapping[str, str], out: Path
) -> dict[str, Path]:
    """Write the files of a report into the folder `out`; their paths by what they are."""
    drawn = (
        score_figures(analysis.main) | law_figure(analysis) | schedule_figures(analysis.main.best)
    )
    svg = {name: static.render(ax, "svg", salt=name).decode() for name, ax in drawn.items()}
    about = summary(analysis, environment)
    texts = {
        "html": ("index.html", page(analysis, about, svg, samples, ROWS)),
        "markdown": (
            "report.md",
            _markdown(
                analysis, about, {name: ax.get_title(loc="left") for name, ax in drawn.items()}
            ),
        ),
        "latex": (
            "tables.tex",
            "\n".join([render.PREAMBLE, *map(render.latex, _printed(analysis))]),
        ),
        "yaml": (SWEEP_FILE, analysis.sweep.yaml),
        **{f"{name}.svg": (f"figures/{name}.svg", text) for name, text in svg.items()},
        **{name: (f"{name}.csv", csv(frame)) for name, frame in _frames(analysis).items()},
    }
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for pattern in OWNED:  # an older report may have had more of them
        for file in out.glob(pattern):
            file.unlink()
    for path, text in texts.values():
        (out / path).write_text(text, encoding="utf-8")
    files = {name: out / path for name, (path, _) in texts.items()}
    for name, ax in drawn.items():
        ax.figure.set_layout_engine("none")  # type: ignore[union-attr]  # it was laid out for the SVG
        files[f"{name}.png"] = out / f"figures/{name}.png"
        files[f"{name}.png"].write_bytes(static.render(ax, "png"))
    for name, frame in _frames(analysis).items():
        files[f"{name}.parquet"] = out / f"{name}.parquet"
        frame.to_parquet(files[f"{name}.parquet"], index=False)
    return files


def _printed(analysis: Analysis) -> list[render.Table]:
    """The tables of all populations; those of the ones set apart name them."""
    apart = [
        (found.name, table)
        for found in analysis.others
        for table in findings_tables(found, PRINTED_ROWS)
    ]
    named = [replace(table, title=f"{table.title} of {name}") for name, table in apart]
    return [*report_tables(analysis, PRINTED_ROWS), *named]


def answer_records(analysis: Analysis) -> list[dict[str, Any]]:
    """The best cell per image size as JSON can hold it; missing is null, `ties` are the settings of
    the tied cells.
    """
    main = analysis.main
    rows = _records(main.best.drop(columns="ties"))
    ties = [_records(main.cells.loc[list(found), main.columns]) for found in main.best["ties"]]
    return [row | {"ties": tied} for row, tied in zip(rows, ties, strict=True)]


def csv(frame: pd.DataFrame) -> str:
    """Comma-separated values that read back as the same numbers; missing is empty."""
    return str(frame.to_csv(index=False))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    missing = frame.isna()
    rows: list[dict[str, Any]] = frame.astype(object).mask(missing, None).to_dict("records")  # type: ignore[assignment]
    return rows


def _frames(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """The values behind the report, by file name: every trial, the cells of each population, the
    best cells.
    """
    populations = pd.Series("", analysis.runs.index, dtype=str)
    cells = {}
    for i, found in enumerate((analysis.main, *analysis.others), 1):
        populations[found.runs.index] = found.name
        cells["cells" if i == 1 else f"cells-{i}"] = found.cells
    runs = analysis.sweep.runs.assign(population=populations)
    best = analysis.main.best
    best = best.assign(
        ties=best["ties"].map(len), edge=best["edge"].where(best["edge"] != "")
    )  # as CSV reads it back
    return {"runs": runs, **cells, "best": best}


def score_figures(found: Findings) -> dict[str, Axes]:
    """The scores against b and by schedule, where these were swept; by file name."""
    drawn = {
        f"b-{i}": static.score_against_b(
            found.runs.merge(cells[found.columns]), cells, found.best, found.score, title, by
        )
        for i, (title, cells, by) in enumerate(lines(found))
    }
    order = ranking.ranked(found.cells, found.score)
    if wording.varies(order["schedule"]):
        drawn["schedules"] = static.score_by_schedule(order, found.score)
    return drawn


def law_figure(analysis: Analysis) -> dict[str, Axes]:
    """The best b by image size and the law, where it is known at two sizes or more; by file
    name.
    """
    known = analysis.fitted["supported"].sum() > 1
    return {"law": static.best_b_by_size(analysis.fitted, analysis.law)} if known else {}


def schedule_figures(best: pd.DataFrame) -> dict[str, Axes]:
    """The schedule and b of the best cell at each image size, sizes that share them as one curve;
    by file name.
    """
    colors = static.palette(best["resolution"])
    sizes: dict[tuple[schedules.Schedule, float], list[int]] = {}
    for _, row in best.iterrows():
        with suppress(
            schedules.ScheduleError
        ):  # a plug-in's schedule, read where the plug-in is not installed
            schedule = schedules.parse(row["schedule"]).at_size(row["resolution"])
            sizes.setdefault((schedule, row["b"]), []).append(row["resolution"])
    curves = [
        static.Curve(
            f"{', '.join(map(wording.size, at))}: {schedule} · b {b:g}", schedule, b, colors[at[0]]
        )
        for (schedule, b), at in sizes.items()
    ]
    if not curves:
        return {}
    return {
        "gamma": static.gamma(curves),
        "log-snr": static.log_snr(curves),
        "density": static.density(curves),
    }


def fetch_samples(found: Findings, tracking_uri: str) -> list[Samples]:
    """The samples of the best cells at each image size, of one seed and thus from the same noise;
    only these are read.

    At most eight cells a size and six sizes, in the order of the cells.
    """
    finished = found.runs[found.runs["state"] == FINISHED].sort_values("seed", kind="stable")
    decimals = wording.places(found.cells)
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for resolution in sorted(found.best["resolution"])[:SIZES]:
            order = ranking.ranked(found.cells, found.score)
            chosen = order[order["resolution"] == resolution][:SAMPLED].sort_index()
            trials = finished.merge(chosen[found.columns].assign(cell=chosen.index))
            trials = trials.assign(
                draw=trials.groupby(
                    [name for name in ranking.REPLICATES if name in trials]
                ).ngroup()
            )
            drawn = trials[
                trials["draw"] == trials["draw"].mode().min()
            ]  # the seeds that most of these cells have
            for _, trial in drawn.sort_values("cell").iterrows():
                cell = chosen.loc[trial["cell"]]
                if path := sample_grid(trial["run_id"], tracking_uri, Path(folder)):
                    told = wording.cell_name(cell, found.varied), wording.score_text(cell, decimals)
                    label = " · ".join([*told, f"seed {trial['seed']}"])
                    best = trial["cell"] in found.best.index
                    samples.append(Samples(wording.size(resolution), label, best, _shrunk(path)))
    return samples


def _shrunk(path: Path) -> bytes:
    """The PNG, no larger than a page can show."""
    from PIL import Image

    with Image.open(path) as image:
        if max(image.size) <= PIXELS:
            return path.read_bytes()
        image.thumbnail((PIXELS, PIXELS))
        buffer = BytesIO()
        image.save(buffer, "png", optimize=True)
        return buffer.getvalue()


def _environment(found: Findings, tracking_uri: str) -> dict[str, str]:
    """The versions that a trial of a best cell ran with."""
    best = found.runs[found.runs["state"] == FINISHED].merge(found.best[found.columns][:1])
    text = (
        artifact_text(best["run_id"].iloc[0], ENVIRONMENT_FILE, tracking_uri) if len(best) else ""
    )
    return dict(json.loads(text or "{}"))


def _markdown(analysis: Analysis, about: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    """The report in Markdown; `drawn` are the titles of the figures by file name."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", about["yaml"])), default=0))
    answer, *rest = report_tables(analysis, ROWS)
    text = render.markdown_text
    parts = [
        f"# {text(about['name'])}",
        text(about["description"]),
        text(f"{about['finished']} of {about['trials']} trials finished; {about['cost']}."),
        (
            text(
                "Set apart below are trials whose scores do not compare; this is of"
                f" {analysis.main.name}."
            )
            if analysis.others
            else ""
        ),
        render.markdown(answer),
        text(about["law"]),
        *map(render.markdown, rest),
        *(f"![{text(title)}](figures/{name}.png)" for name, title in drawn.items()),
        *(part for found in analysis.others for part in _apart(found)),
        *(
            render.markdown(table)
            for table in (about["failures"], about["unfinished"])
            if table.rows
        ),
        "### To run it again",
        f"{fence}sh\n{about['command']}\n{fence}",
        f"{fence}yaml\n{about['yaml'].rstrip()}\n{fence}",
        "\n".join(
            f"- {text(what)}: {text(value)}" for what, value in sorted(about["environment"].items())
        ),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _apart(found: Findings) -> list[str]:
    why = render.markdown_text(f"Set apart: {'; '.join(found.why)}.")
    return [
        f"## {render.markdown_text(found.name)}",
        why,
        *map(render.markdown, findings_tables(found, ROWS)),
    ]


def summary(analysis: Analysis, environment: Mapping[str, str]) -> dict[str, Any]:
    """What both the page and the Markdown say about the sweep as a whole."""
    sweep, runs = analysis.sweep, analysis.runs
    name, further = shlex.quote(sweep.name), 2 * int(max(analysis.main.sizes, default=0))
    try:
        law.recommend(analysis.fitted, further)
    except law.Unsupported:
        further = 0
    return {
        "name": sweep.name,
        "description": sweep.description,
        "trials": len(runs),
        "finished": int((runs["state"] == FINISHED).sum()),
        "law": (
            f"{analysis.law.sentence[:1].upper()}{analysis.law.sentence[1:]}."
            if analysis.law
            else f"No law of b over image size: {analysis.no_law}"
        ),
        "unfinished": tables.unfinished_table(runs, analysis.main.varied, ROWS),
        "failures": tables.failures_table(runs),
        "cost": _cost(runs),
        "costs": tables.costs_table(runs),
        "yaml": sweep.yaml,
        "command": f"sched-lab submit {SWEEP_FILE}\nsched-lab report {name}",
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
    spent = (
        f"{_duration(seconds.sum())} of trial time over {len(seconds)} trials,"
        f" {_duration(seconds.mean())} each"
    )
    return f"{spent} ({', '.join(parts)})" if parts else spent


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
