"""The command line: one module a command, loaded when called; it parses, calls and prints."""

from sched_lab.cli.program import main

__all__ = ["main"]
