"""A sweep under a few of the blows of `tests.chaos`; `make chaos` deals many more."""

from __future__ import annotations

import pytest

from tests.chaos import blows, rounds

SEEDS = [35, 76]


@pytest.mark.slow
def test_after_blows_a_last_submit_leaves_what_an_undisturbed_sweep_leaves() -> None:
    assert {blow.kind for seed in SEEDS for blow in blows.plan(seed)} == {
        "trial",
        "checkpoint",
        "mlflow",
        "term",
    }
    assert rounds.run(SEEDS) == {}
