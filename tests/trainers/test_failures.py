"""Every error is of a kind; a full disk is known by any library's words and costs nothing that was
written before.
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sched_lab.trainers.failures import BadData, Diverged, disk_is_full, gpu_is_lost, kind_of

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`"


def behind(error: Exception, *, by: type[Exception] = RuntimeError) -> Exception:
    """An error of another type, with this one as its cause."""
    try:
        raise by("evaluation failed") from error
    except by as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Diverged("mean loss nan at step 3"), "diverged"),
        (BadData("a.png cannot be read"), "bad_data"),
        (MemoryError(), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (torch.OutOfMemoryError("no room"), "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            "out_of_memory",
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            "out_of_memory",
        ),
        (behind(MemoryError()), "out_of_memory"),
        (behind(ValueError("bad header"), by=BadData), "bad_data"),
        (ValueError("out of memory"), "bug"),
        (RuntimeError(ILLEGAL), "bug"),
        (OSError(errno.ENOSPC, "No space left on device"), "bug"),
        (KeyError("x"), "bug"),
    ],
)
def test_an_error_is_of_the_kind_of_the_nearest_known_error_behind_it(
    error: Exception, kind: str
) -> None:
    assert kind_of(error) == kind


def test_what_torch_and_numpy_raise_for_want_of_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(10**15)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(10**15)
    assert {kind_of(of_torch.value), kind_of(of_numpy.value)} == {"out_of_memory"}


def test_a_gpu_that_failed_is_lost_and_one_that_was_full_is_not() -> None:
    assert gpu_is_lost(RuntimeError(ILLEGAL))
    assert gpu_is_lost(behind(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")))
    assert not gpu_is_lost(RuntimeError("CUDA error: out of memory"))
    assert not gpu_is_lost(torch.OutOfMemoryError("CUDA out of memory."))
    assert not gpu_is_lost(ValueError("CUDA error"))


def test_telling_kinds_apart_imports_no_torch() -> None:
    program = (
        "import sys, sched_lab.trainers.failures as f; f.kind_of(MemoryError()); print('torch' in"
        " sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
        == b"False\n"
    )


def test_a_full_disk_is_known_behind_other_errors_and_other_errors_are_not_it() -> None:
    full = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert disk_is_full(full)
    assert disk_is_full(behind(full))
    assert disk_is_full(behind(full, by=BadData))
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk_is_full(behind(MemoryError()))


def on_a_small_disk(program: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """What a program prints, as JSON, whose first argument is a folder on a disk of one
    megabyte.
    """
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0"'
    folder.mkdir()
    try:
        allowed = (
            subprocess.run(
                [*namespace, mount, str(folder)], capture_output=True, check=False
            ).returncode
            == 0
        )
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no mount namespace can be made here")
    inside = [
        *namespace,
        f'{mount} && exec "$@"',
        str(folder),
        sys.executable,
        "-c",
        program,
        str(folder),
    ]
    done = subprocess.run(
        [*inside, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


WRITERS = """
import io, json, pathlib, sys
import numpy as np, safetensors.torch, torch
from sched_lab.trainers.caching import cached
from sched_lab.trainers.failures import disk_is_full
from sched_lab.trainers.files import write_json
from sched_lab.trainers.trial import write_grid

disk, big = pathlib.Path(sys.argv[1]), torch.rand(1_000_000)
noise = torch.randint(256, (64, 3, 256, 256), dtype=torch.uint8)
text = "x" * 2_000_000
kept = disk / "kept"
kept.write_text("before")
writers = {
    "JSON": lambda: write_json(kept, text),
    "a sample grid": lambda: write_grid(noise, kept),
    "a cache of an array": lambda: cached(
        disk / "cache", lambda folder: np.save(folder / "a.npy", big.numpy())
    ),
    "a cache of text": lambda: cached(
        disk / "cache", lambda folder: (folder / "a.txt").write_text(text)
    ),
    "safetensors": lambda: safetensors.torch.save_file({"a": big}, disk / "x"),
    "torch.save": lambda: torch.save(big, disk / "x"),
}
found = {}
for name, write in writers.items():
    try:
        write()
    except Exception as error:
        left = sorted(path.name for path in disk.iterdir() if path.suffix != ".lock")
        found[name] = [isinstance(error, OSError), disk_is_full(error), left, kept.read_text()]
    (disk / "x").unlink(missing_ok=True)
print(json.dumps(found))
"""


def test_a_full_disk_is_known_by_what_every_writer_raises_and_leaves_what_stood_there(
    tmp_path: Path,
) -> None:
    found = on_a_small_disk(WRITERS, tmp_path / "disk")
    assert len(found) == 6
    for name, (is_os_error, told, left, kept) in found.items():
        assert told, name
        if name not in (
            "safetensors",
            "torch.save",
        ):  # these write in their own way, and we use neither
            assert (is_os_error, left, kept) == (True, ["kept"], "before"), name


TRIAL = """
import contextlib, json, pathlib, sys
from sched_lab.trainers.failures import disk_is_full
from sched_lab.trainers.spec import TrialSpec
from sched_lab.trainers.trial import Saving, run, run_trial

disk, elsewhere = map(pathlib.Path, sys.argv[1:])
small = {"kind": "unet", "width": 16, "multipliers": [1], "attention": 0}
spec = TrialSpec.model_validate({
    "train": {"steps": 20, "batch": 16, "network": small}, "sample": {"count": 20, "steps": 2},
    "score": {"detector": "random"},
})
cache = elsewhere / "cache"
whole = run_trial(spec, key="k", folder=elsewhere / "whole", cache=cache)

events = run(spec, key="k", folder=disk, cache=cache, checkpoint_seconds=0)
checkpoint, filler, found = disk / "checkpoint.safetensors", disk / "filler", {}
next(event for event in events if isinstance(event, Saving) and checkpoint.exists())
before = checkpoint.read_bytes()
with contextlib.suppress(OSError):
    filler.write_bytes(b"x" * 2**20)
try:
    next(events)
except OSError as error:
    found["told"] = disk_is_full(error)
found["intact"] = checkpoint.read_bytes() == before
found["left"] = sorted(path.name for path in disk.iterdir())
filler.unlink()
found["same"] = run_trial(spec, key="k", folder=disk, cache=cache).scores == whole.scores
print(json.dumps(found))
"""


def test_a_trial_whose_disk_fills_up_goes_on_from_its_last_checkpoint_to_the_same_scores(
    tmp_path: Path,
) -> None:
    found = on_a_small_disk(TRIAL, tmp_path / "disk", tmp_path)
    assert found == {
        "told": True,
        "intact": True,
        "left": ["checkpoint.safetensors", "data.json", "filler", "real.png"],
        "same": True,
    }
