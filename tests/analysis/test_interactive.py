"""Interactive figures hold what the statistics say, and stay text within a page; read back from
their JSON.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from plotly.graph_objects import Figure

from sched_lab import names
from sched_lab.analysis.figures import axes, interactive
from sched_lab.analysis.statistics import ranking
from sched_lab.colors import COLORS
from sched_lab.trainers import schedules
from sched_lab.trainers.results import State

FD = "fd_classifier"
HOSTILE = "</script><b>plug</b>@1"
COLUMNS = ["resolution", "schedule", "b"]


@pytest.fixture
def runs() -> pd.DataFrame:
    """Two sizes, two schedules, three b, two seeds; best at b = size/8, linear before the hostile
    one by 5.
    """
    frame = pd.DataFrame(
        {
            "resolution": size,
            "schedule": schedule,
            "b": b,
            "seed": seed,
            "state": State.FINISHED,
            FD: 10 * abs(math.log2(8 * b / size)) + 10 + seed + 5 * (schedule == HOSTILE),
            f"{names.LOSS_BY_LOG_SNR}-3": 0.5 + seed,
            f"{names.LOSS_BY_LOG_SNR}11": 2.0,
            f"{names.LOSS_BY_LOG_SNR}13": math.nan,
        }
        for size in (8, 16)
        for schedule in ("linear", HOSTILE)
        for b in (0.5, 1.0, 2.0)
        for seed in (0, 1)
    )
    lost = (frame["b"] == 2.0) & (frame["schedule"] == HOSTILE) & (frame["resolution"] == 8)
    return frame.assign(
        state=frame["state"].where(~lost, State.FAILED), **{FD: frame[FD].where(~lost)}
    )


@pytest.fixture
def cells(runs: pd.DataFrame) -> pd.DataFrame:
    return ranking.summarize(runs, FD)


@pytest.fixture
def best(runs: pd.DataFrame) -> pd.DataFrame:
    return ranking.best_cells(runs, FD)


def read(figure: Figure) -> dict:  # type: ignore[type-arg]
    plot: dict = json.loads(figure.to_json())  # type: ignore[type-arg]
    return plot


def test_json_for_a_page_closes_no_element_and_reads_back_the_same(
    runs: pd.DataFrame, cells: pd.DataFrame, best: pd.DataFrame
) -> None:
    figure = interactive.score_against_b(
        runs, cells[cells["resolution"] == 8], best, FD, "schedule"
    )
    text = interactive.as_json(figure)
    assert "<" not in text
    assert json.loads(text) == read(figure)


def test_texts_that_plotly_would_read_as_html_are_escaped(
    runs: pd.DataFrame, cells: pd.DataFrame, best: pd.DataFrame
) -> None:
    figure = interactive.score_against_b(
        runs, cells[cells["resolution"] == 8], best, FD, "schedule"
    )
    assert {trace.name for trace in figure.data if trace.name} == {
        "linear",
        "&lt;/script&gt;&lt;b&gt;plug&lt;/b&gt;@1",
    }


def test_score_against_b_shows_seeds_means_and_a_ring_at_the_best(
    runs: pd.DataFrame, cells: pd.DataFrame, best: pd.DataFrame
) -> None:
    linear = cells[cells["schedule"] == "linear"]
    figure = interactive.score_against_b(runs[runs["schedule"] == "linear"], linear, best, FD)
    means = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert list(means["8×8"].x) == [0.5, 1.0, 2.0]
    assert list(means["8×8"].y) == [20.5, 10.5, 20.5]
    assert [size > 10 for size in means["16×16"].marker.size] == [False, False, True]
    seeds = next(trace for trace in figure.data if trace.mode == "markers")
    assert sorted(seeds.y) == [10, 11, 20, 20, 21, 21]
    assert "6.4" in means["8×8"].customdata[0]  # the half-width


def test_a_seed_without_a_score_is_drawn_nowhere(
    runs: pd.DataFrame, cells: pd.DataFrame, best: pd.DataFrame
) -> None:
    figure = interactive.score_against_b(
        runs, cells[cells["resolution"] == 8], best, FD, "schedule"
    )
    assert max(len(trace.x) for trace in figure.data if trace.name and "plug" in trace.name) == 2


def test_the_heat_map_frames_the_best_and_leaves_what_failed_empty(
    cells: pd.DataFrame, best: pd.DataFrame
) -> None:
    figure = interactive.heat_map(cells[cells["resolution"] == 8], best, FD)
    (heat,) = figure.data
    assert list(heat.x) == ["0.5", "1", "2"]
    assert heat.y[-1] == "linear"  # the best on top
    assert list(heat.z[-1]) == pytest.approx(np.log([20.5, 10.5, 20.5]).tolist())
    assert heat.z[0][2] is None
    assert heat.text[-1][1] == "10.5"
    (frame,) = figure.layout.shapes
    assert ((frame.x0 + frame.x1) / 2, (frame.y0 + frame.y1) / 2) == (1, 1)
    assert heat.reversescale  # a distance: small is dark


def test_parallel_coordinates_has_an_axis_per_setting_and_colours_ranks_within_a_size(
    cells: pd.DataFrame,
) -> None:
    (threads,) = interactive.parallel_coordinates(cells, FD, COLUMNS).data
    assert [axis.label for axis in threads.dimensions] == [*COLUMNS, FD]
    b = threads.dimensions[2]
    assert list(b.ticktext) == ["0.5", "1", "2"]  # evenly spaced, whatever the values
    color, scores = np.asarray(threads.line.color), np.asarray(threads.dimensions[3]["values"])
    assert color[-1] == 0.0  # the best are drawn last
    assert scores[color == 0.0].tolist() == [10.5, 10.5]  # one of each size
    assert len(color) == 11


def test_an_axis_of_scores_is_drawn_as_far_as_its_threads_reach() -> None:
    axis = axes.scaled_dimension(FD, pd.Series([3.1, 7.0, 31.0]))
    assert [10**tick for tick in axis["tickvals"]] == pytest.approx([3.1, 5, 10, 20, 31.0])
    assert axis["ticktext"] == ["", "5", "10", "20", ""]


def test_loss_by_log_snr_stands_above_the_density_of_the_same_cell(
    runs: pd.DataFrame, cells: pd.DataFrame
) -> None:
    chosen = cells[(cells["resolution"] == 16) & (cells["b"] == 2.0)]
    figure = interactive.loss_by_log_snr(runs, chosen, ["schedule", "b"])
    losses = {trace.name: trace for trace in figure.data if trace.yaxis == "y2"}
    assert list(losses["linear · b 2"].x) == [-3.0, 11.0]  # the empty bin is left out
    assert list(losses["linear · b 2"].y) == [1.0, 2.0]  # the mean over seeds
    (density,) = (
        trace for trace in figure.data if trace.yaxis != "y2"
    )  # the other schedule is not installed
    expected = schedules.parse("linear").log_snr(0.5, 2.0)
    assert density.x[int(np.argmax(density.y))] == pytest.approx(float(expected), abs=0.1)
    assert abs(np.trapezoid(density.y, density.x)) == pytest.approx(1, abs=0.01)


def test_figures_use_colours_that_a_page_can_theme(
    runs: pd.DataFrame, cells: pd.DataFrame, best: pd.DataFrame
) -> None:
    from sched_lab.analysis.report.page import THEME

    at = cells[cells["resolution"] == 8]
    drawn = [
        interactive.score_against_b(runs, at, best, FD, "schedule"),
        interactive.heat_map(at, best, FD),
        interactive.parallel_coordinates(cells, FD, COLUMNS),
        interactive.loss_by_log_snr(runs, at, COLUMNS[1:]),
    ]
    used = {
        word for figure in drawn for word in figure.to_json().split('"') if word.startswith("#")
    }
    assert used <= set(THEME)
    assert COLORS[0] in used


def test_a_figure_of_many_cells_stays_small(cells: pd.DataFrame) -> None:
    many = pd.concat([cells.assign(schedule=f"s{i}") for i in range(400)], ignore_index=True)
    best = many[:0].assign(ties=[])
    (threads,) = interactive.parallel_coordinates(many, FD, COLUMNS).data
    assert len(threads.line.color) == interactive.THREADS
    assert (
        len(interactive.as_json(interactive.heat_map(many[many["resolution"] == 8], best, FD)))
        < 50_000
    )
