"""One trial: a `TrialSpec` is trained, sampled and scored, and leaves a `TrialResult`."""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sched_lab.trainers import sampling
from sched_lab.trainers.caching import digest, remembered
from sched_lab.trainers.cancellation import Cancelled, check
from sched_lab.trainers.data.prepare import facts, prepare
from sched_lab.trainers.diffusion import DiffusionProcess
from sched_lab.trainers.failures import BadData, Diverged, FailureKind, chain
from sched_lab.trainers.files import PART, replacing, write_json
from sched_lab.trainers.images import DataFacts, ImageSet
from sched_lab.trainers.results import (
    CHECKPOINT_FILE,
    DETECTOR_ACCURACY,
    FACTS_FILE,
    LOSS_OF_ZERO,
    REAL,
    REAL_FILE,
    RESULT_FILE,
    SAMPLES_FOLDER,
    SET_ASIDE,
    UNTRAINED,
    Failure,
    State,
    TrialResult,
    write_result,
)
from sched_lab.trainers.scoring import detectors, scores
from sched_lab.trainers.spec import Detector, TrialSpec
from sched_lab.trainers.training import (
    BadCheckpoint,
    Beat,
    Training,
    TrainProgress,
    autocast_for,
    load_checkpoint,
    save_checkpoint,
    train,
    untrained,
)

TILES = 8  # on a side of a grid of images
MOST_UNTRAINED = 10_000
"""Samples of the untrained network at most: FID's authors advise as many, and more cost hours."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampled:
    """The state of sampling: `done` of `count` samples."""

    step: int
    done: int
    count: int


@dataclass(frozen=True)
class Saving:
    """A checkpoint of `step` comes next; first the caller makes durable what it has written."""

    step: int


@dataclass(frozen=True)
class Evaluation:
    """Scores, by metric name, of samples drawn after `step` training steps."""

    step: int
    scores: dict[str, float]
    uncertainty: dict[str, float]
    """Standard errors of the scores that have one, within the run; at the last evaluation alone."""
    baselines: dict[str, float]
    """What they compare with, as in `TrialResult.baselines`; at the last evaluation alone."""
    loss_by_log_snr: dict[float, float]
    """Mean loss since the evaluation before, by the centre of the log-SNR bin."""
    grid: str
    """The sample grid's file, relative to the trial's folder."""


Event = TrainProgress | Beat | Saving | Sampled | Evaluation
E = TypeVar("E")
R = TypeVar("R")


def run_trial(
    spec: TrialSpec, *, key: str, folder: Path, cache: Path, device: str = "auto"
) -> TrialResult:
    """Run one trial to its end; see `run`."""
    return _returned(run(spec, key=key, folder=folder, cache=cache, device=device))


def _returned(events: Generator[object, None, R]) -> R:
    """What a generator returns, once all its events have passed."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            value: R = end.value
            return value


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
    """Train, sample and score, yielding events; returns the TrialResult, also left in `folder`.

    `folder` is the trial's own, and no other process works in it. It receives checkpoint, sample
    grids and result, and a checkpoint in it is continued. `cache` holds what trials share. Each
    batch is processed in `micro_batches` pieces, from 1 to `train.batch`: more take less memory and
    change the result by rounding alone. Closing the generator between events leaves a checkpoint,
    and so does Cancelled within one, after a last `Saving`. A trial that diverges returns a failed
    result. Any other error propagates, and keeps none of the trial's tensors.
    """
    if not 1 <= micro_batches <= spec.train.batch:
        raise ValueError(
            f"micro_batches must lie from 1 to train.batch, {spec.train.batch}, got {micro_batches}"
        )
    try:
        on = pick_device(device)
        return (yield from _run(spec, key, folder, cache, on, micro_batches, checkpoint_seconds))
    except Exception as error:
        # This frame can't be cleared, so it holds nothing of the trial's.
        for each in chain(error):  # their frames hold the memory that a new attempt needs
            traceback.clear_frames(each.__traceback__)
        raise


@dataclass(frozen=True, eq=False)
class _Trial:
    """What a trial works with."""

    spec: TrialSpec
    key: str
    folder: Path
    cache: Path
    device: torch.device
    micro_batches: int
    images: ImageSet
    detector: Detector
    reference: scores.Reference
    state: Training

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(self.state, self.folder / CHECKPOINT_FILE, self.key)


