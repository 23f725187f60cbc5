"""Sweep files are read whole or refused with every problem at its line, and the shipped ones are
sound.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sched_lab.errors import SweepError
from sched_lab.sweep.located_yaml import loads
from sched_lab.sweep.schema import json_schema
from sched_lab.sweep.spec import Sweep, read_sweep, trials, validated
from tests.conftest import ROOT

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
SCHEMA = Draft202012Validator(json_schema())

EXAMPLE = """\
name: example
description: What is asked
data: {source: digits, flip: false}
grid:
  resolution: [8, 16]
  schedule:
    - linear
    - cosine@0.2,1,1
    - {kind: sigmoid, range: [[-3, 3], [0, 3]], tau: [0.5, 0.9]}
  b: [0.5, 1.0, 2.0]
  seed: [0, 1]
  train.lr: [1e-3]
exclude: [{resolution: 16, b: 2.0}]
include: [{resolution: 32, schedule: flow, b: 3.0}]
overrides:
  - {when: {resolution: [16, 32]}, set: {train.steps: 3000}}
train: {network: {kind: unet, width: 64}, steps: 1500, predict: v, weight: min_snr@5}
sample: {count: 1000, sampler: ddim, steps: 50, schedule: cosine}
score: {detector: classifier, metrics: [fd, kid], every: 500}
resources: {cpu: 1, gpu: 0.5}
run: {max_failures: 2, early_stop: asha}
"""


def read(text: str) -> Sweep:
    return validated(loads(text, "x.yaml"))


def refusals(text: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        read(text)
    return str(caught.value).splitlines()


def keys(sweep: Sweep) -> list[str]:
    return [trial.key for trial in trials(sweep, sweep.grid.cells, lambda data: "content")]


def test_a_sweep_is_read_with_all_that_it_says() -> None:
    sweep = read(EXAMPLE)
    assert (sweep.spec.name, sweep.spec.resources.gpu, sweep.spec.run.early_stop) == (
        "example",
        0.5,
        "asha",
    )
    assert len(sweep.grid.cells) == (2 * 6 * 3 - 6) * 2 + 2
    assert {cell.spec.train.steps for cell in sweep.grid.cells if cell.spec.resolution > 8} == {
        3000
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grid: {b: [1]}", "x.yaml:1:1: name: is required"),
        ("name: ''", "x.yaml:1:7: name = '': must not be empty"),
        (f"name: {'x' * 201}", "must have at most 200 characters"),
        ('name: "a\\nb"', "must be printable, on one line"),
        (
            "nam: x\nname: y",
            "x.yaml:1:1: nam: unknown key; did you mean 'name'?; valid: name, description, data",
        ),
        (
            "name: x\nrun: {max_failures: -1}",
            "x.yaml:2:21: run.max_failures = -1: must be at least 0",
        ),
        (
            "name: x\nresources: {gpu: 2}",
            "x.yaml:2:18: resources.gpu = 2: must be at most 1: a trial runs on one GPU",
        ),
        (
            "name: x\nresources: {at_most: 0}",
            "x.yaml:2:22: resources.at_most = 0: must be at least 1",
        ),
        (
            "name: x\nresources: {gpu: 1.5}",
            "x.yaml:2:18: resources.gpu = 1.5: must be at most 1: a trial runs on one GPU",
        ),
        (
            "name: x\nrun: {early_stop: asha}",
            "x.yaml:2:19: run.early_stop = asha: needs score.every",
        ),
        ("name: x\nrun: {early_stop: ashes}", "; did you mean 'asha'?; valid: none, asha, median"),
        ("name: x\ngrid: {}", "x.yaml:2:7: grid = {}: must not be empty"),
        ("name: -x", "x.yaml:1:7: name = -x: must not begin with a dash"),
        (
            "name: x\nresolution: [8]",
            "x.yaml:2:1: resolution: unknown key; settings go under grid, as in grid: {resolu",
        ),
        ("name: x\ngrid:", "x.yaml:2:6: grid: must be a mapping of keys to values"),
        ("name: x\ngrid: {b: []}", "x.yaml:2:11: grid.b = []: must be a list of values, as in [x]"),
        ("name: x\ngrid: {b: 2}", "x.yaml:2:11: grid.b = 2: must be a list of values, as in [x]"),
        (
            "name: x\ngrid: {train: {lr: [1e-3]}}",
            "x.yaml:2:8: grid.train: has settings, each of which is an axis of its own: train.lr:",
        ),
        (
            "name: x\ngrid: {sample: [{steps: 3}]}",
            "x.yaml:2:8: grid.sample: has settings, each of which is an axis of its own: sample.",
        ),
        (
            "name: x\ngrid: {b: [1]}\nexclude: [{b: 1}]",
            "x.yaml:3:10: exclude = [{b: 1}]: leaves no cell of the grid",
        ),
        ("name: x\nexclude: [{}]", "x.yaml:2:11: exclude[0] = {}: must not be empty"),
        (
            "name: x\ngrid: {train.lrr: [1]}",
            "x.yaml:2:8: grid.train.lrr: unknown setting; did you mean 'train.lr'?; v",
        ),
        (
            "name: x\ngrid: {steps: [1]}",
            "x.yaml:2:8: grid.steps: unknown setting; did you mean 'train.steps'?; valid",
        ),
        (
            "name: x\nexclude: [{tua: 1}]",
            "x.yaml:2:12: exclude[0].tua: unknown setting; did you mean 'tau'?; valid",
        ),
        ("name: x\ngrid:\n  b: [1,\n   -1]", "x.yaml:4:4: grid.b[1] = -1: must be greater than 0"),
        ("name: x\ngrid: {b: [0]}", "x.yaml:2:12: grid.b[0] = 0: must be greater than 0"),
        ("name: x\ngrid: {b: [on]}", "x.yaml:2:12: grid.b[0] = on: must be a number"),
        (
            "name: x\ngrid: {resolution: [8.0]}",
            "grid.resolution[0] = 8.0: must be a whole number, written 8",
        ),
        ("name: x\ngrid: {seed: [-1]}", "x.yaml:2:15: grid.seed[0] = -1: must be at least 0"),
        ("name: x\ntrain: {lr: fast}", "x.yaml:2:13: train.lr = fast: must be a number"),
        ("name: x\ntrain: {ema: 1}", "x.yaml:2:14: train.ema = 1: must be less than 1"),
        (
            "name: x\ntrain: {predict: epsilon}",
            "x.yaml:2:18: train.predict = epsilon: not a valid choice; did you mean",
        ),
        (
            "name: x\ntrain: {step: 1}",
            "x.yaml:2:9: train.step: unknown key; did you mean 'steps'?; valid: network, st",
        ),
        (
            "name: x\ntrain: {network: unett}",
            "unknown network 'unett'; did you mean 'unet'?; valid: unet",
        ),
        (
            "name: x\ntrain: {network: {kind: unet, widht: 1}}",
            "train.network.widht: unknown key; did you mean 'width'?",
        ),
        (
            "name: x\ntrain: {network: {width: 64}}",
            "x.yaml:2:18: train.network.kind: is required; valid: unet",
        ),
        (
            "name: x\ndata: digit",
            "x.yaml:2:7: data = digit: unknown data source 'digit'; did you mean 'digits'?; val",
        ),
        ("name: x\ndata: {source: folder}", "x.yaml:2:7: data.path: is required"),
        (
            "name: x\ndata: [digits]",
            "must be the name of a data source, or a mapping with 'source'",
        ),
        (
            "name: x\ndata: {source: array, path: /none.npy}",
            "x.yaml:2:29: data.path = /none.npy: /none.npy does not ex",
        ),
        (
            "name: x\nscore: {detector: incepton}",
            "unknown detector 'incepton'; did you mean 'inception'?; valid: class",
        ),
        (
            "name: x\nscore: {metrics: [fid]}",
            "fid is defined on the inception detector only; with detector 'classifier",
        ),
        (
            "name: x\ngrid: {schedule: [cosin]}",
            "x.yaml:2:19: grid.schedule[0] = cosin: unknown schedule 'cosin'; did y",
        ),
        (
            "name: x\ngrid: {schedule: [cosine@0,1,1]}",
            "x.yaml:2:28: grid.schedule[1] = 1: a schedule is text, such as",
        ),
        (
            "name: x\ngrid: {schedule: ['cosine@1,1,1']}",
            "grid.schedule[0] = 'cosine@1,1,1': start and end must differ, go",
        ),
        ("name: x\ngrid: {schedule: ['sigmoid@-3,3,0']}", "tau must be above 0, got tau = 0"),
        (
            "name: x\ngrid: {schedule: ['vp_sde@2,1']}",
            "0 <= beta_min < beta_max must hold, got beta_min = 2, beta_max",
        ),
        (
            "name: x\ngrid: {schedule: ['cosine@0,3,1']}",
            "x.yaml:2:19: grid.schedule[0] = 'cosine@0,3,1': γ of cosine@0,3,1",
        ),
        (
            "name: x\ngrid: {schedule: [{kind: log,\n  range: 1}]}",
            "x.yaml:3:10: grid.schedule[0].range = 1: range must be",
        ),
        (
            "name: x\ngrid: {schedule: [sigmoid], tau: [1, -1]}",
            "x.yaml:2:38: grid.tau[1] = -1: tau must be above 0",
        ),
        (
            "name: x\nsample: {schedule: cosin}",
            "x.yaml:2:20: sample.schedule = cosin: unknown schedule 'cosin'; did",
        ),
        (
            "name: x\noverrides: [{when: {}, set: {b: -1}}]",
            "x.yaml:2:33: overrides[0].set.b = -1: must be greater than 0",
        ),
        (
            "name: x\noverrides: [{set: {schedule: {kind: log, end: [9, 99]}}}]",
            "must be one schedule, not several",
        ),
        (
            "name: x\ninclude: [{resolution: 3}]",
            "x.yaml:2:24: include[0].resolution = 3: must be at least 4",
        ),
        ("name: x\nname: y", "x.yaml:2:1: name: duplicate key: it is on line 1 already"),
        ("name: !!python/name:os.system x", "x.yaml:1:7: name: tags are not allowed"),
        ("name: &a x\ndescription: *a", "x.yaml:1:7: name: anchors and aliases are not allowed"),
    ],
)
def test_each_wrong_input_is_told_with_its_place_its_value_its_rule_and_what_is_valid(
    text: str, told: str
) -> None:
    found = refusals(text)
    assert any(told in line for line in found), found
    assert all(line.startswith("x.yaml:") for line in found)


def test_a_network_too_narrow_for_one_size_is_told_at_that_size_with_an_example() -> None:
    (told,) = refusals(
        "name: x\ngrid:\n  b: [1, 2]\n  resolution: [8,\n    64]\ntrain: {network: {kind: unet,"
        " width: 8}}\noverrides: [{when: {resolution: 64}, set: {train.network.patch: 8}}]"
    )
    assert told.startswith("x.yaml:5:5: grid.resolution[1] = 64: width must be at least")
    assert told.endswith("(in the cell b = 1, train.network.patch = 8)")


STEP = "{kind: sigmoid, tau: 1.0e-9}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grid: {schedule: [sigmoid], tau: [0.9, 1.0e-9]}", "grid.tau[1] = 1.0e-9"),
        ("grid: {schedule: [flow], shift: [1, 1.0e+12]}", "grid.shift[1] = 1.0e+12"),
        ("grid: {schedule: [sigmoid], start: [-3, 1.0e+9], tau: [1]}", "grid.start[1] = 1.0e+9"),
        (f"grid: {{schedule: [linear, {STEP}]}}", "grid.schedule[1].tau = 1.0e-9"),
        ('grid: {schedule: ["sigmoid@-3,3,1e-9"]}', 'grid.schedule[0] = "sigmoid@-3,3,1e-9"'),
        (
            "grid: {schedule: [{kind: sigmoid, range: [[-3, 1.0e+9]]}]}",
            "grid.schedule[0].range = [[-3, 1.0e+9]]",
        ),
        (f"sample: {{schedule: {STEP}}}", "sample.schedule.tau = 1.0e-9"),
        (
            f"grid: {{schedule: [sigmoid], tau: [1, 2], sample.schedule: [linear, {STEP}]}}",
            "grid.sample.schedule[1].tau = 1.0e-9",
        ),
        (
            "sample: {schedule: train}\ngrid: {schedule: [vp_sde], beta_max: [20, 0.2]}",
            "grid.beta_max[1] = 0.2",
        ),
        ("grid: {schedule: [sigmoid], tau: [1], b: [1, 1.0e+300]}", "grid.b[1] = 1.0e+300"),
    ],
)
def test_a_schedule_that_is_a_step_is_told_where_the_parameter_that_makes_it_is_written(
    text: str, told: str
) -> None:
    lines = refusals(f"name: x\n{text}")
    assert len(lines) == 1, lines
    assert f": {told}: " in lines[0]
    assert told not in lines[0].partition("(in the cell ")[2]


def test_all_problems_are_told_at_once_in_the_order_of_their_lines() -> None:
    lines = refusals("""\
