"""Sweeps under blows: kills drivers, trials, Ray and MLflow at random moments, submits again, and checks the ledger.

`python -m tests.chaos --rounds 50 --seed 0` runs rounds 0 to 49; `--rounds 1 --seed 17` runs round 17 again. A seed
fixes the kinds of blow, what each one picks, and when it falls: after so many of the losses that the submit has still
to report, or so many seconds into Ray's start. What the machine does in between is not repeated.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from sched_lab import names
from sched_lab.journal import read
from sched_lab.mlflow_client import connect
from tests import ledger
from tests.servers import MlflowServer, mlflow_server

PROGRAM = str(Path(sys.executable).with_name("sched-lab"))
END_SECONDS = 120.0  # in which a driver must come to its end after a blow
BURIAL_SECONDS = 20.0  # in which the processes of a driver must have followed it
SHOWN = 12  # violations of a round that are printed
SWEEP = """\
name: {name}
data: digits
grid: {{resolution: {resolution}, b: {b}}}
train: {{steps: 1000, batch: 16, network: {{kind: unet, width: 16, multipliers: [1], attention: 0}}}}
sample: {{count: 128, steps: 4}}
score: {{every: 250}}
resources: {{cpu: 1}}
run: {{checkpoint_every: 0.5}}
"""
GRIDS = {"chaos": {"resolution": [8, 16], "b": [0.5, 1.0]}, "overlap": {"resolution": [8], "b": [1.0, 2.0]}}


@dataclass(frozen=True)
class Reference:
    """Both sweeps as they come out when nothing happens to them."""

    store: Path
    experiments: dict[str, ledger.Experiment]

    def losses(self, sweep: str) -> int:
        """How many losses the trials of a sweep report in all."""
        return sum(len(told.histories[names.LOSS]) for told in self.experiments[sweep].values())


class Driver:
    """One `sched-lab submit` at work, in a session of its own, and every process seen to descend from it."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: Path, log: Path) -> None:
        self.log = log
        with log.open("xb") as file:
            self.process = psutil.Popen(
                command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._family: set[psutil.Process] = set()
        self._ended = float("inf")

    def look(self) -> None:
        """Note who descends from it now: those whose parent dies are found no other way."""
        if self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                self._family |= set(self.process.children(recursive=True))
        else:
            self._ended = min(self._ended, time.monotonic())

    def left(self, name: str = "") -> list[psutil.Process]:
        """Its descendants that are alive; those of one name."""
        return [each for each in self._family if _alive(each) and (not name or each.name() == name)]

    @property
    def overdue(self) -> list[psutil.Process]:
        """Its descendants, when they have outlived it for too long."""
        return self.left() if time.monotonic() > self._ended + BURIAL_SECONDS else []

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)


class Lab:
    """One round: a fresh store, its drivers, and what was found wrong."""

    def __init__(self, folder: Path, server: MlflowServer, seed: int) -> None:
        self.store, self.server, self.seed = folder / "lab", server, seed
        self.drivers: list[Driver] = []
        self.sweeps: list[str] = []  # of GRIDS, those submitted
        self.damaged: set[str] = set()  # keys of the trials whose checkpoint was cut short
        self.wrong: list[str] = []
        self._folder = folder
        (folder / "tmp").mkdir(parents=True)

    def submit(self, sweep: str = "chaos") -> Driver:
        file = write_sweep(self._folder, sweep, self.name(sweep))
        if sweep not in self.sweeps:
            self.sweeps.append(sweep)
        log = self._folder / f"{len(self.drivers)}-{sweep}.log"
        command = [PROGRAM, "submit", str(file), "--store", str(self.store), "--tracking-uri", self.server.uri]
        self.drivers.append(Driver(command, environment() | {"TMPDIR": str(self._folder / "tmp")}, self._folder, log))
        return self.drivers[-1]

    def name(self, sweep: str) -> str:
        """What a sweep is called in this round: the rounds share a server."""
        return f"{sweep}-{self.seed}"

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        """Watch over the drivers until the condition holds; False when it does not in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            for driver in self.drivers:
                driver.look()
            time.sleep(0.1)
        return True

    def end(self, driver: Driver, seconds: float = END_SECONDS) -> int:
        """The driver's exit code; one that does not end is wrong, and killed."""
        if not self.wait(lambda: driver.process.poll() is not None, seconds):
            self.wrong.append(f"{driver.log.name}: the driver hung for {seconds:.0f} s")
            driver.process.kill()
        return int(driver.process.wait())

    def bury(self) -> None:
        """Wait for the processes of ended drivers; those that stay are wrong, and killed."""
        self.wait(lambda: not any(driver.left() for driver in self.drivers), BURIAL_SECONDS)
        for driver in self.drivers:
            if left := driver.left():
                self.wrong.append(f"{driver.log.name}: {_names(left)} outlived the driver by {BURIAL_SECONDS:.0f} s")
            kill(left)

    def journals(self) -> dict[str, list[dict[str, object]]]:
        """The events of every trial's journal, by key."""
        return {file.parent.name: read(file)[0] for file in self.store.glob(f"trials/*/{names.JOURNAL_FILE}")}

    def losses(self, keys: Collection[str]) -> int:
        """How many losses these trials have reported."""
        told = (event for key, events in self.journals().items() if key in keys for event in events)
        return sum(names.LOSS in event.get("metrics", ()) for event in told)  # type: ignore[operator]

    def attempts(self) -> int:
        """How often a process took up a trial."""
        return sum("pid" in event for events in self.journals().values() for event in events)

    def close(self) -> None:
        """Kill every process of the round that is left, whoever started it."""
        kill([driver.process for driver in self.drivers])
        kill([each for driver in self.drivers for each in driver.left()])
        kill(strays(self._folder))


