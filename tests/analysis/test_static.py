"""Figures hold what the statistics say; read back from the drawn artists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sched_lab.analysis.figures import static
from sched_lab.analysis.statistics import law, ranking
from sched_lab.colors import COLORS
from sched_lab.trainers import schedules
from sched_lab.trainers.results import State
from tests.analysis.test_law import runs as curves

FD = "fd_classifier"


@pytest.fixture
def runs() -> pd.DataFrame:
    """Scores of 10·|log2(8·b/size)| + 10 + seed: best at b = size/8. At size 16 nothing finished
    for b = 4.
    """
    frame = pd.DataFrame(
        {
            "resolution": size,
            "schedule": "linear",
            "b": b,
            "seed": seed,
            "state": State.FINISHED,
            FD: 10 * abs(np.log2(8 * b / size)) + 10 + seed,
        }
        for size in (8, 16)
        for b in (0.5, 1.0, 2.0, 4.0)
        for seed in (0, 1)
    )
    lost = (frame["resolution"] == 16) & (frame["b"] == 4.0)
    return frame.assign(
        state=frame["state"].where(~lost, State.FAILED), **{FD: frame[FD].where(~lost)}
    )


def test_score_against_b_draws_means_points_and_a_ring_at_the_best(runs: pd.DataFrame) -> None:
    cells, best = ranking.summarize(runs, FD), ranking.best_cells(runs, FD)
    ax = static.score_against_b(runs, cells, best, FD, "title")
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]  # type: ignore[arg-type]
    assert ([0.5, 1.0, 2.0, 4.0], [20.5, 10.5, 20.5, 30.5]) in lines
    assert (
        [0.5, 1.0, 2.0],
        [30.5, 20.5, 10.5],
    ) in lines  # what failed is not drawn, not at 0 and not at all
    rings = [line for line in ax.lines if line.get_markersize() == 9]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [
        (1.0, 10.5),
        (2.0, 10.5),
    ]  # type: ignore[index]
    assert (ax.get_xscale(), [text.get_text() for text in ax.texts]) == ("log", ["16×16", "8×8"])


def test_score_against_b_draws_a_line_per_schedule_where_it_is_asked_to(runs: pd.DataFrame) -> None:
    both = pd.concat([runs, runs.assign(schedule="$cosine$", **{FD: runs[FD] + 5})]).query(
        "resolution == 8"
    )
    cells = ranking.summarize(both, FD)
    ax = static.score_against_b(
        both, cells, ranking.best_cells(both, FD), FD, "title", by="schedule"
    )
    assert sorted(text.get_text() for text in ax.texts) == ["$cosine$", "linear"]
    (ring,) = (line for line in ax.lines if line.get_markersize() == 9 and len(line.get_xdata()))  # type: ignore[arg-type]
    assert list(ring.get_ydata()) == [10.5]  # type: ignore[arg-type]


def test_the_law_is_drawn_through_the_best_b_of_each_size_with_its_interval() -> None:
    lowest = {
        (size, seed): 16 / size * 2 ** (0.1 * seed) for size in (8, 16, 32) for seed in range(3)
    }
    best = law.best_b(curves(lowest), "fd")
    ax = static.best_b_by_size(best, law.fit(best))
    points, seeds, line = ([np.asarray(line.get_xydata()) for line in ax.lines])[:3]
    assert points == pytest.approx(best[["resolution", "b"]].to_numpy(float))
    assert np.array(sorted(map(tuple, seeds))) == pytest.approx(
        np.array(sorted((at[0], b) for at, b in lowest.items()))
    )
    assert line[[0, -1]] == pytest.approx(np.array([[8, 2 * 2**0.1], [32, 0.5 * 2**0.1]]))
    (bars,) = ax.containers
    ends = np.array(bars.lines[2][0].get_segments())[:, :, 1]
    assert ends == pytest.approx(best[["low", "high"]].to_numpy(float))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_names_at_the_ends_of_lines_do_not_overlap(runs: pd.DataFrame) -> None:
    same = pd.concat(
        [runs[runs["resolution"] == 8].assign(resolution=size) for size in (8, 16, 32, 64)]
    )
    ax = static.score_against_b(
        same, ranking.summarize(same, FD), ranking.best_cells(same, FD), FD, "title"
    )
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_figure_is_drawn_where_it_is_asked_to_be(runs: pd.DataFrame) -> None:
    left, right = Figure().subplots(1, 2)
    curve = static.Curve("a", schedules.parse("linear"), 0.5, COLORS[0])
    assert static.gamma([curve], left) is left
    assert static.score_by_schedule(ranking.summarize(runs, FD), FD, right) is right


def test_gamma_with_b_folded_in_has_the_log_snr_of_the_scaled_schedule() -> None:
    schedule = schedules.parse("cosine@0.2,1,1")
    (line,) = static.gamma([static.Curve("a", schedule, 0.3, COLORS[0])]).lines
    t, value = np.asarray(line.get_xdata())[1:-1], np.asarray(line.get_ydata())[1:-1]
    np.testing.assert_allclose(np.log(value / (1 - value)), schedule.log_snr(t, 0.3), rtol=1e-9)


def test_the_density_over_log_snr_has_area_one() -> None:
    for notation in ("linear", "cosine", "sigmoid@-3,3,0.9", "edm", "laplace"):
        (line,) = static.density(
            [static.Curve("a", schedules.parse(notation), 2.0, COLORS[0])]
        ).lines
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert abs(np.trapezoid(y, x)) == pytest.approx(1, abs=0.01)


def test_svg_is_the_same_each_time_and_its_text_is_text(runs: pd.DataFrame) -> None:
    cells = ranking.summarize(runs, FD)
    first, second = (
        static.render(static.score_by_schedule(cells, FD), "svg", salt="a").decode()
        for _ in range(2)
    )
    assert first == second
    assert ">linear</text>" in first
