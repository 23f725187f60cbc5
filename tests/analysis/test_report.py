"""From a real MLflow store to a DataFrame, a report and the command that writes it."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from sched_lab import names
from sched_lab.analysis import runs as reading
from sched_lab.analysis.commands import report
from sched_lab.analysis.report.findings import analyse
from sched_lab.analysis.report.samples import fetch_samples
from sched_lab.analysis.report.write import write, write_report
from sched_lab.analysis.runs import SubmittedSweep, load_runs, load_sweep
from sched_lab.analysis.text import wording
from sched_lab.errors import OutOfReach
from sched_lab.store.folder import Store
from sched_lab.tracking.reader import UnknownSweepError, sample_grid
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.results import State
from tests.conftest import Command

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOSTILE = "a/<script>alert('1')</script> ☃ | ${x}"
YAML = "name: scale\ngrid: {b: [1, 2, 4]}  # ``` </code><script>alert(2)</script>\n"
SIZES, BS, SEEDS = (8, 16), (1.0, 2.0, 4.0), (0, 1, 2)

FACTS = DataFacts(
    source="folder", images=70, classes={"a": 30, "b": 40}, broken=3, unknown={"<.jp2>": 2}
)


def score(size: int, b: float, seed: int) -> float:
    """Best at b = 2 for size 8 and at b = 1, the lowest, for size 16."""
    return 30 + 10 * abs(math.log2(b * size / 16)) + [0.0, 1.0, 0.5][seed]


def metric(name: str, value: float, step: int) -> Any:
    from mlflow.entities import Metric

    return Metric(name, value, 0, step)


def fill(client: MlflowClient, folder: Path, sweep: str) -> None:
    """18 cells; of those at size 16 and b = 4 one failed, one was stopped and one never started."""
    from mlflow.entities import Param, RunTag

    experiment = client.create_experiment(sweep, folder.as_uri())
    tags = {names.ROLE: names.ROLE_SWEEP, names.SWEEP: sweep, names.RANKED_BY: "fd_classifier"}
    parent = client.create_run(
        experiment, tags=tags | {"mlflow.note.content": "Which b? <i>"}
    ).info.run_id
    cells = []
    for size, b, seed in ((size, b, seed) for size in SIZES for b in BS for seed in SEEDS):
        settings = {"resolution": size, "schedule": "linear", "b": b, "seed": seed}
        params = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in settings.items()
        }
        key = f"{size:04x}{int(b):04x}{seed:08x}"
        cells.append({"key": key, "settings": settings, "params": params})
        state = (
            [State.FAILED, State.STOPPED, "missing"][seed]
            if (size, b) == (16, 4.0)
            else State.FINISHED
        )
        if state == "missing":
            continue
        run = client.create_run(
            experiment,
            tags={names.ROLE: names.ROLE_TRIAL, names.TRIAL_KEY: key, names.STATE: State.RUNNING},
        ).info.run_id
        all_params = params | {
            "train.steps": "1500",
            "train.network.patch": "null",
            "train.class_conditional": "false",
        }
        metrics = [metric("fd_classifier", 0.5, 500), metric(f"{names.SECONDS}total", 70.0, 1500)]
        if state == State.FINISHED:
            metrics.append(metric("fd_classifier", score(size, b, seed), 1500))
        reason = "out of memory <b>" if state == State.FAILED else ""
        state_tags = [RunTag(names.STATE, state), RunTag(names.REASON, reason)]
        client.log_batch(run, metrics, [Param(*item) for item in all_params.items()], state_tags)
        if (b, seed) == (2.0, 0):
            for step in (500, 1500):
                grid = np.full((71, 71), step // 10, np.uint8)
                client.log_image(
                    run, grid, artifact_file=f"{names.SAMPLES_FOLDER}/step-{step:06d}.png"
                )
            client.log_image(run, np.full((71, 71), 7, np.uint8), artifact_file=names.REAL_FILE)
            client.log_dict(run, FACTS.model_dump(), names.FACTS_FILE)
            client.log_dict(run, {"torch": "2.13.0", "device": "cpu: <x>"}, names.ENVIRONMENT_FILE)
    stale = {
        names.ROLE: names.ROLE_TRIAL,
        names.TRIAL_KEY: "of-an-older-version",
        names.STATE: State.FINISHED,
    }
    client.log_metric(client.create_run(experiment, tags=stale).info.run_id, "fd_classifier", 0.1)
    client.log_dict(parent, {"cells": cells}, names.CELLS_FILE)
    client.log_text(parent, YAML, names.SWEEP_FILE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab's folder with two sweeps that differ in name."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("lab")
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    fill(client, root / "artifacts" / "scale", "scale")
    fill(client, root / "artifacts" / "hostile", HOSTILE)
    monkeypatch.undo()
    return root


@pytest.fixture(scope="module")
def uri(store: Path) -> str:
    return f"sqlite:///{store / 'mlflow.db'}"


@pytest.fixture(scope="module")
def frame(uri: str) -> pd.DataFrame:
    return load_runs("scale", uri)


@pytest.fixture(scope="module")
def written(uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of the sweep with the hostile name."""
    return write_report(HOSTILE, uri, tmp_path_factory.mktemp("report")).files