name: ''
grid: {b: [-1], schedule: [cosin], lr: [1]}
train: {lr: 0, network: {kind: unet, widht: 3}}
sample: {sampler: dim}
resorces: {}
run: {max_failures: -1}
""")
    assert [line.split(":")[1] for line in lines] == ["1", "2", "2", "2", "3", "3", "4", "5", "6"]


MISTAKES = (
    "name: ''",
    "description: !secret x",
    "data: {source: folder, path: 7}",
    "grid: {b: [-1]}",
    "include: [{resolution: 3}]",
    "exclude: [{tua: 1}]",
    "overrides: [{whn: {b: 1}, set: {b: 2}}]",
    "train: {lr: .nan}",
    "sample: {sampler: dim, count: &n 9}",
    "score: {metrics: [fdd], every: 1e999}",
    "resources: {cpu: 99999999999999999999}",
    "run: {max_failures: -1}",
    "runs: 3",
)


@pytest.mark.parametrize("one", MISTAKES)
def test_no_mistake_hides_another(one: str) -> None:
    for other in MISTAKES:
        if one != other:
            named = "" if "name:" in one + other else "name: x\n"
            alone = {
                line.partition(":")[2].partition(":")[2]
                for text in (one, other)
                for line in refusals(text if "name:" in text else f"name: x\n{text}")
            }
            both = {
                line.partition(":")[2].partition(":")[2]
                for line in refusals(f"{named}{one}\n{other}")
            }
            assert alone == both


def test_rules_between_settings_are_not_told_where_an_override_cannot_be_read() -> None:
    (told,) = refusals(
        "name: x\ngrid: {resolution: [8, 64]}\n"
        "train: {network: {kind: unet, width: 8, patch: 8}}\n"
        "overrides: [{whn: {resolution: 64}, set: {train.network.patch: 1}}]"
    )
    assert told.startswith("x.yaml:4:14: overrides[0].whn: unknown key; did you mean 'when'?")


def test_a_folder_that_is_missing_is_told_at_its_line_when_its_images_are_asked_for(
    tmp_path: Path,
) -> None:
    sweep = read("name: x\ndata:\n  source: folder\n  path: /no/such/images\n")
    with pytest.raises(SweepError) as caught:
        trials(sweep, sweep.grid.cells, lambda data: data.fingerprint(tmp_path))
    assert str(caught.value).startswith(
        "x.yaml:4:9: data.path = /no/such/images: /no/such/images is not a folder"
    )


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_shipped_sweep_is_valid_and_says_what_it_asks_costs_and_expects(file: Path) -> None:
    sweep = read_sweep(file)
    assert sweep.grid.cells
    assert (sweep.grid.warnings, sweep.grid.duplicates) == ((), 0)
    assert len(set(keys(sweep))) == len(sweep.grid.cells)
    head = file.read_text("utf-8").split("\nname:")[0]
    assert all(heading in head for heading in ("# Asks ", "# Costs ", "# Expects "))
    assert "n estimate" in head or "measured" in head  # a cost says where it is from
    assert not list(SCHEMA.iter_errors(loads(file.read_text("utf-8")).data))


def test_the_shipped_sweeps_hold_the_cells_they_are_named_for() -> None:
    sweeps = {file.stem: read_sweep(file) for file in SWEEPS}
    assert {name: len(sweep.grid.cells) for name, sweep in sweeps.items()} == {
        "quickstart": 8,
        "headline": 45,
        "chen2023_schedules": 36,
        "chen2023_input_scale": 48,
    }
    shared = set(keys(sweeps["chen2023_schedules"])) & set(keys(sweeps["chen2023_input_scale"]))
    assert len(shared) == 6


def test_the_papers_numbers_in_a_shipped_sweep_cover_its_cells() -> None:
    sweep = read_sweep(next(file for file in SWEEPS if file.stem == "chen2023_schedules"))
    table = [
        line[1:].split()
        for line in sweep.source.text.splitlines()
        if line.startswith("#            ")
    ]
    assert {row[0] for row in table[1:]} == {cell.spec.schedule for cell in sweep.grid.cells}
    assert all(len(row) == 4 for row in table[1:])


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False))
def test_another_order_of_keys_and_another_layout_give_the_same_keys(order: random.Random) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in order.sample(list(value), len(value))}
        return value

    data = loads(EXAMPLE).data
    again = yaml.safe_dump(
        shuffled(data), default_flow_style=order.choice([True, False, None]), sort_keys=False
    )
    assert set(keys(read(again))) == set(keys(read(EXAMPLE)))
    assert set(keys(read(json.dumps(shuffled(data), indent=order.choice([None, 2]))))) == set(
        keys(read(EXAMPLE))
    )


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**63, -1e308, 1e-320, 1e308, 0.0, 1.5]),
    st.sampled_from(
        [
            "",
            "linear",
            "cosine@1,1,1",
            "log@-1,2,f",
            "digits",
            "folder",
            "min_snr@0",
            "inception",
            "\ud7ff",
            "@",
        ]
    ),
    st.text(max_size=5),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every container in some data with each of its keys or indices."""
    items = list(
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [(data, key) for key, _ in items] + [
        place for _, value in items for place in places(value)
    ]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_change_of_a_value_or_key_gives_a_sweep_or_a_sweep_error(draw: st.DataObject) -> None:
    data = loads(EXAMPLE).data
    for _ in range(draw.draw(st.integers(1, 2))):
        container, key = draw.draw(st.sampled_from(places(data)))
        change = draw.draw(st.sampled_from(["replace", "delete", "rename"]))
        if change == "replace":
            container[key] = draw.draw(values)
        elif change == "delete":
            del container[key]
        elif isinstance(container, dict):
            name = draw.draw(
                st.sampled_from(
                    ["grid", "tau", "size", "train.network", "schedule", "data", "b", "kind"]
                )
            )
            container[name] = container.pop(key)
    with suppress(SweepError):
        read(json.dumps(data))


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, len(EXAMPLE)),
    st.integers(0, 4),
    st.text(alphabet=" \n\t:-[]{},&*!#'\"<~?@1.e", max_size=4),
)
def test_any_change_of_the_text_gives_a_sweep_or_a_sweep_error(at: int, cut: int, put: str) -> None:
    with suppress(SweepError):
        read(EXAMPLE[:at] + put + EXAMPLE[at + cut :])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_sweep_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(content)
    with pytest.raises(SweepError):
        read_sweep(file)


