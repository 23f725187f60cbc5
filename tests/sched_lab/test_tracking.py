"""Tracking on real databases and servers: each run once, each point once, and no state that is not
so.
"""

from __future__ import annotations

import gc
import math
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from sched_lab import names
from sched_lab.errors import OutOfReach
from sched_lab.store import ends
from sched_lab.store.folder import Store
from sched_lab.store.journal import Journal, read
from sched_lab.store.records import CellRow
from sched_lab.sweep.grid import Trial
from sched_lab.tracking.client import connect, mlflow_configured
from sched_lab.tracking.courier import Courier
from sched_lab.tracking.plots import schedule_png
from sched_lab.tracking.reader import UnknownSweepError, data_shown, entry_page
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.failures import FailureKind
from sched_lab.trainers.files import write_json
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.results import State
from sched_lab.trainers.schedules import Schedule
from sched_lab.trainers.spec import TrialSpec
from tests.benchmarks.delivery import write_trials
from tests.servers import MlflowServer, free_port, mlflow_server, postgres_server

SWEEP = "tracked"
SPEC = TrialSpec()


def opened(store: Store) -> Tracker:
    tracker = Tracker(store, SWEEP)
    tracker.open("", "name: tracked", [], "fd_classifier")
    return tracker


def trial(key: str = "a", spec: TrialSpec = SPEC) -> Trial:
    return Trial(key, spec, {})


def journal(store: Store, key: str = "a") -> Journal:
    return Journal(store.trial(key) / names.JOURNAL_FILE)


def write_steps(store: Store, steps: range, key: str = "a", **end: str) -> None:
    with journal(store, key) as writing:
        writing.write(state=State.RUNNING)
        for step in steps:
            writing.write(step=step, metrics={"loss": 1 / step, "rate": math.nan})
        if end:
            writing.write(**end)


def runs(store: Store, filter_string: str = "") -> list[Any]:
    client = connect(store.tracking_uri)
    experiment = client.get_experiment_by_name(SWEEP)
    return list(
        client.search_runs(
            [experiment.experiment_id], filter_string or f"tags.`{names.ROLE}` = 'trial'"
        )
    )


def points(store: Store, key: str = "") -> Counter[tuple[str, str, int]]:
    """How often MLflow has each point, over all runs or those of one trial: (trial, metric,
    step).
    """
    client = connect(store.tracking_uri)
    return Counter(
        (run.data.tags[names.TRIAL_KEY], metric, point.step)
        for run in runs(store, key and f"tags.`{names.TRIAL_KEY}` = '{key}'")
        for metric in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, metric)
    )


