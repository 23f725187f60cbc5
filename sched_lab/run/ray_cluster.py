"""Ray itself: started on this machine or joined elsewhere, and ended.

Ray reads the environment when it is imported: see `sched_lab.run.executors.ray_environment`.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.job_config import JobConfig

from sched_lab.errors import OutOfReach
from sched_lab.run import proof, ray_watch
from sched_lab.run.ray_needs import OBJECT_STORE
from sched_lab.trainers.scoring.weights import INCEPTION_VARIABLE


@contextmanager
def cluster(
    address: str | None, cores: int | None, give_up: Callable[[str], None]
) -> Iterator[None]:
    """Ray on `cores` of this machine for as long as the context lasts, or the cluster at `address`.

    Raises OutOfReach. Where Ray neither starts nor fails, another thread calls `give_up` with the
    reason, which has to end the process.
    """
    if address is not None and "://" in address:
        raise OutOfReach(
            f"--address takes HOST:PORT or auto, got {address}: Ray's client can't drive Tune"
        )
    if address is not None and address != "auto":
        _knock(address)
    weights = {name: value for name in (INCEPTION_VARIABLE,) if (value := os.environ.get(name))}
    local = address is None
    bound = ray_watch.Bound(give_up)
    try:
        try:
            with bound:
                ray.init(
                    address or "local",
                    num_cpus=cores,
                    object_store_memory=OBJECT_STORE if local else None,
                    include_dashboard=False if local else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": weights} if weights and not local else None,
                    job_config=_search_path(address),
                )
            ray.cloudpickle.register_pickle_by_value(proof)  # type: ignore[no-untyped-call]
        except Exception as error:  # Ray raises plain ones too
            reason = bound.reason or str(error).partition("\n")[0]
            if address and os.environ.get("RAY_AUTH_MODE") != "token":
                reason += "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            raise OutOfReach(
                f"Ray can't be {f'reached at {address}' if address else 'started'}: {reason}"
            ) from error
        gc.freeze()  # all that was imported is no garbage
        yield
    finally:
        _shut_down()


def _shut_down() -> None:
    """End Ray, and at once the processes that it started here: it would wait a second for each to
    hear a SIGTERM, which `sched_lab.run.interrupts.divert` keeps from them.

    After that, a call into Ray ends this process with code 1 and no word. A thread that delivered
    results made one, perhaps since it freed Ray's objects. So garbage goes first, and the caller
    has no other thread at work.
    """
    gc.collect()
    node: Any = ray._private.worker._global_node
    family = set[psutil.Process]()
    for _, process in node.live_processes() if node else ():
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid)
            family |= {started, *started.children(recursive=True)}
        process.terminate = process.kill
    try:
        ray.shutdown()
    finally:  # also when an interrupt cuts it short
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _search_path(address: str | None) -> JobConfig:
    """Has workers on this machine import what this process imports, and others what they have.

    Ray itself puts the working folder first: a `numpy.py` there would be theirs alone.
    """
    if address is not None:
        return JobConfig(_client_job=True)
    path = [str(Path(entry).absolute()) for entry in sys.path]
    return JobConfig(_client_job=True, _py_driver_sys_path=path[::-1])  # each is put first


def _knock(address: str, seconds: float = 5.0) -> None:
    """Raise OutOfReach when nobody listens at HOST:PORT: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), seconds).close()
    except (OSError, ValueError) as error:
        raise OutOfReach(f"there is no Ray cluster at {address}: {error}") from error