def test_the_schema_is_sound_and_accepts_the_example() -> None:
    Draft202012Validator.check_schema(json_schema())
    assert not list(SCHEMA.iter_errors(loads(EXAMPLE).data))


def test_a_list_of_one_wrong_item_is_told_of_once() -> None:
    (told,) = refusals("name: x\nscore: {metrics: [FD]}")
    assert "score.metrics[0] = FD: not a valid choice" in told


@pytest.mark.parametrize(
    "text",
    [
        "nam: x",
        "name: ''",
        "grid: {train.lrr: [1]}",
        "grid: {b: 1}",
        "grid: {b: []}",
        "grid: {b: [x]}",
        "grid: {schedule: [{kind: sigmoidd}]}",
        "grid: {schedule: [{kind: sigmoid, taw: 1}]}",
        "data: digit",
        "data: {source: digits, path: x}",
        "train: {network: {kind: unet, widht: 1}}",
        "train: {predict: w}",
        "score: {detector: incepton}",
        "sample: {schedule: 3}",
        "exclude: [{tua: 1}]",
        "overrides: [{when: {}}]",
        "overrides: [{set: {lr: 1}}]",
        "resources: {gpus: 1}",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    sweep = text if "nam" in text else f"name: x\n{text}"
    assert refusals(sweep)
    assert list(SCHEMA.iter_errors(loads(sweep).data))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_whatever_the_reader_accepts_the_schema_accepts(draw: st.DataObject) -> None:
    data = {
        key: value
        for key, value in loads(EXAMPLE).data.items()
        if key not in ("exclude", "overrides")
    }
    container, key = draw.draw(st.sampled_from(places(data)))
    container[key] = draw.draw(values)
    try:
        read(json.dumps(data))
    except SweepError:
        return
    assert not list(SCHEMA.iter_errors(data))


def test_every_setting_in_the_schema_is_described() -> None:
    schema = json_schema()
    properties = schema["properties"]["grid"]["properties"]
    fields = [value["items"] for name, value in properties.items() if "." in name]
    assert len(fields) > 30
    assert all(
        "description" in json.dumps(field) or "const" in json.dumps(field) for field in fields
    )


def test_reading_sweeps_imports_nothing_heavy() -> None:
    heavy = {"torch", "ray", "mlflow", "pandas", "sklearn", "PIL", "matplotlib"}
    program = (
        "import sys\n"
        "from sched_lab.sweep.schema import json_schema\n"
        "from sched_lab.sweep.spec import read_sweep\n"
        f"json_schema(), read_sweep({str(SWEEPS[0])!r})\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True
    )
    assert not heavy & set(done.stdout.split())