# The blows: each takes the lab, the driver to strike and its own luck, and says what it struck.


def kill_driver(lab: Lab, driver: Driver, luck: random.Random) -> str:
    driver.process.kill()
    return ""


def kill_trial(lab: Lab, driver: Driver, luck: random.Random) -> str:
    def running() -> list[psutil.Process]:
        said = [[event for event in events if "state" in event] for _, events in sorted(lab.journals().items())]
        pids = [states[-1]["pid"] for states in said if states and "pid" in states[-1]]
        return sorted((each for each in driver.left() if each.pid in pids), key=lambda each: pids.index(each.pid))

    return _kill_one(lab, driver, running, luck)


def kill_raylet(lab: Lab, driver: Driver, luck: random.Random) -> str:
    return _kill_one(lab, driver, lambda: driver.left("raylet"), luck)


def kill_gcs(lab: Lab, driver: Driver, luck: random.Random) -> str:
    return _kill_one(lab, driver, lambda: driver.left("gcs_server"), luck)


def kill_mlflow(lab: Lab, driver: Driver, luck: random.Random) -> str:
    lab.server.kill()
    seconds = luck.uniform(0, 10)
    lab.wait(lambda: False, seconds)
    lab.server.start()
    return f"for {seconds:.1f} s"


def pause_mlflow(lab: Lab, driver: Driver, luck: random.Random) -> str:
    lab.server.pause()
    seconds = luck.uniform(1, 8)
    lab.wait(lambda: False, seconds)
    lab.server.resume()
    return f"for {seconds:.1f} s"


def ctrl_c(lab: Lab, driver: Driver, luck: random.Random) -> str:
    driver.interrupt()
    return ""


def ctrl_c_twice(lab: Lab, driver: Driver, luck: random.Random) -> str:
    driver.interrupt()
    seconds = luck.uniform(0.05, 1.5)
    lab.wait(lambda: False, seconds)
    driver.interrupt()
    return f"{seconds:.2f} s apart"


def stop(lab: Lab, driver: Driver, luck: random.Random) -> str:
    command = [PROGRAM, "stop", lab.name("chaos"), "--store", str(lab.store)]
    said = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    return (said.stdout or said.stderr).partition("\n")[0]


def second_driver(lab: Lab, driver: Driver, luck: random.Random) -> str:
    second = lab.submit()
    code = lab.end(second)
    told = code == 3 and f"process {driver.process.pid}" in second.said
    if not told and driver.process.poll() is None:
        lab.wrong.append(f"{second.log.name}: a second driver was not told of {driver.process.pid}, exit {code}")
    return f"told {code}"


def overlap(lab: Lab, driver: Driver, luck: random.Random) -> str:
    code = lab.end(lab.submit("overlap"), 2 * END_SECONDS)
    if code != 0:
        lab.wrong.append(f"a sweep that shares cells ended with {code}")
    return f"ended {code}"


def cut_checkpoint(lab: Lab, driver: Driver, luck: random.Random) -> str:
    _clear(lab, driver)
    files = sorted(lab.store.glob(f"trials/*/{names.CHECKPOINT_FILE}"))
    if not files:
        return "there was none"
    file = luck.choice(files)
    size = file.stat().st_size
    os.truncate(file, int(luck.random() * size))
    lab.damaged.add(file.parent.name)
    return f"{file.parent.name} from {size} to {file.stat().st_size} bytes"


def tear_journal(lab: Lab, driver: Driver, luck: random.Random) -> str:
    _clear(lab, driver)
    files = sorted(lab.store.glob(f"trials/*/{names.JOURNAL_FILE}"))
    if not files:
        return "there was none"
    file = luck.choice(files)
    with file.open("ab") as journal:
        journal.write(b'{"time_ms": 1795420912345, "step": 1000, "metrics": {"lo'[: luck.randrange(1, 56)])
    return file.parent.name