def _prepare(
    spec: TrialSpec, key: str, folder: Path, cache: Path, on: torch.device, micro_batches: int
) -> _Trial:
    """Load data, detector, reference statistics and checkpoint. Raises BadData without labels."""
    start = time.perf_counter()
    _clean_slate(on, folder)
    images = prepare(spec.data, spec.resolution, cache)
    _show(images, facts(spec.data, images, cache), folder)
    if spec.train.class_conditional and images.labels is None:
        raise BadData(
            f"train.class_conditional needs labels, which this {spec.data.source} source has not"
        )
    detector = detectors.load_detector(
        spec.score.detector, spec.data, cache, on, spec.score.weights
    )
    batch = _piece(scores.BATCH, micro_batches)
    reference = scores.load_reference(spec.data, spec.resolution, detector, cache, images, batch)
    state = _start(spec, images, on, folder / CHECKPOINT_FILE, key)
    state.seconds["prepare"] += time.perf_counter() - start
    return _Trial(spec, key, folder, cache, on, micro_batches, images, detector, reference, state)


def _show(images: ImageSet, facts: DataFacts, folder: Path) -> None:
    """Write which images the trial is about: their facts, and a grid of some of them."""
    write_json(folder / FACTS_FILE, facts.model_dump())
    chosen = np.random.default_rng(0).permutation(len(images))[: TILES**2]
    write_grid(torch.from_numpy(images.pixels[chosen]), folder / REAL_FILE)


