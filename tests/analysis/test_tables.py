"""Tables: what stands where, what missing and failed look like, and that no text breaks out of its
format.
"""

from __future__ import annotations

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from sched_lab import names
from sched_lab.analysis.report.findings import VERSUS
from sched_lab.analysis.report.write import csv
from sched_lab.analysis.statistics import ranking
from sched_lab.analysis.text import render, tables, wording
from sched_lab.trainers.results import State

FD = "fd_classifier"
VARIED = ["schedule", "b"]


@pytest.fixture
def runs() -> pd.DataFrame:
    """Two sizes, two schedules, two b, two seeds; score = 10·size/8 + b + seed, + 5 for cosine."""
    frame = pd.DataFrame(
        {
            "key": f"{size}{schedule}{b}{seed}",
            "resolution": size,
            "schedule": schedule,
            "b": b,
            "seed": seed,
            "state": State.FINISHED,
            "reason": None,
            FD: 10.0 * size / 8 + b + seed + 5 * (schedule == "cosine"),
        }
        for size in (8, 16)
        for schedule in ("linear", "cosine")
        for b in (0.5, 1.0)
        for seed in (0, 1)
    )
    frame["reason"] = frame["reason"].astype(object)
    return frame


def texts(table: render.Table) -> list[list[str]]:
    return [list(map(str, row)) for row in table.rows]


def lose(runs: pd.DataFrame, state: str, **where: object) -> None:
    chosen = pd.concat([runs[name] == value for name, value in where.items()], axis=1).all(axis=1)
    runs.loc[chosen, "state"], runs.loc[chosen, FD] = state, float("nan")


def test_schedule_by_size_shows_each_schedule_at_its_best_b_and_marks_the_best(
    runs: pd.DataFrame,
) -> None:
    table = tables.size_table(
        ranking.summarize(runs, FD), ranking.best_cells(runs, FD), "schedule", FD, VARIED, ""
    )
    assert table.header == ("schedule", "8×8", "16×16")
    # Two seeds one apart: sd √½, half-width 12.7062·√½/√2 = 6.353.
    assert texts(table) == [
        ["cosine", "16.0 ± 6.4 (b 0.5)", "26.0 ± 6.4 (b 0.5)"],
        ["linear", "11.0 ± 6.4 (b 0.5)", "21.0 ± 6.4 (b 0.5)"],
    ]
    assert [[entry.best for entry in row] for row in table.rows] == [
        [False] * 3,
        [False, True, True],
    ]
    assert (
        "lower is better: mean ± half-width of the 95 % t-interval over 2 seeds."
        " Each at its best b." in table.caption
    )


@pytest.mark.parametrize("why", ["", "at the edge of the values swept"])
def test_the_best_b_between_those_swept_has_remarks_where_there_are_any(why: str) -> None:
    size = {"resolution": 8, "schedule": "linear", "b": 1.5, "low": 1.0, "high": 2.0, "n": 3}
    table = tables.fitted_table(pd.DataFrame([size | {"why": ""}, size | {"why": why}]))
    assert ("remarks" in table.header) == bool(why)
    assert [len(row) for row in table.rows] == [len(table.header)] * 2


def test_failed_missing_and_never_swept_cells_look_different_and_none_is_a_number(
    runs: pd.DataFrame,
) -> None:
    runs = runs[runs["schedule"] == "linear"]
    lose(runs, State.FAILED, resolution=8, b=0.5)
    lose(runs, "missing", resolution=16, b=1.0)
    runs = runs[~((runs["resolution"] == 16) & (runs["b"] == 0.5))]
    table = tables.size_table(
        ranking.summarize(runs, FD), ranking.best_cells(runs, FD), "b", FD, VARIED, ""
    )
    assert texts(table) == [["0.5", "failed", ""], ["1", "11.5 ± 6.4", "—"]]


