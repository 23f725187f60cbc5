"""What submitting a sweep of tiny trials takes, beside a naive script for Ray Tune with its own
callback for MLflow; both write to a database that has its tables.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.benchmarks.orchestration import read

SWEEP = """
name: two-step-{seed}
data: digits
grid: {{resolution: [8], b: [0.25, 0.5, 1, 2], seed: [{seed}0, {seed}1, {seed}2, {seed}3]}}
train: {{steps: 2, batch: 8}}
sample: {{count: 16, steps: 2}}
score: {{detector: classifier, metrics: [fd]}}
"""


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        submit(folder, 1)  # prepares images, detector and database
        start, end = time.time(), submit(folder, 2)
        journals = [read(path) for path in (folder / "lab").glob("trials/*/journal.jsonl")]
        fresh = [each for each in journals if each["start"] > start]
        began, ended = min(t["start"] for t in fresh), max(t["end"] for t in fresh)
        yield (
            "from submit to the first trial's start, prepared store",
            f"{began - start:.1f} s",
            "8 s",
        )
        yield "from the last trial's end to the prompt", f"{end - ended:.1f} s", "1.5 s"
        script = [sys.executable, "-m", "tests.benchmarks.naive_tune", str(folder)]
        before = time.time()
        subprocess.run(script, check=True, capture_output=True)
        naive = time.time() - before
        yield "16 trials of two steps", f"{end - start:.1f} s", ""
        yield "the same by a naive script for Ray Tune", f"{naive:.1f} s", ""
        yield "ratio", f"{(end - start) / naive:.2f}", "0.25"


def submit(folder: Path, seed: int) -> float:
    """When submitting the sweep of these seeds came to its end."""
    file = folder / f"{seed}.yaml"
    file.write_text(SWEEP.format(seed=seed), "utf-8")
    program = Path(sys.executable).with_name("sched-lab")
    command = [str(program), "submit", str(file), "--store", str(folder / "lab")]
    subprocess.run(command, check=True, capture_output=True)
    return time.time()


def naive_script(folder: Path) -> None:
    """Run trials like these as the documentation of Ray Tune shows it."""
    import torch
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    database = f"sqlite:///{folder / 'lab' / 'mlflow.db'}"
    fixed = yaml.safe_load(SWEEP.format(seed=3))
    grid = fixed.pop("grid")
    del fixed["name"]

    def train(config: dict[str, float]) -> None:
        from sched_lab.trainers.spec import TrialSpec
        from sched_lab.trainers.trial import run_trial

        torch.set_num_threads(1)
        spec = TrialSpec.model_validate(fixed | config)
        cache = folder / "lab" / "cache"
        result = run_trial(spec, key="naive", folder=Path.cwd() / "trial", cache=cache)
        tune.report(dict(result.scores))

    tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={name: tune.grid_search(values) for name, values in grid.items()},
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            callbacks=[MLflowLoggerCallback(database, experiment_name="naive")],
        ),
    ).fit()


if __name__ == "__main__":
    naive_script(Path(sys.argv[1]))
