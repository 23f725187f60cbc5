"""A setting is in the trial key exactly where it can change the trial's result, as real trials
show.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest

from sched_lab.sweep.settings import FAMILIES, FIXED, SCALARS
from sched_lab.trainers.data.user import Folder, HuggingFace
from sched_lab.trainers.spec import TrialSpec, canonical_json, trial_key
from sched_lab.trainers.trial import run_trial

BASE: dict[str, Any] = {
    "resolution": 8,
    "schedule": "linear",
    "b": 1.0,
    "seed": 0,
    "data.source": "shapes",
    "data.count": 40,
    "data.flip": False,
    "train.network": {"kind": "unet", "width": 16, "multipliers": (1,), "attention": 0},
    "train.steps": 3,
    "train.batch": 8,
    "train.lr": 0.01,
    "train.warmup": 0,
    "train.grad_clip": 0.01,
    "train.ema": 0.5,
    "sample.count": 24,
    "sample.steps": 3,
    "sample.batch": 10,
    "score.detector": "random",
}
OTHER: dict[str, list[Any]] = {
    "resolution": [16],
    "schedule": ["cosine@0,1,1"],
    "b": [0.5],
    "seed": [1],
    "data.source": ["photos"],
    "data.count": [50],
    "data.flip": [True],
    "train.network": [
        {"kind": "unet", "width": 16, "multipliers": (1,), "attention": 0, "patch": 1},
        {"kind": "unet", "width": 16, "multipliers": (1,), "attention": 0, "patch": 2},
        {"kind": "unet", "width": 16, "multipliers": (1,), "attention": 1},
        {"kind": "unet", "width": 16, "multipliers": (1,), "attention": 2},
        {"kind": "unet", "width": 24, "multipliers": (1,), "attention": 0},
        {"kind": "unet", "width": 16, "multipliers": (2,), "attention": 0},
        {"kind": "unet", "width": 16, "multipliers": (1,), "attention": 0, "blocks": 2},
    ],
    "train.steps": [4],
    "train.batch": [12],
    "train.lr": [0.02],
    "train.warmup": [1, 2, 5],
    "train.decay": ["cosine"],
    "train.weight_decay": [1.0],
    "train.grad_clip": [None, 1e-3],
    "train.ema": [0.0, 0.15, 0.9],
    "train.ema_warmup": [False],
    "train.predict": ["eps", "x0"],
    "train.normalize": ["none", "analytic", "state"],
    "train.weight": ["min_snr@1"],
    "train.class_conditional": [True],
    "train.precision": ["bf16"],
    "sample.count": [20],
    "sample.sampler": ["ddpm_large", "ddpm_small"],
    "sample.steps": [1, 2],
    "sample.schedule": ["train"],
    "sample.seed": [1],
    "sample.batch": [24, 100],
    "score.metrics": [("fd", "kid")],
    "score.every": [2, 3],
    "score.weights": ["/elsewhere.pth"],
}
CONTEXTS: list[dict[str, Any]] = [
    {},
    {"train.warmup": 2},
    {"train.warmup": 1, "train.decay": "cosine"},
    {"sample.steps": 1, "sample.batch": 24, "sample.schedule": "vp_sde@0.1,4"},
    {"train.ema": 0.0},
    {"train.ema_warmup": False},
    {"train.network": {"kind": "unet", "width": 16, "multipliers": (1, 1), "attention": 2}},
]
ROUNDING = {"train.compile", "train.precision", "sample.batch"}
"""They change roundings, which may leave all bits of a result as they were."""
ANOTHER_RECORD = {"score.every", "score.metrics"}
"""They choose what a trial tells of itself."""


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in settings.items():
        part, _, field = name.rpartition(".")
        (values.setdefault(part, {}) if part else values)[field] = value
    return values


def test_every_setting_is_tried() -> None:
    every = {f"{part}.{field}" for part, model in FIXED.items() for field in model.model_fields}
    tried = OTHER.keys() | {"score.detector"} | ROUNDING
    assert every | set(SCALARS) | set(FAMILIES) - {"data"} <= tried


@pytest.mark.slow
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_the_key_differs_exactly_where_the_bits_do(
    context: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folders = tmp_path_factory.mktemp("trials")
    numbers = itertools.count()

    @cache
    def bits(spec: TrialSpec) -> tuple[object, ...]:
        folder = folders / str(next(numbers))
        result = run_trial(spec, key="k", folder=folder, cache=folders / "cache", device="cpu")
        (grid,) = sorted(folder.glob("samples/*.png"))[-1:]
        return result.scores["fd_random"], result.loss, grid.read_bytes()

    def trial(changes: dict[str, Any]) -> TrialSpec:
        return TrialSpec.model_validate(nested(BASE | context | changes))

    one = trial({})
    wrong = []
    for name, value in ((name, value) for name, values in OTHER.items() for value in values):
        other = trial({name: value})
        same_key = trial_key(other, "content") == trial_key(one, "content")
        if name in ANOTHER_RECORD:
            assert not same_key or other == one
        elif same_key != (bits(other) == bits(one)) and (same_key or name not in ROUNDING):
            wrong.append((name, value))
    assert not wrong


def test_what_is_done_about_broken_images_and_where_images_lie_is_not_in_the_key() -> None:
    one = TrialSpec.model_validate({"data": Folder(path="/a")})
    for data in (Folder(path="/b"), Folder(path="/a", on_broken="skip")):
        assert trial_key(TrialSpec(data=data), "content") == trial_key(one, "content")
    assert trial_key(TrialSpec(data=Folder(path="/a", channels=1)), "content") != trial_key(
        one, "content"
    )
    hub = TrialSpec(data=HuggingFace(name="a"))
    same = TrialSpec(data=HuggingFace(name="b", split="train[:9]", image="img", revision="x"))
    assert canonical_json(hub) == canonical_json(same)
    assert canonical_json(hub) != canonical_json(
        TrialSpec(data=HuggingFace(name="a", label="label"))
    )
