"""One trial, end to end, on real digits: trained, sampled, scored; repeatable; resumable; failing
with a reason.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sched_lab.trainers.cancellation import Cancelled, cancelled_where
from sched_lab.trainers.data.prepare import facts, prepare
from sched_lab.trainers.failures import BadData, kind_of
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.scoring import classifier, scores
from sched_lab.trainers.scoring.detectors import load_detector
from sched_lab.trainers.spec import NetworkSpec, TrialSpec
from sched_lab.trainers.training import Beat, TrainProgress
from sched_lab.trainers.trial import (
    CHECKPOINT_FILE,
    Evaluation,
    Sampled,
    Saving,
    TrialResult,
    environment,
    run,
    run_trial,
    to_uint8,
    write_grid,
)
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def spec(**changes: Any) -> TrialSpec:
    train = {
        "steps": 20,
        "batch": 16,
        "network": {"kind": "unet", "width": 16, "multipliers": [1], "attention": 0},
    }
    small: dict[str, Any] = {
        "sample": {"count": 100, "steps": 4, "batch": 40},
        "score": {"detector": "random"},
    }
    return TrialSpec.model_validate(
        {**small, "train": {**train, **changes.pop("train", {})}, **changes}
    )


def test_a_trial_ends_with_its_scores_grid_and_result(tmp_path: Path, cache: Path) -> None:
    result = run_trial(spec(), key="k", folder=tmp_path, cache=cache)
    assert (result.state, result.failure) == ("finished", "")
    assert math.isfinite(result.scores["fd_random"])
    assert json.loads((tmp_path / "result.json").read_text("utf-8"))["scores"] == result.scores
    with Image.open(tmp_path / "samples" / "step-000020.png") as grid:
        assert grid.size == (8 * 9 - 1, 8 * 9 - 1)
    assert result.seconds["total"] == pytest.approx(
        sum(v for k, v in result.seconds.items() if k != "total")
    )


def test_a_trial_s_folder_shows_which_images_it_is_about(tmp_path: Path, cache: Path) -> None:
    run_trial(spec(resolution=12), key="k", folder=tmp_path, cache=cache)
    written = DataFacts.model_validate_json((tmp_path / "data.json").read_text("utf-8"))
    assert written == spec().data.facts(cache)
    with Image.open(tmp_path / "real.png") as grid:
        shown = np.asarray(grid)
    assert shown.shape == (8 * 13 - 1, 8 * 13 - 1)
    real = {image.tobytes() for image in prepare(spec().data, 12, cache).pixels[:, 0]}
    tiles = [shown[y * 13 :, x * 13 :][:12, :12] for y in range(8) for x in range(8)]
    assert {tile.tobytes() for tile in tiles} <= real
    assert len({tile.tobytes() for tile in tiles}) == 64


def test_of_a_source_that_tells_nothing_the_images_are_counted(cache: Path) -> None:
    class Silent(type(spec().data)):  # type: ignore[misc]
        def facts(self, cache: Path) -> None:
            return None

    told = spec().data.facts(cache)
    counted = facts(Silent(), prepare(spec().data, 8, cache), cache)
    assert told is not None
    assert counted == told.model_copy(update={"smallest": None, "largest": None})


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
def test_a_trial_closed_anywhere_goes_on_to_the_same_result(
    tmp_path: Path, cache: Path, stop_after: type
) -> None:
    of = spec(score={"detector": "random", "every": 10})
    whole = run_trial(of, key="k", folder=tmp_path / "whole", cache=cache)
    events = run(of, key="k", folder=tmp_path / "part", cache=cache)
    next(event for event in events if isinstance(event, stop_after))
    events.close()
    assert (tmp_path / "part" / CHECKPOINT_FILE).exists()
    resumed = run_trial(of, key="k", folder=tmp_path / "part", cache=cache)
    assert resumed.scores == whole.scores
    assert resumed.loss == whole.loss
    assert resumed.baselines == whole.baselines
    assert not (tmp_path / "part" / CHECKPOINT_FILE).exists()


def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_trial_starts_again(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"damaged")
    assert run_trial(spec(), key="k", folder=tmp_path, cache=cache).state == "finished"
    assert (tmp_path / "checkpoint.bad").read_bytes() == b"damaged"
    assert f"{tmp_path / CHECKPOINT_FILE} can't be read" in caplog.text
    assert "set aside as checkpoint.bad" in caplog.text


def test_long_silent_training_lets_the_caller_in_between_reports(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sched_lab.trainers.training.BEAT_SECONDS", 0.0)
    of = spec(train={"steps": 200})  # a report every 4 steps
    whole = list(run(of, key="k", folder=tmp_path / "1", cache=cache))
    events = run(of, key="k", folder=tmp_path / "2", cache=cache)
    assert next(event for event in events if isinstance(event, Beat) and event.step == 6)
    events.close()
    rest = list(run(of, key="k", folder=tmp_path / "2", cache=cache))
    losses = {event.step: event.loss for event in whole if isinstance(event, TrainProgress)}
    assert {e.step: e.loss for e in rest if isinstance(e, TrainProgress)} == {
        s: v for s, v in losses.items() if s > 6
    }


def test_on_a_gpu_attention_leaves_out_the_kernel_whose_gradient_is_not_finite() -> None:
    program = (
        "import pathlib, tempfile, torch\n"
        "from sched_lab.trainers.trial import _clean_slate\n"
        "_clean_slate(torch.device('cuda'), pathlib.Path(tempfile.mkdtemp()))\n"
        "for kernel in ('cudnn', 'flash', 'mem_efficient'):\n"
        "    print(getattr(torch.backends.cuda, f'{kernel}_sdp_enabled')())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.split() == ["False", "True", "True"]


def test_a_diverging_trial_fails_with_the_reason_and_without_a_score(
    tmp_path: Path, cache: Path
) -> None:
    result = run_trial(
        spec(train={"lr": 1e30, "grad_clip": None}), key="k", folder=tmp_path, cache=cache
    )
    assert isinstance(result, TrialResult)
    assert result.state == "failed"
    assert result.reason.startswith("mean loss")
    assert result.scores == {}
    assert json.loads((tmp_path / "result.json").read_text("utf-8"))["failure"] == "diverged"


class Faulty(NetworkSpec):
    """A network that is trained as any, and in sampling puts out what it should not."""

    kind: Literal["faulty"] = "faulty"
    fault: str

    def build(self, *, channels: int, resolution: int, classes: int) -> nn.Module:
        return FaultyNetwork(channels, self.fault)


class FaultyNetwork(nn.Module):
    def __init__(self, channels: int, fault: str) -> None:
        super().__init__()
        self.layer, self.fault = nn.Conv2d(channels, channels, 1), fault

    def forward(self, x: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        out: Tensor = self.layer(x)
        if self.training:
            return out
        match self.fault:
            case "once":  # only in the first step, and never for NaN as input
                early = gamma[:, None, None, None] < 1e-6
                return out.nan_to_num().where(~early, torch.inf)
            case "one pixel":
                out[2, 0, 3, 3] = torch.nan
                return out
            case "one channel":
                return out[:, :1]
            case "one pixel each":
                return out.mean(dim=(2, 3), keepdim=True)
        return torch.full_like(out, float(self.fault))


@pytest.mark.parametrize("predict", ["v", "eps", "x0"])
@pytest.mark.parametrize(
    ("fault", "broken"),
    [("nan", 40), ("inf", 40), ("-inf", 40), ("1e38", 0), ("once", 40), ("one pixel", 1)],
)
def test_samples_that_are_not_finite_are_a_diverged_trial_never_a_picture_with_a_score(
    tmp_path: Path, cache: Path, predict: str, fault: str, broken: int
) -> None:
    of = spec(train={"steps": 2, "network": Faulty(fault=fault), "predict": predict})
    result = run_trial(of, key="k", folder=tmp_path, cache=cache)
    if not broken:  # too large, and a number
        assert result.state == "finished"
        return
    assert (result.state, result.failure, result.scores) == ("failed", "diverged", {})
    assert result.reason == f"{broken} of 40 samples drawn at step 2 are not finite"
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    "train",
    [
        {"lr": 1e25, "steps": 1, "ema": 0.0},
        {"lr": 1e25, "steps": 1, "ema": 0.0, "predict": "x0", "ema_warmup": False},
        {"lr": 3e38, "steps": 1},
    ],
)
def test_weights_that_explode_in_the_last_step_are_a_diverged_trial(
    tmp_path: Path, cache: Path, train: dict[str, Any]
) -> None:
    result = run_trial(spec(train=train), key="k", folder=tmp_path, cache=cache)
    assert (result.state, result.failure, result.scores) == ("failed", "diverged", {})
    assert result.reason == "40 of 40 samples drawn at step 1 are not finite"


def test_samples_that_are_not_finite_in_between_end_the_trial_there(
    tmp_path: Path, cache: Path
) -> None:
    of = spec(
        train={"steps": 10, "network": Faulty(fault="nan")},
        score={"detector": "random", "every": 4},
    )
    result = run_trial(of, key="k", folder=tmp_path, cache=cache)
    assert (result.failure, result.step) == ("diverged", 4)


@pytest.mark.parametrize("fault", ["one channel", "one pixel each"])
def test_an_output_of_another_shape_is_not_broadcast_into_samples(
    tmp_path: Path, cache: Path, fault: str
) -> None:
    data = {"source": "shapes", "count": 50}
    of = spec(train={"steps": 2, "network": Faulty(fault=fault)}, data=data)
    with pytest.raises(ValueError, match="shaped as its input"):
        run_trial(of, key="k", folder=tmp_path, cache=cache)


def test_a_weighted_loss_far_above_one_that_predicting_zero_has_too_is_no_divergence(
    tmp_path: Path, cache: Path
) -> None:
    of = spec(
        resolution=16,
        schedule="shifted_cosine@64,8",
        train={"steps": 3, "predict": "x0", "weight": "min_snr@1000"},
    )
    result = run_trial(of, key="k", folder=tmp_path, cache=cache)
    assert result.state == "finished"


class Untrained(NetworkSpec):
    """A network whose output is not zero before training, at least not everywhere."""

    kind: Literal["untrained"] = "untrained"
    where: str = "everywhere"

    def build(self, *, channels: int, resolution: int, classes: int) -> nn.Module:
        return UntrainedNetwork(channels, self.where)


class UntrainedNetwork(nn.Module):
    def __init__(self, channels: int, where: str) -> None:
        super().__init__()
        self.layer, self.where = nn.Conv2d(channels, channels, 3, padding=1), where
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        self.calls += self.training
        out: Tensor = self.layer(x)
        match self.where:
            case "late":
                return out * (gamma[:, None, None, None] > 0.9)
            case "nowhere":  # not finite before the first step of training
                return out / self.calls
        return out


NO_STEP = {"lr": 1e-30, "weight_decay": 0.0, "steps": 3}
"""Training that leaves the weights as they are."""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"b": 0.3, "sample": {"count": 50, "steps": 3, "sampler": "ddpm_small"}},
        {"train": {"predict": "x0", "normalize": "state", "class_conditional": True}},
        {"train": {"network": Untrained()}},
        {"train": {"network": Untrained(where="late"), "predict": "eps"}},
    ],
    ids=str,
)
def test_a_trial_that_learns_nothing_scores_as_its_untrained_network_does(
    tmp_path: Path, cache: Path, settings: dict[str, Any]
) -> None:
    of = spec(**settings | {"train": {**settings.get("train", {}), **NO_STEP}})
    result = run_trial(of, key="k", folder=tmp_path, cache=cache)
    assert result.baselines["untrained_fd_random"] == pytest.approx(
        result.scores["fd_random"], rel=1e-6
    )
    assert result.baselines["real_fd_random"] < result.scores["fd_random"]
    if "network" not in settings.get("train", {}):
        assert result.baselines["loss_of_zero"] == pytest.approx(result.loss)
    assert "detector_accuracy" not in result.baselines


def test_trials_that_differ_in_training_alone_share_their_baselines(tmp_path: Path) -> None:
    def kept(**changes: Any) -> tuple[dict[str, float | None], int]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        result = run_trial(spec(**changes), key="k", folder=folder, cache=tmp_path / "cache")
        files = list((tmp_path / "cache" / "baselines").glob("*/text"))
        return {k: v for k, v in result.baselines.items() if k != "loss_of_zero"}, len(files)

    one, files = kept()
    assert files == 2
    for changes in ({"seed": 1}, {"train": {"lr": 0.01, "steps": 5}}, {"schedule": "cosine"}):
        assert kept(**changes) == (one, 2)
    other, files = kept(b=0.5)
    assert (other["real_fd_random"], files) == (one["real_fd_random"], 3)
    assert other["untrained_fd_random"] != one["untrained_fd_random"]
    assert kept(sample={"count": 90, "steps": 4})[1] == 5
    assert kept(train={"network": Untrained()})[1] == 5


def test_no_more_samples_of_an_untrained_network_are_drawn_than_its_score_needs(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sched_lab.trainers.trial.MOST_UNTRAINED", 50)
    of = spec(train={"network": Untrained()})
    events = list(run(of, key="k", folder=tmp_path, cache=cache))
    drawn = [(each.done, each.count) for each in events if isinstance(each, Sampled)]
    assert drawn == [(40, 100), (80, 100), (100, 100), (40, 50), (50, 50)]


def test_an_untrained_network_that_is_not_finite_has_no_score_and_the_trial_has(
    tmp_path: Path, cache: Path
) -> None:
    of = spec(train={"network": Untrained(where="nowhere")})
    result = run_trial(of, key="k", folder=tmp_path, cache=cache)
    assert result.state == "finished"
    assert result.baselines.keys() == {"real_fd_random", "loss_of_zero"}


def test_baselines_come_with_the_last_evaluation_and_a_classifiers_accuracy(
    tmp_path: Path, filled: Path
) -> None:
    of = LABELLED.model_copy(update={"score": LABELLED.score.model_copy(update={"every": 10})})
    events = run(of, key="k", folder=tmp_path, cache=filled)
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    assert [len(each.baselines) for each in evaluations] == [0, 4]
    assert 0 <= evaluations[-1].baselines["detector_accuracy"] <= 1


def test_class_conditional_sampling_uses_the_labels(tmp_path: Path, cache: Path) -> None:
    result = run_trial(
        spec(train={"class_conditional": True}), key="k", folder=tmp_path, cache=cache
    )
    assert result.state == "finished"


def test_labels_that_are_needed_and_not_there_are_bad_data(tmp_path: Path, cache: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 8, 8), dtype=np.uint8))
    of = spec(
        data={"source": "array", "path": str(tmp_path / "x.npy")}, train={"class_conditional": True}
    )
    with pytest.raises(BadData, match="this array source has not"):
        run_trial(of, key="k", folder=tmp_path, cache=cache)


def test_a_caller_hears_of_every_checkpoint_before_it_is_written(
    tmp_path: Path, cache: Path
) -> None:
    of = spec(score={"detector": "random", "every": 10})
    checkpoint = tmp_path / CHECKPOINT_FILE
    announced: list[tuple[int, bytes]] = []
    before = last = None
    for event in run(of, key="k", folder=tmp_path, cache=cache, checkpoint_seconds=0):
        now = checkpoint.read_bytes() if checkpoint.exists() else None
        if not isinstance(last, Saving):
            assert now == before
        elif now is not None:
            announced.append((last.step, now))
        if isinstance(
            last, Evaluation
        ):  # an evaluation that took long is not done again after a crash
            assert isinstance(event, Saving)
        before, last = now, event
    assert [step for step, _ in announced] == [*range(1, 11), 10, *range(11, 21)]
    assert all(new != old for (_, old), (_, new) in pairwise(announced))
    assert isinstance(last, Evaluation)


KILLED = """
import os, pathlib, sys
from sched_lab.trainers.spec import TrialSpec
from sched_lab.trainers.trial import Sampled, run
spec, folder, cache = sys.argv[1:]
events = run(
    TrialSpec.model_validate_json(spec),
    key="k",
    folder=pathlib.Path(folder),
    cache=pathlib.Path(cache),
    checkpoint_seconds=0,
)
[event for event in events if isinstance(event, Sampled) and event.step == 20 and os._exit(9)]
"""


def test_a_trial_killed_in_an_evaluation_goes_on_to_the_same_result_and_leaves_no_half_written_file(
    tmp_path: Path, cache: Path
) -> None:
    of = spec(score={"detector": "random", "every": 10})
    whole = run_trial(of, key="k", folder=tmp_path / "whole", cache=cache)
    arguments = [of.model_dump_json(), str(tmp_path / "part"), str(cache)]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode == 9
    for name in (
        f"{CHECKPOINT_FILE}.1.part",
        "result.json.1.part",
        "samples/step-000020.png.1.part",
    ):
        (tmp_path / "part" / name).write_bytes(b"half")
    resumed = run_trial(of, key="k", folder=tmp_path / "part", cache=cache)
    assert (resumed.scores, resumed.loss) == (whole.scores, whole.loss)
    files = (
        sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("whole", "part")
    )
    assert next(files) == next(files)


def test_samples_drawn_in_pieces_are_those_drawn_together(tmp_path: Path, cache: Path) -> None:
    events = run(spec(), key="k", folder=tmp_path / "whole", cache=cache)
    next(event for event in events if isinstance(event, Sampled))
    events.close()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    whole = run_trial(spec(), key="k", folder=tmp_path / "whole", cache=cache)
    events = run(spec(), key="k", folder=tmp_path / "cut", cache=cache, micro_batches=16)
    assert [event.done for event in events if isinstance(event, Sampled)] == [
        *range(3, 100, 3),
        100,
    ]
    cut = json.loads((tmp_path / "cut" / "result.json").read_text("utf-8"))
    assert cut["scores"] == pytest.approx(whole.scores, rel=1e-3)
    assert cut["baselines"] == pytest.approx(whole.baselines, rel=1e-3)
    grids = [
        np.asarray(Image.open(tmp_path / name / "samples/step-000020.png"), int)
        for name in ("whole", "cut")
    ]
    assert np.abs(grids[0] - grids[1]).max() <= 1
    assert cut["environment"] == whole.environment | {"micro_batches": "16"}


def test_a_result_tells_the_commit_of_a_checkout() -> None:
    about = environment(torch.device("cpu"))
    if (ROOT / ".git").exists():
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        assert about["commit"].removesuffix("-dirty") == head.stdout.strip()
    else:
        assert "commit" not in about


@pytest.mark.parametrize("pieces", [0, 17])
def test_a_batch_is_cut_into_no_more_pieces_than_it_has_images(
    tmp_path: Path, cache: Path, pieces: int
) -> None:
    with pytest.raises(ValueError, match=rf"from 1 to train\.batch, 16, got {pieces}"):
        next(run(spec(), key="k", folder=tmp_path, cache=cache, micro_batches=pieces))


MEMORY = """
import pathlib, resource, sys
from sched_lab.trainers.failures import kind_of
from sched_lab.trainers.spec import TrialSpec
from sched_lab.trainers.trial import run
import torch
torch.set_num_threads(1)
spec = TrialSpec.model_validate({
    "resolution": 64, "score": {"detector": "random"}, "sample": {"count": 20, "steps": 1},
    "train": {
        "steps": 1,
        "batch": 256,
        "network": {"kind": "unet", "width": 64, "patch": 2, "attention": 0},
    },
})
cache = pathlib.Path(sys.argv[1])
taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30,) * 2)
pieces = 1
while True:
    try:
        for _ in run(spec, key="k", folder=cache / "k", cache=cache, micro_batches=pieces):
            pass
        break
    except RuntimeError as error:
        print(kind_of(error))
        pieces *= 2