def _piece(batch: int, count: int) -> int:
    """The size of the largest of `count` pieces of a batch."""
    return -(-batch // count)


def _run(
    spec: TrialSpec,
    key: str,
    folder: Path,
    cache: Path,
    on: torch.device,
    micro_batches: int,
    checkpoint_seconds: float,
) -> Generator[Event, None, TrialResult]:
    """The trial, with a checkpoint where the caller stops it."""
    trial = _prepare(spec, key, folder, cache, on, micro_batches)
    last = Evaluation(0, {}, {}, {}, {}, "")
    try:
        for event in _checkpointed(trial, checkpoint_seconds):
            if isinstance(event, Evaluation):
                last = event
            yield event
    except Cancelled:
        yield Saving(trial.state.step)
        trial.save()
        raise
    except GeneratorExit:
        trial.save()
        raise
    except Diverged as reason:
        return _finish(trial, last, State.FAILED, str(reason), FailureKind.DIVERGED)
    return _finish(trial, last, State.FINISHED)


def _checkpointed(trial: _Trial, seconds: float) -> Iterator[Event]:
    """The trial's events, with a checkpoint between steps of training every so many seconds."""
    saved = time.monotonic()
    for event in _events(trial):
        yield event
        # The last evaluation counts as done only with its result.
        done = isinstance(event, Evaluation) and event.step == trial.spec.train.steps
        if isinstance(event, Sampled) or done or time.monotonic() - saved <= seconds:
            continue
        yield Saving(trial.state.step)
        with timed(trial.state.seconds, "train"):
            trial.save()
        saved = time.monotonic()


def _events(trial: _Trial) -> Iterator[TrainProgress | Beat | Sampled | Evaluation]:
    """Training up to each evaluation, and the evaluation. Raises Diverged."""
    spec, state = trial.spec, trial.state
    steps, report_every = spec.train.steps, max(1, spec.train.steps // 50)
    every = spec.score.every or steps
    for until in (*range(state.evaluated + every, steps, every), steps):
        training = train(
            state,
            spec,
            trial.images,
            until=until,
            report_every=report_every,
            micro_batches=trial.micro_batches,
        )
        yield from _timed_events(training, state.seconds, "train")
        state.copy_buffers()
        drawing = _timed_events(_draw(trial, state.ema, spec.sample.count), state.seconds, "sample")
        samples: Tensor = yield from drawing
        baselines: dict[str, float] = {}
        if until == steps:
            measuring = _timed_events(_baselines(trial), state.seconds, "baselines")
            baselines = yield from measuring
        with timed(state.seconds, "score"):
            evaluation = _evaluate(trial, samples, baselines)
        if until < steps:
            state.mark_evaluated()
        yield evaluation


def _evaluate(trial: _Trial, samples: Tensor, baselines: dict[str, float]) -> Evaluation:
    """Score samples (count, C, H, W) uint8, and write their grid."""
    spec, step = trial.spec, trial.state.step
    judged = _judged(trial, samples)
    values = scores.score(*judged)
    uncertainty = scores.standard_errors(*judged) if step == spec.train.steps else {}
    grid = f"{SAMPLES_FOLDER}/step-{step:06d}.png"
    write_grid(samples, trial.folder / grid)
    return Evaluation(step, values, uncertainty, baselines, trial.state.loss_by_log_snr(), grid)


def _judged(
    trial: _Trial, samples: Tensor
) -> tuple[scores.Features, scores.Reference, str, tuple[str, ...]]:
    """What `scores.score` takes to judge samples (count, C, H, W) uint8."""
    batch = _piece(scores.BATCH, trial.micro_batches)
    features = scores.extract(samples.numpy(), trial.detector, batch=batch)
    return features, trial.reference, trial.detector.name, trial.spec.score.metric_names


def _baselines(trial: _Trial) -> Generator[Sampled, None, dict[str, float]]:
    """What the trial's last scores and loss compare with; what is not known is absent."""
    spec, detector = trial.spec, trial.detector
    metrics, count = spec.score.metric_names, spec.sample.count
    real = scores.real_scores(trial.reference, detector.name, metrics, count, trial.cache)
    untrained = yield from _untrained_scores(trial)
    accuracy = getattr(detector, "accuracy", None)  # other detectors need not have it
    return {
        **{f"{REAL}{name}": value for name, value in real.items()},
        **{f"{UNTRAINED}{name}": value for name, value in untrained.items()},
        LOSS_OF_ZERO: trial.state.loss_of_zero,
        **({} if accuracy is None else {DETECTOR_ACCURACY: accuracy}),
    }


def _untrained_scores(trial: _Trial) -> Generator[Sampled, None, dict[str, float]]:
    """The scores of samples drawn in the trial's way by its network as it was before training.

    Where that puts out zero, as the U-Net does, trials that differ in training alone share them.
    """
    spec, count = trial.spec, min(trial.spec.sample.count, MOST_UNTRAINED)
    network = untrained(
        spec,
        channels=trial.images.pixels.shape[1],
        classes=len(trial.images.class_names),
        device=trial.device,
    ).eval()
    if not _puts_out_zero(trial, network):
        try:
            samples = yield from _draw(trial, network, count)
        except Diverged as reason:
            log.warning("the untrained network has no score: %s", reason)
            return {}
        return scores.score(*_judged(trial, samples))

    def compute() -> str:
        drawing = _draw(trial, lambda x, gamma, label: torch.zeros_like(x), count)
        return json.dumps(scores.score(*_judged(trial, _returned(drawing))))

    sample = spec.sample.model_dump(mode="json", exclude={"batch"})
    process = spec.b, spec.train.predict, spec.train.normalize
    key = digest(trial.reference.key, spec.score.metric_names, sample, process)
    values: dict[str, float] = json.loads(remembered(trial.cache, key, compute, "baselines"))
    return values


def _puts_out_zero(trial: _Trial, network: nn.Module, count: int = 16) -> bool:
    """Whether a network's output is zero for noise at `count` gammas from start to end."""
    spec, on = trial.spec, trial.device
    shape, process = trial.images.pixels.shape[1:], DiffusionProcess.of(spec)
    gammas = spec.sampling_schedule.gamma(np.linspace(1, 0, count))
    labels = _sample_labels(spec, trial.images, count)
    batch = _piece(spec.sample.batch, trial.micro_batches)
    for start in range(0, count, batch):
        index = range(start, min(start + batch, count))
        x = sampling.SampleNoise(spec.sample.seed, index, shape, on)()
        gamma = torch.from_numpy(gammas[start : index.stop]).to(x)
        label = None if labels is None else labels[start : index.stop].to(on)
        with torch.inference_mode(), autocast_for(spec.train, on):
            if network(process.network_input(x, gamma), gamma, label).any():
                return False
    return True


def _finish(
    trial: _Trial,
    last: Evaluation,
    outcome: Literal[State.FINISHED, State.FAILED],
    reason: str = "",
    failure: Failure = "",
) -> TrialResult:
    """Write the result; only then the checkpoint goes."""
    state, pieces = trial.state, trial.micro_batches
    result = TrialResult(
        key=trial.key,
        state=outcome,
        reason=reason,
        failure=failure,
        step=state.step,
        scores=last.scores,
        uncertainty=last.uncertainty,
        baselines=last.baselines,
        loss=state.loss,
        seconds={**state.seconds, "total": sum(state.seconds.values())},
        environment=environment(trial.device)
        | ({"micro_batches": str(pieces)} if pieces > 1 else {}),
    )
    write_result(trial.folder, result)
    (trial.folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def _start(
    spec: TrialSpec, images: ImageSet, on: torch.device, checkpoint: Path, key: str
) -> Training:
    """Training from the checkpoint, or from the start where none can be read."""

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
    trial: _Trial, network: Callable[..., Tensor], count: int
) -> Generator[Sampled, None, Tensor]:
    """Samples (count, C, H, W) uint8 from a network. Raises Diverged where one is not finite."""
    spec, state, on = trial.spec, trial.state, trial.device
    process = DiffusionProcess.of(spec)
    shape = trial.images.pixels.shape[1:]  # (C, H, W)
    samples = torch.empty((count, *shape), dtype=torch.uint8)
    labels = _sample_labels(spec, trial.images, count)
    batch = _piece(spec.sample.batch, trial.micro_batches)
    for start in range(0, count, batch):
        index = range(start, min(start + batch, count))
        label = None if labels is None else labels[start : index.stop].to(on)
        steps = sampling.sample(
            partial(network, label=label),
            sampling.SampleNoise(spec.sample.seed, index, shape, on),
            process,
            schedule=spec.sampling_schedule,
            steps=spec.sample.steps,
            sampler=spec.sample.sampler,
        )
        for _ in range(spec.sample.steps):
            with torch.inference_mode(), autocast_for(spec.train, on):
                last = next(steps)
            check()  # a batch may take longer than a stop may
        x0 = sampling.drawn(last, process)
        if broken := int((~x0.isfinite()).flatten(1).any(1).sum()):
            raise Diverged(
                f"{broken} of {len(index)} samples drawn at step {state.step} are not finite"
            )
        samples[start : index.stop] = to_uint8(x0).cpu()
        yield Sampled(state.step, index.stop, count)
    return samples


def _sample_labels(spec: TrialSpec, images: ImageSet, count: int) -> Tensor | None:
    """Sample i's label, (count,), where the network takes labels.

    They are the data's own, shuffled by the sampling seed and repeated as often as needed.
    """
    if not spec.train.class_conditional or images.labels is None:
        return None
    order = np.random.default_rng(spec.sample.seed).permutation(len(images.labels))
    return torch.from_numpy(np.resize(images.labels[order], count))


def to_uint8(x: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8 in [0, 255], rounded to the nearest."""
    return x.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def write_grid(samples: Tensor, path: Path, side: int = TILES) -> None:
    """Write a PNG of the first side² samples (N, C, H, W) at most, one pixel apart."""
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
    """Remove the part files of killed processes, and free what earlier trials held on the GPU.

    A GPU then gives the same bits every time, as a CPU does anyway.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = (CHECKPOINT_FILE, RESULT_FILE, FACTS_FILE, REAL_FILE)
    for written in (*(f"{name}.*" for name in files), f"{SAMPLES_FOLDER}/*"):
        for part in folder.glob(f"{written}{PART}"):
            part.unlink(missing_ok=True)
    if device.type == "cuda":
        gc.collect()
        # Other processes that share the GPU need the memory of this one's last trial.
        torch.cuda.empty_cache()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Its backward gives NaN where logits are low (docs/gpu-h100.md, section 1).
        torch.backends.cuda.enable_cudnn_sdp(False)


def environment(device: torch.device) -> dict[str, str]:
    """Versions of packages, the commit of a checkout, and the name of the processor or GPU."""
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
    """This checkout's commit, with -dirty where files were changed; "" outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe"]
    command += ["--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=10
        ).stdout.strip()
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
    """The same events and return value; adds the time that each takes to `clock[phase]`."""
    while True:
        with timed(clock, phase):
            try:
                event = next(events)
            except StopIteration as end:
                return end.value
        yield event
