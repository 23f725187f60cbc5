"""Tables: what stands where, what missing and failed look like, and that no text breaks out of its format."""

from __future__ import annotations

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from analysis import stats, tables
from analysis.report import csv
from sched_lab import names

FD = "fd_classifier"
COLUMNS = ["resolution", "schedule", "b"]


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
            "state": names.FINISHED,
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


def texts(table: tables.Table) -> list[list[str]]:
    return [list(map(str, row)) for row in table.rows]


def lose(runs: pd.DataFrame, state: str, **where: object) -> None:
    chosen = pd.concat([runs[name] == value for name, value in where.items()], axis=1).all(axis=1)
    runs.loc[chosen, "state"], runs.loc[chosen, FD] = state, float("nan")


def test_schedule_by_size_shows_each_schedule_at_its_best_b_and_marks_the_best(runs: pd.DataFrame) -> None:
    table = tables.size_table(stats.summarize(runs, FD), "schedule", FD, COLUMNS, "")
    assert table.header == ("schedule", "8×8", "16×16")
    # Two seeds one apart: sd √½, half-width 12.7062·√½/√2 = 6.353.
    assert texts(table) == [
        ["cosine", "16.0 ± 6.4 (b 0.5)", "26.0 ± 6.4 (b 0.5)"],
        ["linear", "11.0 ± 6.4 (b 0.5)", "21.0 ± 6.4 (b 0.5)"],
    ]
    assert [[entry.best for entry in row] for row in table.rows] == [[False] * 3, [False, True, True]]
    assert "lower is better: mean ± half-width of the 95% t-interval over 2 seeds. Each at its best b." in table.caption


def test_failed_missing_and_never_swept_cells_look_different_and_none_is_a_number(runs: pd.DataFrame) -> None:
    runs = runs[runs["schedule"] == "linear"]
    lose(runs, names.FAILED, resolution=8, b=0.5)
    lose(runs, "missing", resolution=16, b=1.0)
    runs = runs[~((runs["resolution"] == 16) & (runs["b"] == 0.5))]
    table = tables.size_table(stats.summarize(runs, FD), "b", FD, COLUMNS, "")
    assert texts(table) == [["0.5", "failed", ""], ["1", "11.5 ± 6.4", "—"]]


def test_a_cell_that_lost_a_seed_says_how_many_it_has(runs: pd.DataFrame) -> None:
    lose(runs, names.FAILED, resolution=8, schedule="cosine", b=1.0, seed=1)
    cosine = stats.summarize(runs, FD).query("schedule == 'cosine'")
    assert texts(tables.size_table(cosine, "b", FD, COLUMNS, ""))[1] == ["1", "16.0 (n = 1)", "26.5 ± 6.4"]


def test_the_answer_has_a_row_for_every_size_with_its_warnings(runs: pd.DataFrame) -> None:
    lose(runs, names.FAILED, resolution=16)
    table = tables.best_table(stats.summarize(runs, FD), stats.best_cells(runs, FD), FD, COLUMNS)
    assert table.header == ("size", "schedule", "b", FD, "seeds", "remarks")
    assert texts(table) == [
        ["8×8", "linear", "0.5", "11.0 ± 6.4", "2", "lowest b that was scored: the optimum may lie below 0.5"],
        ["16×16", "—", "—", "—", "—", "no trial has finished"],
    ]


def test_one_seed_is_said_to_have_no_interval(runs: pd.DataFrame) -> None:
    runs = runs[runs["seed"] == 0]
    cells, best = stats.summarize(runs, FD), stats.best_cells(runs, FD)
    answer = texts(tables.best_table(cells, best, FD, COLUMNS))
    assert answer[0][3] == "10.5"
    assert "one seed: no interval" in answer[0][5]
    assert "mean over 1 seed." in tables.size_table(cells, "schedule", FD, COLUMNS, "").caption


