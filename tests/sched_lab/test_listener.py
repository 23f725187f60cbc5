"""What follows from a trial's end within one submission: it is run again, or shown as the best."""

from __future__ import annotations

import pytest

from sched_lab.names import REAL, UNTRAINED
from sched_lab.run.listener import is_retried
from sched_lab.run.progress import Board
from sched_lab.store.folder import Store
from sched_lab.sweep.grid import Trial
from sched_lab.sweep.spec import RunSpec
from sched_lab.trainers.results import State, TrialResult, write_result
from sched_lab.trainers.spec import TrialSpec


@pytest.mark.parametrize(
    ("failures", "retried"),
    [
        (["bug"], True),
        (["bug", "bug"], False),  # once, by default
        (["diverged"], False),
        (["bad_data"], False),
        (["lost_process"] * 3, True),
        (["lost_process"] * 4, False),  # max_failures
        (["lost_process", "out_of_memory", "bug"], True),
        (["bug", "lost_process", "lost_process", "bug"], False),
    ],
)
def test_each_kind_and_all_kinds_together_limit_the_retries(
    failures: list[str], retried: bool
) -> None:
    assert is_retried(RunSpec(), failures) == retried


def test_no_retries_are_made_where_none_are_wanted() -> None:
    assert not is_retried(RunSpec(max_failures=0), ["lost_process"])
    assert is_retried(RunSpec.model_validate({"retries": {"diverged": 1}}), ["diverged"])


def test_of_trials_that_draw_noise_none_is_shown_as_the_best_so_far(store: Store) -> None:
    def finish(board: Board, key: str, score: float, untrained: float) -> None:
        known = {f"{REAL}fd_classifier": 1.0, f"{UNTRAINED}fd_classifier": untrained}
        result = TrialResult(
            key=key, state=State.FINISHED, step=1, scores={"fd_classifier": score}, baselines=known
        )
        write_result(store.trial(key), result)
        board.ended(key, State.FINISHED)

    trials = [Trial(each * 16, TrialSpec(resolution=8, seed=i), {}) for i, each in enumerate("abc")]
    board = Board(store, "s", [], trials, lambda: ())
    finish(board, "a" * 16, 99.0, untrained=100.0)
    assert not board.best_lines()
    finish(board, "b" * 16, 120.0, untrained=300.0)
    finish(board, "c" * 16, 150.0, untrained=300.0)
    (line,) = board.best_lines()
    assert " 120 " in line
    (line,) = Board(store, "s", trials, [], lambda: ()).best_lines()  # submitted again
    assert " 120 " in line
