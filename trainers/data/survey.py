"""What the user's images are before anything is done with them: each is read once, and all that is
wrong is told at once.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from sched_lab.trainers.caching import digest, lock_of
from sched_lab.trainers.cancellation import check
from sched_lab.trainers.files import write_json
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.results import Record
from sched_lab.trainers.spec import SCIENCE_VERSION

SHOWN = 10  # faulty images that a message names
_PATIENCE = 10.0  # seconds between two words on how far it is
_log = logging.getLogger(__name__)
_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True)
class Candidate:
    """What may be an image of a source."""

    name: str
    label: str | None
    """Its class; None where it has none."""
    mark: str
    """What of it enters the fingerprint beside its content."""
    load: Callable[[], bytes]
    """Its content. Raises ValueError or OSError with what is wrong."""
    state: str
    """Changes whenever its content may have."""


class _Reading(Record):
    """What was found when a candidate was read."""

    state: str
    content: str = ""  # SHA-256
    size: tuple[int, int] = (0, 0)  # width and height in pixels, upright
    span: tuple[int, int] = (0, 0)  # the lowest and highest value of its pixels, from 0 to 255
    fault: str = ""  # why it is no image
    may_pass: bool = False  # whether the fault is the disk's


class _Readings(Record):
    of: dict[str, _Reading]  # by the candidates' names


class Survey(Record):
    """What a source's images are, and what is wrong with the rest."""

    key: str
    fingerprint: str
    """Of the images that can be used."""
    facts: DataFacts


def survey(
    cache: Path, source: str, place: str, key: str, find: Callable[[], Sequence[Candidate]]
) -> Survey:
    """The survey of what `find` gives; `key` changes whenever an image at `place` may have.

    However many processes ask at once, one reads and the others wait. What has not changed since
    the last survey of the place, by its state, is not read again.
    """
    from filelock import FileLock

    folder = cache / "surveys" / digest(place, _reader())
    there = _stored(folder / "survey.json", Survey)
    if there is not None and there.key == key:
        return there
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_of(folder)).acquire(cancel_check=check):
        there = _stored(folder / "survey.json", Survey)
        if there is not None and there.key == key:
            return there
        candidates, last = find(), _stored(folder / "readings.json", _Readings)
        readings = _read(place, candidates, last.of if last else {})
        made = _summary(source, key, candidates, readings)
        if not any(reading.may_pass for reading in readings):
            by_name = {each.name: r for each, r in zip(candidates, readings, strict=True)}
            write_json(folder / "readings.json", _Readings(of=by_name).model_dump())
            write_json(folder / "survey.json", made.model_dump())
    return made


def _reader() -> tuple[str, ...]:
    """What decides on how a file is read, and what is noted of it."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return ""

    return (
        str(SCIENCE_VERSION),
        installed("pillow"),
        installed("pillow-heif"),
        *_Reading.model_fields,
    )


def _stored(file: Path, kind: type[_R]) -> _R | None:
    """What a file holds; None where it is not there or damaged."""
    try:
        return kind.model_validate_json(file.read_text("utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def _read(place: str, candidates: Sequence[Candidate], last: dict[str, _Reading]) -> list[_Reading]:
    from sched_lab.trainers.allowance import allowance
    from sched_lab.trainers.data.pictures import strictly

    def reading(candidate: Candidate) -> _Reading:
        known = last.get(candidate.name)
        return known if known and known.state == candidate.state else _reading(candidate)

    with strictly(), ThreadPoolExecutor(allowance().cores) as pool:
        return list(_told(place, len(candidates), pool.map(reading, candidates)))


def _reading(candidate: Candidate) -> _Reading:
    from sched_lab.trainers.data.pictures import decoded

    state = candidate.state
    try:
        content = candidate.load()
        image = decoded(io.BytesIO(content), 3)
        lows, highs = zip(*image.getextrema(), strict=True)
    except OSError as error:
        return _Reading(state=state, fault=error.strerror or str(error), may_pass=True)
    except ValueError as error:
        return _Reading(state=state, fault=str(error))
    return _Reading(
        state=state,
        content=hashlib.sha256(content).hexdigest(),
        size=image.size,
        span=(min(lows), max(highs)),
    )


def _told(place: str, count: int, readings: Iterator[_Reading]) -> Iterator[_Reading]:
    """The same readings; where they take long, with words on how far it is."""
    said = time.monotonic()
    for done, reading in enumerate(readings):
        if time.monotonic() - said > _PATIENCE:
            said = time.monotonic()
            _log.warning("reading the images of %s: %d of %d", place, done, count)
        yield reading


def _summary(
    source: str, key: str, candidates: Sequence[Candidate], readings: Sequence[_Reading]
) -> Survey:
    pairs = list(zip(candidates, readings, strict=True))
    used = [(candidate, reading) for candidate, reading in pairs if not reading.fault]
    faults = [f"{c.name}: {reading.fault}" for c, reading in pairs if reading.fault]
    labels = Counter(candidate.label for candidate, _ in used)
    # A class whose images are all broken is one that the network still has a place for.
    classes = sorted({c.label for c in candidates if c.label is not None})
    text = "".join(f"{c.mark}\n{reading.content}\n" for c, reading in used)
    spans = [reading.span for _, reading in used]
    sizes = sorted((r.size for _, r in used), key=lambda size: (size[0] * size[1], size))
    facts = DataFacts(
        source=source,
        images=len(used),
        classes={name: labels[name] for name in classes},
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        span=(min(low for low, _ in spans), max(high for _, high in spans)) if spans else None,
        identical=len(used) > 1 and len({reading.content for _, reading in used}) == 1,
        broken=len(faults),
        examples=tuple(faults[:SHOWN]),
    )
    fingerprint = hashlib.sha256((text + digest(classes)).encode()).hexdigest()
    return Survey(key=key, fingerprint=fingerprint, facts=facts)


def listed(names: Sequence[str], count: int) -> str:
    """The first names, a line each, and how many there are beyond."""
    more = [f"… and {count - SHOWN} more"] if count > SHOWN else []
    return "".join(f"\n  {line}" for line in [*names[:SHOWN], *more])