def test_ties_are_named_a_few_and_then_counted(runs: pd.DataFrame) -> None:
    noisy = pd.concat([runs.assign(b=runs["b"] * 4**i) for i in range(3)])
    noisy[FD] = 10.0 + noisy["seed"] * noisy["b"]
    row = stats.best_cells(noisy, FD).iloc[0]
    assert len(row["ties"]) == 11
    notes = tables.remarks(row, stats.summarize(noisy, FD), ["schedule", "b"])
    assert re.search(r"^tied with [^,]+, [^,]+, [^,]+ and 8 more$", notes[-1])


def test_unfinished_trials_are_listed_with_their_reasons(runs: pd.DataFrame) -> None:
    lose(runs, names.FAILED, resolution=8, b=0.5, seed=1, schedule="linear")
    runs.loc[runs["state"] == names.FAILED, "reason"] = "loss is not a number"
    lose(runs, "missing", resolution=16, b=1.0, seed=0, schedule="cosine")
    assert texts(tables.unfinished_table(runs, COLUMNS)) == [
        ["8×8", "linear", "0.5", "1", "failed", "loss is not a number", "8linear0.51"],
        ["16×16", "cosine", "1", "0", "missing", "—", "16cosine1.00"],
    ]


def test_a_schedule_filled_in_with_each_size_is_one_schedule() -> None:
    frame = pd.DataFrame(
        {
            "schedule": ["shifted_cosine@64,8", "shifted_cosine@64,16", "shifted_cosine@64,8", "linear", "plugin@1"],
            "resolution": [8, 16, 16, 8, 8],
        }
    )
    assert tables.schedule_names(frame).tolist() == [
        "shifted_cosine@64",
        "shifted_cosine@64",
        "shifted_cosine@64,8",
        "linear",
        "plugin@1",
    ]


@pytest.mark.parametrize(
    ("means", "places"), [([33.0, 700.0], 1), ([3.52, 20.0], 2), ([0.00123], 5), ([1500.0], 0), ([float("nan")], 2)]
)
def test_the_smallest_mean_is_shown_with_three_digits(means: list[float], places: int) -> None:
    assert tables.places(pd.DataFrame({"mean": means})) == places


HOSTILE = "50% of a_b & <b>#1</b> {x} $y$ ~^\\ | *s* `c` [l](u)\nend"


def hostile() -> tables.Table:
    return tables.Table(HOSTILE, HOSTILE, ("a", HOSTILE), ((tables.Entry("1", best=True), tables.Entry(HOSTILE)),))


def test_latex_has_no_unescaped_special_character() -> None:
    body = tables.latex_text(HOSTILE)
    assert r"50\% of a\_b \& \textless{}b\textgreater{}\#1" in body
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textbar{}"):
        assert command in body
        body = body.replace(command, "")
    assert not re.search(r"(?<!\\)[%&#_$]|[~^|<>\n]", body)


def test_latex_is_a_booktabs_table_with_the_best_in_bold() -> None:
    table = tables.Table("T, b", "C.", ("b", "8×8"), ((tables.Entry("1"), tables.Entry("5.0 ± 0.1", "n = 2", True)),))
    assert tables.latex(table).splitlines() == [
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
    *_, header, rule, row = tables.markdown(hostile()).strip().splitlines()
    assert rule == "| --- | --- |"
    assert len(re.findall(r"(?<!\\)\|", header)) == len(re.findall(r"(?<!\\)\|", row)) == 3
    assert row.startswith("| **1** | 50% of a\\_b &amp; &lt;b&gt;\\#1&lt;/b&gt;")


def test_the_terminal_prints_text_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=200)
    table = tables.Table("[bold]T", "", ("a",), ((tables.Entry("[red]1[/red]"),),))
    console.print(tables.terminal(table))
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert "[bold]T" in printed
    assert "[red]1[/red]" in printed


def test_csv_reads_back_as_the_same_numbers_with_missing_as_nan(runs: pd.DataFrame) -> None:
    runs[FD] += 1 / 3
    lose(runs, names.FAILED, resolution=8, b=0.5)
    cells = stats.summarize(runs, FD)
    back = pd.read_csv(io.StringIO(csv(cells)))
    pd.testing.assert_frame_equal(back, cells, rtol=1e-15, atol=0, check_dtype=False)
    assert back["mean"].isna().sum() == 2
