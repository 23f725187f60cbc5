"""What a worker proves before it runs a trial: the driver's code, its versions and its store.

Ray carries these functions to other nodes as they are here, since sched-lab there may be another
one, or none. So they import nothing of sched-lab.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TypedDict

# A build's label, as in 2.6.0+cpu, is left out: GPUs and CPUs may share a sweep.
VERSIONS = (
    "Python",
    "torch",
    "numpy",
    "scipy",
    "pillow",
    "pillow-heif",
    "scikit-learn",
    "torch-fidelity",
    "torchvision",
)
CODE = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
PLUGINS = ("sched_lab.schedules", "sched_lab.sources", "sched_lab.networks", "sched_lab.detectors")
OF_NO_TRIAL = ("analysis", "cli")  # no worker loads these; editing them must not end a sweep
PATIENCE = 5.0  # seconds in which a file must show that another node of the cluster wrote
ABSENT = "absent"


class Evidence(TypedDict):
    """What changes results. Plain mappings, since Ray and JSON carry it to other processes."""

    code: Mapping[str, str]
    """A digest of each package's code."""
    versions: Mapping[str, str]
    """Of Python and of what is installed."""


def evidence(packages: Collection[str]) -> Evidence:
    """A digest of each package's code, and the versions here of what trials and plug-ins need."""
    return {
        "code": {package: code_digest(package) for package in packages},
        "versions": _versions((*VERSIONS, *_required(packages))),
    }


def code_digest(package: str) -> str:
    """A digest of the Python files and compiled modules of a top-level package or module; `absent`
    where it is not installed.
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
                if name.endswith(CODE) and not name.startswith("."):  # editors' files are hidden
                    file = Path(folder, name)
                    files[str(file.relative_to(root))] = file
    if not files and spec.origin:
        files = {package: Path(spec.origin)}
    total = hashlib.sha256()
    for name, file in sorted(files.items()):
        total.update(f"{name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _required(packages: Collection[str]) -> Iterator[str]:
    """What the plug-ins among these packages declare that they need, without their extras."""
    for entry in (entry for group in PLUGINS for entry in entry_points(group=group)):
        if entry.dist and entry.module.partition(".")[0] in packages:
            for need in entry.dist.requires or ():
                if "extra ==" not in need and (name := re.match(r"[\w.-]+", need)):
                    yield name[0]


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            installed = platform.python_version() if name == "Python" else version(name)
            found[name] = installed.partition("+")[0]
        except PackageNotFoundError:
            found[name] = ABSENT
    return found


def differences(expected: Evidence) -> str:
    """How this process differs from what the driver was at its start; empty where it does not."""
    told = []
    for package, wanted in expected["code"].items():
        found = code_digest(package)
        if found != wanted:
            other = f"has other code of {package} than the driver began with"
            told.append(f"lacks {package}" if found == ABSENT else other)
    for name, found in _versions(expected["versions"]).items():
        wanted = expected["versions"][name]
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
