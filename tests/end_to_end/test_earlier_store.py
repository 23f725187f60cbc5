"""A store that version 0.1.0 wrote is read, reported, and submitted to again.

`tests/data/store-0.1.0.tar.xz` was written by commit 5e94a54 at /srv/lab, and holds a sweep of six
trials: four finished, one diverged, one stopped with a checkpoint. Its cache, and all pictures but
the grids of samples, were left out.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from sched_lab import names
from sched_lab.store.folder import Store
from tests.conftest import ROOT, Command

pytestmark = pytest.mark.slow

FINISHED = ("33de7d940dc52f40", "b1410b420c352e80", "d8e4236e139bf088", "4b61ac96aae6e3db")
DIVERGED, STOPPED = "63b031147f2776e5", "79a6ec0ccfb00605"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with the store as `lab`, and its sweep's file."""
    with tarfile.open(ROOT / "tests/data/store-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path / "lab", filter="data")
    shutil.move(tmp_path / "lab/sweep.yaml", tmp_path)
    return tmp_path


def scores(lab: Path) -> dict[str, dict[str, float]]:
    files = (lab / "lab/trials").glob(f"*/{names.RESULT_FILE}")
    return {file.parent.name: json.loads(file.read_text("utf-8"))["scores"] for file in files}


def test_its_trials_keep_their_states_and_a_plan_runs_what_has_other_results_now(
    sched_lab: Command, lab: Path
) -> None:
    rows = json.loads(sched_lab("status", "earlier", "--json", cwd=lab).stdout)
    assert {row["key"]: row["state"] for row in rows} == {
        **dict.fromkeys(FINISHED, "finished"),
        DIVERGED: "failed",
        STOPPED: "stopped",
    }
    planned = json.loads(sched_lab("plan", "sweep.yaml", "--json", cwd=lab).stdout)
    assert planned["to_run"] == 6
    assert planned["expected_seconds"] > 0
    assert (
        json.loads(sched_lab("show", DIVERGED, "--json", cwd=lab).stdout)["failure"] == "diverged"
    )


def test_it_is_reported(sched_lab: Command, lab: Path) -> None:
    done = sched_lab("report", "earlier", cwd=lab)
    assert done.returncode == 0, done.stderr
    cells = pd.read_csv(lab / "lab/reports/earlier/cells.csv")
    assert cells.set_index(["resolution", "b"])["mean"].dropna().to_dict() == pytest.approx(
        {
            (8, 0.5): 0.003691279462672028,
            (8, 1.0): 0.00395657219341811,
            (16, 0.5): 0.0037628396418458937,
            (16, 1.0): 0.004141619971836454,
        },
        rel=1e-12,
    )


def test_its_trials_run_again_beside_the_earlier_ones_which_stay(
    sched_lab: Command, lab: Path
) -> None:
    before = scores(lab)
    done = sched_lab("submit", "sweep.yaml", "--inline", cwd=lab)
    assert done.returncode == 1, done.stderr  # one diverges now, too
    assert "earlier: 6 cells: 1 failed, 5 finished" in done.stdout
    after = scores(lab)
    assert len(after) == len(before) + 6
    assert {key: after[key] for key in before} == before
    client = MlflowClient(Store.at(lab / "lab").tracking_uri)
    experiment = client.get_experiment_by_name("earlier")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{names.ROLE}` = 'trial'")
    assert sorted(run.data.tags[names.TRIAL_KEY] for run in runs) == sorted({*after, STOPPED})
