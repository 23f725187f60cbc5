"""What a worker proves before it runs a trial: the driver's code, its versions and its store.

Ray carries these functions to other nodes as they are here, since sched-lab there may be another
one, or none. So they import nothing of sched-lab.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

# Besides Python. A build's label, as in 2.6.0+cpu, is left out: GPUs and CPUs may share a sweep.
VERSIONS = (
    "torch",
    "numpy",
    "scipy",
    "pillow",
    "pillow-heif",
    "scikit-learn",
    "torch-fidelity",
    "torchvision",
)
OF_NO_TRIAL = ("analysis", "cli")  # no worker loads these; editing them must not end a sweep
PATIENCE = 5.0  # seconds in which a file must show that another node of the cluster wrote
ABSENT = "absent"


class Evidence(TypedDict):
    """What changes results. Plain mappings, since Ray and JSON carry it to other processes."""

    code: Mapping[str, str]
    """A digest of each package's code."""
    versions: Mapping[str, str]
    """Of Python and of what is installed."""


def evidence(packages: Iterable[str]) -> Evidence:
    """The versions here, and a digest of each package's code."""
    return {
        "code": {package: code_digest(package) for package in packages},
        "versions": {"Python": platform.python_version()} | _versions(),
    }


def code_digest(package: str) -> str:
    """A digest of the Python files of a top-level package or module; `absent` where it is not
    installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        return ABSENT
    files: dict[str, Path] = {}
    for root in spec.submodule_search_locations or ():
        for folder, inner, names in os.walk(root, followlinks=True):
            if folder == root and package == "sched_lab":
                inner[:] = [name for name in inner if name not in OF_NO_TRIAL]
            for name in names:
                if name.endswith(".py") and not name.startswith("."):  # editors' files are hidden
                    file = Path(folder, name)
                    files[str(file.relative_to(root))] = file
    if not files and spec.origin:
        files = {package: Path(spec.origin)}
    total = hashlib.sha256()
    for name, file in sorted(files.items()):
        total.update(f"{name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = ABSENT
    return found


def differences(expected: Evidence) -> str:
    """How this process differs from what the driver was at its start; empty where it does not."""
    here, told = evidence(expected["code"]), []
    for package, wanted in expected["code"].items():
        found = here["code"][package]
        if found != wanted:
            other = f"has other code of {package} than the driver began with"
            told.append(f"lacks {package}" if found == ABSENT else other)
    for name, wanted in expected["versions"].items():
        found = here["versions"].get(name, ABSENT)
        if found != wanted:
            told.append(f"has {name} {found}, not {wanted}")
    return f"{', '.join(told)}: have the same everywhere, and submit again" if told else ""


def sees(token_file: str, token: str) -> bool:
    """Whether the driver's token shows here, at the latest after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            os.listdir(os.path.dirname(token_file))  # has NFS look again
            if Path(token_file).read_text(encoding="utf-8") == token:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def objection(expected: Evidence, token_file: str, token: str) -> str:
    """Why this process must not run a trial of the driver that gave these; empty where it may."""
    if different := differences(expected):
        return different
    if not sees(token_file, token):
        folder = os.path.dirname(token_file)
        return f"does not see the store's {folder} as it is here: share that folder"
    return ""