def once(keys: str, steps: range, *metrics: str) -> Counter[tuple[str, str, int]]:
    return Counter(
        (key, metric, step)
        for key in keys
        for metric in metrics or ("loss", "rate")
        for step in steps
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_trial_with_5000_points_is_delivered_whole(store: Store) -> None:
    write_steps(store, range(1, 2501), state=State.FINISHED, reason="")
    assert opened(store).deliver(trial())
    assert points(store) == once("a", range(1, 2501))


def test_a_delivery_that_is_repeated_adds_nothing(store: Store) -> None:
    write_steps(store, range(1, 4))
    opened(store).deliver(trial())
    (run,) = runs(store)
    connect(store.tracking_uri).delete_tag(
        run.info.run_id, names.DELIVERED
    )  # as a driver leaves it that was killed there
    write_steps(store, range(1, 6))
    opened(store).deliver(trial())
    assert points(store) == once("a", range(1, 6))


def test_a_run_whose_creation_was_not_heard_of_is_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = opened(store)
    client = type(tracker._experiment.client)
    create = client.create_run

    def unheard(*arguments: Any, **named: Any) -> None:
        create(*arguments, **named)
        raise TimeoutError("the answer was lost")

    write_steps(store, range(1, 4))
    with monkeypatch.context() as patch:
        patch.setattr(client, "create_run", unheard)
        with pytest.raises(TimeoutError):
            tracker.deliver(trial())
    tracker.deliver(trial())
    assert len(runs(store)) == 1
    assert points(store) == once("a", range(1, 4))


@pytest.mark.parametrize("when", ["open", "close"])
def test_of_two_runs_of_one_trial_the_one_further_on_stays(store: Store, when: str) -> None:
    write_steps(store, range(1, 4))
    tracker = opened(store)
    tracker.deliver(trial())
    (told,) = runs(store)
    client = connect(store.tracking_uri)
    for role in (names.ROLE_TRIAL, names.ROLE_SWEEP):  # both creations were sent twice
        tags = {names.ROLE: role, names.SWEEP: SWEEP} | (
            {names.TRIAL_KEY: "a"} if role == names.ROLE_TRIAL else {}
        )
        client.create_run(told.info.experiment_id, tags=tags)
    if when == "open":
        Tracker(store, SWEEP)
    else:
        tracker.close(State.FINISHED)
    assert [run.info.run_id for run in runs(store)] == [told.info.run_id]
    parents = runs(store, f"tags.`{names.ROLE}` = '{names.ROLE_SWEEP}'")
    assert [run.data.tags.get(names.RANKED_BY) for run in parents] == ["fd_classifier"]


def test_a_run_whose_process_was_killed_is_brought_to_an_end_unless_another_runs_it(
    store: Store,
) -> None:
    tracker = opened(store)
    for key in "abc":
        write_steps(store, range(1, 3), key)
        tracker.deliver(trial(key))
    ends.record(store, "b", State.FAILED, "no", FailureKind.BUG)
    write_json(store.trial("b") / names.SPEC_FILE, SPEC.model_dump(mode="json"))
    with store.claimed("c"):
        tracker.close(State.STOPPED)
    found = {run.data.tags[names.TRIAL_KEY]: run for run in runs(store)}
    assert {key: run.info.status for key, run in found.items()} == {
        "a": "KILLED",
        "b": "FAILED",
        "c": "RUNNING",
    }
    assert {key: run.data.tags[names.STATE] for key, run in found.items()} == {
        "a": State.STOPPED,
        "b": State.FAILED,
        "c": State.RUNNING,
    }
    assert found["b"].data.tags[names.FAILURE] == "bug"
    write_steps(store, range(1, 5), state=State.FINISHED, reason="")  # the next submit goes on
    assert opened(store).deliver(trial())
    assert {run.data.tags[names.TRIAL_KEY]: run.info.status for run in runs(store)}[
        "a"
    ] == "FINISHED"


def test_what_a_trial_came_to_is_told_with_its_scores_or_not_at_all(store: Store) -> None:
    """The cells of two trials are taken out of a sweep whose driver was killed before their ends
    were delivered.
    """
    tracker = opened(store)
    for key in "ab":
        write_steps(store, range(1, 3), key)
        tracker.deliver(trial(key))
        write_steps(store, range(3, 5), key, state=State.FINISHED, reason="")
        result = {
            "key": key,
            "state": State.FINISHED,
            "reason": "",
            "failure": "",
            "step": 4,
            "scores": {},
        }
        write_json(store.trial(key) / names.RESULT_FILE, result)
    write_json(
        store.trial("a") / names.SPEC_FILE, SPEC.model_dump(mode="json")
    )  # b has lost its own
    opened(store).close(State.FINISHED)
    assert {run.data.tags[names.TRIAL_KEY]: run.info.status for run in runs(store)} == {
        "a": "FINISHED",
        "b": "KILLED",
    }
    assert points(store) == once("a", range(1, 5)) + once("b", range(1, 3))


@pytest.fixture
def served(store: Store, tmp_path: Path) -> Iterator[Store]:
    """A store whose runs are on a server."""
    with mlflow_server(tmp_path) as running:
        yield Store.at(store.root, running.uri)


@pytest.mark.slow
def test_two_stores_with_one_server_leave_each_others_runs_alone(
    served: Store, tmp_path: Path
) -> None:
    theirs = Store.at(tmp_path / "theirs", served.tracking_uri)
    trackers = {served: opened(served), theirs: opened(theirs)}
    for where, tracker in trackers.items():  # both have begun the same trial
        write_steps(where, range(1, 3))
        tracker.deliver(trial())
    with theirs.claimed("a"):
        Tracker(served, SWEEP).close(State.STOPPED)
        assert sorted(run.info.status for run in runs(served)) == ["KILLED", "RUNNING"]
        write_steps(theirs, range(3, 5), state=State.FINISHED, reason="")
    assert trackers[theirs].deliver(trial())
    Tracker(served, SWEEP)
    assert sorted(run.info.status for run in runs(served)) == ["FINISHED", "KILLED"]
    assert points(served) == once("a", range(1, 3)) + once("a", range(1, 5))
    assert len({run.data.tags[names.STORE] for run in runs(served)}) == 2


def test_runs_of_trials_that_a_sweep_no_longer_has_are_told_apart_until_it_has_them_again(
    store: Store,
) -> None:
    for key in "ab":
        write_steps(store, range(1, 3), key, state=State.FINISHED, reason="")
        opened(store).deliver(trial(key))

    def submitted(*keys: str) -> dict[str, tuple[bool, bool]]:
        size = {"resolution": "8"}
        cells = [CellRow.model_construct(key=key, settings={}, params=size) for key in keys]
        Tracker(store, SWEEP).open("", "name: tracked", cells, "fd_classifier")
        return {
            run.data.tags[names.TRIAL_KEY]: (
                names.SUPERSEDED in run.data.tags,
                run.info.run_name.startswith("earlier: 8px"),
            )
            for run in runs(store)
        }

    assert submitted("a", "b") == {"a": (False, False), "b": (False, False)}
    for _ in range(2):
        assert submitted("b", "c") == {"a": (True, True), "b": (False, False)}
    assert submitted("a", "b") == {"a": (False, False), "b": (False, False)}
    assert points(store) == once("ab", range(1, 3))


@pytest.mark.slow
def test_a_store_goes_on_with_the_run_of_another_that_has_ended_and_says_so(
    served: Store, tmp_path: Path
) -> None:
    write_steps(served, range(1, 3), state=State.STOPPED, reason="")
    opened(served).deliver(trial())
    (before,) = runs(served)
    theirs = Store.at(tmp_path / "theirs", served.tracking_uri)
    write_steps(theirs, range(1, 5))
    opened(theirs).deliver(trial())
    (run,) = runs(served)
    assert run.info.run_id == before.info.run_id
    assert run.data.tags[names.STORE] != before.data.tags[names.STORE]
    assert points(served) == once("a", range(1, 5))
    opened(served).close(State.STOPPED)
    assert runs(served)[0].info.status == "RUNNING"


def test_opening_reads_in_pages_without_looking_for_garbage_and_closing_reads_no_ended_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sched_lab.tracking.client.PAGE", 2)
    tracker = opened(store)
    for key in "abcd":
        write_steps(store, range(1, 3), key, state=State.FINISHED, reason="")
        tracker.deliver(trial(key))
    collecting, read_runs = [], []
    search = type(tracker._experiment.client).search_runs

    def watched(*arguments: Any, **named: Any) -> Any:
        page = search(*arguments, **named)
        collecting.append(gc.isenabled())
        read_runs.extend(page)
        return page

    monkeypatch.setattr(type(tracker._experiment.client), "search_runs", watched)
    tracker = opened(store)
    assert collecting == [False] * 3
    assert gc.isenabled()
    assert all(map(tracker.deliver, map(trial, "abcd")))
    assert len(read_runs) == 5
    tracker.close(State.FINISHED)
    assert len(read_runs) == 6  # the sweep's own


def test_tracking_leaves_the_environment_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    before = dict(os.environ)
    write_steps(store, range(1, 3), state=State.FINISHED, reason="")
    tracker = opened(store)
    courier = Courier(tracker, period=0.01)
    courier.follow(trial())
    courier.start()
    assert courier.drain(60)
    courier.join(5)
    tracker.close(State.FINISHED)
    assert dict(os.environ) == before


def test_settings_stay_until_the_last_thread_leaves_and_those_of_the_user_stay_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retries, timeout = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
    monkeypatch.delenv(retries, raising=False)
    monkeypatch.setenv(timeout, "7")
    entered, leave = threading.Event(), threading.Event()

    def request() -> None:
        with mlflow_configured():
            entered.set()
            leave.wait(10)

    with mlflow_configured():
        other = threading.Thread(target=request)
        other.start()
        assert entered.wait(10)
    assert (os.environ[retries], os.environ[timeout]) == ("0", "7")
    leave.set()
    other.join()
    assert retries not in os.environ
    assert os.environ[timeout] == "7"


def test_a_run_keeps_which_images_its_trial_was_about_and_shows_some(store: Store) -> None:
    facts = DataFacts(source="digits", images=1797, classes={"0": 178, "1": 1619})
    write_json(store.trial("a") / names.FACTS_FILE, facts.model_dump())
    Image.new("L", (8, 8), 7).save(store.trial("a") / names.REAL_FILE)
    write_steps(store, range(1, 2), state=State.FINISHED, reason="")
    assert opened(store).deliver(trial())
    (run,) = runs(store)
    assert f"path={names.REAL_FILE}" in run.data.tags[names.NOTE]
    read, grid = data_shown(run.info.run_id, store.tracking_uri)
    assert read == facts
    assert grid == (store.trial("a") / names.REAL_FILE).read_bytes()
    write_steps(store, range(1, 2), "b", state=State.FINISHED, reason="")
    assert opened(store).deliver(trial("b"))
    (other,) = runs(store, "tags.`sched_lab.trial_key` = 'b'")
    assert data_shown(other.info.run_id, store.tracking_uri) == (None, b"")


def test_pages_open_on_the_sweep_that_is_named_or_the_only_one_else_on_all(store: Store) -> None:
    def entry(name: str | None = None) -> str:
        return entry_page(name, store.tracking_uri)

    cells = [CellRow(key=size, settings={}, params={"resolution": size}) for size in ("16", "8")]
    Tracker(store, "one").open("", "", cells, "fd_classifier")
    trials = "#/experiments/1/runs?workflowType=machine_learning"
    assert entry() == entry("one") == f"{trials}&viewStateShareKey=best-8"
    Tracker(store, "two").open("", "", [], "fd_classifier")
    assert entry() == "#/experiments?workflowType=machine_learning"
    assert entry("two") == trials.replace("1", "2")
    with pytest.raises(UnknownSweepError, match="did you mean 'two'"):
        entry("tow")


def test_the_picture_of_a_schedule_is_drawn_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw(schedule: Schedule, b: float) -> bytes:
        drawn.append((schedule, b))
        return schedule_png(schedule, b)

    monkeypatch.setattr("sched_lab.tracking.plots.schedule_png", draw)
    tracker = opened(store)
    scales = {"a": 0.31, "b": 0.31, "c": 0.32}
    for key, b in scales.items():
        write_steps(store, range(1, 2), key, state=State.FINISHED, reason="")
        assert tracker.deliver(trial(key, SPEC.model_copy(update={"b": b})))
    assert [b for _, b in drawn] == [0.31, 0.32]
    client = connect(store.tracking_uri)
    for run in runs(store):
        files = {item.path: item.file_size for item in client.list_artifacts(run.info.run_id)}
        assert files.keys() == {names.SPEC_FILE, names.ENVIRONMENT_FILE, names.SCHEDULE_FILE}
        assert files[names.SCHEDULE_FILE] > 1000


def test_a_failure_has_a_kind_and_a_reason_until_the_trial_goes_on(store: Store) -> None:
    tracker = opened(store)

    def told() -> tuple[str, str, str, str]:
        tracker.deliver(trial())
        (run,) = runs(store)
        tags = run.data.tags
        return run.info.status, tags[names.STATE], tags[names.REASON], tags[names.FAILURE]

    with journal(store) as writing:
        writing.write(state=State.RUNNING, pid=1)
        writing.write(state=State.RUNNING, reason="retry 1 after OSError: disk", failure="bug")
        assert told() == ("RUNNING", "running", "retry 1 after OSError: disk", "")
        writing.write(state=State.RUNNING, pid=2)
        assert told() == ("RUNNING", "running", "retry 1 after OSError: disk", "")
        writing.write(state=State.FAILED, reason="MemoryError: 9 GB", failure="out_of_memory")
        assert told() == ("FAILED", "failed", "MemoryError: 9 GB", "out_of_memory")
        writing.write(state=State.RUNNING, pid=3)
        assert told() == ("RUNNING", "running", "", "")
        writing.write(
            step=9, metrics={"seconds/total": 1.0}, state=State.FINISHED, reason="", failure=""
        )
        assert told() == ("FINISHED", "finished", "", "")


def test_a_reason_no_database_would_take_is_told_as_far_as_it_goes(store: Store) -> None:
    write_steps(
        store,
        range(1, 2),
        state=State.FAILED,
        reason="nul \0 and \udc80, at length " + "x" * 10_000,
    )
    opened(store).deliver(trial())
    reason = runs(store)[0].data.tags[names.REASON]
    assert reason.startswith("nul  and ?, at length xxx")
    assert len(reason) == 5000


def test_the_end_of_a_log_stands_with_its_run(store: Store, tmp_path: Path) -> None:
    write_steps(store, range(1, 2), "a", state=State.FAILED, reason="no")
    write_steps(store, range(1, 2), "b", state=State.FINISHED, reason="")
    (store.trial("a") / names.LOG_FILE).write_text(
        "".join(f"line {number}\n" for number in range(200_000)), "utf-8"
    )
    (store.trial("b") / names.LOG_FILE).write_text("", "utf-8")
    tracker = opened(store)
    tracker.deliver(trial("a"))
    tracker.deliver(trial("b"))
    client = connect(store.tracking_uri)
    found = {run.data.tags[names.TRIAL_KEY]: run.info.run_id for run in runs(store)}
    log = Path(client.download_artifacts(found["a"], names.LOG_FILE, str(tmp_path))).read_text(
        "utf-8"
    )
    assert log.startswith("line ")
    assert log.endswith("line 199999\n")
    assert 1_000_000 < len(log) <= 2**20
    assert names.LOG_FILE not in {item.path for item in client.list_artifacts(found["b"])}


def test_a_setting_too_long_for_mlflow_is_left_out_and_a_name_is_cut(store: Store) -> None:
    spec = TrialSpec.model_validate({"data": {"source": "folder", "path": "/" + "x" * 7000}})
    object.__setattr__(spec, "schedule", "linear" + " " * 400)
    write_steps(store, range(1, 2), state=State.FINISHED, reason="")
    assert opened(store).deliver(trial(spec=spec))
    (run,) = runs(store)
    assert "data.path" not in run.data.params
    assert run.data.params["b"] == "1.0"
    assert len(run.info.run_name) == 250


def test_a_trial_that_mlflow_refuses_is_named_and_holds_no_other_up(store: Store) -> None:
    with journal(store, "a") as writing:
        writing.write(step=1, metrics={"fd_what?": 1.0})
    write_steps(store, range(1, 4), "b", state=State.FINISHED, reason="")
    courier = Courier(opened(store), period=0.05)
    for key in "ab":
        courier.follow(trial(key))
    courier.start()
    assert not courier.drain(0.5)
    assert courier.error.startswith("trial a: ")
    assert "fd_what?" in courier.error
    assert points(store) == once("b", range(1, 4))


def test_results_that_are_taken_one_by_one_are_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tracker, "in_flight", 1)
    tracker = opened(store)
    courier = Courier(tracker, period=0.05)
    deliver = tracker.deliver
    waiting: list[int] = []

    def slowly(which: Trial) -> bool:
        waiting.append(courier.waiting)
        time.sleep(0.3)
        return deliver(which)

    tracker.deliver = slowly  # type: ignore[method-assign]
    for key in "abcdefgh":
        write_steps(store, range(1, 3), key)
        courier.follow(trial(key))
    courier._finish.set()
    courier.start()
    assert courier.drain(patience=2.0), courier.error  # all of it takes longer
    assert waiting == [8, 7, 6, 5, 4, 3, 2, 1]
    assert courier.waiting == 0
    assert points(store) == once("abcdefgh", range(1, 3))


