"""A trial's description, canonical form and key stay what they are within a science version."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from typing import Any, Literal

import pytest

from sched_lab.text import flat_params
from sched_lab.trainers.errors import FieldError, WeightsMissing
from sched_lab.trainers.failures import BadData
from sched_lab.trainers.schedules import ScheduleError
from sched_lab.trainers.scoring.options import ClassifierSpec, InceptionSpec, RandomSpec
from sched_lab.trainers.spec import DetectorSpec, ScoreSpec, TrialSpec, trial_key

# Each is a trial with its key, and the start of the SHA-256 of its JSON, as of science version 2.
KEYS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "be52ab70d573d7ab", "e3ace8bcac4808b3"),
    ({"score": {"detector": "random"}}, "53e96436860fd231", "7591057733ca9651"),
    (
        {
            "score": {"detector": "inception", "metrics": ["fid", "kid"], "weights": "/w.pth"},
            "data": {"source": "shapes", "count": 9},
        },
        "4143da42ea99f976",
        "b20e30725c71ae27",
    ),
    (
        {
            "score": {"metrics": ["fd", "kid", "precision", "recall"], "every": 10},
            "train": {"steps": 20, "network": {"kind": "unet", "width": 16}},
            "schedule": "sigmoid@-3,3,0.9",
            "b": 0.5,
            "resolution": 16,
        },
        "de638aed0d1487fe",
        "e0d5fa520f028bd7",
    ),
    (
        {
            "data": {"source": "folder", "path": "/images", "channels": 1},
            "score": {"detector": "random"},
            "schedule": "shifted_cosine",
            "resolution": 32,
            "sample": {"schedule": "train"},
        },
        "10da75b10da158b1",
        "591c786ac42872cb",
    ),
]


@pytest.mark.parametrize(("values", "key", "digest"), KEYS)
def test_keys_and_json_are_those_of_this_science_version(
    values: dict[str, Any], key: str, digest: str
) -> None:
    spec = TrialSpec.model_validate(values)
    assert trial_key(spec, "content") == key
    assert hashlib.sha256(spec.model_dump_json().encode()).hexdigest().startswith(digest)
    assert TrialSpec.model_validate_json(spec.model_dump_json()) == spec
    assert flat_params(spec)["score.detector"] == values.get("score", {}).get(
        "detector", "classifier"
    )


class Tuned(DetectorSpec):
    kind: Literal["tuned"] = "tuned"
    layer: int = 3


@pytest.mark.parametrize("spec", [ClassifierSpec(), RandomSpec(), InceptionSpec(), Tuned(layer=3)])
def test_a_detector_without_options_of_its_own_is_written_as_its_name(spec: DetectorSpec) -> None:
    score = ScoreSpec(detector=spec)
    assert score.model_dump()["detector"] == spec.kind
    assert score.metric_names == ("fid" if spec.kind == "inception" else f"fd_{spec.kind}",)


def test_a_detectors_options_are_written_beside_its_name() -> None:
    spec = TrialSpec(score=ScoreSpec(detector=Tuned(layer=4)))
    assert json.loads(spec.model_dump_json())["score"]["detector"] == {"kind": "tuned", "layer": 4}
    params = flat_params(spec)
    assert (params["score.detector"], params["score.detector.layer"]) == ("tuned", "4")
    assert trial_key(spec, "x") != trial_key(TrialSpec(score=ScoreSpec(detector=Tuned())), "x")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FieldError("must be even", "width", "patch"), "must be even"),
        (ScheduleError("tau must be above 0", "tau"), "tau must be above 0"),
        (BadData("/x is not a folder", "path"), "data.path: /x is not a folder"),
        (BadData("image 3 is broken"), "image 3 is broken"),
        (WeightsMissing("there is no file", "weights"), "score.weights: there is no file"),
    ],
)
def test_an_error_keeps_its_fields_on_its_way_through_a_process(
    error: FieldError, said: str
) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.fields, again.rule) == (said, error.fields, error.rule)


def test_what_a_plug_in_imports_is_in_one_module_that_loads_no_torch() -> None:
    program = (
        "import sys, sched_lab.trainers as trainers\n"
        "from sched_lab.trainers import *\n"
        "assert dir(trainers) and TrialSpec().score.detector.kind == 'classifier'\n"
        "assert all(getattr(trainers, name) is globals()[name] for name in trainers.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    light = "import sys, sched_lab.trainers.spec\nsched_lab.trainers.DetectorSpec"
    light += "\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", light], check=True)
