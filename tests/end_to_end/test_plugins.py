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

from sched_lab.trainers import (
    DataSpec, DetectorSpec, FieldError, NetworkDetector, NetworkSpec, RawImages
)


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


class Pixels(DetectorSpec):
    kind: Literal["pixels"] = "pixels"
    count: int = 16

    def check(self, data, cache, weights):
        if self.count > 64:
            raise FieldError("an image has but 64 pixels", "count")
        if weights:
            raise FieldError("pixels have no weights", "weights")
        if data.flip:
            raise ValueError("cannot judge images that are flipped")

    def load(self, data, cache, device, weights):
        first = lambda x: x.float().flatten(1)[:, : self.count]
        return NetworkDetector("pixels", f"{self.count}", first, device)
"""

ENTRY_POINTS = """
[sched_lab.schedules]
quadratic = stranger:quadratic
[sched_lab.networks]
pixelwise = stranger:Linear
[sched_lab.sources]
ramps = stranger:Ramps
[sched_lab.detectors]
pixels = stranger:Pixels
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
    (site / "stranger.py").write_text(PACKAGE, "utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n", "utf-8")
    (about / "entry_points.txt").write_text(ENTRY_POINTS, "utf-8")
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def sched_lab(
    environment: dict[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("sched-lab")), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )


def test_all_four_kinds_of_plug_in_run_in_a_sweep(
    installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "plugged.yaml").write_text(SWEEP, "utf-8")
    done = sched_lab(installed, tmp_path, "submit", "plugged.yaml", "--inline", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["states"] == {
        "finished": 2
    }  # quadratic@3 written twice is one cell
    scores = [
        json.loads(file.read_text("utf-8"))["scores"]
        for file in tmp_path.glob("lab/trials/*/result.json")
    ]
    assert all(list(score) == ["fd_pixels"] for score in scores)


def test_an_option_the_plug_in_does_not_have_is_refused_with_those_it_has(
    installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "plugged.yaml").write_text(SWEEP.replace("hidden: 4", "hiden: 4"), "utf-8")
    done = sched_lab(installed, tmp_path, "plan", "plugged.yaml")
    assert done.returncode == 2
    assert "plugged.yaml:5" in done.stderr
    assert "did you mean 'hidden'" in done.stderr


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ("{detector: {kind: pixels, count: 65}}", "7:41: score.detector.count = 65: an image has"),
        ("{detector: pixels, weights: w.pt}", "7:36: score.weights = w.pt: pixels have no weights"),
        ("{detector: pixels}", "7:19: score.detector = pixels: cannot judge images that are flip"),
    ],
)
def test_what_a_plug_in_detector_refuses_is_told_at_its_line_before_anything_runs(
    installed: dict[str, str], tmp_path: Path, score: str, told: str
) -> None:
    flipped = SWEEP.replace("count: 80", "count: 80, flip: true")
    (tmp_path / "plugged.yaml").write_text(flipped.replace("{detector: pixels}", score), "utf-8")
    refused = sched_lab(installed, tmp_path, "submit", "plugged.yaml", "--inline")
    assert refused.returncode == 2
    assert f"plugged.yaml:{told}" in refused.stderr
    planned = sched_lab(installed, tmp_path, "plan", "plugged.yaml")
    assert (planned.returncode, planned.stderr) == (2, refused.stderr)


def test_trials_whose_detectors_differ_in_an_option_are_not_one(
    installed: dict[str, str], tmp_path: Path
) -> None:
    grid = "grid: {score.detector: [pixels, {kind: pixels, count: 16}, {kind: pixels, count: 8}], "
    (tmp_path / "plugged.yaml").write_text(SWEEP.replace("grid: {", grid), "utf-8")
    plan = json.loads(sched_lab(installed, tmp_path, "plan", "plugged.yaml", "--json").stdout)
    detectors = [trial["settings"]["score.detector"] for trial in plan["trials"]]
    assert detectors.count("pixels") == 2
    assert detectors.count({"kind": "pixels", "count": 8}) == 2