def test_every_cell_is_a_row_and_runs_of_older_versions_are_not(frame: pd.DataFrame) -> None:
    assert len(frame) == 18
    assert frame["state"].value_counts().to_dict() == {
        "finished": 15,
        "failed": 1,
        "stopped": 1,
        "missing": 1,
    }


def test_columns_come_back_with_their_types(frame: pd.DataFrame) -> None:
    ran = frame[frame["run_id"].notna()]
    assert frame["resolution"].dtype == frame["seed"].dtype == np.int64
    assert frame["b"].dtype == frame["fd_classifier"].dtype == np.float64
    assert frame["schedule"].unique().tolist() == ["linear"]
    assert ran["train.steps"].unique().tolist() == [1500]
    assert ran["train.class_conditional"].unique().tolist() == [False]
    assert ran["train.network.patch"].isna().all()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1.0", 1.0),
        ("true", True),
        ("cosine@0.2,1,1", "cosine@0.2,1,1"),
        ("[1, 2]", "[1, 2]"),
        ("NaN", "NaN"),
        ("", ""),
    ],
)
def test_a_parameter_is_a_json_scalar_or_the_text_it_was(text: str, value: object) -> None:
    (read,) = reading._typed({"name": text}).values()
    assert (read, type(read)) == (value, type(value))


def test_scores_are_those_of_the_last_step_of_finished_trials_only(frame: pd.DataFrame) -> None:
    finished = frame[frame["state"] == State.FINISHED]
    expected = [
        score(*cell) for cell in finished[["resolution", "b", "seed"]].itertuples(index=False)
    ]
    assert finished["fd_classifier"].tolist() == pytest.approx(expected)
    assert frame.loc[frame["state"] != State.FINISHED, "fd_classifier"].isna().all()
    assert frame.loc[frame["state"] == State.FAILED, f"{names.SECONDS}total"].tolist() == [
        70.0
    ]  # it did cost that


