"""What a worker proves before it runs a trial, and what the driver believes of what it is told."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sched_lab.errors import OutOfReach
from sched_lab.run import executors, listener, proof
from sched_lab.run.listener import Delivery, SweepListener
from sched_lab.run.plan import Plan, make
from sched_lab.run.queue import Queue
from sched_lab.run.submit import _orders
from sched_lab.run.worker import Orders, Report, work
from sched_lab.store.folder import Store
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.results import RESULT_FILE, State
from tests.conftest import ROOT, SMALL_SWEEP, Command
from tests.end_to_end.test_survival import may_mount

Change = Callable[[Path], object]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a plug-in's, with a module and a package in it, as Python finds it."""
    folder = tmp_path / "path" / "somelab"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "nets.py").write_text("WIDTH = 3\n", encoding="utf-8")
    (folder / "inner" / "blocks.py").write_text("DEPTH = 4\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder.parent)
    importlib.invalidate_caches()
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda at: (at / "nets.py").write_text("WIDTH = 4\n", encoding="utf-8"),
        lambda at: (at / "inner" / "blocks.py").write_text("", encoding="utf-8"),
        lambda at: (at / "inner" / "more.py").write_text("", encoding="utf-8"),
        lambda at: (at / "nets.py").unlink(),
        lambda at: (at / "nets.py").rename(at / "networks.py"),
        lambda at: (at / "nets.py").rename(at / "inner" / "nets.py"),
        lambda at: shutil.rmtree(at),
        lambda at: (at / f"fast{EXTENSION_SUFFIXES[0]}").write_bytes(b"compiled"),
    ],
)
def test_any_change_of_a_packages_code_is_told(package: Path, change: Change) -> None:
    expected = proof.evidence(["somelab"])
    assert proof.differences(expected) == ""
    change(package)
    importlib.invalidate_caches()
    assert "somelab" in proof.differences(expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda at: os.utime(at / "nets.py", (1, 1)),
        lambda at: (at / ".#nets.py").write_text("an editor's lock", encoding="utf-8"),
        lambda at: (at / "nets.py~").write_text("an editor's copy", encoding="utf-8"),
        lambda at: (at / "__pycache__").mkdir() or (at / "__pycache__" / "nets.pyc").touch(),
        lambda at: at.rename(at.with_name("moved")) and at.symlink_to(at.with_name("moved")),
    ],
)
def test_what_changes_no_code_is_not(package: Path, change: Change) -> None:
    expected = proof.evidence(["somelab"])
    change(package)
    assert proof.differences(expected) == ""


def test_a_module_alone_is_a_package_too(package: Path) -> None:
    alone = package.with_name("alone.py")
    alone.write_text("B = 1\n", encoding="utf-8")
    importlib.invalidate_caches()
    expected = proof.evidence(["alone"])
    alone.write_text("B = 2\n", encoding="utf-8")
    assert "has other code of alone" in proof.differences(expected)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("trainers/diffusion.py", True),
        ("store/journal.py", True),
        ("run/worker.py", True),
        ("analysis/text/wording.py", False),
        ("cli/program.py", False),
    ],
)
def test_the_code_that_trials_load_counts_and_that_of_reports_may_change_meanwhile(
    tmp_path: Path, file: str, counts: bool
) -> None:
    copy = shutil.copytree(ROOT / "sched_lab", tmp_path / "sched_lab")
    with (copy / file).open("a", encoding="utf-8") as code:
        code.write("# changed\n")
    ask = "from sched_lab.run.proof import code_digest; print(code_digest('sched_lab'))"
    told = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert (told.stdout.strip() != proof.code_digest("sched_lab")) == counts


def with_code(expected: proof.Evidence, package: str) -> proof.Evidence:
    """The same with another digest of the package's code."""
    return {**expected, "code": {**expected["code"], package: "0" * 16}}


def with_version(expected: proof.Evidence, name: str, version: str) -> proof.Evidence:
    return {**expected, "versions": {**expected["versions"], name: version}}


@pytest.mark.parametrize("group", proof.PLUGINS)
def test_the_versions_of_what_a_plug_in_needs_are_compared_too(package: Path, group: str) -> None:
    def install(name: str, version: str, needs: str = "", entries: str = "") -> None:
        info = package.with_name(f"{name}.dist-info")
        info.mkdir(exist_ok=True)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        (info / "METADATA").write_text(head, encoding="utf-8")
        (info / "entry_points.txt").write_text(entries, encoding="utf-8")
        importlib.invalidate_caches()

    needs = (
        "Requires-Dist: blocks>=1 ; python_version > '3'\nRequires-Dist: docs ; extra == 'all'\n"
    )
    install("somelab", "1", needs, f"[{group}]\nmine = somelab.nets:Net\n")
    install("blocks", "1.5")
    install("docs", "1")
    expected = proof.evidence(["sched_lab", "somelab"])
    assert proof.differences(expected) == ""
    install("docs", "2")
    assert proof.differences(expected) == ""
    install("blocks", "1.6")
    assert proof.differences(expected).startswith("has blocks 1.6, not 1.5")
    assert proof.differences(proof.evidence(["sched_lab"])) == ""


