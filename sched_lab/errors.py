"""The errors that a caller is meant to catch, and the exit codes that the command line makes of
outcomes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

MAX_SHOWN = 20  # problems that an error prints; one mistake in a large grid can cause thousands


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    SOME_FAILED = 1
    WRONG_INPUT = 2
    OUT_OF_REACH = 3
    # As shells tell of a signal: 128 and its number.
    HUNG_UP = 128 + signal.SIGHUP
    INTERRUPTED = 128 + signal.SIGINT
    UNREAD = 128 + signal.SIGPIPE
    TERMINATED = 128 + signal.SIGTERM


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a command to end: Ctrl-C; a scheduler's or `timeout`'s; a lost terminal."""


class Interrupted(KeyboardInterrupt):
    """One of the signals `STOPPING` came: an interrupt as Ctrl-C is, which knows its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def visible(text: str, keep: str = "") -> str:
    """The text with escapes, as in Python, for characters that would steer a terminal.

    Those are all that are not printable: control characters, line ends, and what reverses or hides
    text. `keep` names those that stay.
    """
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


class OutOfReach(Exception):
    """Something that a sweep needs is not there: a resource, a server, a cluster, a store."""


class StoreError(ValueError):
    """A place that can be no store: what was given, and what is wrong with it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, which value, which rule. Lines and columns count from 1 and
    are None for a file as a whole.
    """

    file: str
    line: int | None
    column: int | None
    key: str
    value: str | None
    rule: str

    def __str__(self) -> str:
        place = ":".join(
            str(part) for part in (self.file, self.line, self.column) if part is not None
        )
        given = self.key if self.value is None else f"{self.key} = {self.value}"
        # A rule may list what it is about, on lines of their own.
        parts = (visible(place), visible(given), visible(self.rule, keep="\n"))
        return ": ".join(part for part in parts if part)


class SweepError(Exception):
    """A sweep file that cannot be run; `problems` holds all that is wrong, line by line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(
            sorted(dict.fromkeys(problems), key=lambda p: (p.line or 0, p.column or 0))
        )
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        more = len(self.problems) - len(lines)
        return "\n".join([*lines, f"… and {more} more"] if more else lines)
