"""An error is told where its cause is written, whatever words the error is told in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sched_lab.errors import OutOfReach, Problem, SweepError
from sched_lab.run import plan
from sched_lab.store.folder import Store
from sched_lab.trainers.errors import FieldError

NARROW = "train: {network: {kind: unet, width: 8}}\n"
CASES = [
    # a schedule's kind and parameters
    ("grid: {schedule: [cosin]}", "2:19"),
    ("grid:\n  schedule:\n    - kind: cosin\n", "4:13"),
    ("grid:\n  schedule:\n    - kind: sigmoid\n      tau: 0\n", "5:12"),
    ("grid:\n  schedule:\n    - kind: sigmoid\n      end: -3\n", "5:12"),
    ("grid:\n  schedule:\n    - kind: sigmoid\n      range: [3, 3]\n", "5:14"),
    ("grid:\n  schedule:\n    - kind: sigmoid\n      range: 3\n", "5:14"),
    ("grid:\n  schedule:\n    - kind: sigmoid\n      taw: 3\n", "5:12"),
    ("grid:\n  schedule: [sigmoid]\n  tau: [1,\n    0]", "5:5"),
    ("grid:\n  schedule: [sigmoid]\n  end: [-3]\n  start: [0]\n  tau: [-1]", "6:9"),
    ("sample: {schedule: {kind: sigmoid,\n  tau: 0}}", "3:8"),
    ("exclude: [{schedule: cosin}]\ngrid: {b: [1]}", "2:22"),
    ("grid: {b: [1,\n  1.0e-5]}", "3:3"),
    ("grid: {schedule: [linear,\n  'sigmoid@-3,3,1e-9']}", "3:3"),
    ("sample:\n  schedule: 'sigmoid@-3,3,1e-9'", "3:13"),
    ("grid: {b: [1]}\nsample:\n  schedule: 'sigmoid@-3,3,1e-9'", "4:13"),
    ("sample:\n  schedule: train\ngrid: {schedule: [vp_sde], b: [1,\n  200]}", "5:3"),
    # a source's fields
    ("data:\n  source: digit\n", "3:11"),
    ("data:\n  source: folder\n  path: /no/such\n", "4:9"),
    ("data: {source: folder}\ngrid: {data.path: [/a,\n  /b]}", "3:20"),
    ("data:\n  source: array\n  path: /no/such.npy\n", "4:9"),
    ("include:\n  - data: {source: array,\n      path: /no/such.npy}\n", "4:13"),
    ("overrides:\n  - set: {data.source: folder,\n      data.path: /no/such}\n", "4:18"),
    # a network's fields, with those of the trial
    ("train: {network: unett}", "2:18"),
    ("train:\n  network:\n    kind: unet\n    width: 8\n    patch: 8\n", "5:12"),
    (f"{NARROW}grid: {{resolution: [8,\n  64]}}\noverrides: "
     "[{when: {resolution: 64}, set: {train.network.patch: 8}}]", "4:3"),
    ("train: {network: {kind: unet, patch: 3}}", "2:38"),
    ("grid: {train.network.multipliers: [[1, 2, 3, 4, 5]]}", "2:36"),
    ("grid: {resolution: [9]}", "2:21"),
    # a detector, its weights and its metrics
    ("score: {detector: incepton}", "2:19"),
    ("score: {detector: {kind: incepton}}", "2:26"),
    ("score: {detector: random,\n  metrics: [fid]}", "2:19"),
    ("score: {metrics: [fid]}", "2:18"),
    ("grid: {score.metrics: [[fd],\n  [fid]]}", "3:3"),
    ("score: {metrics: [fd, fd]}", "2:18"),
    ("score: {detector: inception, weights: WRONG}", "2:39"),
    ("score: {detector: inception}\ngrid: {score.weights: [WRONG]}", "3:24"),
    ("data: {source: array, path: UNLABELLED}\nscore: {detector: classifier}", "3:19"),
    ("data: {source: array, path: UNLABELLED}\ngrid: {score.detector: [random,\n  classifier]}",
     "4:3"),
    ("data: {source: array, path: UNLABELLED}\nscore: {detector: random}\n"
     "train: {class_conditional: true}", "4:28"),
]  # fmt: skip


def told(text: str, folder: Path) -> list[Problem]:
    """What is wrong with a sweep, up to what is checked last, before anything runs."""
    import numpy as np

    np.save(folder / "unlabelled.npy", np.zeros((4, 8, 8), dtype=np.uint8))
    (folder / "wrong.pth").write_bytes(b"other weights")
    text = text.replace("WRONG", str(folder / "wrong.pth"))
    file = folder / "x.yaml"
    file.write_text(
        "name: x\n" + text.replace("UNLABELLED", str(folder / "unlabelled.npy")), "utf-8"
    )
    with pytest.raises(SweepError) as caught:
        plan.check_can_run(plan.make(file, Store.at(folder / "lab")))
    return list(caught.value.problems)


@pytest.mark.parametrize(("text", "place"), CASES)
def test_the_place_stays_right_when_the_message_is_in_other_words(
    text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = told(text, tmp_path)
    said = FieldError.__init__

    def reworded(self: FieldError, rule: str, *fields: str) -> None:
        said(self, "xyz width tau detector: path", *fields)

    monkeypatch.setattr(FieldError, "__init__", reworded)
    (other,) = told(text, tmp_path)
    assert f"{plain.line}:{plain.column}" == place
    assert (other.line, other.column, other.key) == (plain.line, plain.column, plain.key)
    assert other.rule.startswith("xyz")


def plain_error(*arguments: Any, **options: Any) -> None:
    raise ValueError("data.path: width tau resolution detector: said in words alone")


@pytest.mark.parametrize(
    ("method", "text", "place"),
    [
        ("networks.options.UNetSpec.check", "train: {network: unet}", "2:18"),
        ("networks.options.UNetSpec.check", f"{NARROW}grid: {{b: [1]}}", "2:18"),
        ("networks.options.UNetSpec.check", "grid: {train.network.width: [8]}", "2:30"),
        ("data.builtin.Digits.fingerprint", "data: digits\ngrid: {resolution: [8]}", "2:7"),
        ("data.builtin.Digits.fingerprint", "grid: {data: [digits]}", "2:15"),
        ("scoring.options.RandomSpec.check", "score: {detector: random}", "2:19"),
        ("scoring.options.RandomSpec.check", "grid: {score.detector: [random]}", "2:25"),
    ],
)
def test_an_error_that_names_no_field_is_told_at_its_part(
    method: str, text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"sched_lab.trainers.{method}", plain_error)
    (problem,) = told(text, tmp_path)
    assert f"{problem.line}:{problem.column}" == place
    assert "said in words alone" in problem.rule


@pytest.mark.parametrize("detector", ["inception", "random", "classifier"])
def test_weights_that_are_not_there_are_told_at_their_setting_whether_they_are_read_or_not(
    detector: str, tmp_path: Path
) -> None:
    (problem,) = told(f"score: {{detector: {detector}, weights: /no/such.pth}}", tmp_path)
    assert problem.key == "score.weights"
    assert problem.value == "/no/such.pth"
    assert "no" in problem.rule


def test_weights_that_no_setting_names_are_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHED_LAB_INCEPTION", "/no/such.pth")
    file = tmp_path / "x.yaml"
    file.write_text("name: x\nscore: {detector: inception}\n", "utf-8")
    planned = plan.make(file, Store.at(tmp_path / "lab"))
    with pytest.raises(OutOfReach, match=r"^SCHED_LAB_INCEPTION: there is no file /no/such\.pth"):
        plan.check_can_run(planned)
    told = [each for each in plan.warnings(planned) if each.startswith("submit would refuse")]
    assert [each.split(":")[1] for each in told] == [" SCHED_LAB_INCEPTION"]


def test_what_is_wrong_in_several_parts_is_told_at_once_by_the_plan_itself(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "u.npy", np.zeros((4, 8, 8), dtype=np.uint8))
    file = tmp_path / "x.yaml"
    file.write_text(
        f"name: x\ndata: {{source: array, path: {tmp_path / 'u.npy'}}}\n"
        "train: {class_conditional: true}\nscore:\n  detector: classifier\n  weights: /none\n",
        "utf-8",
    )
    with pytest.raises(SweepError) as caught:
        plan.make(file, Store.at(tmp_path / "lab"))
    assert [problem.key for problem in caught.value.problems] == [
        "train.class_conditional",
        "score.detector",
        "score.weights",
    ]


def test_a_detector_that_is_wrong_does_not_hide_what_else_is_wrong(tmp_path: Path) -> None:
    problems = told("score: {detector: incepton, metrics: [fid], every: 0}", tmp_path)
    assert [problem.key for problem in problems] == ["score.detector", "score.every"]