@pytest.mark.parametrize("about", proof.VERSIONS)
def test_another_version_is_told_with_both(about: str) -> None:
    expected = proof.evidence([])
    told = proof.differences(with_version(expected, about, "0.0.1"))
    assert told.startswith(f"has {about} {expected['versions'][about]}, not 0.0.1: ")


def test_a_cpu_build_of_torch_is_the_same_version_as_one_for_a_gpu() -> None:
    assert "+" not in proof.evidence([])["versions"]["torch"]
    assert torch.__version__.startswith(proof.evidence([])["versions"]["torch"])


@pytest.mark.parametrize("late", [False, True])
def test_a_token_counts_when_it_shows_in_time(tmp_path: Path, late: bool) -> None:
    file = tmp_path / "token"
    file.write_text("of another submit" if late else "ours", encoding="utf-8")
    timer = threading.Timer(0.5, file.write_text, ["ours", "utf-8"])
    timer.start()
    assert proof.sees(str(file), "ours")
    timer.join()


@pytest.fixture
def plan(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A sweep of two trials on images of the user's own."""
    from PIL import Image

    monkeypatch.setattr(proof, "PATIENCE", 0.3)
    monkeypatch.setattr(listener, "SEEN_WITHIN", 1.5)
    for index in range(4):
        (tmp_path / "photos" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (8, 8), (60 * index, 0, 0))
        image.save(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png")
    text = SMALL_SWEEP.replace("data: digits", f"data: {{source: folder, path: {tmp_path}/photos}}")
    text = text.replace("[8, 16]", "[8]").replace("every: 10", "detector: random")
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    return make(tmp_path / "sweep.yaml", store)


UNFIT: dict[str, tuple[Callable[[Plan, Orders], Orders], str]] = {
    "other code": (
        lambda plan, orders: replace(orders, evidence=with_code(orders.evidence, "sched_lab")),
        "has other code of sched_lab",
    ),
    "a plug-in that is not there": (
        lambda plan, orders: replace(orders, evidence=with_code(orders.evidence, "theirlab")),
        "lacks theirlab",
    ),
    "another torch": (
        lambda plan, orders: replace(
            orders, evidence=with_version(orders.evidence, "torch", "2.0.0")
        ),
        "not 2.0.0",
    ),
    "another folder of this name": (
        lambda plan, orders: _with(orders, lambda: shutil.rmtree(plan.store.sweep("small"))),
        "does not see the store",
    ),
    "the token of an earlier submit": (
        lambda plan, orders: _with(
            orders, lambda: plan.store.token_file("small").write_text("earlier", encoding="utf-8")
        ),
        "does not see the store",
    ),
    "a later submit": (
        lambda plan, orders: _with(orders, lambda: _orders(plan)),
        "does not see the store",
    ),
    "no GPU": (lambda plan, orders: replace(orders, device="cuda"), "sees no GPU"),
    "other images": (
        lambda plan, orders: _with(orders, lambda: _photos(plan, "0.png").unlink()),
        "reads other images",
    ),
    "no images": (
        lambda plan, orders: _with(orders, lambda: shutil.rmtree(_photos(plan, "").parent)),
        "can't read the images",
    ),
}


def _with(orders: Orders, change: Callable[[], object]) -> Orders:
    change()
    return orders


def _photos(plan: Plan, name: str) -> Path:
    return plan.store.root.parent / "photos" / "a" / name


@pytest.mark.skipif(torch.cuda.is_available(), reason="here PyTorch sees a GPU")
@pytest.mark.parametrize("lack", UNFIT)
def test_a_worker_that_can_not_prove_it_leaves_the_trial_untouched(plan: Plan, lack: str) -> None:
    change, told = UNFIT[lack]
    orders = change(plan, _orders(plan))
    trial = plan.to_run[0]
    (report,) = work(trial.key, trial.spec, orders)
    assert told in report.unfit
    assert report.done
    assert not (plan.store.root / "trials").exists()


WORKS = """
import json, sys
from sched_lab.run.worker import Orders, work
from sched_lab.trainers.spec import TrialSpec
key, spec, orders = sys.argv[1:]
reports = work(key, TrialSpec.model_validate_json(spec), Orders(**json.loads(orders)))
print(*(report.unfit for report in reports))
"""


@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here")
def test_a_worker_that_sees_the_store_and_can_not_write_it_runs_nothing(plan: Plan) -> None:
    trial, orders = plan.to_run[0], json.dumps(asdict(_orders(plan)))
    only_read = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", only_read, plan.store.root,
         sys.executable, "-c", WORKS, trial.key, trial.spec.model_dump_json(), orders],
        capture_output=True, encoding="utf-8", check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.startswith("can't write the store: ")
    assert "read-only" in done.stdout


@pytest.fixture
def listening(plan: Plan) -> Iterator[tuple[Plan, Queue, SweepListener]]:
    tracker = Tracker(plan.store, "small")
    tracker.open("", plan.source.text, [], plan.ranked_by)
    queue = Queue(plan.store, plan.to_run)
    delivery = Delivery(tracker, Console(quiet=True))
    delivery.start()
    yield plan, queue, SweepListener(plan, queue, delivery)
    delivery.finish({State.FINISHED}, 5.0)


@pytest.fixture
def begun(listening: tuple[Plan, Queue, SweepListener]) -> tuple[str, Path]:
    """A trial that a worker has begun: its key, and where its result will be."""
    plan, queue, told = listening
    trial = queue.take()
    assert trial is not None
    told.started(trial.key)
    file = plan.store.trial(trial.key) / RESULT_FILE
    file.parent.mkdir(parents=True)
    return trial.key, file


def test_inline_ends_where_the_code_was_changed_meanwhile(
    listening: tuple[Plan, Queue, SweepListener],
) -> None:
    plan, queue, told = listening
    orders = _orders(plan)
    other = replace(orders, evidence=with_code(orders.evidence, "sched_lab"))
    with pytest.raises(OutOfReach, match="has other code of sched_lab"):
        executors.execute_inline(queue, other, told)
    assert not queue.over


@pytest.mark.parametrize(
    "result",
    [
        None,
        "",
        "{",
        {"key": "0" * 16, "state": "finished"},
        {"state": "failed", "failure": "bug"},
        {"state": "stopped"},
    ],
    ids=str,
)
def test_finished_without_a_result_in_the_store_is_a_lost_process(
    listening: tuple[Plan, Queue, SweepListener], begun: tuple[str, Path], result: object
) -> None:
    (plan, queue, told), (key, file) = listening, begun
    if result is not None:
        content = {"key": key} | result if isinstance(result, dict) else result
        file.write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
        )
    assert not told.reported(key, Report(20, 1.0, State.FINISHED))
    found = plan.store.result(key)
    assert found is not None
    assert (found.state, found.failure) == (State.FAILED, "lost_process")
    assert str(file.parent) in found.reason
    assert told.board.count(State.FINISHED) == 0
    assert not queue.over  # it is tried again


