"""Where the published weights of Inception lie, and whether a file is them. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from sched_lab.trainers.errors import FieldError, WeightsMissing
from sched_lab.trainers.remote import reachable

INCEPTION_VARIABLE = "SCHED_LAB_INCEPTION"
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class WrongWeights(FieldError):
    """A file is not the published weights."""

    part = "score"


def inception_weights(given: str | None) -> Path | None:
    """Where the weights lie; None when they can be downloaded. `given` is `score.weights`.

    Raises WeightsMissing when they are out of reach.
    """
    variable = os.environ.get(INCEPTION_VARIABLE)
    if path := given or variable:
        file = Path(os.path.expanduser(path))
        if not file.is_file():
            rule = f"there is no file {file}; expected the weights of {INCEPTION_URL}"
            raise (
                WeightsMissing(rule, "weights")
                if given
                else WeightsMissing(f"{INCEPTION_VARIABLE}: {rule}")
            )
        return file
    if download_path().is_file():
        return download_path()
    if reachable(INCEPTION_URL):
        return None
    raise WeightsMissing(
        f"the inception detector needs its weights and {INCEPTION_URL} cannot be reached; give"
        f" their path as score.weights, or in the variable {INCEPTION_VARIABLE}, or download them"
        f" to {download_path()}"
    )


def download_path() -> Path:
    """Where torch-fidelity's download is kept: torch.hub's folder, found without importing
    torch.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints" / INCEPTION_URL.rpartition("/")[2]


def verify(file: Path, digest: str, given: str | None) -> None:
    """Raise WrongWeights unless the SHA-256 `digest` of a file is that of the published weights;
    `given` is `score.weights`.
    """
    if digest != INCEPTION_SHA256:
        rule = (
            f"{file} is not {INCEPTION_URL}: its SHA-256 is {digest}, expected {INCEPTION_SHA256}"
        )
        raise WrongWeights(rule, *(["weights"] if given else []))
