"""Finished runs become tables, figures and reports. Imports neither torch nor ray.

The names below load when they are used: importing this package loads nothing heavy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