def test_a_courier_that_was_given_up_begins_no_other_delivery(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tracker, "in_flight", 1)
    tracker = opened(store)
    courier = Courier(tracker, period=0.05)
    answered, begun = threading.Event(), []

    def stuck(which: Trial) -> bool:
        begun.append(which.key)
        return answered.wait(30)

    tracker.deliver = stuck  # type: ignore[method-assign]
    for key in "ab":
        courier.follow(trial(key))
    courier.start()
    wait_for(lambda: begun == ["a"])
    start = time.monotonic()
    assert not courier.drain(0.2)
    assert time.monotonic() - start < 5
    assert courier.error == "no answer within 0.2 seconds"
    assert courier.is_alive()
    answered.set()
    courier.join(5)
    assert not courier.is_alive()
    assert begun == ["a"]


def test_a_trial_followed_again_while_its_end_is_delivered_is_not_forgotten(store: Store) -> None:
    tracker = opened(store)
    courier = Courier(tracker, period=0.01)
    deliver = tracker.deliver

    def taken_up_again_meanwhile(which: Trial) -> bool:
        complete = deliver(which)
        courier.follow(which)
        return complete

    tracker.deliver = taken_up_again_meanwhile  # type: ignore[method-assign]
    write_steps(store, range(1, 3), state=State.FAILED, reason="no")
    courier.follow(trial())
    courier.start()
    wait_for(lambda: points(store) == once("a", range(1, 3)))
    write_steps(store, range(1, 5))
    assert courier.drain(10)
    assert points(store) == once("a", range(1, 5))


