"""MLflow's pages show what a sweep asks and what came of it: a description, a gallery by step, the
loss by log-SNR.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from sched_lab import names
from sched_lab.store.folder import Store
from sched_lab.store.journal import Journal
from sched_lab.store.records import CellRow
from sched_lab.sweep.grid import Trial
from sched_lab.tracking import pages, plots
from sched_lab.tracking.client import connect
from sched_lab.tracking.pages import TRAINING
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.results import State
from sched_lab.trainers.schedules import parse
from sched_lab.trainers.spec import TrialSpec

TRIAL = Trial("a", TrialSpec(), {})
CELLS = [
    CellRow(
        key="a",
        settings={"schedule": schedule, "b": b, "seed": seed},
        params={"resolution": "64"},
    )
    for schedule in ("linear", "cosine@0.2,1,1")
    for b in (0.5, 1.0)
    for seed in range(20)
]


def opened(store: Store, description: str = "") -> Tracker:
    tracker = Tracker(store, "faces")
    tracker.open(description, "name: faces", CELLS, "fd_classifier")
    return tracker


def client_of(store: Store) -> MlflowClient:
    return connect(store.tracking_uri)


def run_of(store: Store, role: str = names.ROLE_TRIAL) -> Run:
    experiment = client_of(store).get_experiment_by_name("faces")
    (run,) = client_of(store).search_runs(
        [experiment.experiment_id], f"tags.`{names.ROLE}` = '{role}'"
    )
    return run


def evaluate(store: Store, *steps: int, **end: str) -> None:
    """As a trial does that draws and scores samples at these steps."""
    folder = store.trial(TRIAL.key)
    with Journal(folder / names.JOURNAL_FILE) as journal:
        for step in steps:
            grid = f"{names.SAMPLES_FOLDER}/step-{step:06d}.png"
            (folder / names.SAMPLES_FOLDER).mkdir(exist_ok=True)
            Image.fromarray(np.full((17, 17), step % 256, np.uint8)).save(folder / grid)
            bins = {
                f"{names.LOSS_BY_LOG_SNR}{centre}": 1 / (step + abs(centre))
                for centre in (-1, 1, 3)
            }
            journal.write(step=step, metrics=bins, file=grid)
        if end:
            journal.write(**end)


def gallery(store: Store) -> Counter[int]:
    """How often the gallery has each step."""
    files = client_of(store).list_artifacts(run_of(store).info.run_id, names.GALLERY_FOLDER)
    return Counter(int(file.path.split("+")[2]) for file in files if file.path.endswith(".png"))


def picture(store: Store, name: str) -> Image.Image:
    return Image.open(client_of(store).download_artifacts(run_of(store).info.run_id, name))


def test_the_gallery_has_each_grid_once_however_often_it_is_delivered(store: Store) -> None:
    evaluate(store, 10, 20)
    opened(store).deliver(TRIAL)
    client_of(store).delete_tag(
        run_of(store).info.run_id, names.DELIVERED
    )  # as a driver leaves it that was killed there
    evaluate(store, 30)
    opened(store).deliver(TRIAL)
    assert gallery(store) == Counter([10, 20, 30])
    assert run_of(store).data.tags["mlflow.loggedImages"] == "True"
    files = client_of(store).list_artifacts(run_of(store).info.run_id, names.GALLERY_FOLDER)
    (last,) = [
        file.path for file in files if "+step+30+" in file.path and file.path.endswith(".png")
    ]
    np.testing.assert_array_equal(np.asarray(picture(store, last)), np.full((17, 17), 30))


def test_a_grid_that_cannot_be_read_keeps_nothing_else_from_mlflow(store: Store) -> None:
    evaluate(store, 10, 20)
    (store.trial("a") / names.SAMPLES_FOLDER / "step-000010.png").write_bytes(b"\x89PNG cut short")
    opened(store).deliver(TRIAL)
    assert gallery(store) == Counter([20])


def test_a_trial_that_has_ended_shows_its_loss_by_log_snr(store: Store) -> None:
    evaluate(store, 10)
    tracker = opened(store)
    tracker.deliver(TRIAL)
    assert names.LOSS_FILE not in artifacts(store)
    evaluate(store, 20, state=State.FINISHED, reason="")
    tracker.deliver(TRIAL)
    losses = {c: 1 / (20 + abs(c)) for c in (-1.0, 1.0, 3.0)}
    drawn = plots.loss_png(TRIAL.spec.noise_schedule, 1.0, losses)
    np.testing.assert_array_equal(
        np.asarray(picture(store, names.LOSS_FILE)), np.asarray(Image.open(io.BytesIO(drawn)))
    )


def test_a_trial_that_has_ended_is_described_by_its_last_samples_and_its_loss(store: Store) -> None:
    evaluate(store, 999_999, 1_000_000, state=State.FINISHED, reason="")
    opened(store).deliver(TRIAL)
    run = run_of(store).info.run_id
    paths = [
        unquote(
            re.fullmatch(rf"!\[[a-z_0-9-]+\]\(get-artifact\?path=(\S+)&run_uuid={run}\)", part)[1]
        )  # type: ignore[index]
        for part in run_of(store).data.tags[names.NOTE].split("\n\n")
    ]
    assert paths == [names.LAST_SAMPLES_FILE, names.LOSS_FILE]
    assert np.asarray(picture(store, names.LOSS_FILE)).size
    samples = np.asarray(picture(store, names.LAST_SAMPLES_FILE))
    assert samples.shape == (17 * 19, 17 * 19)  # 323 pixels
    assert (samples == 1_000_000 % 256).all()


def artifacts(store: Store) -> set[str]:
    return {file.path for file in client_of(store).list_artifacts(run_of(store).info.run_id)}


def test_a_trial_shows_its_spec_and_schedule_from_its_start(store: Store) -> None:
    evaluate(store, state=State.RUNNING)
    opened(store).deliver(TRIAL)
    first = {names.SPEC_FILE, names.SCHEDULE_FILE}
    assert artifacts(store) == first
    # A driver of an earlier version, which was killed, left neither.
    for name in first:
        (file,) = store.artifacts.rglob(name)
        file.unlink()
    assert not artifacts(store)
    evaluate(store, 10)
    opened(store).deliver(TRIAL)
    assert artifacts(store) == first | {names.GALLERY_FOLDER}


def test_a_trial_that_was_never_evaluated_shows_no_loss_by_log_snr(store: Store) -> None:
    evaluate(store, state=State.FAILED, reason="broken", failure="bug")
    opened(store).deliver(TRIAL)
    assert names.LOSS_FILE not in artifacts(store)


def test_the_loss_stands_over_its_bin_beside_the_density_of_training() -> None:
    drawn = plots.loss_png(parse("linear"), 2.0, {3.0: 0.2, -1.0: 0.9, 7.0: math.nan})
    pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(int)
    blue = pixels[..., 2] - pixels[..., 0] > 60  # bars
    red = pixels[..., 0] - pixels[..., 2] > 60  # the line
    # The axes: x from -5 to 10 over columns 78 to 522, y from 0 to 1 over rows 289 to 34.
    within = np.zeros_like(blue)
    within[36:288, 80:520] = True

    def column(log_snr: float) -> int:
        return round(78 + 444 * (log_snr + 5) / 15)

    def top(log_snr: float) -> float:
        rows = np.flatnonzero((blue & within)[:, column(log_snr)])
        return (289 - rows.min()) / 255 if len(rows) else 0.0

    heights = {at: top(at) for at in (-1.7, -1.0, -0.3, 2.3, 3.7)}
    expected = {-1.7: 0.9, -1.0: 0.9, -0.3: 0.9, 2.3: 0.2, 3.7: 0.2}
    assert heights == pytest.approx(expected, abs=0.02)
    assert [top(at) for at in (-2.5, 1.0, 4.5, 7.0)] == [0.0] * 4
    rows, columns = np.nonzero(red & within)
    peak = columns[rows == rows.min()].mean()
    assert peak == pytest.approx(column(2 * np.log(2)), abs=8)  # linear: logistic, about log b²


def test_the_quick_picture_of_a_schedule_has_the_curves_of_the_drawn_one() -> None:
    schedule = parse("cosine@0.2,1,1")
    drawn = Image.open(io.BytesIO(plots.schedule_png(schedule, 2.0))).convert("RGB")
    pixels = np.asarray(drawn).astype(int)
    blue = pixels[..., 2] - pixels[..., 0] > 60
    for axes, left in zip(plots.schedule_figure(schedule, 2.0).axes, (60, 395, 730), strict=True):
        rows, columns = np.nonzero(blue[36:249, left + 1 : left + 239])
        x, y = (np.asarray(values) for values in axes.lines[0].get_data())
        # Round limits: the picture's own scale is where the curve's ends and extremes lie.
        assert np.ptp(columns) > 100
        assert np.ptp(rows) > 60
        middle = (columns.min() + columns.max()) / 2
        at = np.interp((x.min() + x.max()) / 2, np.sort(x), y[np.argsort(x)])
        share = (at - y.min()) / np.ptp(y)
        near = rows[np.abs(columns - middle) < 2].mean()
        assert (rows.max() - near) / np.ptp(rows) == pytest.approx(share, abs=0.04)


def test_the_sweep_and_its_experiment_are_described_by_axes_commands_and_report(
    store: Store,
) -> None:
    opened(store, "Which b suits faces?")
    sweep = run_of(store, names.ROLE_SWEEP)
    runs = f"#/experiments/{sweep.info.experiment_id}/runs"
    note = sweep.data.tags[names.NOTE]
    assert note.split("\n\n") == [
        (
            f"[Report]({runs}/{sweep.info.run_id}/artifacts/report/index.html?{TRAINING}), there"
            " when it has been made. Trials, the best first:"
            f" [64×64]({runs}?{TRAINING}&viewStateShareKey=best-64)"
        ),
        "Which b suits faces?",
        (
            "| axis | values |\n|---|---|\n"
            "| schedule | linear, cosine@0.2,1,1 |\n"
            "| b | 0.5, 1.0 |\n"
            "| seed | 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (20 values) |"
        ),
        (
            f"    sched-lab report faces --store {store.root}\n    sched-lab status faces --store"
            f" {store.root}"
        ),
    ]
    assert client_of(store).get_experiment_by_name("faces").tags[names.NOTE] == note
    assert sweep.data.tags[names.DESCRIPTION] == "Which b suits faces?"


def test_a_description_names_the_server_that_its_runs_are_on(tmp_path: Path) -> None:
    here = Store.at(tmp_path / "my lab", "http://127.0.0.1:9")
    note = pages.sweep_note([], [], here, "a|b")
    assert note.startswith(
        f"    sched-lab report 'a|b' --store '{here.root}' --tracking-uri http://127.0.0.1:9\n"
    )
