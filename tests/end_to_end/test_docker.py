"""What can be checked of the image and the compose file without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import yaml

from sched_lab import __version__
from tests.conftest import ROOT

DOCKER = ROOT / "docker"


def test_the_image_is_pinned_and_does_not_run_as_root() -> None:
    lines = (DOCKER / "Dockerfile").read_text("utf-8").splitlines()
    (base,) = (line for line in lines if line.startswith("FROM "))
    assert re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim-\w+", base)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] not in ("root", "0")
    installs = [line for line in lines if "pip install" in line]
    assert all("-c constraints.txt" in line or "--no-deps" in line for line in installs)


def test_every_file_the_image_copies_is_there() -> None:
    for line in (DOCKER / "Dockerfile").read_text("utf-8").splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (DOCKER.parent / source).exists(), source


def test_the_layer_of_dependencies_needs_no_more_than_it_copies(tmp_path: Path) -> None:
    layer, _, rest = (DOCKER / "Dockerfile").read_text("utf-8").partition("COPY . .")
    copies = [line.split()[1:] for line in layer.splitlines() if line.startswith("COPY ")]
    for *sources, folder in copies:
        (tmp_path / folder).mkdir(exist_ok=True)
        for source in sources:
            shutil.copy(ROOT / source, tmp_path / folder)
    code = "from setuptools.build_meta import *; prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    (about,) = tmp_path.glob("*.dist-info")
    needed = Distribution.at(about).requires
    assert needed is not None
    assert any(line.startswith("torch>=") for line in needed)
    assert "pip install" in rest


def test_the_version_stands_in_no_docker_file() -> None:
    assert all(__version__ not in file.read_text("utf-8") for file in DOCKER.iterdir())


def test_compose_publishes_on_loopback_only() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    assert set(compose["services"]) == {"mlflow", "runner"}
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "--host=0.0.0.0" in compose["services"]["mlflow"]["command"]  # inside the container
    assert (
        compose["services"]["runner"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    )


def test_every_dependency_of_the_project_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (DOCKER.parent / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    }
    missing = {re.match(r"[A-Za-z0-9._-]+", d).group().lower() for d in wanted} - pinned  # type: ignore[union-attr]
    assert missing == {"sched-lab"}  # in the extra that names other extras
