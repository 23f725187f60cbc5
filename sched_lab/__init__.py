"""Sweeps of diffusion noise schedules: a YAML file becomes trials, each run once and tracked.

The names below load when they are used: importing this package loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sched_lab.errors import OutOfReach, SweepError
    from sched_lab.run.api import plan, submit
    from sched_lab.store.folder import Store
    from sched_lab.sweep.spec import read_sweep

__version__ = "0.1.0"
__all__ = ["OutOfReach", "Store", "SweepError", "plan", "read_sweep", "submit"]
_MODULES = {
    "OutOfReach": "errors",
    "Store": "store.folder",
    "SweepError": "errors",
    "plan": "run.api",
    "read_sweep": "sweep.spec",
    "submit": "run.api",
}


if not TYPE_CHECKING:  # or a checker would take any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
