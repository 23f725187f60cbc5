"""The command line as a user meets it: exit codes, messages, JSON, and a small sweep from file to
dashboard data.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from sched_lab.cli.answers import tracking
from sched_lab.errors import SweepError
from sched_lab.run.api import plan
from sched_lab.store.folder import Store
from sched_lab.tracking.client import connect
from sched_lab.tracking.tracker import Tracker
from tests.conftest import ROOT, SMALL_SWEEP, Command


def client(folder: Path) -> MlflowClient:
    return connect(f"sqlite:///{folder / 'lab' / 'mlflow.db'}")


def test_schedule_prints_the_golden_gamma(sched_lab: Command) -> None:
    golden = json.loads((ROOT / "tests" / "data" / "pix2seq_golden.json").read_text("utf-8"))
    t = ",".join(map(str, golden["t"]))
    for notation, gamma in golden["gamma"].items():
        said = json.loads(sched_lab("schedule", notation, "--t", t, "--b", 0.5, "--json").stdout)
        assert said["t"] == golden["t"]
        np.testing.assert_allclose(said["gamma"], gamma, atol=2e-6)


def test_an_infinite_log_snr_is_valid_json_and_reads_as_infinite(sched_lab: Command) -> None:
    said = json.loads(
        sched_lab("schedule", "linear", "--t", "0,0.5", "--b", 0.5, "--json").stdout,
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert said["log_snr"][0] == math.inf
    assert said["log_snr"][1] == pytest.approx(2 * math.log(0.5))


def test_schedule_writes_a_picture(sched_lab: Command, tmp_path: Path) -> None:
    sched_lab("schedule", "sigmoid@-3,3,0.9", "--plot", tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["schedule", "cosin"], "did you mean 'cosine'?"),
        (["schedule", "sigmoid@0,0,1"], "start and end must differ"),
        (["schedule", "linear", "--t", "0,2"], "t must lie in [0, 1], got 2"),
        (["schedule", "linear", "--t", "a"], "numbers with commas"),
        (["schedule", "linear", "--plot", "x.foo"], "must end in .png, .svg, .pdf"),
        (["schedule", "linear", "--plot", "/none/x.png"], "no folder '/none' to write it to"),
        (["submt", "x.yaml"], "did you mean 'submit'?"),
        (["submit", "missing.yaml"], "missing.yaml"),
        (["plan"], "Missing argument 'FILE'"),
        (["status", "nothing"], "no sweep 'nothing'"),
        (["show", "ffff"], "no trial"),
        (["stop", "nothing"], "no sweep 'nothing'"),
    ],
)
def test_wrong_input_is_exit_2_and_one_message_on_stderr(
    sched_lab: Command, arguments: list[str], said: str, tmp_path: Path
) -> None:
    result = sched_lab(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_sweep_starts_nothing_and_writes_nothing(
    sched_lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text(SMALL_SWEEP.replace("[0.5, 1.0]", "[0.5, -1.0]"), "utf-8")
    result = sched_lab("submit", "wrong.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "wrong.yaml:6" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


def test_debug_adds_the_traceback(sched_lab: Command) -> None:
    assert "Traceback" in sched_lab("schedule", "cosin", "--debug").stderr


def test_the_dashboard_of_an_empty_store_is_out_of_reach(
    sched_lab: Command, tmp_path: Path
) -> None:
    assert sched_lab("dashboard", cwd=tmp_path).returncode == 3


def test_a_tracking_server_that_is_down_is_exit_3_before_anything_is_spent(
    sched_lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    result = sched_lab("submit", "small.yaml", "--inline", "--tracking-uri", uri, cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert f"{uri} can't be used: nothing answers there" in result.stderr
    assert not (tmp_path / "lab" / "trials").exists()


def test_plan_says_what_would_run(sched_lab: Command, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    said = json.loads(sched_lab("plan", "small.yaml", "--json", cwd=tmp_path).stdout)
    assert (said["cells"], said["finished"], said["to_run"]) == (4, 0, 4)
    assert said["expected_seconds"] is None
    dry = json.loads(sched_lab("submit", "small.yaml", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert dry == said


def test_plan_says_which_images_there_are_or_names_all_that_are_broken_at_their_line(
    sched_lab: Command, tmp_path: Path
) -> None:
    for index in range(4):
        folder = tmp_path / "images" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + index, 20)).save(folder / f"{index}.png")
    text = "name: own\ndata: {source: folder, path: images}\ntrain: {steps: 9}\n"
    (tmp_path / "own.yaml").write_text(text, "utf-8")
    told = "4 images of folder, 2 classes of 2, 20 x 20 to 23 x 20 pixels before resizing"
    assert told in sched_lab("plan", "own.yaml", cwd=tmp_path).stdout
    (record,) = json.loads(sched_lab("plan", "own.yaml", "--json", cwd=tmp_path).stdout)["images"]
    assert record["classes"] == {"a": 2, "b": 2}
    for index in range(3):
        (tmp_path / f"images/a/broken-{index}.png").touch()
    done = sched_lab("plan", "own.yaml", cwd=tmp_path)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert "own.yaml:2:30: data.path = images: 3 of 7 images" in first
    assert rest == [f"  a/broken-{index}.png: no known image format" for index in range(3)]
    done = sched_lab("submit", "own.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[1:]) == (2, rest)


@pytest.mark.slow
def test_plan_can_measure_what_it_would_cost(sched_lab: Command, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    said = json.loads(sched_lab("plan", "small.yaml", "--measure", "--json", cwd=tmp_path).stdout)
    assert 0 < said["expected_seconds"] < 600


def test_a_finished_sweep_has_one_run_a_trial_with_params_metrics_and_artifacts(
    small_lab: Path,
) -> None:
    mlflow = client(small_lab)
    experiment = mlflow.get_experiment_by_name("small")
    assert experiment is not None
    runs = mlflow.search_runs([experiment.experiment_id])
    trials = [run for run in runs if run.data.tags["sched_lab.role"] == "trial"]
    (parent,) = (run for run in runs if run.data.tags["sched_lab.role"] == "sweep")
    assert len(trials) == 4
    assert len({run.data.tags["sched_lab.trial_key"] for run in trials}) == 4
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["sched_lab.ranked_by"] == "fd_classifier"
    for run in trials:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["sched_lab.state"] == "finished"
        assert run.data.params["schedule"] == "linear"
        assert run.data.params["train.network.width"] == "16"
        assert json.loads(run.data.params["b"]) in (0.5, 1.0)
        history = mlflow.get_metric_history(run.info.run_id, "fd_classifier")
        assert [point.step for point in history] == [10, 20]
        assert any(name.startswith("loss_by_log_snr/") for name in run.data.metrics)
        top = {item.path for item in mlflow.list_artifacts(run.info.run_id)}
        assert {
            "images",
            "spec.json",
            "environment.json",
            "schedule.png",
            "loss_by_log_snr.png",
        } <= top
        grids = [item.path for item in mlflow.list_artifacts(run.info.run_id, "images")]
        assert [int(path.split("+")[2]) for path in grids] == [10, 10, 20, 20]


def test_submitting_a_finished_sweep_again_runs_nothing(
    sched_lab: Command, small_lab: Path
) -> None:
    journals = {path: path.read_bytes() for path in small_lab.glob("lab/trials/*/journal.jsonl")}
    again = sched_lab("submit", "small.yaml", "--inline", "--json", cwd=small_lab)
    assert json.loads(again.stdout)["states"] == {"finished": 4}
    assert {path: path.read_bytes() for path in journals} == journals
    experiment = client(small_lab).get_experiment_by_name("small")
    assert experiment is not None
    assert len(client(small_lab).search_runs([experiment.experiment_id])) == 5


def test_another_sweep_with_the_same_cells_takes_their_results_over(
    sched_lab: Command, small_lab: Path
) -> None:
    (small_lab / "other.yaml").write_text(
        SMALL_SWEEP.replace("name: small", "name: other") + "run: {early_stop: asha}\n", "utf-8"
    )
    done = sched_lab("submit", "other.yaml", "--inline", cwd=small_lab)
    assert done.returncode == 0, done.stderr
    assert "run.early_stop needs Ray" in done.stderr
    experiment = client(small_lab).get_experiment_by_name("other")
    assert experiment is not None
    runs = client(small_lab).search_runs(
        [experiment.experiment_id], "tags.`sched_lab.role` = 'trial'"
    )
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert all("fd_classifier" in run.data.metrics for run in runs)


def test_status_show_and_logs_tell_of_a_finished_trial(sched_lab: Command, small_lab: Path) -> None:
    rows = json.loads(sched_lab("status", "small", "--json", cwd=small_lab).stdout)
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert "4 finished" in sched_lab("status", cwd=small_lab).stdout
    key = rows[0]["key"]
    shown = json.loads(sched_lab("show", key[:8], "--json", cwd=small_lab).stdout)
    assert shown["key"] == key
    assert shown["scores"] == rows[0]["scores"]
    assert "fd_classifier" in sched_lab("show", key, cwd=small_lab).stdout
    assert sched_lab("logs", key, cwd=small_lab).returncode == 0


def test_plan_knows_the_cost_from_what_has_finished(sched_lab: Command, small_lab: Path) -> None:
    (small_lab / "more.yaml").write_text(
        SMALL_SWEEP.replace("[0.5, 1.0]", "[0.5, 1.0, 2.0]"), "utf-8"
    )
    said = json.loads(sched_lab("plan", "more.yaml", "--json", cwd=small_lab).stdout)
    assert (said["cells"], said["finished"], said["to_run"]) == (6, 4, 2)
    assert said["expected_seconds"] > 0


def test_the_report_command_names_the_best_b_of_each_size(
    sched_lab: Command, small_lab: Path, tmp_path: Path
) -> None:
    done = sched_lab("report", "small", "--out", tmp_path / "report", cwd=small_lab)
    assert done.returncode == 0, done.stderr
    assert "8" in done.stdout
    assert "16" in done.stdout
    assert list((tmp_path / "report").glob("*.html"))
    assert done.stdout.endswith("sched-lab dashboard small\n")


def test_a_command_to_go_on_with_names_the_server_unless_the_environment_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = Store.at(tmp_path, "https://lab.example:5000")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking(Store.at(tmp_path)) == []
    assert tracking(server) == ["--tracking-uri", "https://lab.example:5000"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://lab.example:5000")
    assert tracking(server) == []


def test_a_failing_trial_is_exit_1_with_its_reason_and_does_not_stop_the_others(
    sched_lab: Command, tmp_path: Path
) -> None:
    text = SMALL_SWEEP.replace("b: [0.5, 1.0]", "train.lr: [1.0e-3, 1.0e+30]").replace(
        "[8, 16]", "[8]"
    )
    (tmp_path / "bad.yaml").write_text(
        text.replace("batch: 16,", "batch: 16, grad_clip: null,"), "utf-8"
    )
    done = sched_lab("submit", "bad.yaml", "--inline", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["states"] == {"finished": 1, "failed": 1}
    shown = json.loads(sched_lab("show", said["failed"][0], "--json", cwd=tmp_path).stdout)
    assert shown["failure"] == "diverged"
    assert shown["reason"].startswith("mean loss")
    assert shown["scores"] == {}

    # Where no store could be made by default, the commands to go on with name the one there is.
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "lab").touch()
    done = sched_lab(
        "submit", "../bad.yaml", "--inline", "--store", "../lab", cwd=tmp_path / "there"
    )
    assert done.returncode == 1, done.stderr
    report, logs = done.stdout.splitlines()[1], done.stderr.splitlines()[-1]
    for line in (report, logs):
        told = sched_lab(*shlex.split(line.partition("sched-lab ")[2]), cwd=tmp_path / "there")
        assert told.returncode == 0, told.stderr


def test_a_second_submit_of_one_sweep_is_told_who_is_at_work_on_it(
    sched_lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    with Store.at(tmp_path / "lab").held("small"):
        result = sched_lab("submit", "small.yaml", "--inline", cwd=tmp_path)
    assert result.returncode == 3
    assert f"process {os.getpid()}" in result.stderr
    assert "nothing to stop" in sched_lab("stop", "small", "--store", small_store(tmp_path)).stdout


def small_store(folder: Path) -> Path:
    """A store to which a sweep was submitted, with nobody at work on it."""
    store = Store.at(folder / "other")
    store.write_sweep("small", SMALL_SWEEP, [])
    return store.root


@pytest.mark.parametrize(
    ("arguments", "helps"),
    [
        (("plan",), True),
        (("plan", "--nope"), True),
        (("plan", "a.yaml", "b.yaml"), True),
        (("schedule", "cosin"), False),
        (("schedule", "linear", "--b", "0"), False),
        (("show", "0000"), False),
        (("nope",), False),
    ],
)
def test_help_is_pointed_to_where_it_tells_more_than_the_error(
    sched_lab: Command, tmp_path: Path, arguments: tuple[str, ...], helps: bool
) -> None:
    done = sched_lab(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith(f"(see sched-lab {arguments[0]} --help)") == helps


def test_plan_warns_of_what_this_machine_lacks(sched_lab: Command, tmp_path: Path) -> None:
    text = SMALL_SWEEP.replace("resources: {cpu: 1}", "resources: {cpu: 4096}")
    (tmp_path / "some.yaml").write_text(text, "utf-8")
    done = sched_lab("plan", "some.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert "4096 CPU" in done.stderr


def test_what_a_trial_needs_is_refused_by_plan_and_by_submit_before_anything_starts(
    sched_lab: Command, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", np.zeros((40, 8, 8), np.uint8))
    data = f"data: {{source: array, path: {tmp_path / 'images.npy'}}}"
    (tmp_path / "some.yaml").write_text(SMALL_SWEEP.replace("data: digits", data), "utf-8")
    done = sched_lab("submit", "some.yaml", "--inline", cwd=tmp_path)
    assert done.returncode == 2
    assert "classifier needs a source with at least two labels" in done.stderr
    assert not (tmp_path / "lab" / "trials").exists()
    planned = sched_lab("plan", "some.yaml", cwd=tmp_path)
    assert (planned.returncode, planned.stderr) == (2, done.stderr)
    with pytest.raises(SweepError, match="at least two labels"):
        plan(tmp_path / "some.yaml", tmp_path / "lab")


def test_no_password_of_a_server_is_shown(sched_lab: Command, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    uri = "http://user:sesame@127.0.0.1:9"
    for command in (["submit", "small.yaml", "--inline"], ["report", "small"], ["doctor"]):
        done = sched_lab(*command, "--tracking-uri", uri, cwd=tmp_path)
        assert done.returncode == 3
        assert "sesame" not in done.stdout + done.stderr


def test_a_process_ends_with_its_code_and_words_though_a_thread_is_at_work() -> None:
    script = """
import threading, time
from sched_lab.cli.program import _end
threading.Thread(target=time.sleep, args=(60,)).start()
print("its last words", end="")
_end(3)
"""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (3, "its last words", "")
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_file_in_place_of_a_sweep_is_told(
    sched_lab: Command, tmp_path: Path, command: str
) -> None:
    Tracker(Store.at(tmp_path / "lab"), "mine").open("", "name: mine", [], "fd_random")
    done = sched_lab(command, "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "a sweep is named as in its file's `name`, not as the file" in done.stderr


def test_what_a_file_holds_does_not_steer_the_terminal(sched_lab: Command, tmp_path: Path) -> None:
    key, path = r"\e[31mred\n\u202e", r"a\e[31mb\nc"
    (tmp_path / "x.yaml").write_text(f'name: x\n"{key}": 1\n', "utf-8")
    (tmp_path / "y.yaml").write_text(
        f'name: y\ndata: {{source: folder, path: "{path}"}}\n', "utf-8"
    )
    for name in ("x", "y"):
        said = sched_lab("plan", f"{name}.yaml", cwd=tmp_path).stderr
        assert r"\x1b[31m" in said
        assert not {"\x1b", "\u202e"} & set(said)
