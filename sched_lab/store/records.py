"""The formats of all that a store's folders hold, and how a file of such a format is read.

A trial's folder holds its `TrialSpec`, its `TrialResult` and a journal of `JournalEvent`s. A
sweep's folder holds a `Sheet` of `CellRow`s, and the `Holder` at work on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from sched_lab.names import Stage
from sched_lab.trainers.results import (
    SAMPLES_FOLDER,
    Failure,
    Record,
    State,
    Step,
    TrialResult,
)

__all__ = ["CellRow", "Holder", "JournalEvent", "Sheet", "TrialResult"]

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_OBJECT = TypeAdapter(dict[str, Any])


def _finite(settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for value in settings.values():
        if isinstance(value, list | dict) or (isinstance(value, float) and not isfinite(value)):
            json.dumps(value, allow_nan=False)  # raises ValueError
    return settings


Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]  # the name of a trial's folder


class JournalEvent(Record, allow_inf_nan=True):
    """One line of a journal; a member that is None or empty was not told."""

    time_ms: int = Field(ge=0, le=2**62)
    """When it was written, in milliseconds since 1970."""
    journal: str | None = None
    """The journal's name, in its first line alone."""
    step: Step = 0
    metrics: dict[str, float | None] = Field(default_factory=dict)
    """At `step`; NaN or None where a value is missing."""
    sampled: tuple[Step, Step] | None = None
    """Samples drawn so far, and how many there will be."""
    file: Annotated[str, Field(pattern=rf"^{SAMPLES_FOLDER}/[A-Za-z0-9_-]+\.png$")] | None = None
    """The grid of samples of an evaluation, relative to the trial's folder."""
    state: Literal[State.FINISHED, State.FAILED, State.STOPPED, State.RUNNING] | None = None
    reason: str | None = None
    failure: Failure = ""
    pid: int | None = None
    host: str | None = None
    """With `pid`, the process that runs the trial."""
    micro_batches: int | None = None
    """Pieces that each batch is cut into."""


class CellRow(Record):
    """One cell of a sweep as last submitted."""

    key: Key
    settings: Annotated[dict[str, JsonValue], AfterValidator(_finite)]
    """In which the sweep's trials differ."""
    params: dict[str, str] = Field(default_factory=dict)
    """Those MLflow params that a table is made of."""
    stage: Stage | None = None
    """Where the sweep has stages."""

    def as_json(self) -> dict[str, Any]:
        """As the sheet and MLflow hold it: without a stage where there is none."""
        return self.model_dump(exclude={"stage"} if self.stage is None else set())


class SubmittedCells(Record):
    """The cells of a sweep as last submitted, as its run in MLflow holds them."""

    cells: tuple[CellRow, ...]


class Sheet(Record):
    """The cells of a sweep as last submitted."""

    name: str
    cells: tuple[CellRow, ...]
    former: frozenset[Key] = frozenset()
    """The keys of cells that an earlier submit had and this one has not."""


class Holder(Record):
    """The process whose submit of a sweep is at work."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def read_record(path: Path, model: type[M]) -> M | None:
    """What a file holds; None where there is no such file, and where it does not fit the model.

    A file that does not fit is named in the log.
    """
    return _read(path, model.model_validate_json)


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, whatever its members; see `read_record`."""
    return _read(path, _OBJECT.validate_json)


def _read(path: Path, parse: Callable[[bytes], T]) -> T | None:
    try:
        return parsed(path.read_bytes(), parse)
    except FileNotFoundError:
        return None
    except OSError as error:
        warn(path, f"ignored: {error.strerror}")
    except ValidationError as error:
        warn(path, f"ignored: {first_rule(error)}")
    return None


def parsed(content: bytes, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of JSON. Raises ValidationError.

    Parts of characters, which names of files may hold, become question marks.
    """
    try:
        return parse(content)
    except ValidationError:
        if rb"\ud" not in content:
            raise
        try:
            text = json.dumps(json.loads(content), ensure_ascii=False)
        except (ValueError, RecursionError):
            text = ""
        return parse(text.encode(errors="replace"))


@cache
def warn(path: Path, what: str) -> None:
    """Log, once, what is wrong with a file."""
    logging.getLogger(__name__).warning("%s: %s", path, what)


def first_rule(error: ValidationError) -> str:
    """The first member that does not fit its model, and the rule that it breaks."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    member = ".".join(map(str, first["loc"]))
    text = f"{member[:80]}: {first['msg'][:200]}" if member else first["msg"][:200]
    return "".join(c if c.isprintable() else "?" for c in text)