def test_lines_that_end_where_lost_ones_ended_are_told_too(store: Store) -> None:
    """The disk loses what it had confirmed, and what is written in its place is as long to the
    byte.
    """
    path = store.trial("a") / names.JOURNAL_FILE
    tracker = opened(store)
    write_steps(store, range(1, 2))
    before = path.read_bytes()
    write_steps(store, range(2, 6))
    tracker.deliver(trial())
    path.write_bytes(before)
    with journal(store) as writing:
        writing.write(state=State.RUNNING)
        for step in (2, 3, 4):
            writing.write(step=step, metrics={"loss": 1 / step, "rate": math.nan})
        writing.write(state=State.FINISHED)
    content = path.read_bytes()
    _, delivered = read(path)
    tracker._runs["a"].end = delivered  # whatever the lines' lengths are
    assert content.endswith(b"\n")
    assert tracker.deliver(trial())
    assert points(store) == once("a", range(1, 6))


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.slow
def test_whatever_is_cut_off_or_damaged_every_step_is_told_once(
    store: Store, data: st.DataObject
) -> None:
    """A trial of 12 steps: some are delivered, the disk loses or damages some, the trial goes on
    from before that.
    """
    key = secrets.token_hex(8)  # hypothesis sets the seed of `random` anew for each example
    path = store.trial(key) / names.JOURNAL_FILE
    tracker = opened(store)
    delivered, written = sorted(
        data.draw(st.tuples(st.integers(1, 11), st.integers(1, 11)), label="steps")
    )
    write_steps(store, range(1, delivered + 1), key)
    tracker.deliver(trial(key))
    _, end = read(path)
    write_steps(store, range(1, written + 1), key)
    content = path.read_bytes()
    parts = st.floats(0, 1)  # not bytes: lines written at another time have another length
    keep = end if data.draw(st.booleans(), label="synced") else 0  # another store may lose more
    content = content[: keep + round(data.draw(parts, label="cut") * (len(content) - keep))]
    lost = content.count(b'"step"')
    if data.draw(st.booleans(), label="damage"):
        at = int(data.draw(parts, label="at") * len(content))
        noise = data.draw(st.binary(min_size=1, max_size=20), label="noise")
        content = (content[:at] + noise + content[at + len(noise) :])[: len(content)]
        lost = content[:at].count(b'"step"')
    path.write_bytes(content)
    if data.draw(st.booleans(), label="delivered at once"):
        tracker.deliver(trial(key))
    if data.draw(st.booleans(), label="new driver"):
        tracker = opened(store)
    resumed = int(data.draw(parts, label="checkpoint") * max(0, lost - 1))
    write_steps(store, range(resumed + 1, 13), key, state=State.FINISHED, reason="")
    assert tracker.deliver(trial(key))
    assert points(store, key) == {
        (key, metric, step): 1 for metric in ("loss", "rate") for step in range(1, 13)
    }


