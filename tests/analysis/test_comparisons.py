"""Which runs are compared with one another, and the tests between them, against naive and SciPy's
own versions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ttest_rel

from sched_lab.analysis.statistics import comparisons
from sched_lab.analysis.statistics.comparisons import Cells, beaten, differences, holm, set_apart
from sched_lab.trainers.results import State

FD = "fd_classifier"


def run(**settings: Any) -> dict[str, Any]:
    """A finished run as MLflow has it, with these settings changed."""
    return {
        "key": str(settings),
        "state": State.FINISHED,
        "resolution": 8,
        "data.source": "digits",
        "data.flip": False,
        "score.detector": "classifier",
        "score.metrics": "fd,kid",
        "score.weights": None,
        "sample.count": 1000,
        "sample.batch": 256,
        "sample.seed": 0,
        FD: 1.0,
        **settings,
    }


def never_ran(**settings: Any) -> dict[str, Any]:
    return {"key": str(settings), "state": State.MISSING, "resolution": 8, **settings}


def split(*rows: dict[str, Any]) -> list[tuple[str, tuple[str, ...], str, list[int]]]:
    populations = set_apart(pd.DataFrame(rows), FD)
    return [(each.name, each.why, each.score, each.runs.index.tolist()) for each in populations]


def test_runs_that_are_judged_alike_are_one_population() -> None:
    alike = [
        run(**{name: value})
        for name, value in (("resolution", 16), ("sample.seed", 1), ("data.flip", True))
    ]
    assert split(run(), *alike, never_ran(resolution=32)) == [("all runs", (), FD, [0, 1, 2, 3, 4])]
    assert split(run(**{"score.weights": "/a"}), run(**{"score.weights": "/b"})) == [
        ("all runs", (), FD, [0, 1])
    ]


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("sample.count", 500, "sample.count 500 (others 1000)"),
        ("sample.batch", 64, "sample.batch 64 (others 256)"),
        ("data.source", "photos", "data.source photos (others digits)"),
        ("data.count", 60.0, "data.count 60 (others none)"),
        ("score.metrics", "kid,fd", "ranked by kid_classifier (others fd_classifier)"),
    ],
)
def test_what_scores_depend_on_sets_runs_apart_and_is_named(
    setting: str, value: object, why: str
) -> None:
    (_, _, _, large), (name, reasons, _, small) = split(run(), run(**{setting: value}), run())
    assert (large, small) == ([0, 2], [1])
    assert reasons == (why,)
    assert why.startswith(name)


def test_each_population_has_the_score_that_ranks_it() -> None:
    populations = split(run(), run(), run(**{"score.detector": "inception"}))
    assert [(name, score) for name, _, score, _ in populations] == [
        ("score.detector classifier", FD),
        ("score.detector inception", "fid"),
    ]


def test_a_detector_with_another_option_judges_otherwise() -> None:
    option = {"score.detector.layer": 4}
    assert [name for name, *_ in split(run(), run(), run(**option))] == [
        "score.detector.layer none",
        "score.detector.layer 4",
    ]


def test_settings_that_follow_from_another_are_not_named() -> None:
    photos = [run(**{"data.source": "photos", "data.count": count}) for count in (10, 20)]
    assert [each[0] for each in split(run(), run(), run(), *photos)] == [
        "data.source digits · data.count none",
        "data.source photos · data.count 10",
        "data.source photos · data.count 20",
    ]
    assert [each[0] for each in split(run(), run(), photos[0])] == [
        "data.source digits",
        "data.source photos",
    ]


def test_the_population_with_most_finished_trials_comes_first_and_many_others_are_cut_short() -> (
    None
):
    counts = [run(**{"sample.count": n, "state": State.FAILED}) for n in (1, 1, 1)]
    populations = split(*counts, *(run(**{"sample.count": n}) for n in (2, 2, 3, 4, 5)))
    assert populations[0][1] == ("sample.count 2 (others 1, 3, 4 and 1 more)",)
    assert populations[-1][3] == [0, 1, 2]


def test_a_trial_that_never_ran_goes_where_what_is_known_of_it_fits() -> None:
    rows = [
        run(),
        run(),
        run(**{"sample.count": 500}),
        never_ran(),
        never_ran(**{"sample.count": 500}),
    ]
    assert [each[3] for each in split(*rows)] == [[0, 1, 3], [2, 4]]
    unlike = split(run(), never_ran(**{"sample.count": 7}))
    assert [(each[0], each[3]) for each in unlike] == [
        ("sample.count 1000", [0]),
        ("sample.count 7", [1]),
    ]


def test_numbers_of_samples_that_follow_from_the_size_keep_sizes_together() -> None:
    small, large = run(), run(resolution=16, **{"sample.count": 500, "sample.batch": 64})
    assert split(small, large) == [("all runs", (), FD, [0, 1])]
    assert len(split(small, large, run(resolution=16))) == 2


def test_a_population_of_which_nothing_has_finished_has_a_column_without_scores() -> None:
    rows = [run(), run(state=State.RUNNING, **{"score.metrics": "kid", FD: None})]
    _, other = set_apart(pd.DataFrame(rows), FD)
    assert (other.score, other.runs["kid_classifier"].isna().all()) == ("kid_classifier", True)


def test_runs_that_do_not_say_how_they_are_judged_stay_together() -> None:
    assert [
        (each.name, each.score)
        for each in set_apart(pd.DataFrame({"resolution": [8], "state": "missing"}), FD)
    ] == [("all runs", FD)]
    assert set_apart(pd.DataFrame(columns=["state"]), FD) == []


def naive_holm(p: list[float], hypotheses: int, level: float) -> set[int]:
    """Which are rejected, one step at a time."""
    rejected: set[int] = set()
    for i in sorted(range(len(p)), key=lambda i: p[i]):
        if p[i] > level / (hypotheses - len(rejected)):
            break
        rejected.add(i)
    return rejected


p_values = st.lists(st.floats(0, 1), max_size=12)


@given(p_values, st.integers(0, 3), st.sampled_from([0.01, 0.05, 0.2]))
def test_adjusted_p_values_reject_what_holms_steps_reject(
    p: list[float], more: int, level: float
) -> None:
    adjusted = holm(p, len(p) + more)
    clear = [min(abs(a - level) for a in adjusted) > 1e-9] if len(p) else [True]
    assert not clear[0] or set(np.flatnonzero(adjusted <= level)) == naive_holm(
        p, len(p) + more, level
    )


def test_holm_is_worked_out_by_hand_and_what_is_unknown_stays_so() -> None:
    np.testing.assert_allclose(holm([0.04, math.nan, 0.01, 0.02], 3), [0.04, math.nan, 0.03, 0.04])
    assert holm([], 0).tolist() == []


def cells(by_seed: NDArray[np.float64], error: float = math.nan) -> Cells:
    with np.errstate(invalid="ignore"):
        count = np.isfinite(by_seed).sum(axis=1)
        mean = np.nansum(by_seed, axis=1) / count
    return Cells(by_seed, mean, np.full(len(by_seed), error))


def scores(seed: int, count: int, seeds: int, missing: float) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    values = 4 * random.normal(size=(count, 1)) + random.normal(size=(count, seeds))
    values[random.random(values.shape) < missing] = math.nan
    return values


@pytest.mark.parametrize("block", [1, 50, 10**6])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("error", [math.nan, 0.5])
def test_who_beats_whom_is_holm_over_scipys_tests_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch, block: int, missing: float, error: float
) -> None:
    monkeypatch.setattr(comparisons, "BLOCK", block)
    for seed in range(5):
        table = cells(scores(seed, count=9, seeds=6, missing=missing), error)
        pairs, p = [], []
        for i in range(9):
            for j in range(i):
                shared = np.isfinite(table.by_seed[i] + table.by_seed[j])
                if shared.sum() >= 2:
                    pairs.append((i, j))
                    p.append(
                        float(ttest_rel(table.by_seed[i][shared], table.by_seed[j][shared]).pvalue)
                    )
        assert len(pairs) == 36 or missing
        below, above = np.zeros(9, int), np.zeros(9, int)
        for at in naive_holm(p, len(p), 0.05):
            i, j = pairs[at]
            shared = np.isfinite(table.by_seed[i] + table.by_seed[j])
            less = (table.by_seed[i] - table.by_seed[j])[shared].mean() < 0
            below[i if less else j] += 1
            above[j if less else i] += 1
        if len(pairs) == 36:
            assert [each.tolist() for each in beaten(table, 0.05)] == [
                below.tolist(),
                above.tolist(),
            ]
            assert below.sum() > 5


def test_differences_rest_on_shared_seeds_else_on_errors_within_runs_else_on_nothing() -> None:
    by_seed = np.array([[1.0, 3.0, math.nan], [2.0, 6.0, 7.0], [math.nan, math.nan, 9.0]])
    known = differences(cells(by_seed, error=3.0), slice(0, 1), slice(1, None))
    assert known.mean.tolist() == [[-2.0, 2.0 - 9.0]]
    assert known.error.tolist() == [[1.0, pytest.approx(math.hypot(3, 3))]]
    assert known.shared.tolist() == [[2, 0]]
    assert known.df.tolist() == [[1, 19]]
    unknown = differences(cells(by_seed), slice(0, 1), slice(2, 3))
    assert (unknown.df.item(), unknown.t.item()) == (0, 0.0)
    assert np.isnan([unknown.mean, unknown.error]).all()


def test_cells_without_a_difference_tie_and_those_always_apart_by_the_same_do_not() -> None:
    below, above = beaten(cells(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 3.0]])), 0.05)
    assert (below.tolist(), above.tolist()) == ([1, 1, 0], [0, 0, 2])
    nothing = cells(np.array([[1.0], [2.0]]))
    assert [each.tolist() for each in beaten(nothing, 0.05)] == [[0, 0], [0, 0]]
    assert [each.tolist() for each in beaten(cells(np.empty((1, 0))), 0.05)] == [[0], [0]]


def test_a_thousand_cells_are_ranked_from_all_their_pairs() -> None:
    random = np.random.default_rng(0)
    values = 0.1 * np.arange(1000)[:, None] + random.normal(size=(1000, 8))
    below, above = beaten(cells(values), 0.05)
    assert below.sum() == above.sum() > 100_000
    assert below[0] > 400
    assert above[-1] > 400
