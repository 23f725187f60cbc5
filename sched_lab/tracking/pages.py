"""What MLflow's pages show beside numbers: a sweep's and a run's description in Markdown, and
pictures.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, dropwhile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import quote

from sched_lab import names
from sched_lab.redaction import redacted
from sched_lab.store.folder import Store
from sched_lab.store.records import CellRow, JournalEvent
from sched_lab.tracking import plots
from sched_lab.trainers.schedules import Schedule
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from PIL.Image import Image

LEGIBLE = 320  # pixels of a side
LISTED = 12  # values of an axis, or image sizes, that a description lists
TRAINING = "workflowType=machine_learning"  # selects MLflow's pages for training
LIST = f"#/experiments?{TRAINING}"


def views(cells: Sequence[CellRow], ranked_by: str, time_ms: int) -> dict[str, str]:
    """One view per image size for MLflow's menu, by tag of the experiment: its trials, the best
    first.

    `cells` have `settings` and `params`; their settings and the score become columns. MLflow keeps
    a view as JSON of its name, its time and its state; the state is JSON text.
    """
    settings = [
        name
        for name in dict.fromkeys(chain(*(cell.settings for cell in cells)))
        if name != "resolution"
    ]
    columns = [f"metrics.`{ranked_by}`", *(f"params.`{name}`" for name in settings)]
    if any(cell.stage for cell in cells):
        columns.append(f"tags.`{names.STAGE}`")
    state = {
        "orderByKey": f"metrics.`{ranked_by}`",
        "orderByAsc": not names.higher_is_better(ranked_by),
        "selectedColumns": columns,
    }
    return {
        f"{names.SHARED_VIEW}{_view_key(size)}": json.dumps(
            {
                "name": f"{size}×{size}, the best first",
                "createdAt": time_ms,
                "state": json.dumps(state | {"searchFilter": f"params.resolution = '{size}'"}),
            }
        )
        for size in _sizes(cells)
    }


def links(experiment: str, run: str, cells: Sequence[CellRow]) -> str:
    """Links to a sweep's report and to its trials at each size, in Markdown; `cells` have
    `params`.
    """
    runs = f"#/experiments/{experiment}/runs"
    by_size = [
        f"[{size}×{size}]({runs}?{TRAINING}&viewStateShareKey={_view_key(size)})"
        for size in _sizes(cells)
    ]
    report = f"{runs}/{run}/artifacts/{names.REPORT_FOLDER}/{names.REPORT_FILE}?{TRAINING}"
    return (
        f"[Report]({report}), there when it has been made. Trials, the best first:"
        f" {', '.join(by_size)}"
    )


def trials(experiment: str, note: str) -> str:
    """The page of a sweep's trials, in the view to which its description links first."""
    view = re.search(r"&viewStateShareKey=[\w-]+", note)
    return f"#/experiments/{experiment}/runs?{TRAINING}{view[0] if view else ''}"


def _sizes(cells: Iterable[CellRow]) -> list[int]:
    return sorted({int(cell.params["resolution"]) for cell in cells})[:LISTED]


def _view_key(size: int) -> str:
    return f"best-{size}"


def sweep_note(about: Iterable[str], cells: Iterable[CellRow], store: Store, sweep: str) -> str:
    """What there is to say about a sweep, its axes and its commands, in Markdown; `cells` have
    `settings`.
    """
    axes: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, value in cell.settings.items():
            axes.setdefault(name, {})[value if isinstance(value, str) else json.dumps(value)] = None
    table = [f"| {name} | {_listed(list(values))} |" for name, values in axes.items()]
    what = f"{shlex.quote(sweep)} --store {shlex.quote(str(store.root))}"
    served = (
        ""
        if store.local_tracking
        else f" --tracking-uri {shlex.quote(redacted(store.tracking_uri))}"
    )
    paragraphs = [
        *about,
        "\n".join(["| axis | values |", "|---|---|", *table] if table else []),
        f"    sched-lab report {what}{served}\n    sched-lab status {what}",
    ]
    return "\n\n".join(filter(None, paragraphs))


def warned(note: str, warnings: Iterable[str]) -> str:
    """A sweep's note with these warnings on top, in the place of earlier ones."""
    mark = "> **"  # begins no other paragraph before the links
    paragraphs = list(dropwhile(lambda each: each.startswith(mark), note.split("\n\n")))
    return "\n\n".join([*(f"{mark}{warning}**" for warning in warnings), *paragraphs])


def trial_note(run_id: str, pictures: Iterable[str]) -> str:
    """The pictures among a run's artifacts, in Markdown, as MLflow's pages fetch them."""
    return "\n\n".join(
        f"![{PurePath(path).stem}](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})"
        for path in pictures
    )


def _listed(values: Sequence[str]) -> str:
    shown = ", ".join(values[:LISTED]).replace("|", "\\|")
    return f"{shown}, … ({len(values)} values)" if len(values) > LISTED else shown


@lru_cache(maxsize=128)
def schedule_png(schedule: Schedule, b: float) -> bytes:
    """The picture of a schedule, drawn once for all trials that have it."""
    return plots.schedule_png(schedule, b)


def loss_png(spec: TrialSpec, events: Iterable[JournalEvent]) -> bytes:
    """The picture of a trial's last loss by log-SNR; empty where its journal has none."""
    last = {name: value for event in events for name, value in event.metrics.items()}
    losses = {
        float(name.removeprefix(names.LOSS_BY_LOG_SNR)): loss
        for name, loss in last.items()
        if loss is not None and name.startswith(names.LOSS_BY_LOG_SNR)
    }
    return plots.loss_png(spec.noise_schedule, spec.b, losses) if losses else b""


def last_samples_png(folder: Path) -> bytes:
    """The last grid of samples in a folder, enlarged to be legible; empty where there is none."""
    # step-1000000 comes after step-999999
    grids = sorted(folder.glob("*.png"), key=lambda grid: (len(grid.name), grid.name))
    if not (grids and (grid := image(grids[-1]))):
        return b""
    times = -(-LEGIBLE // max(grid.size))
    nearest = 0  # PIL's filter that makes each pixel a square
    enlarged = grid.resize((times * grid.width, times * grid.height), nearest)
    return encoded(enlarged, "png")


def encoded(picture: Image, kind: str) -> bytes:
    """A picture as a file of this kind; a PNG is packed in a hurry."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"compress_level": 1} if kind == "png" else {}))
    return buffer.getvalue()


def image(path: Path) -> Image | None:
    """The image in a file; None where it can't be read."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            return opened.copy()
    except OSError:
        return None
