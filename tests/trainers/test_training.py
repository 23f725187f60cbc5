"""Training repeats to the bit, resumes exactly, reports what it learns, refuses bad checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sched_lab.trainers.failures import Diverged
from sched_lab.trainers.images import ImageSet
from sched_lab.trainers.spec import TrialSpec
from sched_lab.trainers.training import (
    BIN_EDGES,
    BadCheckpoint,
    Training,
    TrainProgress,
    ema_at,
    load_checkpoint,
    lr_at,
    save_checkpoint,
    train,
)

CPU = torch.device("cpu")


def images(n: int = 50) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    return ImageSet(pixels=pixels, labels=np.arange(n) % 3, class_names=("a", "b", "c"))


def spec(**changes: Any) -> TrialSpec:
    small = {"steps": 12, "batch": 8, "network": {"kind": "unet", "width": 16, "multipliers": [1]}}
    return TrialSpec.model_validate({"train": {**small, **changes.pop("train", {})}, **changes})


def start(of: TrialSpec) -> Training:
    return Training.start(of, channels=1, classes=3, device=CPU)


def run(
    state: Training, of: TrialSpec, until: int, report_every: int = 4, micro_batches: int = 1
) -> list[TrainProgress]:
    events = train(
        state, of, images(), until=until, report_every=report_every, micro_batches=micro_batches
    )
    return [event for event in events if isinstance(event, TrainProgress)]


def bits(state: Training) -> bytes:
    tensors = [
        *state.network.state_dict().values(),
        *state.ema.state_dict().values(),
        state.bin_loss,
    ]
    tensors += [
        m
        for moments in state.optimizer.state_dict()["state"].values()
        for _, m in sorted(moments.items())
    ]
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


def test_the_same_spec_gives_the_same_bits() -> None:
    first, second = start(spec()), start(spec())
    assert [r.loss for r in run(first, spec(), 12)] == [r.loss for r in run(second, spec(), 12)]
    assert bits(first) == bits(second)


def test_another_seed_gives_other_bits() -> None:
    first, second = start(spec()), start(spec(seed=1))
    run(first, spec(), 4)
    run(second, spec(seed=1), 4)
    assert bits(first) != bits(second)


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    run(start(spec()), spec(), 4)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "options", [{}, {"class_conditional": True}, {"weight": "min_snr@5", "predict": "eps"}]
)
def test_a_resumed_run_ends_with_the_bits_of_one_never_interrupted(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    of = spec(train=options, data={"source": "digits", "flip": True})
    whole = start(of)
    run(whole, of, 12)
    part = start(of)
    run(part, of, 8)
    save_checkpoint(part, tmp_path / "c", "key")
    resumed = start(of)
    load_checkpoint(resumed, tmp_path / "c", "key")
    assert resumed.step == 8
    run(resumed, of, 12)
    assert bits(resumed) == bits(whole)
    assert resumed.loss_of_zero == whole.loss_of_zero


@pytest.mark.parametrize("pieces", [2, 3, 8])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight": "min_snr@5", "predict": "eps"}, {"grad_clip": 0.05, "class_conditional": True}],
)
def test_a_batch_trained_on_in_pieces_gives_the_weights_and_losses_of_the_whole(
    options: dict[str, Any], pieces: int
) -> None:
    of = spec(train=options, data={"source": "digits", "flip": True})
    whole, cut = start(of), start(of)
    losses = [
        [report.loss for report in run(state, of, 8, micro_batches=n)]
        for state, n in ((whole, 1), (cut, pieces))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert cut.loss_by_log_snr() == pytest.approx(whole.loss_by_log_snr(), rel=1e-5)
    assert torch.equal(cut.bin_count, whole.bin_count)
    assert cut.loss_of_zero == pytest.approx(whole.loss_of_zero, rel=1e-5)
    for name in ("network", "ema"):
        weights = getattr(cut, name).state_dict()
        for parameter, expected in getattr(whole, name).state_dict().items():
            torch.testing.assert_close(
                weights[parameter], expected, rtol=0, atol=5e-5
            )  # a step moves them by 1e-3


def test_a_checkpoint_of_another_trial_is_refused(tmp_path: Path) -> None:
    save_checkpoint(start(spec()), tmp_path / "c", "mine")
    with pytest.raises(BadCheckpoint, match="belongs to trial mine, not yours"):
        load_checkpoint(start(spec()), tmp_path / "c", "yours")


@pytest.mark.parametrize("damage", ["truncate", "scramble", "empty", "one bit"])
def test_a_damaged_checkpoint_is_refused_and_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(start(spec()), path, "key")
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    damaged = {
        "truncate": content[: len(content) // 2],
        "scramble": b"x" * 100,
        "empty": b"",
        "one bit": flipped,
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(BadCheckpoint, match=r"checkpoint (can't be read|is damaged)"):
        load_checkpoint(start(spec()), path, "key")


def test_a_checkpoint_of_another_version_of_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(start(spec()), path, "key")
    with safe_open(path, "pt") as file:
        save_file(load_file(path), path, file.metadata() | {"torch": "1.0.0"})
    with pytest.raises(BadCheckpoint, match=r"checkpoint was written by torch 1\.0\.0"):
        load_checkpoint(start(spec()), path, "key")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(start(spec()), path, "key")
    other = spec(train={"network": {"kind": "unet", "width": 24, "multipliers": [1]}})
    with pytest.raises(BadCheckpoint, match="checkpoint is of another network"):
        load_checkpoint(start(other), path, "key")


def test_a_loss_that_is_not_a_number_ends_training_with_the_step() -> None:
    of = spec(train={"lr": 1e30, "grad_clip": None})
    with pytest.raises(Diverged, match=r"at step \d+"):
        run(start(of), of, 12, report_every=1)


EXTREMES = [
    {"schedule": schedule, "b": b, "train": {"predict": predict, "weight": weight}}
    for schedule in ("linear", "shifted_cosine@64,8", "sigmoid@-20,20,1", "cosine@0.9,1,1")
    for b in (1e-3, 1.0, 30.0)
    for predict in ("v", "eps", "x0")
    for weight in ("none", "min_snr@0.01", "min_snr@1000")
]


@pytest.mark.parametrize("settings", EXTREMES, ids=str)
def test_a_network_that_puts_out_zero_never_diverges_and_one_that_is_far_worse_does(
    settings: dict[str, Any],
) -> None:
    of = spec(**settings | {"train": {**settings["train"], "lr": 1e-30, "weight_decay": 0.0}})
    state = start(of)
    for step in (1, 2, 3):
        (report,) = run(state, of, step)
        assert report.loss == pytest.approx(state.loss_of_zero, rel=1e-4)
    worse = math.sqrt(1e3) * max(1.0, of.b)
    with torch.no_grad():
        state.network.head.bias.fill_(worse)
    with pytest.raises(Diverged, match=r"at step 4: above .* far worse than predicting zero"):
        run(state, of, 4)


def test_an_untrained_network_that_puts_out_numbers_of_unit_size_has_not_diverged() -> None:
    of = spec(b=0.01, train={"predict": "x0", "lr": 1e-30})
    state = start(of)
    with torch.no_grad():
        state.network.head.bias.fill_(1.0)
    (report,) = run(state, of, 1)
    assert report.loss > 1e3 * state.loss_of_zero


def test_every_image_is_seen_once_before_any_is_seen_twice() -> None:
    from sched_lab.trainers.training import _Batches

    batches = _Batches(spec(), images(50), CPU)
    seen = torch.cat([batches._indices(step) for step in range(25)])  # 25 x 8 = four times 50
    for epoch in seen.split(50):
        assert sorted(epoch.tolist()) == list(range(50))


def test_the_data_order_is_shared_by_all_schedules_and_scales() -> None:
    from sched_lab.trainers.training import _Batches

    one, other = spec(schedule="linear"), spec(schedule="cosine@0.2,1,1", b=0.5)
    for step in (0, 7):
        a, b = (_Batches(of, images(), CPU).draw(step) for of in (one, other))
        assert torch.equal(a.x0, b.x0)
        assert torch.equal(a.noise, b.noise)


def test_loss_by_log_snr_averages_to_the_mean_loss() -> None:
    of = spec()
    state = start(of)
    reports = run(state, of, 12, report_every=12)
    counts = state.bin_count.numpy().copy()
    centres = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2
    by_bin = state.loss_by_log_snr()
    assert set(by_bin) == set(centres[counts > 0])
    mean = sum(by_bin[c] * n for c, n in zip(centres, counts, strict=True) if n) / counts.sum()
    assert mean == pytest.approx(reports[-1].loss, rel=1e-5)
    state.mark_evaluated()
    assert state.loss_by_log_snr() == {}


def test_the_ema_follows_its_recurrence() -> None:
    of = spec(train={"ema": 0.3})
    state = start(of)
    name, _ = next(iter(state.network.named_parameters()))
    expected = state.network.state_dict()[name].clone()
    for until, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3), 1):
        run(state, of, until, report_every=1)
        expected = decay * expected + (1 - decay) * state.network.state_dict()[name]
    assert torch.allclose(state.ema.state_dict()[name], expected, atol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("steps", [1, 5, 40, 1000])
def test_the_initial_weights_keep_the_weight_of_the_closed_form(ema: float, steps: int) -> None:
    warm, cold = (spec(train={"ema": ema, "ema_warmup": on}).train for on in (True, False))
    # (1 + n)/(10 + n) reaches `ema` at this n.
    reached = min(steps, math.ceil((10 * ema - 1) / (1 - ema)))
    expected = ema ** (steps - max(0, reached)) / math.comb(max(0, reached) + 9, 9)
    assert math.prod(ema_at(warm, n) for n in range(steps)) == pytest.approx(expected)
    assert math.prod(ema_at(cold, n) for n in range(steps)) == pytest.approx(ema**steps)


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    of = spec(train={"steps": 100, "warmup": 10, "decay": "cosine", "lr": 1.0}).train
    assert lr_at(of, 0) == pytest.approx(1 / 11)
    assert lr_at(of, 10) == pytest.approx(1.0)
    assert lr_at(of, 55) == pytest.approx(0.5)
    assert lr_at(of, 99) < 0.001
