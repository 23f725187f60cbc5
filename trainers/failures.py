"""The kinds of failure a trial can come to, and how to tell of which an error is. Imports nothing
heavy.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from enum import StrEnum

from sched_lab.trainers.errors import FieldError


class FailureKind(StrEnum):
    """Why a trial failed."""

    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    BAD_DATA = "bad_data"
    LOST_PROCESS = "lost_process"
    BUG = "bug"


_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad_alloc|_STATUS_ALLOC_FAILED"
)
_GPU_ERROR = re.compile(r"(CUDA|HIP|cuDNN)( driver)? error|Triton Error \[CUDA\]")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = re.compile(  # libraries that do not pass the number on: safetensors, NumPy, torch.save
    rf"\(os error ({'|'.join(map(str, _FULL))})\)|^\d+ requested and \d+"
    r" written$|inline_container.*unexpected pos"
)


class Diverged(RuntimeError):
    """Loss or samples are not finite, or the loss is far above that of predicting zero."""


class BadData(FieldError):
    """A source's content is missing or broken, or lacks what the trial needs of it."""

    part = "data"


def kind_of(error: BaseException) -> FailureKind:
    """The kind of an error: its own, or that of the nearest error behind it that is no bug.

    Never `lost_process`: a process that was lost has no error to show.
    """
    for each in chain(error):
        if isinstance(each, Diverged):
            return FailureKind.DIVERGED
        if isinstance(each, BadData):
            return FailureKind.BAD_DATA
        if _is_out_of_memory(each):
            return FailureKind.OUT_OF_MEMORY
    return FailureKind.BUG


def gpu_is_lost(error: BaseException) -> bool:
    """Whether the GPU failed other than for want of memory: its process can then do no more work on
    it.
    """
    return kind_of(error) != FailureKind.OUT_OF_MEMORY and any(
        isinstance(each, RuntimeError) and _GPU_ERROR.search(str(each)) for each in chain(error)
    )


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed because its disk, or the user's quota on it, is full."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL)
        or (isinstance(each, Exception) and _FULL_TEXT.search(str(each)) is not None)
        for each in chain(error)
    )


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it, in the order of a traceback read from its end."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
        return True
    torch = sys.modules.get("torch")  # its errors come only from where it is loaded
    return isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )
