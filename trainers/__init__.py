"""One trial: a validated spec becomes a trained, sampled and scored diffusion model.

Knows nothing of sweeps. A package that adds a part of its own imports what it needs from here:

- a data source: a subclass of `DataSpec`, which gives `RawImages`;
- a network: a subclass of `NetworkSpec`, which builds a `torch.nn.Module`;
- a detector: a subclass of `DetectorSpec`, which loads a `Detector`, such as a `NetworkDetector`;
- a noise schedule: a function of t and its parameters, which raises `ScheduleError`.

Each raises `FieldError` where a value is wrong, so that a sweep file's line can be told. Names are
imported when they are first used: `import sched_lab.trainers` loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
