"""A sweep under a few of the blows of `tests.chaos`; `make chaos` runs many more."""

from __future__ import annotations

import pytest

from tests import chaos


@pytest.mark.slow
def test_after_blows_a_last_submit_leaves_what_an_undisturbed_sweep_leaves() -> None:
    assert chaos.run(seeds=[0, 4]) == {}