def test_a_result_that_the_store_shows_late_counts(
    listening: tuple[Plan, Queue, SweepListener], begun: tuple[str, Path]
) -> None:
    (_, _, told), (key, file) = listening, begun
    text = json.dumps({"key": key, "state": "finished", "scores": {"fd_random": 2.0}})
    timer = threading.Timer(0.5, file.write_text, [text, "utf-8"])
    timer.start()
    assert told.reported(key, Report(20, math.nan, State.FINISHED))
    timer.join()
    assert told.board.count(State.FINISHED) == 1


def test_a_trial_that_its_worker_must_not_run_is_no_failure_and_is_handed_out_again(
    listening: tuple[Plan, Queue, SweepListener],
) -> None:
    plan, queue, told = listening
    for _ in range(3 * len(plan.to_run)):
        trial = queue.take()
        assert trial is not None
        told.started(trial.key)
        report = Report(0, math.nan, State.ELSEWHERE, unfit="has other code of sched_lab")
        assert told.reported(trial.key, report)
    assert told.board.count(State.FAILED) == 0
    assert not plan.store.trial_keys()
    assert not queue.over


@pytest.mark.skipif(torch.cuda.is_available(), reason="here PyTorch sees a GPU")
def test_a_gpu_that_is_not_there_is_told_by_plan_and_refused_inline(
    sched_lab: Command, tmp_path: Path
) -> None:
    text = SMALL_SWEEP.replace("{cpu: 1}", "{gpu: 1}")
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    planned = sched_lab("plan", "sweep.yaml", cwd=tmp_path)
    assert planned.returncode == 0
    assert "a trial asks for 1 GPU, and PyTorch sees none here" in planned.stderr
    refused = sched_lab("submit", "sweep.yaml", "--inline", cwd=tmp_path)
    assert refused.returncode == 3
    assert "sees no GPU" in refused.stderr
    assert not (tmp_path / "lab" / "trials").exists()