def test_a_cell_that_lost_a_seed_says_how_many_it_has(runs: pd.DataFrame) -> None:
    lose(runs, State.FAILED, resolution=8, schedule="cosine", b=1.0, seed=1)
    runs = runs[runs["schedule"] == "cosine"]
    table = tables.size_table(
        ranking.summarize(runs, FD), ranking.best_cells(runs, FD), "b", FD, VARIED, ""
    )
    assert texts(table)[1] == ["1", "16.0† (n = 1)", "26.5 ± 6.4"]


def test_the_answer_has_a_row_for_every_size_with_its_warnings(runs: pd.DataFrame) -> None:
    lose(runs, State.FAILED, resolution=16)
    ranks = ranking.rank_intervals(runs, FD)[["rank_low", "rank_high"]]
    best = ranking.best_cells(runs, FD).join(ranks)
    table = tables.best_table(ranking.summarize(runs, FD), best, FD, VARIED)
    assert table.header == ("size", "schedule", "b", FD, "rank", "remarks")
    edge = "lowest b that was scored: the optimum may lie below 0.5"
    assert texts(table) == [  # the differences are the same in both seeds: no doubt is left
        ["8×8", "linear", "0.5", "11.0 ± 6.4", "1 of 4", f"2 seeds; {edge}"],
        ["16×16", "—", "—", "—", "—", "no trial has a score"],
    ]


def test_one_seed_is_said_to_have_no_interval(runs: pd.DataFrame) -> None:
    runs = runs[runs["seed"] == 0]
    cells, best = ranking.summarize(runs, FD), ranking.best_cells(runs, FD)
    answer = wording.answers(cells, best, FD, VARIED)[0]
    assert (answer.score, answer.basis) == ("10.5", "one seed: no interval")
    assert (
        "the 3 others cannot be compared with it: fewer than two seeds in common" in answer.remarks
    )
    assert answer.ties == ()
    assert answer.certain == ""
    assert "mean over 1 seed." in tables.size_table(cells, best, "schedule", FD, VARIED, "").caption


def test_the_interval_of_one_seed_is_labelled_as_one_within_the_run(runs: pd.DataFrame) -> None:
    runs = runs[runs["seed"] == 0].assign(**{f"{names.JACKKNIFE}{FD}": 0.1})
    answer = wording.answers(ranking.summarize(runs, FD), ranking.best_cells(runs, FD), FD, VARIED)[
        0
    ]
    assert answer.score == "10.5 ± 0.2‡"  # 19 degrees of freedom: 2.09 · 0.1
    assert answer.basis == "one seed: within-run interval by jackknife, not over seeds"


def test_ties_are_named_the_best_first_and_then_counted(runs: pd.DataFrame) -> None:
    noisy = pd.concat([runs.assign(b=runs["b"] * 4**i) for i in range(3)])
    noisy[FD] = 10.0 + noisy["seed"] * noisy["b"]
    cells, best = ranking.summarize(noisy, FD), ranking.best_cells(noisy, FD)
    assert len(best.iloc[0]["ties"]) == 11
    answer = wording.answers(cells, best, FD, VARIED)[0]
    assert answer.ties[:3] == ("linear · b 0.5", "cosine · b 1", "linear · b 1")
    assert (len(answer.ties), answer.more_ties) == (6, 5)
    remarks = tables.best_table(cells, best, FD, VARIED).rows[0][-1].text
    assert re.search(r"can't be told from [^;]+ and 5 more", remarks)


def test_cells_that_can_not_be_told_from_the_best_carry_a_dagger(runs: pd.DataFrame) -> None:
    noisy = runs.assign(
        **{FD: 10.0 + runs["seed"] * runs["b"] + 1000 * (runs["schedule"] == "cosine")}
    )
    table = tables.size_table(
        ranking.summarize(noisy, FD), ranking.best_cells(noisy, FD), "b", FD, VARIED, "Input scale"
    )
    assert [(row[1].best, row[1].tied) for row in table.rows] == [(True, False), (False, True)]
    assert str(table.rows[1][1]) == "10.5 ± 6.4† (linear)"
    assert (
        "Bold: the best of its size and, with †, those that can't be told from it." in table.caption
    )


