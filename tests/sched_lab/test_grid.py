"""A sweep expands to exactly the trials that it denotes, and each gets the key of its work."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sched_lab.errors import SweepError
from sched_lab.sweep.grid import MAX_CELLS, Cell, Grid, expand, keyed
from sched_lab.sweep.located_yaml import loads
from sched_lab.trainers.spec import DataSpec, TrialSpec, trial_key


def grid_of(**sweep: Any) -> Grid:
    return expand(loads(json.dumps(sweep), "x.yaml"))


def specs(**sweep: Any) -> list[TrialSpec]:
    return [cell.spec for cell in grid_of(**sweep).cells]


def refusal(**sweep: Any) -> str:
    with pytest.raises(SweepError) as caught:
        grid_of(**sweep)
    return str(caught.value)


def keys(cells: tuple[Cell, ...]) -> list[str]:
    return [trial.key for trial in keyed(cells, lambda data: "content")]


resolutions = st.lists(st.sampled_from([8, 16, 32, 64]), min_size=1, max_size=4, unique=True)
scales = st.lists(st.sampled_from([0.25, 0.5, 1, 2.0]), min_size=1, max_size=4, unique=True)
schedules = st.lists(
    st.sampled_from(["linear", "cosine", "cosine@0.2,1,1", "flow"]), min_size=1, unique=True
)


@settings(deadline=None)
@given(resolutions, scales, schedules)
def test_the_cells_are_the_product_of_the_axes_in_the_order_written(
    resolution: list[int], b: list[float], schedule: list[str]
) -> None:
    grid = grid_of(grid={"resolution": resolution, "b": b, "schedule": schedule})
    found = [(cell.spec.resolution, cell.spec.b, cell.settings["schedule"]) for cell in grid.cells]
    canonical = [spelling.replace("flow", "flow@1") for spelling in schedule]
    assert found == list(itertools.product(resolution, b, canonical))
    assert (grid.duplicates, grid.excluded, grid.axes) == (0, 0, ("resolution", "b", "schedule"))


@settings(deadline=None)
@given(resolutions, scales, resolutions, scales)
def test_excluding_and_including_are_set_difference_and_union(
    resolution: list[int], b: list[float], without: list[int], included: list[float]
) -> None:
    grid = grid_of(
        grid={"resolution": resolution, "b": b},
        exclude=[{"resolution": without, "b": b[0]}],
        include=[{"resolution": 128, "b": value} for value in included],
    )
    left = {(r, s) for r in resolution for s in b if not (r in without and s == b[0])}
    assert {(cell.spec.resolution, cell.spec.b) for cell in grid.cells} == left | {
        (128, s) for s in included
    }
    assert grid.excluded == len(resolution) * len(b) - len(left)


@settings(deadline=None)
@given(scales, st.randoms())
def test_the_order_of_axes_and_values_changes_no_key(b: list[float], random: Any) -> None:
    axes: dict[str, list[Any]] = {
        "b": b,
        "resolution": [8, 16],
        "train.lr": [1e-3, 1e-4],
        "seed": [0, 1],
    }
    shuffled = {
        name: random.sample(axes[name], len(axes[name]))
        for name in random.sample(list(axes), len(axes))
    }
    assert set(keys(grid_of(grid=axes).cells)) == set(keys(grid_of(grid=shuffled).cells))


def test_adding_a_value_to_an_axis_keeps_the_keys_that_were_there() -> None:
    few, many = (keys(grid_of(grid={"b": b, "seed": [0, 1]}).cells) for b in ([1, 2], [0.5, 1, 2]))
    assert set(few) < set(many)
    assert len(many) == 6


def test_a_sweep_without_a_grid_is_one_cell() -> None:
    assert specs(train={"steps": 7}) == [TrialSpec.model_validate({"train": {"steps": 7}})]


def test_a_sweep_with_included_cells_alone_has_no_other_cell() -> None:
    assert [spec.b for spec in specs(include=[{"b": 2}, {"b": 3}])] == [2, 3]


def test_any_setting_can_be_an_axis() -> None:
    found = specs(
        data={"source": "folder"},
        grid={
            "data.path": ["/a", "/b"],
            "data.flip": [False, True],
            "train.network.width": [32, 64],
            "train.network.multipliers": [[1], [1, 2]],
            "sample.steps": [10],
            "score.detector": ["random"],
        },
    )
    assert len(found) == 16
    assert {spec.train.network.model_dump()["multipliers"] for spec in found} == {(1,), (1, 2)}
    assert {spec.data.model_dump()["path"] for spec in found} == {"/a", "/b"}


def test_a_schedules_lists_expand_for_that_schedule_alone() -> None:
    mapping = {"kind": "sigmoid", "range": [[-3, 3], [0, 3]], "tau": [0.5, 0.9]}
    found = [
        spec.schedule
        for spec in specs(grid={"schedule": ["linear", mapping, {"kind": "log", "range": [1, 9]}]})
    ]
    sigmoids = ["sigmoid@-3,3,0.5", "sigmoid@-3,3,0.9", "sigmoid@0,3,0.5", "sigmoid@0,3,0.9"]
    assert found == ["linear", *sigmoids, "log@1,9,f"]


def test_a_schedule_parameter_acts_on_the_schedules_that_read_it_and_the_rest_collapse() -> None:
    grid = grid_of(
        grid={
            "schedule": ["linear", "sigmoid@-3,3,1", "cosine@0,1,1", "cosine"],
            "tau": [0.5, 1, 2],
        }
    )
    sigmoids, cosines = (
        [f"{kind},{tau}" for tau in ("0.5", "1", "2")] for kind in ("sigmoid@-3,3", "cosine@0,1")
    )
    # bare cosine is the authors' own and reads nothing: a tau must not turn it into another
    # schedule
    assert [cell.spec.schedule for cell in grid.cells] == ["linear", *sigmoids, *cosines, "cosine"]
    assert grid.duplicates == 4
    assert [cell.settings.get("tau") for cell in grid.cells] == [
        None,
        0.5,
        1.0,
        2.0,
        0.5,
        1.0,
        2.0,
        None,
    ]


def test_two_spellings_of_one_trial_collapse_into_the_first() -> None:
    grid = grid_of(
        grid={
            "schedule": [
                "linear",
                "simple_linear",
                "sigmoid@-3,3,1",
                {"kind": "sigmoid", "tau": 1.0},
            ],
            "b": [1, 1.0],
        }
    )
    assert [cell.spec.schedule for cell in grid.cells] == ["linear", "sigmoid@-3,3,1"]
    assert grid.duplicates == 6


def test_the_same_source_in_two_places_stays_two_cells_until_its_content_is_known() -> None:
    cells = grid_of(data={"source": "folder"}, grid={"data.path": ["/a", "/b"]}).cells
    assert len(cells) == 2
    assert len(keyed(cells, lambda data: str(data.model_dump()["path"]))) == 2
    assert [trial.spec for trial in keyed(cells, lambda data: "the same images")] == [cells[0].spec]
    assert len(keys(grid_of(grid={"score.weights": ["/here", "/there"]}).cells)) == 1


def test_exclusion_compares_canonical_values() -> None:
    axes = {"schedule": ["linear", "sigmoid@-3,3,0.9", "cosine@0.2,1,1"], "b": [1, 2]}
    for entry, left in [
        ({"b": 2.0}, 3),
        ({"schedule": "simple_linear"}, 4),
        ({"schedule": ["linear", {"kind": "sigmoid", "tau": 0.9}]}, 2),
        ({"kind": ["sigmoid", "cosine"], "b": 1}, 4),
        ({"tau": 1}, 4),
        ({"train.steps": 1500, "data": "digits", "data.flip": False, "b": 2}, 3),
        ({"train.network": {"kind": "unet", "width": 64}, "score.metrics": ["fd"], "b": 1}, 3),
    ]:
        assert len(grid_of(grid=axes, exclude=[entry]).cells) == left


def test_a_cell_that_is_excluded_need_not_be_possible() -> None:
    grid = grid_of(
        grid={"resolution": [8, 64], "train.network.width": [8, 64]},
        train={"network": {"kind": "unet", "patch": 4}},
        exclude=[{"train.network.width": 8}],
    )
    assert [cell.spec.resolution for cell in grid.cells] == [8, 64]


def test_included_cells_span_the_axes_they_leave_out_and_may_set_anything() -> None:
    grid = grid_of(
        grid={"seed": [0, 1], "schedule": ["sigmoid"], "tau": [0.5, 2]},
        include=[{"schedule": "flow@3", "train.lr": 1e-4}],
    )
    assert [(c.spec.seed, c.spec.schedule, c.spec.train.lr) for c in grid.cells[4:]] == [
        (0, "flow@3", 1e-4),
        (1, "flow@3", 1e-4),
    ]
    assert grid.cells[-1].settings == {"seed": 1, "schedule": "flow@3", "train.lr": 1e-4}


def test_overrides_apply_in_order_and_each_sees_what_the_last_one_set() -> None:
    found = specs(
        grid={"resolution": [8, 16, 32]},
        overrides=[
            {"when": {}, "set": {"train.steps": 100}},
            {"when": {"resolution": [16, 32]}, "set": {"train.steps": 200, "b": 0.5}},
            {"when": {"train.steps": 200, "resolution": 32}, "set": {"sample.count": 9}},
        ],
    )
    assert [(s.train.steps, s.b, s.sample.count) for s in found] == [
        (100, 1, 1000),
        (200, 0.5, 1000),
        (200, 0.5, 9),
    ]


def test_setting_a_whole_discards_what_was_set_inside_it_before() -> None:
    (found,) = specs(
        grid={"schedule": ["sigmoid"], "tau": [0.5], "train.network.width": [32]},
        overrides=[
            {
                "when": {"tau": 0.5},
                "set": {"schedule": "sigmoid@0,3,1", "train.network": {"kind": "unet"}},
            }
        ],
    )
    assert (found.schedule, found.train.network.model_dump()["width"]) == ("sigmoid@0,3,1", 64)


def test_what_has_no_effect_is_warned_of_at_its_line() -> None:
    grid = grid_of(
        grid={"b": [1, 2], "shift": [3]},
        exclude=[{"b": 1}, {"b": 1, "seed": 0}, {"b": 7}],
        overrides=[{"when": {"b": 1}, "set": {"seed": 3}}],
    )
    assert [str(warning).partition(": ")[2] for warning in grid.warnings] == [
        'exclude[2] = {"b": 7}: matches no cell',
        'overrides[0] = {"when": {"b": 1}, "set": {"seed": 3}}: matches no cell',
        "grid.shift = [3]: is read by no schedule of this sweep",
    ]


def test_settings_are_json_and_canonical() -> None:
    (cell,) = grid_of(
        grid={
            "data": [{"source": "shapes", "count": 9}],
            "b": [2],
            "score.metrics": [["kid"]],
            "score.every": [None],
        }
    ).cells
    expected = {
        "data": {"source": "shapes", "count": 9},
        "b": 2.0,
        "score.metrics": ["kid"],
        "score.every": None,
    }
    assert json.loads(json.dumps(cell.settings)) == cell.settings == expected


def test_a_grid_with_too_many_cells_is_refused_before_it_is_made() -> None:
    axes = {name: list(range(1, 1000)) for name in ("seed", "train.steps", "sample.count", "b")}
    assert refusal(grid=axes).endswith(f"has {999**4:,} cells; at most {MAX_CELLS:,} are allowed")
    assert "must stand for 1 to" in refusal(
        grid={"schedule": [{"kind": list(range(999)), "tau": list(range(999))}]}
    )


def test_the_key_is_the_trials_own_and_each_source_is_fingerprinted_once() -> None:
    asked: list[DataSpec] = []
    cells = grid_of(
        grid={"data": ["digits", {"source": "shapes"}, "digits"], "seed": list(range(20))}
    ).cells

    def fingerprint(data: DataSpec) -> str:
        asked.append(data)
        return data.source

    trials = keyed(cells, fingerprint)
    assert [data.source for data in asked] == ["digits", "shapes"]
    assert all(trial.key == trial_key(trial.spec, trial.spec.data.source) for trial in trials)


def test_a_hundred_thousand_cells_are_expanded_validated_and_keyed_within_fifteen_seconds() -> None:
    start = time.process_time()
    grid = grid_of(
        grid={
            "resolution": [8, 16, 32, 64, 128],
            "schedule": [
                "linear",
                {"kind": "sigmoid", "range": [[-3, 3], [0, 3]], "tau": [0.5, 0.9]},
            ],
            "b": [0.1 * i for i in range(1, 11)],
            "seed": list(range(40)),
            "train.lr": [1e-3, 1e-4],
            "train.network.width": [64, 128, 256, 512, 1024],
        },
        exclude=[{"kind": "linear", "b": 7}],
        overrides=[{"when": {"resolution": [32, 64]}, "set": {"train.steps": 3000}}],
    )
    assert len(keyed(grid.cells, lambda data: "content")) == 100_000
    assert time.process_time() - start < 15


def test_sources_are_read_for_their_fingerprints_and_not_before(tmp_path: Path) -> None:
    (cell,) = grid_of(data={"source": "folder", "path": str(tmp_path / "none")}).cells
    with pytest.raises(ValueError, match="is not a folder"):
        keyed([cell], lambda data: data.fingerprint(tmp_path))
