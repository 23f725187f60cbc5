"""A sweep YAML becomes trials, each run once: the grid, execution on Ray Tune, tracking in MLflow,
the command line.
"""

__version__ = "0.1.0"
