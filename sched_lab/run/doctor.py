"""Checks what a sweep needs on this machine, with what to do about it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from sched_lab.redaction import redacted
from sched_lab.run.ray_needs import lacks
from sched_lab.store.database import FILE_SIZE, not_writable, size_limit
from sched_lab.store.folder import Store
from sched_lab.tracking.client import connect
from sched_lab.trainers.allowance import allowance


@dataclass(frozen=True)
class Finding:
    """One check: `ok`, `optional` (not there, needed by some sweeps only) or `missing`."""

    what: str
    verdict: str
    detail: str


def examine(store: Store) -> list[Finding]:
    """All checks; what one raises becomes its finding."""
    checks: dict[str, Callable[[], tuple[str, str]]] = {
        "torch": _torch,
        "torch-fidelity": _torch_fidelity,
        "ray": lambda: _package("ray"),
        "cores and memory": lambda: ("ok", str(allowance())),
        "limits": _limits,
        "mlflow": lambda: _package("mlflow"),
        "store": lambda: _disk(store),
        "tracking": lambda: _tracking(store),
        "inception weights": lambda: _inception(store),
        "datasets": lambda: _package("datasets", "optional"),
    }
    findings = []
    for what, check in checks.items():
        try:
            verdict, detail = check()
        except Exception as error:
            verdict, detail = "missing", redacted(str(error)) or type(error).__name__
        findings.append(Finding(what, verdict, detail))
    return findings


def _torch() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return (
            "ok",
            f"{torch.__version__}, {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}",
        )
    return "ok", f"{torch.__version__}, no GPU seen: trials run on the CPU, one a core"


def _torch_fidelity() -> tuple[str, str]:
    from sched_lab.trainers.scoring.torchvision_compat import import_torchvision

    import_torchvision()
    import torch_fidelity  # noqa: F401

    return "ok", version("torch-fidelity")


def _limits() -> tuple[str, str]:
    here = allowance()
    found = [*lacks(min(here.cores, here.trials)), *filter(None, [size_limit(FILE_SIZE)])]
    return ("missing", "; ".join(found)) if found else ("ok", "files, processes and room for Ray")


def _package(name: str, otherwise: str = "missing") -> tuple[str, str]:
    try:
        return "ok", version(name)
    except PackageNotFoundError:
        return otherwise, "not installed"


def _disk(store: Store) -> tuple[str, str]:
    there = store.root
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        verdict = "optional" if store.sweeps() else "missing"
        return verdict, f"needed to submit, not to report: {not_writable(there)}"
    free = shutil.disk_usage(there).free / 2**30
    return ("ok" if free > 5 else "missing"), f"{store.root}, {free:.0f} GiB free"


def _tracking(store: Store) -> tuple[str, str]:
    if store.local_tracking:
        return "ok", "SQLite in the store"
    connect(store.tracking_uri)
    return "ok", redacted(store.tracking_uri)


def _inception(store: Store) -> tuple[str, str]:
    from sched_lab.trainers.data.builtin import Digits
    from sched_lab.trainers.scoring.options import InceptionSpec

    try:
        InceptionSpec().check(Digits(), store.cache, None)
    except ValueError as error:
        return "optional", f"needed for fid only. {error}"
    return "ok", "found"
