"""Rounds: a sweep takes the blows of a seed, is submitted a last time, and must then be as if
nothing had happened.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sched_lab import names
from sched_lab.tracking.client import connect
from sched_lab.trainers.results import State
from tests.chaos import ledger
from tests.chaos.blows import KINDS, Blow, plan
from tests.chaos.lab import (
    END_SECONDS,
    GRIDS,
    MAIN,
    PROGRAM,
    Driver,
    Lab,
    described,
    environment,
    lasting,
    write_sweep,
)
from tests.servers import MlflowServer, mlflow_server

SHOWN = 12  # violations of a round that are printed


@dataclass(frozen=True)
class Reference:
    """The trials of each sweep as they come out when nothing happens to them."""

    store: Path
    experiments: dict[str, ledger.Experiment]


def run(seeds: Sequence[int], kinds: Sequence[str] = tuple(KINDS)) -> dict[int, list[str]]:
    """Run a round for each seed; returns what was wrong, by seed. The folders of those rounds are
    kept.
    """
    root = Path(tempfile.mkdtemp(prefix="chaos-"))  # short: Ray's sockets stand in it
    violated: dict[int, list[str]] = {}
    with ThreadPoolExecutor(1) as beside:
        undisturbed = beside.submit(run_undisturbed, root / "reference")
        with mlflow_server(root) as server:
            reference = undisturbed.result()
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


def run_undisturbed(folder: Path) -> Reference:
    """Run the trials of all sweeps to their end in one process, in a store of their own."""
    folder.mkdir()
    grid = {
        axis: sorted({value for each in GRIDS.values() for value in each[axis]})
        for axis in GRIDS[MAIN]
    }
    store, file = folder / "lab", write_sweep(folder, "reference", grid)
    command = [PROGRAM, "submit", str(file), "--inline", "--store", str(store)]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=300)
    trials, wrong = ledger.read_experiment(connect(f"sqlite:///{store / 'mlflow.db'}"), "reference")
    assert not wrong, wrong
    experiments: dict[str, ledger.Experiment] = {sweep: {} for sweep in GRIDS}
    for key, told in trials.items():
        for sweep, axes in GRIDS.items():
            if all(float(told.run.data.params[axis]) in values for axis, values in axes.items()):
                experiments[sweep][key] = told
    return Reference(store, experiments)


def run_round(
    seed: int, kinds: Sequence[str], folder: Path, server: MlflowServer, reference: Reference
) -> list[str]:
    """Run one round in `folder` and print a line about it; returns what was wrong."""
    begun = time.monotonic()
    lab = Lab(folder, server, seed)
    try:
        told = "; ".join(deal(lab, plan(seed, kinds), reference))
        for sweep in lab.sweeps:
            lab.end(lab.submit(sweep), {0})
        lab.bury()
        check(lab, reference)
    finally:
        lab.close()
    counts = (
        f"{time.monotonic() - begun:4.0f} s  {len(lab.drivers)} submits  {lab.attempts()} attempts"
    )
    print(f"seed {seed:<4} {counts}  {told}  {'VIOLATED' if lab.wrong else 'ok'}", flush=True)
    for what in lab.wrong[:SHOWN]:
        print(f"    {what}", flush=True)
    if len(lab.wrong) > SHOWN:
        print(f"    … and {len(lab.wrong) - SHOWN} more", flush=True)
    return lab.wrong


def deal(lab: Lab, blows: Iterable[Blow], reference: Reference) -> Iterator[str]:
    """Let the blows fall, on one submit for as long as it lasts; says what each submit got and how
    it ended.
    """
    driver, codes, told = None, {0}, list[str]()
    soft = True  # nothing yet has ended trials by force
    for blow in blows:
        if driver is None:
            driver, codes, told = lab.submit(), {0}, []
        kind, text = KINDS[blow.kind], "came too late"
        if comes(blow, lab, driver, reference):
            codes |= set(kind.codes)
            soft &= kind.soft
            text = kind.act(lab, driver, random.Random(blow.luck))
        told.append(f"{blow} ({text})".removesuffix(" ()"))
        if kind.ends or driver.ended:
            yield f"{', '.join(told)}: {lab.end(driver, codes)}"
            if soft:
                lab.wrong += check_stopped(lab)
            if not blow.hasty:
                lab.bury()
            driver = None
    if driver is not None:
        yield f"{', '.join(told)}: {lab.end(driver, codes)}"


def comes(blow: Blow, lab: Lab, driver: Driver, reference: Reference) -> bool:
    """Wait for the moment of a blow; False when the driver's end came first."""
    trials = reference.experiments[MAIN]
    total = sum(len(trial.histories[names.LOSS]) for trial in trials.values())
    before = lab.losses(trials)

    def due() -> object:
        return (
            driver.said
            if blow.share < 0
            else lab.losses(trials) > before + blow.share * (total - before)
        )

    lab.wait(lambda: driver.ended or due(), END_SECONDS)
    return not lab.wait(lambda: driver.ended, blow.seconds)


def check_stopped(lab: Lab) -> Iterator[str]:
    """What is lost or left open after a signal that lets trials write a checkpoint first."""
    for key, events in lab.journals().items():
        states = [event.state for event in events if event.state]
        if states and states[-1] == State.RUNNING:
            yield f"{key}: no end in its journal after a stop"
        if states and states[-1] == State.STOPPED and (told := max(event.step for event in events)):
            kept = ledger.checkpoint_step(lab.store / "trials" / key)
            if kept < told:
                yield f"{key}: a stop kept {kept} of {told} steps"
    yield from ledger.running(connect(lab.server.uri), lab.name(MAIN))


def check(lab: Lab, reference: Reference) -> None:
    """Note what the round has left behind that it should not have."""
    if strays := lasting(lab.strays()):
        lab.wrong.append(f"processes left: {described(strays)}")
    client = connect(lab.server.uri)
    for sweep in lab.sweeps:
        experiment, wrong = ledger.read_experiment(client, lab.name(sweep))
        lab.wrong += wrong
        lab.wrong += ledger.compare(sweep, experiment, reference.experiments[sweep])
    keys = {key for sweep in lab.sweeps for key in reference.experiments[sweep]}
    lab.wrong += ledger.check_folders(lab.store, reference.store, keys, damaged=lab.damaged)
    lab.wrong += [
        f"{driver.log.name}: a traceback"
        for driver in lab.drivers
        if "Traceback (most" in driver.said
    ]
