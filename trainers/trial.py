"""One trial: a `TrialSpec` is trained, sampled and scored, and leaves a `TrialResult`."""

from __future__ import annotations

import gc
import logging
import os
import platform
import subprocess
import time
import traceback
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sched_lab.trainers import sampling
from sched_lab.trainers.data.prepare import prepare
from sched_lab.trainers.failures import BadData, Diverged, FailureKind, chain
from sched_lab.trainers.files import replacing
from sched_lab.trainers.images import ImageSet
from sched_lab.trainers.results import (
    CHECKPOINT_FILE,
    RESULT_FILE,
    SAMPLES_FOLDER,
    SET_ASIDE,
    State,
    TrialResult,
    write_result,
)
from sched_lab.trainers.scoring import detectors, scores
from sched_lab.trainers.spec import TrialSpec
from sched_lab.trainers.training import (
    BadCheckpoint,
    Beat,
    Training,
    TrainProgress,
    autocast_for,
    load_checkpoint,
    save_checkpoint,
    train,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampled:
    """How sampling stands: `done` of `count` samples."""

    step: int
    done: int
    count: int


@dataclass(frozen=True)
class Saving:
    """A checkpoint of `step` is about to be written: what the caller has written itself had better
    be durable first.
    """

    step: int


@dataclass(frozen=True)
class Evaluation:
    """Scores, by metric name, of samples drawn after `step` training steps, and the losses since
    the last one.
    """

    step: int
    scores: dict[str, float]
    uncertainty: dict[str, float]
    """Standard errors within the run of those scores that have one, at the last evaluation."""
    loss_by_log_snr: dict[float, float]
    grid: str  # the sample grid's file, relative to the trial's folder


Event = TrainProgress | Beat | Saving | Sampled | Evaluation
E = TypeVar("E")


def run_trial(
    spec: TrialSpec, *, key: str, folder: Path, cache: Path, device: str = "auto"
) -> TrialResult:
    """Run one trial to its end; see `run`."""
    events = run(spec, key=key, folder=folder, cache=cache, device=device)
    while True:
        try:
            next(events)
        except StopIteration as end:
            result: TrialResult = end.value
            return result


def run(
    spec: TrialSpec,
    *,
    key: str,
    folder: Path,
    cache: Path,
    device: str = "auto",
    checkpoint_seconds: float = 60.0,
    micro_batches: int = 1,
) -> Generator[Event, None, TrialResult]:
    """Train, sample and score, yielding what happens; the TrialResult it returns also stands in
    `folder`.

    `folder` is the trial's own, with no other process at work on it: its checkpoint, sample grids
    and result are written there, and a checkpoint found there is gone on from. `cache` holds what
    trials share. Each batch is worked on in `micro_batches` pieces, at most as many as
    `train.batch`: more of them take less memory, and change the result by rounding alone. A caller
    that closes the generator between events leaves a checkpoint behind. A trial that diverges
    returns a failed result; any other error propagates, and keeps none of the trial's tensors.
    """
    if not 1 <= micro_batches <= spec.train.batch:
        raise ValueError(
            f"micro_batches must lie from 1 to train.batch, {spec.train.batch}, got {micro_batches}"
        )
    try:
        return (
            yield from _run(
                spec, key, folder, cache, pick_device(device), checkpoint_seconds, micro_batches
            )
        )
    except Exception as error:
        for each in chain(error):  # their frames hold the memory that a new attempt needs
            traceback.clear_frames(each.__traceback__)
        raise


def _run(
    spec: TrialSpec,
    key: str,
    folder: Path,
    cache: Path,
    on: torch.device,
    checkpoint_seconds: float,
    pieces: int,
) -> Generator[Event, None, TrialResult]:
    _clean_slate(on, folder)
    checkpoint = folder / CHECKPOINT_FILE
    batch = -(-scores.BATCH // pieces)  # of the detector
    preparing: dict[str, float] = defaultdict(float)
    with timed(preparing, "prepare"):
        images = prepare(spec.data, spec.resolution, cache)
        if spec.train.class_conditional and images.labels is None:
            raise BadData(
                f"train.class_conditional needs labels, which this {spec.data.source} source"
                " has not"
            )
        detector = detectors.load_detector(
            spec.score.detector, spec.data, cache, on, spec.score.weights
        )
        reference = scores.load_reference(
            spec.data, spec.resolution, detector, cache, images, batch
        )
        state = _start(spec, images, on, checkpoint, key)
    clock = state.seconds
    clock["prepare"] += preparing["prepare"]
    every = spec.score.every or spec.train.steps
    report_every = max(1, spec.train.steps // 50)
    final = Evaluation(0, {}, {}, {}, "")
    saved = time.monotonic()

    def save_if_due() -> Iterator[Saving]:
        nonlocal saved
        if time.monotonic() - saved > checkpoint_seconds:
            yield Saving(state.step)
            with timed(clock, "train"):
                save_checkpoint(state, checkpoint, key)
            saved = time.monotonic()

    try:
        while True:
            until = min(spec.train.steps, state.evaluated + every)
            training = train(
                state, spec, images, until=until, report_every=report_every, micro_batches=pieces
            )
            for event in _timed_events(training, clock, "train"):
                yield event
                yield from save_if_due()
            samples: Tensor = yield from _timed_events(
                _draw(state, spec, images, on, pieces), clock, "sample"
            )
            with timed(clock, "score"):
                features = scores.extract(samples.numpy(), detector, batch=batch)
                judged = features, reference, detector.name, spec.score.metric_names
                values = scores.score(*judged)
                uncertainty = scores.standard_errors(*judged) if until == spec.train.steps else {}
                grid = f"{SAMPLES_FOLDER}/step-{until:06d}.png"
                write_grid(samples, folder / grid)
            final = Evaluation(until, values, uncertainty, state.loss_by_log_snr(), grid)
            if until < spec.train.steps:  # the last one counts as done only with its result
                state.mark_evaluated()
            yield final
            if until == spec.train.steps:
                break
            yield from save_if_due()
    except GeneratorExit:
        save_checkpoint(state, checkpoint, key)
        raise
    except Diverged as reason:
        end: dict[str, Any] = {
            "state": State.FAILED,
            "reason": str(reason),
            "failure": FailureKind.DIVERGED,
        }
    else:
        end = {"state": State.FINISHED, "reason": "", "failure": ""}
    seconds = {**clock, "total": sum(clock.values())}
    about = environment(on) | ({"micro_batches": str(pieces)} if pieces > 1 else {})
    result = TrialResult(
        key=key,
        **end,
        step=state.step,
        scores=final.scores,
        uncertainty=final.uncertainty,
        loss=state.loss,
        seconds=seconds,
        environment=about,
    )
    write_result(folder, result)
    checkpoint.unlink(missing_ok=True)
    return result


def _start(
    spec: TrialSpec, images: ImageSet, on: torch.device, checkpoint: Path, key: str
) -> Training:
    """Training from the checkpoint, or from the start where there is none that can be read."""

    def fresh() -> Training:
        return Training.start(
            spec, channels=images.pixels.shape[1], classes=len(images.class_names), device=on
        )

    state = fresh()
    if checkpoint.exists():
        try:
            load_checkpoint(state, checkpoint, key)
        except BadCheckpoint as error:
            aside = checkpoint.with_suffix(SET_ASIDE)
            checkpoint.replace(aside)
            log.warning("starting again: %s; set aside as %s", error, aside.name)
            state = fresh()
    return state


def _draw(
    state: Training, spec: TrialSpec, images: ImageSet, on: torch.device, pieces: int
) -> Generator[Sampled, None, Tensor]:
    """Samples (count, C, H, W) uint8 from the EMA's network, with the labels' own frequencies where
    it takes labels.
    """
    state.copy_buffers()
    shape = images.pixels.shape[1:]  # (C, H, W)
    samples = torch.empty((spec.sample.count, *shape), dtype=torch.uint8)
    labels = _sample_labels(spec, images)
    batch = -(-spec.sample.batch // pieces)
    for start in range(0, spec.sample.count, batch):
        index = range(start, min(start + batch, spec.sample.count))
        label = None if labels is None else labels[start : index.stop].to(on)
        with torch.inference_mode(), autocast_for(spec.train, on):
            x0 = sampling.draw(
                partial(state.ema, label=label),
                sampling.SampleNoise(spec.sample.seed, index, shape, on),
                schedule=spec.sampling_schedule,
                steps=spec.sample.steps,
                sampler=spec.sample.sampler,
                b=spec.b,
                predict=spec.train.predict,
                normalize=spec.train.normalize,
            )
        samples[start : index.stop] = to_uint8(x0).cpu()
        yield Sampled(state.step, index.stop, spec.sample.count)
    return samples


def _sample_labels(spec: TrialSpec, images: ImageSet) -> Tensor | None:
    """Sample i's label (count,): the data's labels, shuffled by the sampling seed and repeated as
    often as needed.
    """
    if not spec.train.class_conditional or images.labels is None:
        return None
    order = np.random.default_rng(spec.sample.seed).permutation(len(images.labels))
    return torch.from_numpy(np.resize(images.labels[order], spec.sample.count))


def to_uint8(x: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8 in [0, 255], rounded to the nearest."""
    return x.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def write_grid(samples: Tensor, path: Path, side: int = 8) -> None:
    """A PNG of the first side² samples (N, C, H, W), one pixel apart; fewer when there are
    fewer.
    """
    from PIL import Image

    tiles = samples[: side * side].permute(0, 2, 3, 1).numpy()  # (n, H, W, C)
    n, height, width, channels = tiles.shape
    columns = min(side, n)
    grid = np.zeros(
        (-(-n // columns) * (height + 1) - 1, columns * (width + 1) - 1, channels), np.uint8
    )
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        grid[row * (height + 1) :, column * (width + 1) :][:height, :width] = tile
    with replacing(path) as part:
        Image.fromarray(grid.squeeze(-1) if channels == 1 else grid).save(part, format="png")


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU this process sees first, or the CPU where it sees none."""
    return torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )


def _clean_slate(device: torch.device, folder: Path) -> None:
    """Clear away what killed processes were writing here, and what earlier trials and attempts held
    on the GPU.

    From then on a GPU gives the same bits every time, as a CPU does anyway.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (
        f"{CHECKPOINT_FILE}.*.part",
        f"{RESULT_FILE}.*.part",
        f"{SAMPLES_FOLDER}/*.part",
    ):
        for part in folder.glob(pattern):
            part.unlink(missing_ok=True)
    if device.type == "cuda":
        gc.collect()
        # what this process's last trial held is wanted by those that share the GPU
        torch.cuda.empty_cache()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def environment(device: torch.device) -> dict[str, str]:
    """What the result was computed with: packages, the commit of a checkout, and the machine's
    processor or GPU.
    """
    packages = {name: version(name) for name in ("torch", "torch-fidelity", "numpy", "sched-lab")}
    packages |= {"commit": commit} if (commit := _commit()) else {}
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {**packages, "python": platform.python_version(), "device": f"{device.type}: {name}"}


@cache
def _commit() -> str:
    """The commit of the checkout that this runs from, with -dirty where files were changed; ""
    where it is none.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--exclude=*",
        "--abbrev=40",
        "--dirty",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


@contextmanager
def timed(clock: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds spent inside to `clock[phase]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        clock[phase] += time.perf_counter() - start


def _timed_events(
    events: Iterator[E], clock: dict[str, float], phase: str
) -> Generator[E, None, Any]:
    """The same events and the same return value; the time that each takes is added to
    `clock[phase]` before it.
    """
    while True:
        with timed(clock, phase):
            try:
                event = next(events)
            except StopIteration as end:
                return end.value
        yield event
