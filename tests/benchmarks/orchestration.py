"""What running a sweep costs beside its trials' own work: read from the journals of the quickstart,
run for real.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tests.conftest import ROOT

SWEEP = ROOT / "sweeps" / "quickstart.yaml"


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        sched_lab = Path(sys.executable).with_name("sched-lab")
        start = time.time()
        subprocess.run(
            [sched_lab, "submit", SWEEP, "--store", folder], check=True, capture_output=True
        )
        submitted = time.time() - start
        subprocess.run(
            [sched_lab, "report", "quickstart", "--store", folder], check=True, capture_output=True
        )
        yield "quickstart and its report, wall", f"{time.time() - start:.0f} s", "at most 240 s"
        trials = [read(journal) for journal in Path(folder).glob("trials/*/journal.jsonl")]
        yield from figures(trials, start, submitted)
        prepared = (
            Path(folder) / "prepared.yaml"
        )  # new trials on a store whose cache and database are there
        other = (
            SWEEP.read_text("utf-8")
            .replace("name: quickstart", "name: again")
            .replace("grid:", "grid:\n  seed: [1]")
        )
        prepared.write_text(other, "utf-8")
        start = time.time()
        command = [str(sched_lab), "submit", str(prepared), "--store", folder]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        known = {trial["key"] for trial in trials}
        first = None
        while first is None and driver.poll() is None:
            time.sleep(0.1)
            fresh = [
                f for f in Path(folder).glob("trials/*/journal.jsonl") if f.parent.name not in known
            ]
            first = min(
                (t["first_loss"] for t in map(read, fresh) if "first_loss" in t), default=None
            )
        subprocess.run(
            [sched_lab, "stop", "again", "--store", folder], check=True, capture_output=True
        )
        driver.wait()
        assert first is not None
        yield (
            "from submit to the first report of training, prepared store",
            f"{first - start:.1f} s",
            "at most 20 s",
        )


def read(journal: Path) -> dict[str, Any]:
    """When a trial started, first reported a loss and ended, in seconds of the clock, and its own
    compute.
    """
    found: dict[str, Any] = {"key": journal.parent.name}
    for event in map(json.loads, journal.read_text("utf-8").splitlines()):
        at, metrics = event["time_ms"] / 1000, event.get("metrics", {})
        if event.get("state") == "running":
            found |= {"start": at, "pid": event["pid"]}
        if "loss" in metrics:
            found.setdefault("first_loss", at)
        if "seconds/total" in metrics:
            found |= {"end": at, "compute": metrics["seconds/total"]}
    return found


def figures(
    trials: list[dict[str, Any]], start: float, submitted: float
) -> Iterator[tuple[str, str, str]]:
    by_worker = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: trial["start"]):
        by_worker[trial["pid"]].append(trial)
    began, ended = min(t["start"] for t in trials), max(t["end"] for t in trials)
    busy = sum(t["compute"] for t in trials) / (len(by_worker) * (ended - began))
    gaps = [
        (later["end"] - earlier["end"]) - later["compute"]
        for worker in by_worker.values()
        for earlier, later in pairwise(worker)
    ]
    yield (
        "compute over slots x wall, from the first trial's start on",
        f"{busy:.3f}",
        "at least 0.85",
    )
    yield "a warm worker's cost per further trial, median", f"{median(gaps):.2f} s", "at most 0.5 s"
    yield "the same, worst", f"{max(gaps):.2f} s", ""
    yield "from submit to the first trial's start, fresh store", f"{began - start:.1f} s", ""
    yield "from the last trial's end to the end of submit", f"{start + submitted - ended:.1f} s", ""
