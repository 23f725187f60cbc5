"""When a failed trial is run again within one submission."""

from __future__ import annotations

import pytest

from sched_lab.run.listener import is_retried
from sched_lab.sweep.spec import RunSpec


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