print(pieces > 1)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="needs a limit of the address space that the allocator obeys"
)
def test_a_trial_that_ran_out_of_memory_fits_in_the_same_process_in_more_pieces(
    cache: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, cache], capture_output=True, encoding="utf-8", check=False
    )
    *kinds, fitted = done.stdout.split() or [done.stderr]
    assert fitted == "True", done.stderr
    assert set(kinds) == {"out_of_memory"}


class Failing(NetworkSpec):
    """A network that runs out of memory in its third step."""

    kind: Literal["failing"] = "failing"

    def build(self, *, channels: int, resolution: int, classes: int) -> nn.Module:
        return FailingNetwork(channels)


class FailingNetwork(nn.Module):
    calls = 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)
        BUILT.add(self)

    def forward(self, x: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        self.calls += 1
        return torch.empty(10**15) if self.calls == 3 else self.layer(x)


BUILT: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def test_an_error_that_is_kept_keeps_nothing_of_the_trial(tmp_path: Path, cache: Path) -> None:
    of = spec(train={"network": Failing()})
    events = run(of, key="k", folder=tmp_path, cache=cache, checkpoint_seconds=0)
    with pytest.raises(RuntimeError, match="can't allocate memory") as kept:
        list(events)
    assert kind_of(kept.value) == "out_of_memory"
    gc.collect()
    assert not BUILT
    with safe_open(tmp_path / CHECKPOINT_FILE, "pt") as checkpoint:  # of the last whole step
        assert json.loads(checkpoint.metadata()["state"])["step"] == 2


class Bomb:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def test_a_pickle_in_place_of_a_checkpoint_is_not_run(tmp_path: Path, cache: Path) -> None:
    torch.save(Bomb(tmp_path / "mark"), tmp_path / CHECKPOINT_FILE)
    assert run_trial(spec(), key="k", folder=tmp_path, cache=cache).state == "finished"
    assert (tmp_path / "checkpoint.bad").exists()
    assert not (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which everything stands that a trial with labels and a classifier keeps."""
    folder = tmp_path_factory.mktemp("filled")
    run_trial(LABELLED, key="k", folder=folder / "trial", cache=folder / "cache")
    return folder / "cache"


LABELLED = spec(score={"detector": "classifier"}, data={"source": "shapes", "count": 100})


@pytest.mark.parametrize(
    "files",
    [
        "data/*/pixels.npy",
        "data/*/labels.npy",
        "references/*/root.npy",
        "detectors/*/weights.safetensors",
    ],
)
def test_a_pickle_in_place_of_a_cached_file_is_not_run_even_where_it_is_sealed(
    tmp_path: Path, filled: Path, files: str
) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache")
    for path in cache.glob(files):
        if path.suffix == ".npy":
            np.save(path, np.array([Bomb(tmp_path / "mark")]), allow_pickle=True)
        else:
            torch.save(Bomb(tmp_path / "mark"), path)
        seal = path.with_name("seal.json")
        planted = {path.name: [path.stat().st_size, path.stat().st_mtime_ns]}
        seal.write_text(json.dumps(json.loads(seal.read_text("utf-8")) | planted), "utf-8")
    with pytest.raises((ValueError, SafetensorError)):
        run_trial(LABELLED, key="k", folder=tmp_path / "trial", cache=cache)
    assert not (tmp_path / "mark").exists()


def test_pixels_are_rounded_to_the_nearest_and_clipped() -> None:
    x = torch.tensor([-2.0, -1.0, -0.001, 0.001, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 127, 128, 255, 255]


def test_the_grid_shows_the_first_samples_in_rows(tmp_path: Path) -> None:
    samples = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 4, 4) * 10
    write_grid(samples, tmp_path / "grid.png", side=2)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (9, 9, 3)
    assert [pixels[0, 0, 0], pixels[0, 5, 0], pixels[5, 0, 0], pixels[5, 5, 0]] == [0, 10, 20, 30]


class Checks:
    """Asks for the end of a trial at the check of a number, and counts those before it."""

    def __init__(self, last: float = math.inf) -> None:
        self.count, self._last = 0, last

    def __call__(self) -> bool:
        self.count += 1
        return self.count >= self._last


@pytest.mark.slow
def test_a_trial_cancelled_anywhere_loses_nothing_and_leaves_no_part_of_a_cached_result(
    tmp_path: Path,
) -> None:
    """In data, reference, training, sampling, scores and baselines alike."""
    of = spec(
        sample={"count": 64, "steps": 3, "batch": 64},
        score={"detector": "random", "metrics": ["fd", "kid"], "every": 10},
    )
    with cancelled_where(checks := Checks()):
        whole = run_trial(of, key="k", folder=tmp_path / "whole", cache=tmp_path / "cache")
    after_preparing = 0
    for last in np.linspace(1500, checks.count, 8, dtype=int):  # the images come first, 1797
        folder, cache = tmp_path / f"trial-{last}", tmp_path / f"cache-{last}"
        with pytest.raises(Cancelled), cancelled_where(Checks(last)):
            run_trial(of, key="k", folder=folder, cache=cache)
        assert not list(cache.glob("*/*.partial"))
        after_preparing += (folder / CHECKPOINT_FILE).exists()
        resumed = run_trial(of, key="k", folder=folder, cache=cache)
        assert (resumed.scores, resumed.loss) == (whole.scores, whole.loss)
        assert resumed.baselines == whole.baselines
    assert 1 < after_preparing < 8


def test_a_checkpoint_follows_the_word_of_it_when_a_trial_is_cancelled(
    tmp_path: Path, cache: Path
) -> None:
    """Its caller makes durable what it has written first."""
    events = run(spec(), key="k", folder=tmp_path, cache=cache)
    step = next(event.step for event in events if isinstance(event, TrainProgress))
    with cancelled_where(lambda: True):
        assert next(events) == Saving(step)
        assert not (tmp_path / CHECKPOINT_FILE).exists()
        with pytest.raises(Cancelled):
            next(events)
    assert (tmp_path / CHECKPOINT_FILE).exists()


def test_work_that_takes_long_can_be_cancelled_all_along(tmp_path: Path) -> None:
    data, normal = spec().data, np.random.default_rng(0).standard_normal((200, 8), np.float32)
    digits = prepare(data, 8, tmp_path)
    detector = load_detector(spec().score.detector, data, tmp_path, torch.device("cpu"))
    least: dict[int, Callable[[], object]] = {
        len(digits): lambda: prepare(data, 16, tmp_path),
        classifier.STEPS: lambda: classifier.train(digits),
        len(digits) // 32: lambda: scores.extract(digits.pixels, detector, batch=32),
        scores.KID_SUBSETS: lambda: scores.kernel_distance(normal, normal),
        scores.JACKKNIFE_GROUPS: lambda: scores.jackknife(normal, scores.refer(normal)),
    }
    for count, work in least.items():
        with cancelled_where(checks := Checks()):
            work()
        assert checks.count >= count
