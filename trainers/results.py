"""What a trial leaves behind: its states, its result, and the files of its folder. Imports no
torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sched_lab.trainers.failures import FailureKind
from sched_lab.trainers.files import write_json

# Files of a trial's folder.
SPEC_FILE = "spec.json"
RESULT_FILE = "result.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
SAMPLES_FOLDER = "samples"  # step-001500.png: a grid of samples at that step
REAL_FILE = "real.png"  # a grid of real images, as the network sees them
FACTS_FILE = "data.json"  # which images there are: a DataFacts
JOURNAL_FILE = "journal.jsonl"
LOG_FILE = "log.txt"

# Names of `TrialResult.baselines`.
REAL = "real_"  # + a score: that of as many held-out real images
# + a score: that of samples, 10,000 at most, of the network before its first step
UNTRAINED = "untrained_"
LOSS_OF_ZERO = "loss_of_zero"  # the loss that predicting zero has, in the steps that `loss` is of
DETECTOR_ACCURACY = "detector_accuracy"  # of a classifier, on images held out from its training

SET_ASIDE = ".bad"  # ends the name of a damaged file that was replaced

LARGEST_STEP = 2**63 - 1  # what a database holds
LARGEST_SCORE = 1e300  # so that means of scores stay finite
LONGEST = 1e10  # seconds: three centuries


class State(StrEnum):
    """How a trial stands. A result holds one of the first three."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"
    """Waiting until the disk has room again."""
    ELSEWHERE = "elsewhere"
    """Another process runs it."""
    INTERRUPTED = "interrupted"
    """The journal says running, and no process runs it."""
    MISSING = "missing"
    """Never begun."""


def _finite_or_missing(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Step = Annotated[int, Field(ge=0, le=LARGEST_STEP)]
Score = Annotated[
    Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)] | None,
    BeforeValidator(_finite_or_missing),
]
"""A number, or None where it is missing: NaN and infinities become None, as JSON's null is."""
Failure = FailureKind | Literal[""]
"""The kind of failure; empty where the trial did not fail."""


class Record(BaseModel):
    """What a file holds: frozen, of exactly these types; members of later versions are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class TrialResult(Record):
    """What a trial came to. Where its process died, or early stopping ended it, the first six
    members are all that is known.
    """

    key: str
    state: Literal[State.FINISHED, State.FAILED, State.STOPPED]
    reason: str = ""
    failure: Failure = ""
    step: Step = 0
    scores: Mapping[str, Score] = {}
    """By metric name, of the last evaluation; empty where there was none."""
    uncertainty: Mapping[str, Score] = {}
    """Standard errors within the run of those scores that have one."""
    baselines: Mapping[str, Score] = {}
    """What scores, loss and detector compare with, by REAL, UNTRAINED, LOSS_OF_ZERO and
    DETECTOR_ACCURACY; what is not known is absent.
    """
    loss: Score = None
    seconds: dict[str, Annotated[float, Field(ge=0, le=LONGEST)]] = {}
    """By phase and in `total`; empty where they are not known."""
    environment: dict[str, str] = {}
    """What it was computed with, by package or part."""

    @property
    def is_final(self) -> bool:
        """Whether the trial would end in the same way again: it finished, or it diverged."""
        return self.state == State.FINISHED or self.failure == FailureKind.DIVERGED


def write_result(folder: Path, result: TrialResult) -> None:
    """Write the members that were set to the trial's folder. Raises OSError."""
    write_json(folder / RESULT_FILE, result.model_dump(exclude_unset=True))
