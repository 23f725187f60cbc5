"""Fetches the samples that a report shows: those of the best cells at each image size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pandas as pd

from sched_lab.analysis.report.findings import SIZES, Findings
from sched_lab.analysis.statistics import ranking
from sched_lab.analysis.text import wording
from sched_lab.text import facts_text
from sched_lab.tracking.reader import data_shown, sample_grid
from sched_lab.trainers.results import State

SAMPLED = 8  # cells of an image size whose samples are shown, the best first
PIXELS = 528  # of a side, above which samples are shown smaller


@dataclass(frozen=True)
class Samples:
    """A grid of images: of a cell's samples, all of one image size from the same noise, or real."""

    size: str
    label: str
    best: bool
    png: bytes


def fetch_samples(findings: Findings, tracking_uri: str) -> list[Samples]:
    """The samples of at most eight cells a size and six sizes, in the order of the cells; before
    them, some real images.

    Those of a size have the same seeds and thus start from the same noise. Only these are read.
    """
    scored = ranking.scored(findings.cells, findings.score)
    decimals = wording.decimal_places(findings.cells)
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for resolution in sorted(set(scored["resolution"]))[:SIZES]:
            chosen = scored[scored["resolution"] == resolution][:SAMPLED].sort_index()
            size, trials = wording.size_text(resolution), _same_seeds(findings, chosen)
            samples += _real(trials["run_id"], size, tracking_uri)
            for _, trial in trials.iterrows():
                path = sample_grid(trial["run_id"], tracking_uri, Path(folder))
                if path is None:
                    continue
                cell = chosen.loc[trial["cell"]]
                name = wording.cell_name(cell, findings.varied)
                score = wording.score_text(cell, decimals)
                label = f"{name} · {score} · seed {trial['seed']}"
                best = trial["cell"] in findings.best.index
                samples.append(Samples(size, label, best, _shrunk(path.read_bytes())))
    return samples


def _real(run_ids: Iterable[str], size: str, tracking_uri: str) -> list[Samples]:
    """The real images of the first of these runs that has any, with what is known of all."""
    for run_id in run_ids:
        facts, png = data_shown(run_id, tracking_uri)
        if png:
            label = f"real images: {facts_text(facts)}" if facts else "real images"
            return [Samples(size, label, False, _shrunk(png))]
    return []


def _same_seeds(findings: Findings, cells: pd.DataFrame) -> pd.DataFrame:
    """Finished trials of these cells with the seeds that most of them have; `cell` is the index."""
    finished = findings.runs[findings.runs["state"] == State.FINISHED].sort_values(
        "seed", kind="stable"
    )
    trials = finished.merge(cells[findings.columns].assign(cell=cells.index))
    seeds = trials.groupby([name for name in ranking.REPLICATES if name in trials]).ngroup()
    return trials[seeds == seeds.mode().min()].sort_values("cell")


def _shrunk(png: bytes) -> bytes:
    """The PNG, no larger than a page can show."""
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        if max(image.size) <= PIXELS:
            return png
        image.thumbnail((PIXELS, PIXELS))
        buffer = BytesIO()
        image.save(buffer, "png", optimize=True)
        return buffer.getvalue()
