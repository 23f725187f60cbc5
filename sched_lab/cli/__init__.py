"""The command line: one module a command, loaded when it is called; each parses, calls and
prints.
"""

from sched_lab.cli.program import main

__all__ = ["main"]
