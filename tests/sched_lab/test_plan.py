"""A plan says which images are meant, what they are too few for, and what is not known yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sched_lab.errors import SweepError
from sched_lab.run import plan_text
from sched_lab.run.plan import Plan, make, warnings
from sched_lab.store.folder import Store
from sched_lab.text import facts_text
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.results import DETECTOR_ACCURACY, State, TrialResult
from sched_lab.trainers.scoring.metrics import METRICS, least_samples


def planned(folder: Path, text: str) -> Plan:
    file = folder / "x.yaml"
    file.write_text(f"name: x\n{text}", "utf-8")
    return make(file, Store.at(folder / "lab"))


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"images": 1}, "1 image of folder"),
        (
            {
                "images": 1797,
                "classes": {"a": 900, "b": 897},
                "smallest": (8, 8),
                "largest": (8, 8),
            },
            "1,797 images of folder, 2 classes of 897 to 900, 8 x 8 pixels before resizing",
        ),
        (
            {
                "images": 3,
                "classes": {"a": 3},
                "smallest": (4, 5),
                "largest": (60, 50),
                "broken": 2,
                "hidden": 1,
                "unknown": {".txt": 7},
            },
            "3 images of folder, 1 class of 3, 4 x 5 to 60 x 50 pixels before resizing;"
            " left out: 2 broken, 1 hidden, 7 .txt",
        ),
    ],
)
def test_facts_of_images_are_one_line(facts: Mapping[str, object], told: str) -> None:
    assert facts_text(DataFacts.model_validate({"source": "folder", **facts})) == told


def test_a_plan_shows_the_images_that_it_would_score(tmp_path: Path) -> None:
    for index in range(6):
        file = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((10 + index, 12)).save(file)
    (tmp_path / "images" / "a" / "notes.txt").write_text("x", "utf-8")
    (tmp_path / "images" / "b" / "broken.png").write_bytes(b"x")
    source = f"source: folder, path: {tmp_path / 'images'}"
    with pytest.raises(SweepError, match=r"(?s)1 of 7 images of \S+ cannot be used.*broken.png"):
        planned(tmp_path, f"data: {{{source}}}")
    plan = planned(tmp_path, f"data: {{{source}, on_broken: skip}}\nsample: {{count: 100}}")
    shown = dict(
        line.split(maxsplit=1) for line in plan_text.lines(plan, plan.expected, cells=False)
    )
    assert shown["images"].startswith(
        "6 images of folder, 2 classes of 3, 10 x 12 to 15 x 12 pixel"
    )
    assert "1 broken" in shown["images"]
    assert "1 .txt" in shown["images"]
    assert shown["detector"] == "classifier, its accuracy unknown until it is trained"
    record = json.loads(json.dumps(plan_text.record(plan, plan.expected), allow_nan=False))
    assert record["images"][0]["images"] == 6
    assert record["images"][0]["unknown"] == {".txt": 1}
    assert record["detector_accuracy"] is None
    assert [warning.partition("x.yaml:")[2][:4] for warning in warnings(plan)] == ["2:30", "1:1:"]
    assert (
        "too few to mean much with the detector's 64 features: give 65 or more" in warnings(plan)[0]
    )
    assert "6 images do not fill a batch" in warnings(plan)[1]


def remarks_on(tmp_path: Path, data: str) -> list[str]:
    """What `plan` says of the images beside their number."""
    text = f"data:\n  {data}\nscore: {{detector: random}}"
    return [told for told in warnings(planned(tmp_path, text)) if " all " in told]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (lambda noise: noise % 2, "all pixels lie from 0 to 1 of 255: multiply them by 255"),
        (lambda noise: noise % 3, "all pixels lie from 0 to 2 of 255: multiply them by 127"),
        (lambda noise: noise % 3 + 7, "all pixels lie from 7 to 9 of 255"),
        (lambda noise: noise * 0, "all pixels lie from 0 to 0 of 255"),
        (lambda noise: noise[:1].repeat(40, 0), "all 40 images are the same one"),
        (lambda noise: (noise % 2) / 255, "all pixels lie from 0 to 1 of 255: multiply"),
        (lambda noise: noise % 4, None),
        (lambda noise: (noise % 2).astype(float), None),
        (lambda noise: noise, None),
    ],
)
def test_images_that_hold_next_to_nothing_are_remarked_on(
    tmp_path: Path, images: Callable[[NDArray[np.uint8]], NDArray[Any]], told: str | None
) -> None:
    noise = np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images(noise))
    said = remarks_on(tmp_path, f"source: array\n  path: {tmp_path / 'images.npy'}")
    assert len(said) == (told is not None)
    assert all("x.yaml:4:9: data.path = " in line for line in said)
    assert all(told in line for line in said if told)


@pytest.mark.parametrize("source", ["digits", "photos", "shapes"])
def test_no_built_in_images_are_remarked_on(tmp_path: Path, source: str) -> None:
    assert remarks_on(tmp_path, f"source: {source}") == []


@pytest.mark.parametrize("metric", METRICS)
def test_fewer_images_than_real_ones_need_for_a_score_are_refused(
    tmp_path: Path, metric: str
) -> None:
    least = 2 * least_samples(metric)
    text = (
        f"data:\n  source: array\n  path: {tmp_path / 'few.npy'}\n"
        f"score: {{detector: random, metrics: [{metric}]}}"
    )
    np.save(tmp_path / "few.npy", np.zeros((least, 8, 8), np.uint8))
    planned(tmp_path, text)
    np.save(tmp_path / "few.npy", np.zeros((least - 1, 8, 8), np.uint8))
    told = rf"x.yaml:4:9: data.path = .*: {metric} needs at least {least} images, got {least - 1}:"
    with pytest.raises(SweepError, match=told):
        planned(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sample: {count: 10000000}", "x.yaml:2:17: sample.count = 10000000: takes 9,768 GiB"),
        ("train:\n  batch: 1000000", "x.yaml:3:10: train.batch = 1000000: takes 7,812 GiB"),
        ("sample: {count: 1000}\ntrain: {batch: 1000}", None),
    ],
)
def test_more_than_fits_into_memory_is_remarked_on(
    tmp_path: Path, text: str, told: str | None
) -> None:
    text += "\ngrid: {resolution: [1024]}\nscore: {detector: random}"
    said = [each for each in warnings(planned(tmp_path, text)) if "GiB" in each]
    assert len(said) == (told is not None)
    assert all(str(told) in each for each in said)


@pytest.mark.parametrize(
    ("detector", "accuracies", "said"),
    [
        ("classifier", [0.97, 0.91], "right on 91% of held-out images"),
        ("classifier", [], "its accuracy unknown until it is trained"),
        ("random", [], None),
    ],
)
def test_a_plan_tells_the_accuracy_of_a_detector_that_was_trained(
    detector: str, accuracies: list[float], said: str | None, tmp_path: Path
) -> None:
    plan = planned(tmp_path, f"score: {{detector: {detector}}}\ngrid: {{seed: [0, 1]}}")
    results = {
        trial.key: TrialResult(
            key=trial.key,
            state=State.FINISHED,
            reason="",
            failure="",
            step=1,
            scores={},
            uncertainty={},
            loss=1.0,
            seconds={},
            environment={},
            baselines={DETECTOR_ACCURACY: accuracy},
        )
        for trial, accuracy in zip(plan.trials, accuracies, strict=False)
    }
    lines = list(plan_text.lines(replace(plan, results=results), plan.expected, cells=False))
    shown = [line.partition("classifier, ")[2] for line in lines if line.startswith("detector")]
    assert shown == ([said] if said else [])
