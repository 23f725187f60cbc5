"""Models that draw noise, trained for real: no output crowns any of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from sched_lab.names import REAL, UNTRAINED
from sched_lab.tracking.client import connect
from tests.conftest import Command

pytestmark = pytest.mark.slow

SWEEP = """\
name: noise
data: {source: folder, path: ./photos}
grid:
  resolution: [16]
  b: [0.25, 1.0, 4.0]
  seed: [0, 1]
train: {steps: 5, batch: 16, network: {kind: unet, width: 16, multipliers: [1], attention: 0}}
sample: {count: 128, steps: 4}
resources: {cpu: 1}
"""
FIRST = "No cell is best at 16×16: "


@pytest.fixture(scope="module")
def lab(sched_lab: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, and a store in which five steps on them are all the training."""
    folder = tmp_path_factory.mktemp("noise")
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(100):
            y, x = 34 * (i // 10), 56 * (i % 10)
            crop = Image.fromarray(photo[y : y + 64, x : x + 64]).resize((16, 16))
            crop.save(folder / "photos" / name / f"{i:03d}.png")
    (folder / "noise.yaml").write_text(SWEEP, "utf-8")
    done = sched_lab("submit", "noise.yaml", "--inline", "--store", "lab", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_report_says_first_that_no_cell_is_best(sched_lab: Command, lab: Path) -> None:
    done = sched_lab("report", "noise", "--store", lab / "lab")
    assert done.stdout.startswith(FIRST), done.stderr
    said = json.loads(sched_lab("report", "noise", "--store", lab / "lab", "--json").stdout)
    assert said["warnings"][0].startswith(FIRST)
    assert said["best"] == []
    cells = pd.read_csv(said["files"]["cells"])
    assert cells["shortfall"].notna().all()
    runs = pd.read_csv(said["files"]["runs"])
    # Real images score as such, and samples of five steps as those of none.
    ratio = runs["fd_classifier"] / runs[f"{UNTRAINED}fd_classifier"]
    assert ratio.between(0.9, 1.1).all()
    assert (runs[f"{REAL}fd_classifier"] < 0.1 * runs["fd_classifier"]).all()


def test_recommend_says_so_and_recommends_nothing(sched_lab: Command, lab: Path) -> None:
    for size in (16, 32):
        done = sched_lab("recommend", "noise", "--size", size, "--store", lab / "lab")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(FIRST)


def test_the_sweeps_page_in_mlflow_says_so_first(sched_lab: Command, lab: Path) -> None:
    for _ in range(2):  # and says it once
        assert sched_lab("report", "noise", "--store", lab / "lab").returncode == 0
    client = connect(f"sqlite:///{lab / 'lab' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("noise")
    assert experiment is not None
    note = experiment.tags["mlflow.note.content"]
    assert note.startswith(f"> **{FIRST}")
    assert note.count(FIRST) == 1


def test_what_the_report_prints_to_run_it_again_runs_from_any_folder(
    sched_lab: Command, lab: Path, tmp_path: Path
) -> None:
    assert sched_lab("report", "noise", "--store", lab / "lab").returncode == 0
    text = (lab / "lab" / "reports" / "noise" / "report.md").read_text("utf-8")
    lines = text.partition("```sh\n")[2].partition("\n```")[0].splitlines()
    where, folder = shlex.split(lines[0])
    assert where == "cd"
    for line in lines[1:]:
        done = sched_lab(*shlex.split(line)[1:], cwd=Path(folder))
        assert done.returncode == 0, done.stderr
        assert "6 finished" in done.stdout  # the same trials, found and not run again


def test_trials_of_cells_that_were_taken_out_are_counted(sched_lab: Command, lab: Path) -> None:
    (lab / "noise.yaml").write_text(SWEEP.replace("0.25, 1.0, 4.0", "1.0, 4.0"), "utf-8")
    done = sched_lab("submit", "noise.yaml", "--inline", "--store", "lab", cwd=lab)
    assert done.returncode == 0, done.stderr
    former = "2 earlier trials no longer belong"
    for arguments in (["status"], ["status", "noise"], ["report", "noise"]):
        assert former in sched_lab(*arguments, "--store", lab / "lab").stdout