def test_paging_gives_the_same_rows(
    uri: str, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sched_lab.tracking.client.PAGE", 4)
    pd.testing.assert_frame_equal(load_runs("scale", uri), frame)


def test_the_sweep_tells_how_it_was_submitted(uri: str) -> None:
    sweep = load_sweep("scale", uri)
    assert (sweep.ranked_by, sweep.yaml, sweep.description) == (
        "fd_classifier",
        YAML,
        "Which b? <i>",
    )
    assert sweep.settings == ("resolution", "schedule", "b", "seed")


def test_a_sweep_of_which_nothing_ran_has_rows_and_no_scores(
    store: Path, uri: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    tags = {names.ROLE: names.ROLE_SWEEP, names.SWEEP: "idle", names.RANKED_BY: "fid"}
    run = client.create_run(
        client.create_experiment("idle", (store / "idle").as_uri()), tags=tags
    ).info.run_id
    params = {
        "resolution": "8",
        "schedule": "linear",
        "b": "1.0",
        "seed": "0",
        "train.network": "unet",
    }
    cells = [
        {
            "key": f"w{width}",
            "settings": {"train.network": {"kind": "unet", "width": width}},
            "params": params,
        }
        for width in (16, 32)
    ]
    client.log_dict(run, {"cells": cells}, names.CELLS_FILE)
    idle = load_sweep("idle", uri)
    assert idle.runs["fid"].isna().tolist() == [True, True]
    assert (
        len(analyse(idle).main.cells) == 2
    )  # two networks of one kind are two cells, not two seeds
    page = write_report("idle", uri, tmp_path).files["html"].read_text("utf-8")
    assert "no trial has a score" in page
    assert "0 of 2 trials finished" in page


def test_an_unknown_sweep_is_answered_with_the_known_ones(uri: str) -> None:
    with pytest.raises(
        UnknownSweepError, match=r"no sweep 'scal' in .*; did you mean 'scale'\?; valid: .*scale"
    ):
        load_runs("scal", uri)


def test_a_sweep_whose_cells_do_not_read_is_named_and_what_is_wrong_with_them(
    store: Path, uri: str
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    tags = {names.ROLE: names.ROLE_SWEEP, names.SWEEP: "torn", names.RANKED_BY: "fid"}
    experiment = client.create_experiment("torn", (store / "torn").as_uri())
    run = client.create_run(experiment, tags=tags).info.run_id
    with pytest.raises(UnknownSweepError, match=rf"{run}/artifacts, which is not there"):
        load_runs("torn", uri)
    (store / "torn" / run / "artifacts").mkdir(parents=True)
    with pytest.raises(UnknownSweepError, match=r"has lost its cells\.json: submit it again"):
        load_runs("torn", uri)
    client.log_dict(run, {"cells": [{"key": "a", "settings": 1}]}, names.CELLS_FILE)
    with pytest.raises(
        UnknownSweepError, match=r"damaged cells\.json \(cells\.0\.settings: .*again"
    ):
        load_runs("torn", uri)


def test_runs_are_read_from_a_store_or_its_folder(store: Path, frame: pd.DataFrame) -> None:
    for where in (store, str(store), Store.at(store)):
        pd.testing.assert_frame_equal(load_runs("scale", where), frame)


def test_reading_a_store_that_is_not_there_does_not_create_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(UnknownSweepError, match="holds no runs yet: submit a sweep first"):
        load_runs("scale", uri)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "trials").mkdir()
    with pytest.raises(UnknownSweepError, match="does not exist: submitting a sweep again"):
        load_runs("scale", uri)
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(UnknownSweepError, match="is empty: submitting a sweep again"):
        load_runs("scale", uri)


def test_the_last_grid_of_samples_is_fetched(uri: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    with_grid = frame.query("resolution == 8 and b == 2 and seed == 0")["run_id"].item()
    path = sample_grid(with_grid, uri, tmp_path)
    assert path is not None
    with Image.open(path) as image:
        assert np.asarray(image).max() == 150
    assert sample_grid(frame["run_id"].iloc[0], uri, tmp_path) is None


def test_real_images_and_how_many_there_are_stand_before_the_samples(
    uri: str, written: dict[str, Path]
) -> None:
    samples = fetch_samples(analyse(load_sweep("scale", uri)).main, uri)
    told = "70 images of folder, 2 classes of 30 to 40; left out: 3 broken, 2 <.jp2>"
    for _, grids in groupby(samples, key=lambda each: each.size):
        real, *drawn = grids
        assert real.label == f"real images: {told}"
        with Image.open(BytesIO(real.png)) as image:
            assert np.asarray(image).max() == 7
        assert drawn
    for kind, text in (("html", html.escape(told)), ("markdown", "70 images of folder")):
        assert text in written[kind].read_text("utf-8")


class Tags(HTMLParser):
    """What a browser would see: elements with their attributes, and text outside style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(written: dict[str, Path]) -> Tags:
    return Tags(written["html"].read_text("utf-8"))


def test_the_page_says_which_b_is_best_first(page: Tags) -> None:
    cards = re.sub(
        r"\s+",
        " ",
        page.text[page.text.index("Best per image size") : page.text.index("Points are seeds")],
    )
    assert (
        "8×8 b = 2 fd_classifier 30.5 ± 1.2 3 seeds · rank 1 of 3 Better than all 2 others."
        in cards
    )
    assert (
        "16×16 b = 1 fd_classifier 30.5 ± 1.2 3 seeds · rank 1 of 2 Better than the other. lowest b"
        in cards
    )
    assert "Can't be told from it" not in cards  # paired over seeds the differences are 10, exactly


def test_the_page_needs_no_other_file_and_runs_only_scripts_of_its_own(
    page: Tags, written: dict[str, Path]
) -> None:
    assert {tag for tag, _ in page.elements} & {"link", "iframe", "object", "i", "b"} == set()
    (policy,) = (str(attrs["content"]) for tag, attrs in page.elements if "http-equiv" in attrs)
    assert policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )
    assert "http" not in policy
    scripts = re.findall(
        r"<script>(.*?)</script>", written["html"].read_text("utf-8"), flags=re.DOTALL
    )
    allowed = [
        f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts
    ]
    assert policy.partition("script-src ")[2].split() == [
        *allowed,
        "'unsafe-eval'",
    ]  # the latter for WebGL
    assert len(scripts) == 2
    sources = [
        value
        for _, attrs in page.elements
        for name, value in attrs.items()
        if name in ("src", "href")
    ]
    sources += [
        value for _, attrs in page.elements for name, value in attrs.items() if name == "xlink:href"
    ]
    assert sources
    assert all(
        value is not None and value.startswith(("data:image/png;base64,", "#")) for value in sources
    )


def test_references_within_the_page_find_exactly_one_element(page: Tags) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = {
        str(attrs["xlink:href"])[1:] for _, attrs in page.elements if "xlink:href" in attrs
    }
    assert references <= set(ids)


def test_the_page_shows_hostile_text_as_it_is(page: Tags) -> None:
    for text in (
        HOSTILE,
        "Which b? <i>",
        "out of memory <b>",
        "</code><script>alert(2)</script>",
        "cpu: <x>",
    ):
        assert text in page.text


def test_the_page_accounts_for_every_trial_and_its_cost(page: Tags) -> None:
    assert "15 of 18 trials finished" in page.text
    assert "19.8 min of trial time over 17 trials, 70 s each" in page.text
    listed = page.text[
        page.text.rindex("Trials that did not finish") : page.text.index("What it cost")
    ]
    assert re.findall("failed|stopped|missing", listed) == ["failed", "stopped", "missing"]


def test_figures_in_the_page_take_their_colours_from_its_theme(written: dict[str, Path]) -> None:
    page = written["html"].read_text("utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.partition("<script>")[0], flags=re.DOTALL))
    assert drawn.count("<svg") == 4
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", drawn)) <= set(
        re.findall(r"(--[a-z0-9]+):", page)
    )


def test_markdown_fences_hold_whatever_the_yaml_holds(written: dict[str, Path]) -> None:
    text = written["markdown"].read_text("utf-8")
    assert f"````yaml\n{YAML}````" in text
    assert "<script>" not in text.replace(YAML, "").partition("```sh")[0]
    for path in re.findall(r"!\[[^]]*\]\((.*?)\)", text):
        with Image.open(written["markdown"].parent / path) as image:
            assert image.width > 300


def test_csv_files_hold_every_trial_and_the_best(
    written: dict[str, Path], frame: pd.DataFrame
) -> None:
    back = pd.read_csv(written["runs"])
    np.testing.assert_allclose(back["fd_classifier"], frame["fd_classifier"], rtol=1e-15)
    assert pd.read_csv(written["best"])["b"].tolist() == [2.0, 1.0]
    assert len(pd.read_csv(written["cells"])) == 6


def test_parquet_files_hold_what_the_csv_files_hold_with_their_types(
    written: dict[str, Path],
) -> None:
    for name in ("runs", "cells", "best"):
        back, text = pd.read_parquet(written[f"{name}.parquet"]), pd.read_csv(written[name])
        assert back.columns.tolist() == text.columns.tolist()
        np.testing.assert_array_equal(back["b"], text["b"])
        assert back["resolution"].dtype == np.int64


def test_the_page_says_why_there_is_no_law(page: Tags) -> None:
    assert (
        "No law of b over image size: the best b is known at 1 image size, a law needs 2"
        in page.text
    )


def test_latex_has_sizes_across_and_says_what_bold_means(written: dict[str, Path]) -> None:
    (table,) = (
        part
        for part in written["latex"].read_text("utf-8").split("\\end{table}")
        if "tab:input-scale" in part
    )
    assert r"b & 8$\times$8 & 16$\times$16 \\" in table
    assert r"2 & \textbf{30.5 $\pm$ 1.2} & 40.5 $\pm$ 1.2 \\" in table
    assert (
        r"Bold: the best of its size and, with $^\dagger$, those that can't be told from it."
        in table
    )


def test_scores_of_another_kind_are_set_apart_and_never_share_a_table(
    uri: str, tmp_path: Path
) -> None:
    sweep = load_sweep("scale", uri)
    few = sweep.runs.assign(**{"sample.count": 100, "fd_classifier": 900.0 + sweep.runs["seed"]})[
        :9
    ]
    runs = pd.concat([sweep.runs.assign(**{"sample.count": 1000}), few], ignore_index=True)
    settings = (*sweep.settings, "sample.count")
    analysis = analyse(replace(sweep, runs=runs, settings=settings))
    assert [each.name for each in (analysis.main, *analysis.others)] == [
        "sample.count 1000",
        "sample.count 100",
    ]
    files = write(analysis, [], {}, tmp_path)
    assert pd.read_csv(files["cells"])["mean"].max() < 100
    assert pd.read_csv(files["cells-2"])["mean"].min() > 900
    labels = re.findall(r"\\label\{(.*)\}", files["latex"].read_text("utf-8"))
    assert "tab:every-cell-of-sample-count-100" in labels
    assert len(labels) == len(set(labels))
    tags = Tags(files["html"].read_text("utf-8"))
    apart = tags.text[tags.text.index("Scores compare only among") :]
    assert "sample.count 100 (others 1000)" in apart
    assert "901" not in tags.text[: tags.text.index("Scores compare only among")]
    assert "901" in apart


def test_a_confirmed_sweep_is_ranked_by_its_fresh_seeds_and_shows_the_screening_apart(
    uri: str,
) -> None:
    sweep = load_sweep("scale", uri)
    stage = pd.Series("confirm", sweep.runs.index).where(sweep.runs["seed"] > 0, "screen")
    lucky = sweep.runs["fd_classifier"].where(stage == "confirm", 1.0)
    analysis = analyse(replace(sweep, runs=sweep.runs.assign(stage=stage, fd_classifier=lucky)))
    assert analysis.main.best["n"].tolist() == [2, 2]
    assert analysis.main.best["mean"].min() > 30
    assert [each.name for each in analysis.others] == ["screening · all runs"]
    assert "flatter" in analysis.others[0].why[-1]


def test_the_report_is_the_same_when_written_again(written: dict[str, Path], uri: str) -> None:
    before = {what: path.read_bytes() for what, path in written.items()}
    again = write_report(HOSTILE, uri, written["html"].parent).files
    assert {what: path.read_bytes() for what, path in again.items()} == before


def test_the_command_prints_the_answer_and_where_the_report_is(store: Path) -> None:
    result = CliRunner().invoke(report, ["scale", "--store", str(store)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert re.search(r"8×8\s*│ 2 │ 30.5 ± 1.2", result.stdout)
    assert (store / "reports" / "scale" / "index.html").is_file()
    assert str(store / "reports" / "scale" / "index.html") in result.stdout


def test_the_command_keeps_a_hostile_name_inside_the_reports_folder(store: Path) -> None:
    assert CliRunner().invoke(report, [HOSTILE, "--store", str(store)]).exit_code == 0
    folders = list((store / "reports").iterdir())
    assert all((folder / "index.html").is_file() for folder in folders)


def test_the_command_answers_programs_in_json(store: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        report, ["scale", "--store", str(store), "--out", str(tmp_path / "o"), "--json"]
    )
    answer = json.loads(result.stdout)
    assert [(row["resolution"], row["b"], row["edge"], row["ties"]) for row in answer["best"]] == [
        (8, 2.0, "", []),
        (16, 1.0, "lowest", []),
    ]
    assert answer["ranked_by"] == "fd_classifier"
    assert Path(answer["files"]["html"]) == tmp_path / "o" / "index.html"


def test_the_command_exits_with_2_for_an_unknown_sweep(store: Path, sched_lab: Command) -> None:
    result = sched_lab("report", "nothing", "--store", store)
    assert result.returncode == 2
    assert "no sweep 'nothing'" in result.stderr
    assert "valid: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_does_not_answer_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(OutOfReach, match=r"http://127\.0\.0\.1:9 can't be used"):
        load_runs("scale", "http://127.0.0.1:9")


def test_the_command_is_light_to_import_and_analysis_loads_neither_torch_nor_ray() -> None:
    code = """
import sys, sched_lab.analysis.commands
heavy = {"mlflow", "pandas", "matplotlib", "scipy", "jinja2", "torch", "ray"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import sched_lab.analysis.report.write
from sched_lab.analysis.figures.static import gamma
assert not {"torch", "ray", "matplotlib", "mlflow"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def noisy(uri: str, untrained: float, **known: object) -> SubmittedSweep:
    """The sweep `scale`, with scores from 30 to 51, beside untrained networks at this score."""
    sweep = load_sweep("scale", uri)
    told: dict[str, object] = {
        f"{names.REAL}fd_classifier": 0.0,
        f"{names.UNTRAINED}fd_classifier": untrained,
    }
    return replace(sweep, runs=sweep.runs.assign(**(told | known)))


def test_where_all_models_draw_noise_every_file_says_so_first(uri: str, tmp_path: Path) -> None:
    analysis = analyse(noisy(uri, 30.0))
    assert analysis.main.best.empty
    assert not analysis.fitted["supported"].any()
    files = write(analysis, [], {}, tmp_path)
    first = "No cell is best at 8×8: its 3 cells are all no better than untrained networks."
    assert analysis.main.warnings[0] == first
    assert "train.steps is 1500" in analysis.main.warnings[-1]
    page = Tags(files["html"].read_text("utf-8")).text
    markdown, latex = (files[kind].read_text("utf-8") for kind in ("markdown", "latex"))
    for text, said in (
        (page[page.index("sched-lab report", 2000) :], first),
        (markdown, first),
        (latex, first.replace("×", r"$\times$")),
    ):
        assert said in text
        assert text.index(said) < text.index("fd")  # before any score, and the metric's name
    best = pd.read_csv(files["best"])
    assert best["resolution"].tolist() == [8, 16]
    assert best["why"].str.contains("no better than untrained networks").all()
    assert best["b"].isna().all()
    assert "Best:" not in page
    cells = pd.read_csv(files["cells"])
    assert (cells["shortfall"].notna() == (cells["n"] > 0)).all()  # shown with their scores


def test_where_scores_tell_nothing_more_samples_are_advised_and_no_longer_training(
    uri: str,
) -> None:
    *sizes, advice = analyse(noisy(uri, 0.0, **{"sample.count": 65.0})).main.warnings
    assert all("scores that do not tell untrained networks from real images" in s for s in sizes)
    assert advice.startswith("Draw more samples (sample.count is 65)")


def test_where_all_models_learn_scores_stand_between_those_of_noise_and_real_images(
    uri: str, tmp_path: Path
) -> None:
    analysis = analyse(noisy(uri, 130.5))
    assert analysis.main.warnings == ()
    assert analysis.main.best["closed"].tolist() == pytest.approx([100 / 130.5] * 2)
    text = write(analysis, [], {}, tmp_path)["markdown"].read_text("utf-8")
    assert "77 % of the way from untrained networks to real images" in text
    assert "| untrained | real | of the way |" in text


def test_scores_by_a_detector_that_is_mostly_wrong_are_said_to_mean_little(uri: str) -> None:
    for accuracy, doubtful in ((0.31, True), (0.5, False), (0.97, False)):
        analysis = analyse(noisy(uri, 130.5, detector_accuracy=accuracy))
        assert bool(analysis.main.warnings) == doubtful
        right = f"right on {100 * accuracy:.0f} % of held-out images"
        assert right in analysis.answer.caption
        assert all(right in each and "mean little" in each for each in analysis.main.warnings)


@pytest.mark.parametrize(("count", "doubtful"), [(2.0, True), (64.0, True), (65.0, False)])
def test_scores_of_too_few_samples_are_said_to_mean_little(
    uri: str, count: float, doubtful: bool
) -> None:
    told = analyse(noisy(uri, 130.5, **{"sample.count": count})).main.warnings
    few = f"(sample.count is {count:g}): draw 65 or more for fd_classifier."
    assert told == ((f"Scores of so few samples mean little {few}",) if doubtful else ())


@pytest.mark.parametrize(
    ("score", "enough"),
    [("fid", 2049), ("fd_random", 65), ("kid_classifier", 1000), ("fd_not_installed", 0)],
)
def test_how_many_samples_are_enough_depends_on_the_score(score: str, enough: int) -> None:
    assert wording.enough_samples(score) == enough


def test_baselines_that_no_trial_measured_are_said_to_be_unknown(uri: str) -> None:
    analysis = analyse(load_sweep("scale", uri))
    assert len(analysis.main.best) == 2
    assert "not known" in analysis.main.warnings[0]


@pytest.mark.parametrize("path", ["./faces", "/home/me/faces"])
def test_a_sweep_with_relative_paths_runs_again_where_they_begin(
    uri: str, tmp_path: Path, path: str
) -> None:
    sweep = load_sweep("scale", uri)
    runs = sweep.runs.assign(**{"data.source": "folder", "data.path": "/home/me/faces"})
    yaml = f"data: {{source: folder, path: {path}}}"
    analysis = analyse(replace(sweep, runs=runs, yaml=yaml, folder="/home/me"))
    files = write(analysis, [], {}, tmp_path, ["--store", "/a lab"])
    lines = files["markdown"].read_text("utf-8").partition("```sh\n")[2].splitlines()
    where = ["cd /home/me"] if path.startswith(".") else []
    assert lines[: len(where) + 2] == [
        *where,
        f"sched-lab submit {tmp_path / 'sweep.yaml'} --store '/a lab'",
        "sched-lab report scale --store '/a lab'",
    ]