def test_a_server_that_is_not_there_is_out_of_reach_at_once_and_keeps_its_password(
    tmp_path: Path,
) -> None:
    pytest.importorskip("psycopg")
    for scheme in ("http", "postgresql"):
        start = time.monotonic()
        with pytest.raises(OutOfReach, match=r"u:\*\*\*@127") as caught:
            Tracker(Store.at(tmp_path, f"{scheme}://u:hunter22@127.0.0.1:{free_port()}/x"), SWEEP)
        assert "hunter22" not in str(caught.value)
        assert time.monotonic() - start < 20


SUBMITS = """
import sys, time
from pathlib import Path
from sched_lab import names
from sched_lab.sweep.grid import Trial
from sched_lab.store.journal import Journal
from sched_lab.store.folder import Store
from sched_lab.tracking.courier import Courier
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.spec import TrialSpec
store, sweep = Store.at(sys.argv[1], sys.argv[2] or None), sys.argv[3]
import mlflow
while time.time() < float(sys.argv[4]):
    time.sleep(0.001)
tracker = Tracker(store, sweep)
tracker.open("", "", [], "fd")
courier = Courier(tracker, period=0.01)
trial = Trial(sweep, TrialSpec(), {})
courier.follow(trial)
courier.start()
with Journal(store.trial(sweep) / names.JOURNAL_FILE) as journal:
    for step in range(100):
        journal.write(step=step, metrics={f"metric{number}": 1.0 for number in range(20)})
        time.sleep(0.02)
    journal.write(state="finished", reason="")
assert courier.drain(60), courier.error
tracker.close("finished")
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """A tracking URI of an empty database: None is the store's own SQLite."""
    if request.param == "sqlite":
        yield None
        return
    with postgres_server() as server:
        yield server.uri


