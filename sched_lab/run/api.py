"""What a Python caller uses: `plan` and `submit`, the latter with Ray in a process of its own.

A process in which Ray has run is at Ray's mercy: a minute after Ray's death it ends without a word.
So a child process drives Ray, and the caller's process, environment and signals stay as they were.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TextIO

import psutil

from sched_lab.errors import ExitCode, Interrupted, OutOfReach, SweepError
from sched_lab.redaction import redacted
from sched_lab.run.interrupts import heard
from sched_lab.run.plan import Plan, against, make
from sched_lab.run.submit import Outcome
from sched_lab.run.submit import submit as submit_here
from sched_lab.store.folder import Store
from sched_lab.sweep.spec import Sweep
from sched_lab.trainers.files import replacing

LAST_LINES = 5  # of a child that died, for the error
# Signals are diverted before NumPy starts threads.
_CHILD = f"""\
import sys
from pathlib import Path
from sched_lab.run.interrupts import divert
divert()
from {__name__} import serve
serve(Path(sys.argv[1]))
"""
END_SECONDS = 20.0  # in which the child must end at the second interrupt


def plan(sweep: Sweep | str | Path, store: Store | str | Path | None = None) -> Plan:
    """Compare a sweep, or its file, with a store: what is there, what is missing, what it costs.

    `store` is a folder or a `Store`; by default $SCHED_LAB_STORE, else ./lab. Runs are tracked at
    $MLFLOW_TRACKING_URI, else in the store. Raises SweepError for a wrong sweep.
    """
    if not isinstance(store, Store):
        store = Store.at(store, os.environ.get("MLFLOW_TRACKING_URI"))
    return against(sweep, store) if isinstance(sweep, Sweep) else make(Path(sweep), store)


def submit(
    sweep: Plan | Sweep | str | Path,
    store: Store | str | Path | None = None,
    *,
    inline: bool = False,
    address: str | None = None,
    progress: TextIO | None = None,
) -> Outcome:
    """Run what is missing of a sweep, both stages where it has two, and say what came of it.

    `sweep` is a sweep, its file or a `Plan`, which has its store; `store` is as in `plan`. `inline`
    runs the trials in this process, one after another. Otherwise Ray runs them: the cluster at
    `address`, else one on this machine. Progress is written to `progress` as lines, for example to
    `sys.stderr`.

    This process goes on whatever happens, with its environment and signal handlers as they were.
    `submit` works in any thread. In the main one, a first Ctrl-C lets running trials write a
    checkpoint and end; a second one ends the submission and is raised. SIGTERM and SIGHUP do the
    same, and then come to this process as they would have without `submit`: by default they end it.

    Raises SweepError for a sweep that cannot run. Raises OutOfReach when weights, the cluster or
    the tracking server are not there, when Ray dies, or when another submit is at work on this
    sweep. A failed trial raises nothing: see `Outcome.states`.
    """
    if isinstance(sweep, Plan):
        if store is not None:
            raise TypeError("a Plan has its store already: give a file with a store, or a Plan")
    else:
        sweep = plan(sweep, store)
    if inline and address is not None:
        raise ValueError("inline runs without Ray: it takes no address")
    with _signals_as_before() as late:
        outcome = (
            submit_here(sweep, inline=True, progress=progress)
            if inline
            else _submit_in_child(sweep, address, progress)
        )
        if outcome.signum:
            late.append(outcome.signum)
    return outcome


def _submit_in_child(sweep: Plan, address: str | None, progress: TextIO | None) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="sched-lab-submit-") as folder:
        answer = Path(folder) / "answer"
        search_path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, str(answer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": search_path},
            start_new_session=True,  # a terminal's Ctrl-C reaches it through `_wait` only
        )
        lines: deque[str] = deque(maxlen=LAST_LINES)
        relay = threading.Thread(target=_relay, args=(child, lines, progress), daemon=True)
        relay.start()
        try:
            _wait(child, pickle.dumps((sweep, address)))
        finally:
            relay.join(1.0)  # processes that Ray left behind may hold the pipe open
        if not answer.exists():
            last = " ".join(lines) or "it printed nothing"
            raise OutOfReach(
                redacted(f"the process that ran Ray died ({child.returncode}): {last}")
            )
        told = pickle.loads(answer.read_bytes())
    if isinstance(told, BaseException):
        raise told
    outcome: Outcome = told
    return outcome


def _relay(child: subprocess.Popen[bytes], lines: deque[str], progress: TextIO | None) -> None:
    assert child.stdout is not None
    for line in io.TextIOWrapper(child.stdout, errors="replace", encoding="utf-8"):
        lines.append(line.strip())
        if progress is not None:
            with suppress(OSError, ValueError):  # such as a notebook that was closed
                progress.write(line)
                progress.flush()


def _wait(child: subprocess.Popen[bytes], request: bytes) -> None:
    """Hand over the request and wait for the end; pass signals on, and raise the second one.

    The child's input stays open until then: its end tells the child that this process died.
    """
    assert child.stdin is not None
    try:
        with heard(lambda signum, frame: child.send_signal(signum)):
            with suppress(BrokenPipeError):
                child.stdin.write(request)
                child.stdin.flush()
            child.wait()
    except Interrupted as second:
        child.send_signal(second.signum)
        with suppress(subprocess.TimeoutExpired):
            child.wait(END_SECONDS)
        raise
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        with suppress(BrokenPipeError):
            child.stdin.close()


@contextmanager
def _signals_as_before() -> Iterator[list[int]]:
    """Deliver again, at the end, what is put into the list: a SIGTERM or SIGHUP that `submit` heard
    in place of this process's own handler, which may end the process.
    """
    late = list[int]()
    try:
        yield late
    except Interrupted as error:
        late.append(error.signum)
        raise KeyboardInterrupt from None
    finally:
        for signum in late:
            if signum != signal.SIGINT:
                signal.raise_signal(signum)


def serve(answer: Path) -> NoReturn:
    """The child: run the request that stands on the input, and leave the answer in a file."""
    sweep, address = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def reply(told: Outcome | BaseException) -> NoReturn:
        with replacing(answer) as part:
            part.write_bytes(pickle.dumps(told))
        sys.stdout.flush()
        os._exit(ExitCode.DONE)  # Ray or a request to MLflow may hold threads that never end

    try:
        reply(
            submit_here(
                sweep,
                address=address,
                progress=sys.stdout,
                abandon=lambda reason: reply(OutOfReach(reason)),
            )
        )
    except (SweepError, OutOfReach, KeyboardInterrupt) as error:
        reply(error)
    except BaseException:
        reply(RuntimeError(redacted(traceback.format_exc())))


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()  # some of Ray's would stay for a minute
    os._exit(ExitCode.INTERRUPTED)
