"""How long the light commands take, as whole processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

MANY = """\
name: many
grid:
  resolution: [8, 16, 32]
  schedule:
    - linear
    - {kind: sigmoid, range: [[-3, 3], [0, 3]], tau: [0.5, 0.7, 0.9]}
    - cosine@0.2,1,1
  b: [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
  seed: [%s]
train: {steps: 100}
"""


def seconds(*arguments: str, runs: int = 5) -> str:
    command = [str(Path(sys.executable).with_name("sched-lab")), *arguments]
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return f"{statistics.median(taken):.2f} s"


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        store = ("--store", folder)
        yield "sched-lab --help", seconds("--help"), "under 1.5 s"
        yield (
            "sched-lab plan of the quickstart",
            seconds("plan", str(ROOT / "sweeps/quickstart.yaml"), *store),
            "under 1.5 s",
        )
        many = Path(folder) / "many.yaml"
        many.write_text(MANY % ", ".join(map(str, range(521))), "utf-8")
        yield (
            "sched-lab plan of 100,032 cells",
            seconds("plan", str(many), *store, runs=2),
            "at most 15 s",
        )
