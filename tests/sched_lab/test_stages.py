"""Screening with few seeds and confirming with fresh ones: what is kept, what is run, what is
refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sched_lab import names
from sched_lab.errors import SweepError
from sched_lab.store.folder import Store
from sched_lab.sweep.grid import Cell, Trial
from sched_lab.sweep.located_yaml import loads
from sched_lab.sweep.spec import validated
from sched_lab.sweep.stages import at_most, best, with_seeds
from sched_lab.tracking.client import connect
from sched_lab.trainers.results import State, TrialResult
from sched_lab.trainers.spec import TrialSpec
from tests.conftest import SMALL_SWEEP, Command

SWEEP = SMALL_SWEEP.replace("{every: 10}", "{detector: random}").replace(
    "[0.5, 1.0]", "[0.25, 0.5, 1.0]"
)
STAGES = "run: {screen: {seeds: 2, keep: 1}, confirm: {seeds: 2}}\n"


def cell(size: int, b: float, **score: object) -> Cell:
    spec = TrialSpec.model_validate(
        {"resolution": size, "b": b, "score": {"detector": "random", **score}}
    )
    return Cell(spec, {"resolution": size, "b": b})


def screened(
    cells: list[Cell], scores: dict[tuple[int, float, int], float | None]
) -> tuple[list[Trial], dict]:
    """Trials of the cells with seeds 0 and 1, and results with these scores by (size, b, seed);
    None: it failed.
    """
    trials = [
        Trial(f"{i}", each.spec, each.settings)
        for i, each in enumerate(with_seeds(cells, range(2)))
    ]
    results = {}
    for trial in trials:
        score = scores[trial.spec.resolution, trial.spec.b, trial.spec.seed]
        name = trial.spec.score.metric_names[0]
        results[trial.key] = TrialResult(
            key=trial.key,
            state=State.FAILED if score is None else State.FINISHED,
            scores={} if score is None else {name: score},
        )
    return trials, results


def test_the_best_mean_of_each_size_is_kept_and_failed_trials_do_not_count() -> None:
    cells = [cell(8, 0.5), cell(8, 1.0), cell(16, 0.5), cell(16, 1.0)]
    scores = {
        (8, 0.5, 0): 1.0,
        (8, 0.5, 1): 9.0,
        (8, 1.0, 0): 4.0,
        (8, 1.0, 1): 4.0,
    }  # means 5 and 4
    scores |= {(16, 0.5, 0): 3.0, (16, 0.5, 1): None, (16, 1.0, 0): None, (16, 1.0, 1): None}
    kept = best(cells, *screened(cells, scores), keep=1)
    assert [(each.spec.resolution, each.spec.b) for each in kept] == [(8, 1.0), (16, 0.5)]


@pytest.mark.parametrize(
    ("untrained", "loss", "kept"),
    [
        (50.0, 0.5, [0.5, 1.0]),
        (5.0, 0.5, [0.5]),
        (3.0, 0.5, []),
        (50.0, 0.999, []),
        (None, None, [0.5, 1.0]),
    ],
)
def test_no_cell_that_draws_noise_is_confirmed(
    untrained: float | None, loss: float | None, kept: list[float]
) -> None:
    cells = [cell(8, b) for b in (0.5, 1.0, 2.0)]
    scores: dict[tuple[int, float, int], float | None] = {
        (8, b, seed): mean + 0.1 * seed
        for b, mean in ((0.5, 3.0), (1.0, 6.0), (2.0, 9.0))
        for seed in range(2)
    }
    trials, results = screened(cells, scores)
    name = trials[0].spec.score.metric_names[0]
    known = {f"{names.REAL}{name}": 0.0, f"{names.UNTRAINED}{name}": untrained}
    known[names.LOSS_OF_ZERO] = 1.0
    results = {
        key: result.model_copy(update={"baselines": known, "loss": loss})
        for key, result in results.items()
    }
    assert [each.spec.b for each in best(cells, trials, results, keep=2)] == kept


def test_cells_that_sampling_seeds_or_flips_tell_apart_are_one_or_compete() -> None:
    def drawn(b: float, draw: int, flip: bool = False) -> Cell:
        spec = TrialSpec.model_validate(
            {
                "b": b,
                "sample": {"seed": draw},
                "data": {"source": "digits", "flip": flip},
                "score": {"detector": "random"},
            }
        )
        return Cell(spec, {})

    def kept(cells: list[Cell], scores: list[float]) -> list[Cell]:
        trials = [Trial(f"{i}", each.spec, {}) for i, each in enumerate(cells)]
        results = {
            f"{i}": TrialResult(key=f"{i}", state=State.FINISHED, scores={"fd_random": score})
            for i, score in enumerate(scores)
        }
        return best(cells, trials, results, keep=1)

    cells = [drawn(b, draw) for b in (0.5, 1.0) for draw in (0, 1)]
    assert kept(cells, [1.0, 9.0, 4.0, 4.0]) == cells[2:]
    assert at_most(cells, 1) == 2
    flips = [drawn(1.0, 0), drawn(1.0, 0, flip=True)]
    assert kept(flips, [1.0, 2.0]) == flips[:1]


def test_where_higher_is_better_the_highest_is_kept() -> None:
    cells = [cell(8, 0.5, metrics=["recall"]), cell(8, 1.0, metrics=["recall"])]
    scores = {(8, 0.5, 0): 0.2, (8, 0.5, 1): 0.4, (8, 1.0, 0): 0.3, (8, 1.0, 1): 0.4}
    assert [each.spec.b for each in best(cells, *screened(cells, scores), keep=1)] == [1.0]


def test_seeds_are_counted_from_the_cells_own() -> None:
    spec = TrialSpec.model_validate({"seed": 7})
    assert [each.spec.seed for each in with_seeds([Cell(spec, {})], range(1, 3))] == [8, 9]


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ("{screen: {keep: 2}}", "needs run.confirm too"),
        ("{confirm: {seeds: 5}}", "needs run.screen too"),
        ("{screen: {}, confirm: {seeds: 1}}", "must be at least 2"),
    ],
)
def test_half_a_search_is_refused(run: str, told: str) -> None:
    with pytest.raises(SweepError, match=told):
        validated(loads(SWEEP + f"run: {run}\n"))


def test_seeds_of_ones_own_are_refused_beside_stages() -> None:
    with pytest.raises(SweepError, match=r"grid\.seed.*leave seed out"):
        validated(loads(SWEEP.replace("grid:", "grid:\n  seed: [0, 1]") + STAGES))


@pytest.mark.slow
def test_one_submit_screens_and_confirms_and_the_report_has_the_confirmed_alone(
    sched_lab: Command, tmp_path: Path
) -> None:
    # Cells that draw noise are not confirmed.
    sweep = SWEEP.replace("steps: 20,", "steps: 300, lr: 3.0e-3,") + STAGES
    (tmp_path / "small.yaml").write_text(sweep, "utf-8")
    plan = json.loads(sched_lab("plan", "small.yaml", "--json", cwd=tmp_path).stdout)
    assert (plan["cells"], plan["to_confirm"]) == (
        12,
        4,
    )  # 6 cells with 2 seeds; 1 of each of 2 sizes with 2
    done = sched_lab("submit", "small.yaml", "--inline", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["states"] == {"finished": 16}, done.stderr
    rows = json.loads(sched_lab("status", "small", "--json", cwd=tmp_path).stdout)
    for size in (8, 16):
        of_size = [row for row in rows if row["settings"]["resolution"] == size]
        means: dict[float, list[float]] = {}
        for row in of_size:
            if row["stage"] == "screen":
                means.setdefault(row["settings"]["b"], []).append(row["scores"]["fd_random"])
        winner = min(means, key=lambda b: sum(means[b]))
        confirmed = [row for row in of_size if row["stage"] == "confirm"]
        assert {(row["settings"]["b"], row["settings"]["seed"]) for row in confirmed} == {
            (winner, 2),
            (winner, 3),
        }
    client = connect(Store.at(tmp_path / "lab").tracking_uri)
    experiment = client.get_experiment_by_name("small").experiment_id
    tags = [
        run.data.tags
        for run in client.search_runs([experiment], f"tags.`{names.ROLE}` = '{names.ROLE_TRIAL}'")
    ]
    assert {tag[names.TRIAL_KEY]: tag[names.STAGE] for tag in tags} == {
        row["key"]: row["stage"] for row in rows
    }
    said = json.loads(sched_lab("report", "small", "--json", cwd=tmp_path).stdout)
    assert [row["n"] for row in said["best"]] == [2, 2]
    again = sched_lab("submit", "small.yaml", "--inline", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["states"] == {"finished": 16}
    assert "0 to run" in again.stderr
