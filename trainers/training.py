"""The training loop: optimizer, EMA, loss by log-SNR, checkpoint and exact resume.

Every draw (data order, flips, t, noise) depends on the seed and the step alone. A checkpoint
therefore holds no generator's state, and a resumed run gives the bits of an uninterrupted one.
"""

from __future__ import annotations

import copy
import json
import math
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sched_lab.trainers.cancellation import check
from sched_lab.trainers.diffusion import DiffusionProcess, Losses
from sched_lab.trainers.failures import Diverged, FailureKind, gpu_is_lost, kind_of
from sched_lab.trainers.files import replacing
from sched_lab.trainers.images import ImageSet
from sched_lab.trainers.schedules import log_snr
from sched_lab.trainers.spec import TrainSpec, TrialSpec

BIN_EDGES = np.arange(-20.0, 20.1, 2.0)
"""Edges of the log-SNR bins that losses are averaged in; the outermost take what lies outside."""
COMPILE_FROM = 10_000
"""Training steps from which the minute that compiling takes pays on a GPU."""
EXPLODED = 100.0
"""A mean loss this many times that of predicting zero, or numbers of unit size, ends the trial."""
BEAT_SECONDS = 10.0
# What a checkpoint holds beside the networks and the optimizer
_SUMS = ("loss_sum", "bin_loss", "bin_count")
_VALUES = ("step", "evaluated", "reported", "loss", "loss_of_zero", "seconds")


class BadCheckpoint(ValueError):
    """A checkpoint that is truncated, corrupt, or of another trial or version of torch."""


@dataclass(frozen=True)
class TrainProgress:
    """The state of training after `step` steps; `loss` is the mean since the last report."""

    step: int
    loss: float
    images_per_second: float


@dataclass(frozen=True)
class Beat:
    """Training continues, at `step`; sent after `BEAT_SECONDS` without a report."""

    step: int


@dataclass
class Training:
    """The state of one training run: all that a checkpoint holds."""

    network: nn.Module
    forward: nn.Module
    """The network as it is called in training: itself, or compiled."""
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    evaluated: int = 0
    """The step of the last finished evaluation."""
    reported: int = 0
    """The step of the last report."""
    loss: float = math.nan
    """The mean loss of the last report."""
    loss_of_zero: float = math.nan
    """The mean loss that predicting zero would have had in the same steps."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Time spent so far, by phase; the caller adds to it."""
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(len(Losses._fields)))
    """The sums of the steps' losses since the last report: of each of `Losses`."""
    bin_loss: Tensor = field(default_factory=lambda: _empty_bins())
    """The sum of the examples' losses in each log-SNR bin since the last evaluation."""
    bin_count: Tensor = field(default_factory=lambda: _empty_bins())
    """How many examples that sum has."""

    @classmethod
    def start(
        cls, spec: TrialSpec, *, channels: int, classes: int, device: torch.device
    ) -> Training:
        """A fresh state; the weights are drawn from the trial's seed, the same on every device."""
        network = untrained(spec, channels=channels, classes=classes, device=device)
        ema = copy.deepcopy(network).requires_grad_(False).eval()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=spec.train.lr, weight_decay=spec.train.weight_decay, fused=True
        )
        state = cls(network, _compiled(network, spec.train, device), ema, optimizer)
        for name in _SUMS:
            setattr(state, name, getattr(state, name).to(device))
        return state

    def copy_buffers(self) -> None:
        """Copy the trained network's buffers, such as BatchNorm's statistics, to the averaged."""
        for averaged, trained in zip(self.ema.buffers(), self.network.buffers(), strict=True):
            averaged.copy_(trained)

    def loss_by_log_snr(self) -> dict[float, float]:
        """Mean loss since the last evaluation in each log-SNR bin with examples, by its centre."""
        centres = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2
        sums = zip(centres, self.bin_loss.tolist(), self.bin_count.tolist(), strict=True)
        return {float(centre): total / count for centre, total, count in sums if count}

    def mark_evaluated(self) -> None:
        """Start the losses of the next evaluation."""
        self.evaluated = self.step
        self.bin_loss.zero_()
        self.bin_count.zero_()