def test_the_cells_table_shows_the_best_of_every_size_first_and_says_what_it_leaves_out(
    runs: pd.DataFrame,
) -> None:
    cells = ranking.summarize(runs, FD).join(
        ranking.rank_intervals(runs, FD)[["rank_low", "rank_high"]]
    )
    table = tables.cells_table(cells, ranking.best_cells(runs, FD), FD, VARIED, limit=4)
    assert [row[:4] for row in texts(table)] == [
        ["8×8", "linear", "0.5", "11.0 ± 6.4"],
        ["8×8", "linear", "1", "11.5 ± 6.4"],
        ["16×16", "linear", "0.5", "21.0 ± 6.4"],
        ["16×16", "linear", "1", "21.5 ± 6.4"],
    ]
    assert [row[4] for row in texts(table)] == ["1", "2", "1", "2"]
    assert "The best 4 of 8 cells; all are in cells.csv." in table.caption


def test_ranks_are_shown_as_an_interval() -> None:
    assert wording.rank_text({"rank_low": 1.0, "rank_high": 3.0}) == "1–3"
    assert wording.rank_text({"rank_low": 2.0, "rank_high": 2.0}) == "2"
    assert wording.rank_text({"rank_low": float("nan"), "rank_high": float("nan")}) == "—"
    assert wording.rank_text({"rank_low": 1, "rank_high": 2, "n": 1, "within_run": 0.5}) == "1–2‡"


def test_failures_are_counted_by_kind_the_most_frequent_first(runs: pd.DataFrame) -> None:
    lose(runs, State.FAILED, resolution=8, b=0.5)
    lose(runs, "missing", resolution=16, b=0.5, schedule="linear", seed=0)
    runs["failure"] = pd.Series("diverged", runs.index).where(runs["state"] == State.FAILED)
    assert texts(tables.failures_table(runs)) == [
        ["failed", "diverged", "4"],
        ["missing", "—", "1"],
    ]


def test_costs_are_told_by_image_size_and_left_out_where_nothing_was_recorded(
    runs: pd.DataFrame,
) -> None:
    assert tables.costs_table(runs).rows == ()
    timed = runs.assign(**{f"{names.SECONDS}total": 90.0, f"{names.SECONDS}train": 60.0})
    assert tables.costs_table(timed).header == ("size", "trials", "hours", "s a trial", "train")
    assert texts(tables.costs_table(timed))[0] == ["8×8", "8", "0.2", "90", "60"]


def test_unfinished_trials_are_listed_with_their_reasons(runs: pd.DataFrame) -> None:
    lose(runs, State.FAILED, resolution=8, b=0.5, seed=1, schedule="linear")
    runs.loc[runs["state"] == State.FAILED, "reason"] = "loss is not a number"
    lose(runs, "missing", resolution=16, b=1.0, seed=0, schedule="cosine")
    assert texts(tables.unfinished_table(runs, VARIED, 10)) == [
        ["8×8", "linear", "0.5", "1", "failed", "loss is not a number", "8linear0.51"],
        ["16×16", "cosine", "1", "0", "missing", "—", "16cosine1.00"],
    ]


def test_a_schedule_filled_in_with_each_size_is_one_schedule() -> None:
    frame = pd.DataFrame(
        {
            "schedule": [
                "shifted_cosine@64,8",
                "shifted_cosine@64,16",
                "shifted_cosine@64,8",
                "linear",
                "plugin@1",
            ],
            "resolution": [8, 16, 16, 8, 8],
        }
    )
    assert wording.schedule_names(frame).tolist() == [
        "shifted_cosine@64",
        "shifted_cosine@64",
        "shifted_cosine@64,8",
        "linear",
        "plugin@1",
    ]


@pytest.mark.parametrize(
    ("means", "places"),
    [([33.0, 700.0], 1), ([3.52, 20.0], 2), ([0.00123], 5), ([1500.0], 0), ([float("nan")], 2)],
)
def test_the_smallest_mean_is_shown_with_three_digits(means: list[float], places: int) -> None:
    assert wording.decimal_places(pd.DataFrame({"mean": means})) == places


HOSTILE = "50% of a_b & <b>#1</b> {x} $y$ ~^\\ | *s* `c` [l](u)\nend"


