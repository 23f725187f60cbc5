"""Time left is told from a sweep's own shapes, with a range, and never as 0 where it is unknown."""

from __future__ import annotations

import heapq
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sched_lab import names
from sched_lab.run import cost
from sched_lab.run.progress import Board
from sched_lab.store.folder import Store
from sched_lab.store.journal import Journal
from sched_lab.sweep.grid import Trial
from sched_lab.trainers.files import write_json
from sched_lab.trainers.results import State, TrialResult, write_result
from sched_lab.trainers.spec import TrialSpec

rates_of_parts = st.fixed_dictionaries(dict.fromkeys(cost.PARTS, st.floats(1e-5, 1e-2)))


def spec(resolution: int = 16, seed: int = 0, **train: object) -> TrialSpec:
    return TrialSpec.model_validate(
        {"resolution": resolution, "seed": seed, "train": {"steps": 100, **train}}
    )


def took(spec: TrialSpec, rates: dict[str, float], first: bool = False) -> dict[str, float]:
    """Seconds by part, as a trial's result tells them; the first one prepares what is shared."""
    seconds = {part: rates[part] * amount for part, amount in cost.amounts(spec).items()}
    seconds["prepare"] *= 10 if first else 1
    return {**seconds, "total": sum(seconds.values())}


def finish(store: Store, key: str, of: TrialSpec, seconds: dict[str, float]) -> None:
    write_json(store.trial(key) / names.SPEC_FILE, of.model_dump(mode="json"))
    environment = {"device": "cpu: a"}
    result = TrialResult(
        key=key, state=State.FINISHED, seconds=seconds, environment=environment, scores={}, step=100
    )
    write_result(store.trial(key), result)


def test_what_scores_are_compared_with_is_part_of_the_time() -> None:
    of, known = spec(), dict.fromkeys(cost.PARTS, 0.01)
    without, learned = cost.Rates(), cost.Rates()
    seconds = took(of, known)
    without.add_trial(of, seconds | {"prepare": seconds["prepare"] + 7.0})
    learned.add_trial(of, seconds | {"baselines": 7.0})
    assert learned.seconds(cost.cost(of)) == without.seconds(cost.cost(of))


@given(rates_of_parts, st.integers(2, 40), st.integers(1, 4))
def test_after_the_first_trial_the_rest_is_known_within_a_factor_of_1_3(
    rates: dict[str, float], count: int, slots: int
) -> None:
    """Of trials of one shape, which vary by a twentieth, as they are run on some slots."""
    of = spec()
    learned = cost.Rates()
    learned.add_trial(of, took(of, rates, first=True))
    ends = [0.0] * slots
    for number in range(count):
        varied = {part: value * (1 + 0.05 * math.sin(number)) for part, value in rates.items()}
        heapq.heapreplace(ends, ends[0] + took(of, varied)["total"])
    told = cost.left([], [learned.seconds(cost.cost(of))] * count, slots)
    assert max(ends) / 1.3 < told.likely < max(ends) * 1.3
    assert told.low < max(ends) < told.high


@given(rates_of_parts, st.lists(st.sampled_from([8, 32, 64])))
def test_an_estimate_does_not_depend_on_trials_of_other_shapes(
    rates: dict[str, float], sizes: list[int]
) -> None:
    of, learned = spec(), cost.Rates()
    learned.add_trial(of, took(of, rates))
    alone = learned.seconds(cost.cost(of))
    for size in sizes:
        learned.add_trial(spec(size), took(spec(size), dict.fromkeys(rates, 1e-3)))
    assert learned.seconds(cost.cost(of)) == alone


@given(rates_of_parts, st.lists(st.floats(0, 1), min_size=4))
def test_what_is_done_only_lowers_what_is_left_and_never_below_0(
    rates: dict[str, float], shares: list[float]
) -> None:
    of, learned = spec(), cost.Rates()
    learned.add_trial(of, took(of, rates))
    before = math.inf
    for share in [*sorted(shares), 1.0, 2.0]:
        done = {part: share * amount for part, amount in cost.amounts(of).items()}
        told = learned.seconds(cost.cost(of), done)
        assert 0 <= told.low <= told.likely <= told.high
        assert told.likely <= before
        before = told.likely
    assert before == 0