@pytest.mark.slow
def test_sweeps_submitted_in_the_same_instant_create_one_database_and_lose_nothing(
    tmp_path: Path, new_database: str | None
) -> None:
    at = time.time() + 8
    commands = [
        [
            sys.executable,
            "-c",
            SUBMITS,
            str(tmp_path / "lab"),
            new_database or "",
            f"sweep{number}",
            str(at),
        ]
        for number in range(3)
    ]
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") for command in commands
    ]
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    client = connect(Store.at(tmp_path / "lab", new_database).tracking_uri)
    for number in range(3):
        experiment = client.get_experiment_by_name(f"sweep{number}").experiment_id
        (run,) = client.search_runs([experiment], f"tags.`{names.ROLE}` = 'trial'")
        for metric in (f"metric{n}" for n in range(20)):
            assert [
                point.step for point in client.get_metric_history(run.info.run_id, metric)
            ] == list(range(100))


@pytest.mark.slow
def test_points_told_twice_stand_once_in_every_database(
    tmp_path: Path, new_database: str | None
) -> None:
    from mlflow.entities import Metric

    store = Store.at(tmp_path / "lab", new_database)
    client = connect(store.tracking_uri)
    run = client.create_run("0").info.run_id
    values = (1 / 3, math.nan, math.inf, -0.0, 1e-310)
    told = [
        Metric(f"m{number}", value, 1000 + step, step)
        for number, value in enumerate(values)
        for step in range(9)
    ]
    client.log_batch(run, told[:20])
    client.log_batch(run, told)
    client.log_batch(run, told)
    assert sum(len(client.get_metric_history(run, f"m{number}")) for number in range(5)) == len(
        told
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MlflowServer]:
    if request.param == "sqlite":
        with mlflow_server(tmp_path) as running:
            yield running
    else:
        with postgres_server() as database, mlflow_server(tmp_path, database.uri) as running:
            yield running


