"""One trial: a validated spec becomes a trained, sampled and scored diffusion model.

Knows nothing of sweeps. A package that adds a part of its own imports what it needs from here:

- a data source: a subclass of `DataSpec`, which gives `RawImages`;
- a network: a subclass of `NetworkSpec`, which builds a `torch.nn.Module`;
- a detector: a subclass of `DetectorSpec`, which loads a `Detector`, such as a `NetworkDetector`;
- a noise schedule: a function of t and its parameters, which raises `ScheduleError`.

Each raises `FieldError` where a value is wrong, so that a sweep file's line can be told. Names are
imported when they are first used: `import sched_lab.trainers` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sched_lab.trainers.errors import FieldError, WeightsMissing
    from sched_lab.trainers.failures import BadData, Diverged
    from sched_lab.trainers.images import ImageSet, Item, Pixels, RawImages
    from sched_lab.trainers.results import TrialResult
    from sched_lab.trainers.schedules import Schedule, ScheduleError
    from sched_lab.trainers.scoring.detectors import NetworkDetector
    from sched_lab.trainers.scoring.torchvision_compat import import_torchvision
    from sched_lab.trainers.spec import (
        DataSpec,
        Detector,
        DetectorSpec,
        NetworkSpec,
        SampleSpec,
        ScoreSpec,
        TrainSpec,
        TrialSpec,
    )
    from sched_lab.trainers.trial import run_trial

__all__ = [
    "BadData",
    "DataSpec",
    "Detector",
    "DetectorSpec",
    "Diverged",
    "FieldError",
    "ImageSet",
    "Item",
    "NetworkDetector",
    "NetworkSpec",
    "Pixels",
    "RawImages",
    "SampleSpec",
    "Schedule",
    "ScheduleError",
    "ScoreSpec",
    "TrainSpec",
    "TrialResult",
    "TrialSpec",
    "WeightsMissing",
    "import_torchvision",
    "run_trial",
]

_MODULES = {
    "BadData": "failures",
    "DataSpec": "spec",
    "Detector": "spec",
    "DetectorSpec": "spec",
    "Diverged": "failures",
    "FieldError": "errors",
    "ImageSet": "images",
    "Item": "images",
    "NetworkDetector": "scoring.detectors",
    "NetworkSpec": "spec",
    "Pixels": "images",
    "RawImages": "images",
    "SampleSpec": "spec",
    "Schedule": "schedules",
    "ScheduleError": "schedules",
    "ScoreSpec": "spec",
    "TrainSpec": "spec",
    "TrialResult": "results",
    "TrialSpec": "spec",
    "WeightsMissing": "errors",
    "import_torchvision": "scoring.torchvision_compat",
    "run_trial": "trial",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
