"""Sweeps of diffusion noise schedules: a YAML file becomes trials, each run once and tracked.

The names below load when they are used: importing this package loads nothing heavy.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