def _empty_bins() -> Tensor:
    return torch.zeros(len(BIN_EDGES) - 1, dtype=torch.float64)


def untrained(spec: TrialSpec, *, channels: int, classes: int, device: torch.device) -> nn.Module:
    """The network before its first step, drawn from the trial's seed, the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_mix(spec.seed, 0, 0))
        network = spec.train.network.build(
            channels=channels,
            resolution=spec.resolution,
            classes=classes if spec.train.class_conditional else 0,
        )
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def lr_at(train: TrainSpec, step: int) -> float:
    """The learning rate of step `step` (from 0): warm-up, then constant or half a cosine to 0."""
    if step < train.warmup:
        return train.lr * (step + 1) / (train.warmup + 1)
    if train.decay == "none":
        return train.lr
    done = math.pi * (step - train.warmup) / max(1, train.steps - train.warmup)
    return train.lr * 0.5 * (1 + math.cos(done))


def ema_at(train: TrainSpec, step: int) -> float:
    """The decay of the weights' average in step `step` (from 0).

    With the warm-up it is min(ema, (1 + step)/(10 + step)), as in TensorFlow's
    ExponentialMovingAverage with num_updates: after n steps the initial weights have a weight of
    1/C(n + 9, 9), 5e-10 for n = 40. Until it reaches `ema` it is nearly the power function of
    2312.02696 (equation 2) with γ = 8, which spans 9 % of the steps so far, whatever their number.
    That one was left since it would replace `ema`, which long trainings are published with.
    """
    return min(train.ema, (1 + step) / (10 + step)) if train.ema_warmup else train.ema


def train(
    state: Training,
    spec: TrialSpec,
    images: ImageSet,
    *,
    until: int,
    report_every: int,
    micro_batches: int = 1,
) -> Iterator[TrainProgress | Beat]:
    """Train to step `until`, reporting every `report_every` steps and at the end.

    The caller may stop between events. Each batch passes the network in `micro_batches` pieces,
    whose gradients add up to the batch's. That takes less memory and gives the same step, rounding
    aside, in any network that treats each example alone.

    Raises Diverged when the mean loss since the last report is not finite or has exploded.
    """
    told, clock_step = time.perf_counter(), state.step
    for step in _steps(state, spec, images, until, micro_batches):
        now = time.perf_counter()
        if step % report_every == 0 or step == until:
            _close_report(state)
            count = (step - clock_step) * spec.train.batch
            yield TrainProgress(step, state.loss, count / (time.perf_counter() - told))
        elif now - told > BEAT_SECONDS:
            yield Beat(step)
        else:
            continue
        told, clock_step = time.perf_counter(), step


# A generator holds each step's last tensors until the next step replaces them. Freeing them
# between steps costs page faults: up to 7 % of a step on a CPU.
def _steps(
    state: Training, spec: TrialSpec, images: ImageSet, until: int, micro_batches: int
) -> Iterator[int]:
    """Take each step of the optimizer, and yield how many are done."""
    process, autocast = DiffusionProcess.of(spec), autocast_for(spec.train, state.loss_sum.device)
    batches = _Batches(spec, images, state.loss_sum.device)
    parameters, averaged = list(state.network.parameters()), list(state.ema.parameters())
    state.network.train()
    while state.step < until:
        check()
        batch = batches.draw(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr_at(spec.train, state.step)
        for x0, label, gamma, noise, bins in _pieces(batch, micro_batches):
            with autocast:
                losses = process.losses(state.forward, x0, label, gamma, noise)
            share = len(gamma) / spec.train.batch
            loss = losses.network.mean() * share
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                state.bin_loss.index_add_(0, bins, losses.network.double())
                state.bin_count.index_add_(0, bins, torch.ones_like(gamma, dtype=torch.float64))
                state.loss_sum += torch.stack(losses).mean(dim=1) * share
        if spec.train.grad_clip is not None:
            nn.utils.clip_grad_norm_(parameters, spec.train.grad_clip)
        state.optimizer.step()
        state.optimizer.zero_grad()
        with torch.no_grad():
            update_ema = get_ema_multi_avg_fn(ema_at(spec.train, state.step))  # type: ignore[no-untyped-call]
            update_ema(averaged, parameters, state.step)
        state.step += 1
        yield state.step


def _close_report(state: Training) -> None:
    """Turn the sums of losses since the last report into their means. Raises Diverged."""
    steps = state.step - state.reported
    state.loss, state.loss_of_zero, of_one = (each / steps for each in state.loss_sum.tolist())
    # An untrained network may put out numbers of unit size, however small what it is to predict.
    limit = EXPLODED * max(state.loss_of_zero, of_one)
    if not state.loss <= limit:
        what = (
            f"above {limit:.3g}, far worse than predicting zero, which has {state.loss_of_zero:.3g}"
            if math.isfinite(state.loss)
            else "not a number"
        )
        raise Diverged(f"mean loss {state.loss:.3g} at step {state.step}: {what}")
    state.loss_sum.zero_()
    state.reported = state.step


class Batch(NamedTuple):
    """The draws of one step."""

    x0: Tensor
    """Images (B, C, H, W) in [-1, 1]."""
    label: Tensor | None
    """(B,) int64, where the network takes labels."""
    gamma: Tensor
    """(B,) in (0, 1]."""
    noise: Tensor
    """Standard normal, (B, C, H, W)."""
    bins: Tensor
    """Each example's log-SNR bin, (B,) int64."""


