"""Finished runs become tables, figures and reports. Imports neither torch nor ray.

The names below load when they are used: importing this package loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sched_lab.analysis.runs import load_runs
    from sched_lab.analysis.statistics.law import best_b, recommend
    from sched_lab.analysis.statistics.ranking import best_cells

__all__ = ["best_b", "best_cells", "load_runs", "recommend"]
_MODULES = {
    "best_b": "statistics.law",
    "best_cells": "statistics.ranking",
    "load_runs": "runs",
    "recommend": "statistics.law",
}


if not TYPE_CHECKING:  # or a checker would take any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
