"""A package that brings a schedule, a network, a source and a detector of its own is used through
the command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = """
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from sched_lab.trainers.images import RawImages
from sched_lab.trainers.scoring.detectors import NetworkDetector
from sched_lab.trainers.spec import DataSpec, NetworkSpec


def quadratic(t, power=2.0):
    return 1 - t**power


class Linear(NetworkSpec):
    kind: Literal["pixelwise"] = "pixelwise"
    hidden: int = 8

    def build(self, *, channels, resolution, classes):
        class Network(nn.Module):
            def __init__(self, hidden):
                super().__init__()
                first, last = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
                self.layers = nn.Sequential(first, nn.SiLU(), last)

            def forward(self, x, gamma, label=None):
                return self.layers(x * gamma[:, None, None, None])

        return Network(self.hidden)


class Ramps(DataSpec):
    source: Literal["ramps"] = "ramps"
    count: int = 64

    @property
    def image_channels(self):
        return 1

    def fingerprint(self, cache):
        return f"ramps-{self.count}"

    def images(self, size):
        ramp = np.linspace(0, 255, size).astype(np.uint8)
        image = np.broadcast_to(ramp, (1, size, size))
        return RawImages((np.roll(image, i, -1), None) for i in range(self.count))


def pixels(data, cache, device, weights):
    return NetworkDetector("pixels", "1", lambda x: x.float().flatten(1)[:, :16], device)
"""

ENTRY_POINTS = """
[sched_lab.schedules]
quadratic = stranger:quadratic
[sched_lab.networks]
pixelwise = stranger:Linear
[sched_lab.sources]
ramps = stranger:Ramps
[sched_lab.detectors]
pixels = stranger:pixels
"""

SWEEP = """
name: plugged
data: {source: ramps, count: 80}
grid: {schedule: ["quadratic@3", {kind: quadratic, power: [3, 1]}]}
train: {steps: 4, batch: 8, network: {kind: pixelwise, hidden: 4}}
sample: {count: 32, steps: 2}
score: {detector: pixels}
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the package is on the path with its metadata, as after `pip
    install`.
    """
    site = tmp_path / "site"
    about = site / "stranger-1.dist-info"
    about.mkdir(parents=True)
    (site / "stranger.py").write_text(PACKAGE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return {**os.environ, "PYTHONPATH": str(site)}


def test_all_four_kinds_of_plug_in_run_in_a_sweep(
    installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "plugged.yaml").write_text(SWEEP)
    command = [
        str(Path(sys.executable).with_name("sched-lab")),
        "submit",
        "plugged.yaml",
        "--inline",
        "--json",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=installed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["states"] == {
        "finished": 2
    }  # quadratic@3 written twice is one cell
    scores = [
        json.loads(file.read_text())["scores"] for file in tmp_path.glob("lab/trials/*/result.json")
    ]
    assert all(list(score) == ["fd_pixels"] for score in scores)


def test_an_option_the_plug_in_does_not_have_is_refused_with_those_it_has(
    installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "plugged.yaml").write_text(SWEEP.replace("hidden: 4", "hiden: 4"))
    command = [str(Path(sys.executable).with_name("sched-lab")), "plan", "plugged.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=installed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "plugged.yaml:5" in done.stderr
    assert "did you mean 'hidden'" in done.stderr