def test_what_no_trial_tells_is_not_known(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    assert not cost.Rates().seconds(cost.cost(spec())).is_known
    assert not cost.Rates().total([spec()]).is_known
    assert cost.Rates().total([]) == (0, 0, 0)
    known = cost.Seconds(1, 2, 3)
    assert not cost.left([known], [cost.UNKNOWN], 2).is_known
    board = Board(store, "s", [], [Trial("a", spec(), {})], lambda: ())
    assert "time left not known yet" in board.summary()


@pytest.mark.parametrize("resolution", [8, 16, 64])
def test_an_image_size_that_no_trial_had_is_told_from_the_nearest_with_a_wider_range(
    resolution: int,
) -> None:
    learned = cost.Rates()
    learned.add_trial(spec(32), took(spec(32), dict.fromkeys(cost.PARTS, 1e-3)))
    known = learned.seconds(cost.cost(spec(32)))
    told = learned.seconds(cost.cost(spec(resolution)))
    assert told.low <= told.likely <= told.high
    assert told.high / told.low > known.high / known.low


def test_the_present_run_outweighs_earlier_ones_and_other_devices_do_not_count(
    tmp_path: Path,
) -> None:
    store, of = Store.at(tmp_path), spec()
    slow, quick = dict.fromkeys(cost.PARTS, 1e-2), dict.fromkeys(cost.PARTS, 1e-3)
    finish(store, "a" * 16, of, took(of, slow))
    earlier = cost.measured(store, store.trial_keys(), [of])
    assert earlier.total([of]).likely == pytest.approx(took(of, slow)["total"], rel=0.05)
    assert not cost.measured(store, store.trial_keys(), [of], "cuda").total([of]).is_known
    trials = [
        Trial(character * 16, spec(seed=number), {}) for number, character in enumerate("bcd", 1)
    ]
    board = Board(store, "s", [], trials, lambda: ())
    assert board.seconds_left().likely == pytest.approx(3 * took(of, slow)["total"], rel=0.05)
    board.started("b" * 16)
    finish(store, "b" * 16, trials[0].spec, took(of, quick))
    board.ended("b" * 16, State.FINISHED)
    assert board.seconds_left().likely == pytest.approx(2 * took(of, quick)["total"], rel=0.05)


def test_a_running_trial_tells_its_own_pace(tmp_path: Path) -> None:
    store, trial = Store.at(tmp_path), Trial("a" * 16, spec(), {})
    board = Board(store, "s", [], [trial], lambda: ())
    board.started(trial.key)
    with Journal(store.trial(trial.key) / names.JOURNAL_FILE) as journal:
        journal.write(state=State.RUNNING, pid=1)
        assert not board.seconds_left().is_known
        board.summary()
        journal.write(step=10, metrics={names.LOSS: 1.0, names.IMAGES_PER_SECOND: 640.0})
        board.summary()
        guess = board.seconds_left()  # how long sampling takes is guessed from training
        assert guess.is_known
        assert guess.high / guess.low > 2
        finish(store, "b" * 16, trial.spec, took(trial.spec, dict.fromkeys(cost.PARTS, 1e-9)))
    board = Board(store, "s", [], [trial], lambda: ())
    board.started(trial.key)
    board.summary()
    with Journal(store.trial(trial.key) / names.JOURNAL_FILE) as journal:
        journal.write(step=50, metrics={names.LOSS: 1.0, names.IMAGES_PER_SECOND: 640.0})
    board.summary()
    assert board.seconds_left().likely == pytest.approx(50 * trial.spec.train.batch / 640, rel=0.05)


# Seconds of preparing, training, sampling and scoring of the trials of 8 pixels in the quickstart,
# on two busy cores, in the order of their ends.
RECORDED = (
    (10.6, 118.9, 22.2, 0.1),
    (15.5, 124.5, 15.0, 0.1),
    (0.1, 123.7, 26.3, 0.1),
    (0.1, 128.4, 27.4, 0.2),
)


def test_after_the_first_recorded_trial_the_others_are_known_within_a_factor_of_1_3() -> None:
    of = TrialSpec.model_validate(
        {
            "resolution": 8,
            "train": {"steps": 600},
            "sample": {"count": 1000, "steps": 25},
        }
    )
    learned = cost.Rates()
    learned.add_trial(of, dict(zip(cost.PARTS, RECORDED[0], strict=True)))
    rest = [sum(seconds) for seconds in RECORDED[2:]]
    told = cost.left([], [learned.seconds(cost.cost(of))] * len(rest), 1)
    assert sum(rest) / 1.3 < told.likely < sum(rest) * 1.3
    assert told.low < sum(rest) < told.high