def _pieces(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch cut into `count` pieces whose sizes differ by one at most."""
    parts = ([None] * count if part is None else part.tensor_split(count) for part in batch)
    return map(Batch._make, zip(*parts, strict=True))


class _Batches:
    """The batch of each step, drawn from the seed and the step alone."""

    def __init__(self, spec: TrialSpec, images: ImageSet, device: torch.device) -> None:
        self.spec, self.device = spec, device
        pixels = torch.from_numpy(images.pixels)  # (N, C, H, W) uint8, a memory map
        fits = device.type == "cuda" and pixels.numel() < torch.cuda.mem_get_info(device)[0] // 4
        self.pixels = pixels.to(device) if fits else pixels
        self.labels = (
            torch.from_numpy(images.labels)
            if spec.train.class_conditional and images.labels is not None
            else None
        )
        self.host = torch.Generator()
        self.generator = self.host if device.type == "cpu" else torch.Generator(device)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def draw(self, step: int) -> Batch:
        spec, device = self.spec, self.device
        batch = spec.train.batch
        index = self._indices(step)
        self.host.manual_seed(_mix(spec.seed, 1, step))
        gamma = spec.noise_schedule.gamma(
            torch.rand(batch, generator=self.host, dtype=torch.float64).numpy()
        )
        bins = np.clip(np.digitize(log_snr(gamma, spec.b), BIN_EDGES) - 1, 0, len(BIN_EDGES) - 2)
        x0 = self.pixels[index.to(self.pixels.device)].to(device, non_blocking=True)
        if spec.data.flip:
            flipped = torch.rand(batch, generator=self.host) < 0.5
            x0 = torch.where(flipped.to(device)[:, None, None, None], x0.flip(-1), x0)
        x0 = x0.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)
        if self.generator is not self.host:
            self.generator.manual_seed(_mix(spec.seed, 2, step))
        noise = torch.randn(x0.shape, generator=self.generator, device=device)
        label = None if self.labels is None else self.labels[index].to(device, non_blocking=True)
        return Batch(
            x0,
            label,
            torch.from_numpy(gamma).to(device, torch.float32, non_blocking=True),
            noise,
            torch.from_numpy(bins).to(device, non_blocking=True),
        )

    def _indices(self, step: int) -> Tensor:
        """The images of step `step`: successive shuffles of the whole set, cut into batches."""
        n, batch = len(self.pixels), self.spec.train.batch
        taken, position = [], step * batch
        while position < (step + 1) * batch:
            epoch, offset = divmod(position, n)
            if epoch != self._epoch:
                self.host.manual_seed(_mix(self.spec.seed, 3, epoch))
                self._epoch, self._order = epoch, torch.randperm(n, generator=self.host)
            part = self._order[offset : offset + (step + 1) * batch - position]
            taken.append(part)
            position += len(part)
        return torch.cat(taken)


def autocast_for(train: TrainSpec, device: torch.device) -> torch.autocast:
    """The precision of the network's forward pass on this device."""
    bf16 = train.precision == "bf16" or (
        train.precision == "auto"
        and device.type == "cuda"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def _compiled(network: nn.Module, train: TrainSpec, device: torch.device) -> nn.Module:
    worth_it = device.type == "cuda" and train.steps >= COMPILE_FROM
    if train.compile == "off" or (train.compile == "auto" and not worth_it):
        return network
    # A worker's earlier trials would otherwise count towards the limit of recompilations.
    torch.compiler.reset()
    return torch.compile(network)  # type: ignore[return-value]


def _mix(seed: int, stream: int, position: int) -> int:
    """A 64-bit seed for one position of one of a trial's random streams."""
    return int(np.random.SeedSequence((seed, stream, position)).generate_state(1, np.uint64)[0])


def save_checkpoint(state: Training, path: Path, key: str) -> None:
    """Write the state, whole or not at all."""
    tensors = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    tensors |= {f"sum.{name}": getattr(state, name) for name in _SUMS}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    meta = {
        "key": key,
        "torch": str(torch.__version__),
        "checksum": _checksum(tensors),
        "state": json.dumps({name: getattr(state, name) for name in _VALUES}),
    }
    with replacing(path) as part:
        # safetensors' own writer leaves a hidden file behind when the process is killed.
        part.write_bytes(save(tensors, meta))


def load_checkpoint(state: Training, path: Path, key: str) -> None:
    """Fill `state` from a checkpoint of the same trial.

    Raises BadCheckpoint when the file is damaged or does not fit.
    """
    try:
        _restore(state, path, *_read_checkpoint(path, key))
    except (SafetensorError, KeyError, TypeError, RuntimeError, OSError, ValueError) as error:
        no_memory = kind_of(error) == FailureKind.OUT_OF_MEMORY
        if isinstance(error, BadCheckpoint) or no_memory or gpu_is_lost(error):
            raise  # nothing is wrong with the file where memory or the GPU failed
        raise BadCheckpoint(f"{path} can't be read: {error}") from error


def _read_checkpoint(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a checkpoint. Raises BadCheckpoint as `load_checkpoint`."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    if meta.get("checksum") != _checksum(tensors):
        raise BadCheckpoint(f"{path} is damaged: its content does not match its checksum")
    if meta.get("key") != key:
        raise BadCheckpoint(f"{path} belongs to trial {meta.get('key')}, not {key}")
    if meta.get("torch") != torch.__version__:  # the bits would differ from an uninterrupted run's
        raise BadCheckpoint(
            f"{path} was written by torch {meta.get('torch')}, this is {torch.__version__}"
        )
    return tensors, meta


def _restore(
    state: Training, path: Path, tensors: dict[str, Tensor], meta: Mapping[str, str]
) -> None:
    """Copy a checkpoint's content into `state`. Raises BadCheckpoint for another network's."""
    network = _under("network.", tensors)
    if _shapes(network) != _shapes(state.network.state_dict()):
        raise BadCheckpoint(f"{path} is of another network")
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        index, what = name.split(".")
        moments.setdefault(int(index), {})[what] = tensor
    for position, parameter in enumerate(state.network.parameters()):
        for what in {"exp_avg", "exp_avg_sq"} & moments.get(position, {}).keys():
            # The fused optimizer needs moments in the memory layout of their parameter.
            moments[position][what] = torch.empty_like(parameter).copy_(moments[position][what])
    optimizer = {**state.optimizer.state_dict(), "state": dict(sorted(moments.items()))}
    state.network.load_state_dict(network)
    state.ema.load_state_dict(_under("ema.", tensors))
    state.optimizer.load_state_dict(optimizer)
    for name in _SUMS:
        getattr(state, name).copy_(tensors[f"sum.{name}"])
    values = json.loads(meta["state"])
    for name in _VALUES:
        setattr(state, name, values[name])
    state.seconds = defaultdict(float, state.seconds)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32, in hex, of the tensors' bytes in the order of their names."""
    crc = 0
    for _, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