def hostile() -> render.Table:
    return render.Table(
        HOSTILE, HOSTILE, ("a", HOSTILE), ((render.Entry("1", best=True), render.Entry(HOSTILE)),)
    )


def test_latex_has_no_unescaped_special_character() -> None:
    body = render.latex_text(HOSTILE)
    assert r"50\% of a\_b \& \textless{}b\textgreater{}\#1" in body
    for command in (
        r"\textbackslash{}",
        r"\textasciitilde{}",
        r"\textasciicircum{}",
        r"\textbar{}",
    ):
        assert command in body
        body = body.replace(command, "")
    assert not re.search(r"(?<!\\)[%&#_$]|[~^|<>\n]", body)


def test_latex_is_a_booktabs_table_with_the_best_in_bold() -> None:
    table = render.Table(
        "T, b", "C.", ("b", "8×8"), ((render.Entry("1"), render.Entry("5.0 ± 0.1", "n = 2", True)),)
    )
    assert render.latex(table).splitlines() == [
        r"\begin{table}[t]",
        r"\centering",
        r"\caption{T, b. C.}",
        r"\label{tab:t-b}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"b & 8$\times$8 \\",
        r"\midrule",
        r"1 & \textbf{5.0 $\pm$ 0.1 (n = 2)} \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_markdown_rows_keep_their_columns_whatever_the_text() -> None:
    *_, header, rule, row = render.markdown(hostile()).strip().splitlines()
    assert rule == "| --- | --- |"
    assert len(re.findall(r"(?<!\\)\|", header)) == len(re.findall(r"(?<!\\)\|", row)) == 3
    assert row.startswith("| **1** | 50% of a\\_b &amp; &lt;b&gt;\\#1&lt;/b&gt;")


def test_the_terminal_prints_text_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=200)
    table = render.Table("[bold]T", "", ("a",), ((render.Entry("[red]1[/red]"),),))
    console.print(render.terminal(table))
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert "[bold]T" in printed
    assert "[red]1[/red]" in printed


def test_csv_reads_back_as_the_same_numbers_with_missing_as_nan(runs: pd.DataFrame) -> None:
    runs[FD] += 1 / 3
    lose(runs, State.FAILED, resolution=8, b=0.5)
    cells = ranking.summarize(runs, FD)
    back = pd.read_csv(io.StringIO(csv(cells)))
    pd.testing.assert_frame_equal(back, cells, rtol=1e-15, atol=0, check_dtype=False)
    assert back["mean"].isna().sum() == 2


def test_a_small_spread_is_never_written_as_none() -> None:
    cell = {"n": 2, "mean": 0.00376, "half_width": 1.3e-6, "state": State.FINISHED}
    assert wording.score_text(cell, 5) == "0.00376 ± 1e-06"
    assert wording.score_text(cell | {"half_width": 0.0}, 5) == "0.00376 ± 0.00000"


def test_a_tie_beyond_the_best_ones_own_interval_is_explained() -> None:
    # Differences to b = 2: (6, 16), mean 11, sd √50, half-width 12.7062·√50/√2 = 63.5.
    scores = {2.0: (108.0, 108.1), 1.0: (114.0, 124.1), 0.5: (150.0, 150.2)}
    frame = pd.DataFrame(
        {
            "resolution": 16,
            "schedule": "linear",
            "b": b,
            "seed": seed,
            "state": State.FINISHED,
            FD: score,
        }
        for b, both in scores.items()
        for seed, score in enumerate(both)
    )
    versus = ranking.against_best(frame, FD).rename(columns=VERSUS)[list(VERSUS.values())]
    cells, best = ranking.summarize(frame, FD).join(versus), ranking.best_cells(frame, FD)
    (answer,) = wording.answers(cells, best, FD, ["b"])
    assert answer.score == "108 ± 1"
    assert answer.ties == ("b 1",)
    assert (
        "b 1 ties though it lies outside this interval, which is of the best cell's own seeds: seed"
        " by seed the two differ by 11 ± 64" in answer.remarks
    )