@pytest.mark.slow
def test_an_outage_delays_what_is_told_and_loses_or_doubles_nothing(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three trials train while the server is killed, hangs longer than a request may take, and is
    stopped.
    """
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    store = Store.at(tmp_path / "lab", server.uri)
    tracker = opened(store)
    courier = Courier(tracker, period=0.05)
    written, halt = Counter[str](), threading.Event()

    def train(key: str) -> None:
        with journal(store, key) as writing:
            writing.write(state=State.RUNNING)
            while not halt.wait(0.01):
                written[key] += 1
                writing.write(
                    step=written[key], metrics={"loss": 1 / written[key], "rate": math.nan}
                )
            writing.write(state=State.FINISHED, reason="")

    def begin(key: str) -> None:
        courier.follow(trial(key))
        writers.append(threading.Thread(target=train, args=(key,)))
        writers[-1].start()

    writers: list[threading.Thread] = []
    courier.start()
    begin("a")
    wait_for(lambda: written["a"] > 20)
    server.kill()
    begin("b")
    wait_for(lambda: courier.error != "")
    assert courier.error.startswith("trial ")
    server.start()
    wait_for(lambda: courier.error == "")
    server.pause()
    begin("c")  # its creation is taken by the server, and the answer comes too late
    time.sleep(5)
    before = written.copy()
    time.sleep(0.2)
    assert all(written[key] > before[key] for key in "abc")  # training never waits
    server.resume()
    wait_for(lambda: courier.error == "")
    server.stop()
    time.sleep(0.3)
    halt.set()
    for writer in writers:
        writer.join()
    assert not courier.drain(1.0)
    server.start()
    tracker = opened(store)  # the next submit
    courier = Courier(tracker, period=0.05)
    for key in "abc":
        courier.follow(trial(key))
    courier.start()
    assert courier.drain(60), courier.error
    tracker.close(State.FINISHED)
    assert points(store) == sum((once(key, range(1, written[key] + 1)) for key in "abc"), Counter())
    assert [run.info.status for run in runs(store)] == ["FINISHED"] * 3
    assert len(runs(store, f"tags.`{names.ROLE}` = '{names.ROLE_SWEEP}'")) == 1


@pytest.mark.slow
def test_many_trials_in_flight_while_the_server_is_killed_stand_there_once(
    server: MlflowServer, tmp_path: Path
) -> None:
    """The server is killed twice in the middle, and one driver with it."""
    store = Store.at(tmp_path / "lab", server.uri)
    trials = write_trials(store, 24)
    keys = {trial.key for trial in trials}
    for left in (16, 8):
        tracker = opened(store)
        courier = Courier(tracker, period=0.05)
        for each in trials:
            courier.follow(each)
        courier.start()
        while courier.waiting > left:
            time.sleep(0.01)
        server.kill()
        while not courier.error:
            time.sleep(0.01)
        if left == 16:  # this driver gives up; the next one goes on when the server is back
            assert not courier.drain(0.2)
        server.start()
    assert courier.drain(60), courier.error
    tracker.close(State.FINISHED)
    found = runs(store)
    assert Counter(run.data.tags[names.TRIAL_KEY] for run in found) == Counter(keys)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert set(points(store).values()) == {1}
    client = connect(store.tracking_uri)
    for run in found:
        told = {
            name: value
            for event in read(store.trial(run.data.tags[names.TRIAL_KEY]) / names.JOURNAL_FILE)[0]
            for name, value in event.metrics.items()
        }
        assert run.data.metrics == pytest.approx(told)
        files = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert files >= {
            names.SPEC_FILE,
            names.SCHEDULE_FILE,
            names.LOSS_FILE,
            names.GALLERY_FOLDER,
        }
        gallery = client.list_artifacts(run.info.run_id, names.GALLERY_FOLDER)
        assert sorted(Path(item.path).suffix for item in gallery) == [".png", ".webp"]


ENDS_WHILE_IT_HANGS = """
import os, signal, sys, time
from sched_lab.sweep.grid import Trial
from sched_lab.store.folder import Store
from sched_lab.tracking.courier import Courier
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.spec import TrialSpec
tracker = Tracker(Store.at(sys.argv[1], sys.argv[2]), "tracked")
tracker.open("", "", [], "fd")
courier = Courier(tracker, period=0.05)
courier.follow(Trial("a", TrialSpec(), {}))
print("ready", flush=True)
sys.stdin.readline()
courier.start()
time.sleep(0.5)
start = time.monotonic()
print(courier.drain(1.0), courier.error, time.monotonic() - start < 2, flush=True)
"""


@pytest.mark.slow
def test_a_server_that_hangs_keeps_no_driver_from_its_end(tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as server:
        store = Store.at(tmp_path / "lab", server.uri)
        write_steps(store, range(1, 4), state=State.FINISHED, reason="")
        driver = subprocess.Popen(
            [sys.executable, "-c", ENDS_WHILE_IT_HANGS, str(store.root), server.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "ready\n"
            server.pause()
            start = time.monotonic()
            said, _ = driver.communicate("\n", timeout=20)
            assert said == "False no answer within 1 seconds True\n"
            assert driver.returncode == 0
            assert time.monotonic() - start < 10
        finally:
            driver.kill()
        server.resume()
        tracker = opened(store)
        assert tracker.deliver(trial())
        tracker.close(State.FINISHED)
        assert points(store) == once("a", range(1, 4))


@pytest.mark.parametrize("apart", [0.0, 0.02])
def test_pictures_are_drawn_for_threads_that_need_matplotlib_for_the_first_time(
    apart: float,
) -> None:
    """Two imports at once may wait for each other; Python then shows one of them half a module."""
    script = f"""
import threading, time
from sched_lab.tracking.plots import loss_png, schedule_png
from sched_lab.trainers.schedules import parse
def draw(i):
    time.sleep(i * {apart})
    loss_png(parse("linear"), 1.0, {{0.0: 1.0}}) if i % 2 else schedule_png(parse("cosine"), 0.5)
    print("drawn")
for i in range(8):
    threading.Thread(target=draw, args=(i,)).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert (done.stdout.split(), done.stderr) == (["drawn"] * 8, "")
