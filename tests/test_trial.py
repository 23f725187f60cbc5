"""One trial, end to end, on real digits: trained, sampled, scored; repeatable; resumable; failing with a reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.spec import TrialSpec
from trainers.training import Beat, TrainProgress
from trainers.trial import CHECKPOINT_FILE, Evaluation, Sampled, TrialResult, run, run_trial, to_uint8, write_grid


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def spec(**changes: Any) -> TrialSpec:
    train = {"steps": 20, "batch": 16, "network": {"kind": "unet", "width": 16, "multipliers": [1], "attention": 0}}
    small: dict[str, Any] = {"sample": {"count": 100, "steps": 4, "batch": 40}, "score": {"detector": "random"}}
    return TrialSpec.model_validate({**small, "train": {**train, **changes.pop("train", {})}, **changes})


def test_a_trial_ends_with_its_scores_grid_and_result(tmp_path: Path, cache: Path) -> None:
    result = run_trial(spec(), key="k", folder=tmp_path, cache=cache)
    assert result.state == "finished"
    assert math.isfinite(result.scores["fd_random"])
    assert json.loads((tmp_path / "result.json").read_text())["scores"] == result.scores
    with Image.open(tmp_path / "samples" / "step-000020.png") as grid:
        assert grid.size == (8 * 9 - 1, 8 * 9 - 1)
    assert result.seconds["total"] == pytest.approx(sum(v for k, v in result.seconds.items() if k != "total"))


def test_the_same_spec_gives_the_same_scores(tmp_path: Path, cache: Path) -> None:
    one = run_trial(spec(), key="k", folder=tmp_path / "1", cache=cache)
    two = run_trial(spec(), key="k", folder=tmp_path / "2", cache=cache)
    assert one.scores == two.scores
    grid = "samples/step-000020.png"
    assert (tmp_path / "1" / grid).read_bytes() == (tmp_path / "2" / grid).read_bytes()


def test_evaluations_come_at_every_interval_and_at_the_end(tmp_path: Path, cache: Path) -> None:
    of = spec(score={"detector": "random", "every": 8})
    events = list(run(of, key="k", folder=tmp_path, cache=cache))
    assert [event.step for event in events if isinstance(event, Evaluation)] == [8, 16, 20]
    assert [event.done for event in events if isinstance(event, Sampled)] == [40, 80, 100] * 3
    assert max(event.step for event in events if isinstance(event, TrainProgress)) == 20


@pytest.mark.parametrize("stop_after", [TrainProgress, Sampled, Evaluation])
def test_a_trial_closed_anywhere_goes_on_to_the_same_result(tmp_path: Path, cache: Path, stop_after: type) -> None:
    of = spec(score={"detector": "random", "every": 10})
    whole = run_trial(of, key="k", folder=tmp_path / "whole", cache=cache)
    events = run(of, key="k", folder=tmp_path / "part", cache=cache)
    next(event for event in events if isinstance(event, stop_after))
    events.close()
    assert (tmp_path / "part" / CHECKPOINT_FILE).exists()
    resumed = run_trial(of, key="k", folder=tmp_path / "part", cache=cache)
    assert resumed.scores == whole.scores
    assert resumed.loss == whole.loss
    assert not (tmp_path / "part" / CHECKPOINT_FILE).exists()


def test_a_damaged_checkpoint_is_set_aside_and_the_trial_starts_again(tmp_path: Path, cache: Path) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"damaged")
    assert run_trial(spec(), key="k", folder=tmp_path, cache=cache).state == "finished"
    assert (tmp_path / "checkpoint.bad").read_bytes() == b"damaged"


def test_long_silent_training_lets_the_caller_in_between_reports(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.training.BEAT_SECONDS", 0.0)
    of = spec(train={"steps": 200})  # a report every 4 steps
    whole = list(run(of, key="k", folder=tmp_path / "1", cache=cache))
    events = run(of, key="k", folder=tmp_path / "2", cache=cache)
    assert next(event for event in events if isinstance(event, Beat) and event.step == 6)
    events.close()
    rest = list(run(of, key="k", folder=tmp_path / "2", cache=cache))
    losses = {event.step: event.loss for event in whole if isinstance(event, TrainProgress)}
    assert {e.step: e.loss for e in rest if isinstance(e, TrainProgress)} == {s: v for s, v in losses.items() if s > 6}


def test_a_diverging_trial_fails_with_the_reason_and_without_a_score(tmp_path: Path, cache: Path) -> None:
    result = run_trial(spec(train={"lr": 1e30, "grad_clip": None}), key="k", folder=tmp_path, cache=cache)
    assert isinstance(result, TrialResult)
    assert result.state == "failed"
    assert result.reason.startswith("diverged: mean loss")
    assert result.scores == {}


def test_class_conditional_sampling_uses_the_labels(tmp_path: Path, cache: Path) -> None:
    result = run_trial(spec(train={"class_conditional": True}), key="k", folder=tmp_path, cache=cache)
    assert result.state == "finished"


def test_pixels_are_rounded_to_the_nearest_and_clipped() -> None:
    x = torch.tensor([-2.0, -1.0, -0.001, 0.001, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 127, 128, 255, 255]


def test_the_grid_shows_the_first_samples_in_rows(tmp_path: Path) -> None:
    samples = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 4, 4) * 10
    write_grid(samples, tmp_path / "grid.png", side=2)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (9, 9, 3)
    assert [pixels[0, 0, 0], pixels[0, 5, 0], pixels[5, 0, 0], pixels[5, 5, 0]] == [0, 10, 20, 30]
