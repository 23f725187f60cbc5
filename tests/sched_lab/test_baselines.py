"""Which cells draw something: hand-made scores between untrained networks and real images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from sched_lab.sweep.baselines import CLOSED, LEARNED, Cells, Shortfall, in_words, standing

UNKNOWN = math.nan


def cells(mean: list[float], **known: float | list[float]) -> Cells:
    """Cells of one seed each; of real images 0 and untrained networks 100 where not told."""
    told: dict[str, float | list[float]] = {"sd": UNKNOWN, "n": 1, "within": UNKNOWN}
    told |= {"real": 0.0, "untrained": 100.0, "learned": 0.5, **known}
    arrays = {
        name: np.broadcast_to(np.asarray(each, float), len(mean)) for name, each in told.items()
    }
    return Cells(mean=np.array(mean), **arrays)


def test_the_way_goes_from_the_best_untrained_network_to_real_images() -> None:
    closed, short = standing(
        cells([10.0, 55.0, 70.0], real=10.0, untrained=[100.0, 120.0, 500.0]),
        higher_is_better=False,
    )
    assert closed.tolist() == pytest.approx([1.0, 0.5, 30 / 90])
    assert short == [None, None, None]


def test_where_higher_is_better_the_highest_untrained_network_counts() -> None:
    closed, short = standing(
        cells([0.5, 0.1, 0.3], real=0.9, untrained=[0.0, 0.1, 0.1]), higher_is_better=True
    )
    assert closed.tolist() == pytest.approx([0.5, 0.0, 0.25])
    assert short == [None, Shortfall.NO_BETTER, None]


def test_a_cell_better_than_its_own_untrained_network_may_be_no_better_than_another() -> None:
    _, short = standing(cells([40.0, 70.0], untrained=[100.0, 300.0]), higher_is_better=False)
    assert short == [None, None]
    _, short = standing(cells([40.0, 150.0], untrained=[100.0, 300.0]), higher_is_better=False)
    assert short == [None, Shortfall.NO_BETTER]


def test_each_shortfall_has_its_bound() -> None:
    edge = 100 * (1 - CLOSED)
    _, short = standing(cells([edge + 1, edge, edge - 1, 100, 101]), higher_is_better=False)
    assert short == [
        Shortfall.TOO_LITTLE,
        Shortfall.TOO_LITTLE,
        None,
        Shortfall.NO_BETTER,
        Shortfall.NO_BETTER,
    ]
    learned = [LEARNED / 2, LEARNED, 2 * LEARNED, -1.0, UNKNOWN]
    _, short = standing(cells([50.0] * 5, learned=learned), higher_is_better=False)
    assert short == [
        Shortfall.NO_LEARNING,
        Shortfall.NO_LEARNING,
        None,
        Shortfall.NO_LEARNING,
        None,
    ]
    _, short = standing(cells([50.0], real=100.0), higher_is_better=False)
    assert short == [Shortfall.BLIND]


def test_the_error_of_a_mean_is_that_of_all_cells_pooled() -> None:
    # Pooled variance (1·4 + 2·16)/3 = 12 with three degrees of freedom.
    half = [float(student.ppf(0.95, 3)) * math.sqrt(12 / n) for n in (2, 3)]
    for part, expected in ((0.999, Shortfall.NO_BETTER), (1.001, None)):
        mean = [10 - part * each for each in half]
        told = cells(mean, sd=[2.0, 4.0], n=[2, 3], real=0.0, untrained=10.0)
        assert standing(told, higher_is_better=False).shortfall == [expected] * 2


def test_the_only_run_of_a_cell_counts_with_the_error_within_it() -> None:
    bound = 100 - float(student.ppf(0.95, 19)) * 20
    _, short = standing(cells([bound + 1e-9, bound - 1e-9], within=20.0), higher_is_better=False)
    assert short == [Shortfall.NO_BETTER, None]


def test_what_is_not_known_keeps_no_cell_from_being_best() -> None:
    for names in (("untrained",), ("real",), ("real", "untrained")):
        told = cells([1.0, 99.0], **dict.fromkeys(names, UNKNOWN))
        closed, short = standing(told, higher_is_better=False)
        assert np.isnan(closed).all()
        assert short == [None, None]


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e3),
    st.booleans(),
)
def test_standing_depends_on_neither_scale_nor_zero_nor_sign(
    mean: list[float], shift: float, scale: float, higher: bool
) -> None:
    before = standing(cells(mean, within=3.0), higher_is_better=False)
    sign = -1 if higher else 1
    moved = [sign * (shift + scale * value) for value in (0.0, 100.0)]
    after = standing(
        cells(
            [sign * (shift + scale * value) for value in mean],
            within=3.0 * scale,
            real=moved[0],
            untrained=moved[1],
        ),
        higher_is_better=higher,
    )
    np.testing.assert_allclose(after.closed, before.closed, rtol=1e-6, atol=1e-6)
    far = np.abs(before.closed - CLOSED) > 1e-4  # rounding decides at a bound
    far &= np.abs(np.array(mean) - (100 - 3 * float(student.ppf(0.95, 19)))) > 0.1
    for same, one, other in zip(far, before.shortfall, after.shortfall, strict=True):
        assert not same or one == other


def test_why_no_cell_is_best_in_words() -> None:
    assert in_words([Shortfall.NO_BETTER]) == "its only cell is no better than untrained networks"
    assert (
        in_words([Shortfall.NO_BETTER] * 3)
        == "its 3 cells are all no better than untrained networks"
    )
    assert in_words([Shortfall.NO_BETTER, Shortfall.NO_LEARNING, Shortfall.NO_BETTER]) == (
        "of its 3 cells, 2 are no better than untrained networks and 1 is with a loss no lower than"
        " that of predicting zero"
    )