def spoil_cache(lab: Lab, driver: Driver, luck: random.Random) -> str:
    _clear(lab, driver)
    files = sorted(file for file in lab.store.glob("cache/**/*") if file.is_file() and file.suffix != ".lock")
    if not files:
        return "it was empty"
    file = luck.choice(files)
    how = luck.choice(["deleted", "scribbled"])
    if how == "deleted":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2 :] = luck.randbytes(len(content) - len(content) // 2)
        file.write_bytes(content)
    return f"{how} {file.relative_to(lab.store)}"


def _clear(lab: Lab, driver: Driver) -> None:
    """End the driver and its processes by force: files are damaged only when nobody has them open."""
    driver.process.kill()
    driver.process.wait()
    kill(driver.left())


def _kill_one(lab: Lab, driver: Driver, candidates: Callable[[], Sequence[psutil.Process]], luck: random.Random) -> str:
    """Kill one of these processes, as soon as there is one."""
    lab.wait(lambda: candidates() or driver.process.poll() is not None, END_SECONDS)
    if not (found := candidates()):
        return "there was none"
    process = luck.choice(found)
    process.kill()
    return f"pid {process.pid}"


KILLED = -signal.SIGKILL
BLOWS: dict[str, tuple[Callable[[Lab, Driver, random.Random], str], set[int]]] = {
    # what it does, and the exit codes that its driver may have; 0 when all was done by then
    "driver": (kill_driver, {KILLED}),
    "trial": (kill_trial, {0}),
    "raylet": (kill_raylet, {0, 3}),
    "gcs": (kill_gcs, {0, 3}),
    "mlflow": (kill_mlflow, {0, 3}),
    "mlflow-pause": (pause_mlflow, {0, 3}),
    "ctrl-c": (ctrl_c, {0, 130}),
    "ctrl-c-twice": (ctrl_c_twice, {0, 130}),
    "stop": (stop, {0, 130}),
    "second": (second_driver, {0}),
    "overlap": (overlap, {0}),
    "checkpoint": (cut_checkpoint, {KILLED}),
    "journal": (tear_journal, {KILLED}),
    "cache": (spoil_cache, {KILLED}),
}


@dataclass(frozen=True)
class Blow:
    """A blow to one submit: its kind, when it falls, and what comes after it."""

    kind: str
    share: float  # of the losses still to be reported when the submit began; below 0: during Ray's start
    seconds: float  # from that moment on
    hasty: bool  # the next submit does not wait for this one's processes to end
    luck: int

    def __str__(self) -> str:
        when = f"at {self.share:.0%}" if self.share >= 0 else f"{self.seconds:.1f} s into the start"
        return f"{self.kind} {when}{', hasty' if self.hasty else ''}"


def plan(seed: int, kinds: Sequence[str] = tuple(BLOWS)) -> list[Blow]:
    """The blows of a round. Rounds in a row begin with one kind after the other."""
    luck = random.Random(seed)
    chosen = [kinds[seed % len(kinds)]] + [luck.choice(kinds) for _ in range(luck.randrange(2))]
    blows = []
    for kind in chosen:
        early = luck.random() < 0.2
        share, seconds = (-1.0, luck.uniform(0, 8)) if early else (luck.uniform(0, 0.9), luck.uniform(0, 0.3))
        blows.append(Blow(kind, share, seconds, luck.random() < 0.5, luck.getrandbits(32)))
    return blows


def strike(lab: Lab, blow: Blow, reference: Reference) -> str:
    """Submit, let the blow fall, and wait for the driver's end; says what happened."""
    keys = reference.experiments["chaos"].keys()
    before, total = lab.losses(keys), reference.losses("chaos")
    driver = lab.submit()

    def fallen() -> bool:
        return driver.process.poll() is not None

    due = before + blow.share * (total - before)
    lab.wait(lambda: fallen() or (driver.said if blow.share < 0 else lab.losses(keys) > due), 2 * END_SECONDS)
    lab.wait(fallen, blow.seconds)
    if fallen():
        code, told, allowed = lab.end(driver), "came too late", {0}
    else:
        act, allowed = BLOWS[blow.kind]
        told = act(lab, driver, random.Random(blow.luck))
        code = lab.end(driver)
    if code not in allowed:
        lab.wrong.append(f"{driver.log.name}: after {blow} the driver ended with {code}: {driver.said[-300:]!r}")
    if not blow.hasty:
        lab.bury()
    return f"{blow}{f' ({told})' if told else ''}: exit {code}"


def check(lab: Lab, reference: Reference) -> None:
    """Note what the round has left behind that it should not have."""
    client = connect(lab.server.uri)
    for sweep in lab.sweeps:
        experiment, wrong = ledger.read_experiment(client, lab.name(sweep))
        lab.wrong += wrong
        lab.wrong += ledger.compare(sweep, experiment, reference.experiments[sweep])
    keys = {key for sweep in lab.sweeps for key in reference.experiments[sweep]}
    lab.wrong += ledger.check_folders(lab.store, reference.store, keys, damaged=lab.damaged)
    lab.wrong += [
        f"{driver.log.name}: a traceback" for driver in lab.drivers if "Traceback (most recent" in driver.said
    ]


def run_round(seed: int, kinds: Sequence[str], folder: Path, server: MlflowServer, reference: Reference) -> list[str]:
    """Run one round in `folder` and print a line about it; returns what was wrong."""
    begun = time.monotonic()
    lab = Lab(folder, server, seed)
    told: list[str] = []
    try:
        told += (strike(lab, blow, reference) for blow in plan(seed, kinds))
        for sweep in lab.sweeps:
            last = lab.submit(sweep)
            if code := lab.end(last):
                lab.wrong.append(f"{last.log.name}: the last submit ended with {code}: {last.said[-300:]!r}")
        lab.bury()
        if strayed := strays(folder):
            lab.wrong.append(f"processes left: {_names(strayed)}")
        check(lab, reference)
    finally:
        lab.close()
    verdict = "VIOLATED" if lab.wrong else "ok"
    counts = f"{time.monotonic() - begun:4.0f} s  {len(lab.drivers)} submits  {lab.attempts()} attempts"
    print(f"seed {seed:<4} {counts}  {'; '.join(told)}  {verdict}", flush=True)
    for what in lab.wrong[:SHOWN]:
        print(f"    {what}", flush=True)
    if len(lab.wrong) > SHOWN:
        print(f"    … and {len(lab.wrong) - SHOWN} more")
    return lab.wrong


def run(seeds: Sequence[int], kinds: Sequence[str] = tuple(BLOWS)) -> dict[int, list[str]]:
    """Run a round for each seed; returns what was wrong, by seed. The folders of those rounds are kept."""
    root = Path(tempfile.mkdtemp(prefix="chaos-"))  # short: Ray's sockets stand in it
    violated: dict[int, list[str]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(mlflow_server(root))
        reference = undisturbed(root / "reference")
        for seed in seeds:
            folder = root / str(seed)
            if wrong := run_round(seed, kinds, folder, server, reference):
                violated[seed] = wrong
            else:
                shutil.rmtree(folder)
    if violated:
        print(f"kept: {', '.join(str(root / str(seed)) for seed in violated)}")
    else:
        shutil.rmtree(root)
    return violated


def undisturbed(folder: Path) -> Reference:
    """Run both sweeps to their end in one process, in a store of their own."""
    folder.mkdir()
    store = folder / "lab"
    for sweep in GRIDS:
        command = [PROGRAM, "submit", str(write_sweep(folder, sweep, sweep)), "--inline", "--store", str(store)]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=300)
    client = connect(f"sqlite:///{store / 'mlflow.db'}")
    experiments = {}
    for sweep in GRIDS:
        experiments[sweep], wrong = ledger.read_experiment(client, sweep)
        assert not wrong, wrong
    return Reference(store, experiments)


def write_sweep(folder: Path, sweep: str, name: str) -> Path:
    file = folder / f"{sweep}.yaml"
    file.write_text(SWEEP.format(name=name, **GRIDS[sweep]))
    return file


def environment() -> dict[str, str]:
    """This process's, without what would change a submit; one thread a trial."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SCHED_LAB", "MLFLOW", "RAY"))}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def strays(folder: Path) -> list[psutil.Process]:
    """The living processes that have to do with a folder: in their command, working folder or environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            traces = [*process.cmdline(), process.cwd(), *process.environ().values()]
            if process.pid != os.getpid() and _alive(process) and any(f"{folder}/" in f"{trace}/" for trace in traces):
                found.append(process)
    return found


def kill(processes: Collection[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _names(processes: Collection[psutil.Process]) -> str:
    with suppress(psutil.NoSuchProcess):
        return ", ".join(sorted(f"{each.name()} ({each.pid})" for each in processes))
    return f"{len(processes)} processes"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--kinds", nargs="+", choices=BLOWS, default=list(BLOWS), help="only these blows")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that all is cleaned up
    seeds = range(given.seed, given.seed + given.rounds)
    violated = run(seeds, given.kinds)
    counts = Counter(blow.kind for seed in seeds for blow in plan(seed, given.kinds))
    print(
        f"{given.rounds} rounds, {sum(counts.values())} blows: {', '.join(f'{n} {kind}' for kind, n in counts.items())}"
    )
    print(f"violated: seeds {', '.join(map(str, violated))}" if violated else "nothing violated")
    sys.exit(1 if violated else 0)


if __name__ == "__main__":
    main()
