"""Statistics laid out as tables, and tables as Markdown, LaTeX or for the terminal. Computes nothing."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.runs import MISSING
from analysis.stats import CELL, CONFIDENCE, higher_is_better, ranked
from sched_lab.names import FINISHED
from trainers import schedules

if TYPE_CHECKING:
    import rich.table

DASH = "—"
TIMES = "×"
TIES_NAMED = 3


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table."""

    text: str
    note: str = ""
    best: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Table:
    """A title, what its numbers mean, and rows of entries under a header."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


def size(resolution: int) -> str:
    """An image size as it is written, 32×32."""
    return f"{resolution}{TIMES}{resolution}"


def schedule_names(frame: pd.DataFrame) -> pd.Series[str]:
    """Each row's schedule, without the image size where it is the row's own: shifted_cosine@64 is one at all sizes."""
    return pd.Series(
        [_schedule_name(*pair) for pair in zip(frame["schedule"], frame["resolution"], strict=True)], frame.index
    )


def _schedule_name(notation: str, resolution: int) -> str:
    try:
        schedule = schedules.parse(notation)
    except schedules.ScheduleError:  # a plug-in's schedule, read where the plug-in is not installed
        return notation
    return str(schedules.Schedule(schedule.kind, tuple(p for p in schedule.params if p != ("size", float(resolution)))))


def cell_name(cell: pd.Series, columns: Iterable[str]) -> str:
    """The settings of a cell in words: linear · b 0.5 · train.lr 0.001."""
    return " · ".join(_plain(cell[name]) if name == "schedule" else f"{name} {_plain(cell[name])}" for name in columns)


def places(cells: pd.DataFrame) -> int:
    """Decimals that show the smallest mean with three significant digits, the same for a whole report."""
    means = cells["mean"].abs()
    smallest = means[means > 0].min()
    return 2 if math.isnan(smallest) else min(9, max(0, 2 - math.floor(math.log10(smallest))))


def score_text(cell: pd.Series, decimals: int) -> str:
    """Mean ± half-width, the mean alone for one seed; — for a missing cell, else the state of one without a score."""
    if not cell["n"]:
        return DASH if cell["state"] == MISSING else str(cell["state"])
    mean = f"{cell['mean']:.{decimals}f}"
    return mean if math.isnan(cell["half_width"]) else f"{mean} ± {cell['half_width']:.{decimals}f}"


def best_table(cells: pd.DataFrame, best: pd.DataFrame, score: str, columns: Sequence[str]) -> Table:
    """The answer: the best cell per image size, how sure that is, and what could not be told from it."""
    varied = varied_columns(cells, columns)
    decimals = places(cells)
    rows = []
    for resolution in sorted(cells["resolution"].unique()):
        found = best[best["resolution"] == resolution]
        if found.empty:
            rows.append((Entry(size(resolution)), *[Entry(DASH)] * (len(varied) + 2), Entry("no trial has finished")))
            continue
        row = found.iloc[0]
        rows.append(
            (
                Entry(size(resolution)),
                *(Entry(_plain(row[name]), best=True) for name in varied),
                Entry(score_text(row, decimals)),
                Entry(str(row["n"])),
                Entry("; ".join(remarks(row, cells, varied))),
            )
        )
    return Table(
        "Best per image size",
        _meaning(score),
        ("size", *varied, score, "seeds", "remarks"),
        tuple(rows),
    )


def remarks(best: pd.Series, cells: pd.DataFrame, varied: Sequence[str]) -> list[str]:
    """What a reader must know before trusting a row of `best_cells`."""
    notes = []
    if best["edge"]:
        beyond = "below" if best["edge"] == "lowest" else "above"
        notes.append(f"{best['edge']} b that was scored: the optimum may lie {beyond} {best['b']:g}")
    if best["ties"]:
        tied = [cell_name(cells.loc[tie], varied) for tie in best["ties"][:TIES_NAMED]]
        more = len(best["ties"]) - len(tied)
        notes.append("tied with " + ", ".join(tied) + (f" and {more} more" if more else ""))
    if best["n"] == 1:
        notes.append("one seed: no interval")
    elif best["untested"]:
        notes.append(f"not compared with {best['untested']} cells that share fewer than two seeds with it")
    lost = int(best[["failed", "stopped", "running", "missing"]].sum())
    if lost:
        notes.append(f"{lost} of its trials did not finish")
    return notes


def varies(values: pd.Series) -> bool:
    """Whether a column holds several values; missing is one."""
    return len(values.drop_duplicates()) > 1


def varied_columns(cells: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The settings beside resolution that take several values; b and schedule are named even when nothing varies."""
    varied = [name for name in columns if name != "resolution" and varies(cells[name])]
    return varied or [name for name in CELL if name != "resolution"]


def size_table(cells: pd.DataFrame, row: str, score: str, columns: Sequence[str], title: str) -> Table:
    """`row` (schedule or b) down, image size across; each entry the best of the cells that fall there, best in bold.

    Where other settings vary too, an entry notes those of the cell it shows. Empty where the sweep has no such cell.
    """
    free = [name for name in varied_columns(cells, columns) if name != row and varies(cells[name])]
    order = pd.concat([ranked(cells, score), cells[cells["n"] == 0]])
    chosen = order.drop_duplicates([row, "resolution"])
    winners = set(chosen[chosen["n"] > 0].drop_duplicates("resolution").index)
    usual = _usual_seeds(cells)
    decimals = places(cells)
    entries = {
        (cell[row], cell["resolution"]): Entry(
            score_text(cell, decimals),
            ", ".join(
                ([cell_name(cell, free)] if free and cell["n"] else [])
                + ([f"n = {cell['n']}"] if 0 < cell["n"] != usual else [])
            ),
            best=index in winners,
        )
        for index, cell in chosen.iterrows()
    }
    sizes = sorted(cells["resolution"].unique())
    return Table(
        title,
        _meaning(score, usual) + (f" Each at its best {' and '.join(free)}." if free else ""),
        (row, *map(size, sizes)),
        tuple(
            (Entry(_plain(value)), *(entries.get((value, resolution), Entry("")) for resolution in sizes))
            for value in dict.fromkeys(cells[row].sort_values() if row == "b" else cells[row])
        ),
    )


def cells_table(cells: pd.DataFrame, score: str, columns: Sequence[str]) -> Table:
    """Every cell of the sweep."""
    varied = varied_columns(cells, columns)
    decimals = places(cells)
    rows = (
        (
            Entry(size(cell["resolution"])),
            *(Entry(_plain(cell[name])) for name in varied),
            Entry(score_text(cell, decimals)),
            Entry(_number(cell["sd"], decimals)),
            Entry(str(cell["n"])),
        )
        for _, cell in cells.iterrows()
    )
    return Table("Every cell", _meaning(score), ("size", *varied, score, "sd", "seeds"), tuple(rows))


def unfinished_table(runs: pd.DataFrame, columns: Sequence[str]) -> Table:
    """Every trial that did not finish, and why."""
    varied = [*varied_columns(runs, columns), "seed"]
    rows = (
        (
            Entry(size(trial["resolution"])),
            *(Entry(_plain(trial[name])) for name in varied),
            Entry(trial["state"]),
            Entry(DASH if pd.isna(trial["reason"]) else trial["reason"]),
            Entry(trial["key"]),
        )
        for _, trial in runs[runs["state"] != FINISHED].iterrows()
    )
    return Table("Trials that did not finish", "", ("size", *varied, "state", "reason", "trial"), tuple(rows))


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, under its title; the best entries in bold."""

    def line(texts: Iterable[str]) -> str:
        return f"| {' | '.join(texts)} |"

    def cell(entry: Entry) -> str:
        text = markdown_text(str(entry))
        return f"**{text}**" if entry.best else text

    head = [f"### {markdown_text(table.title)}", "", markdown_text(table.caption), ""]
    rows = [line(map(cell, row)) for row in table.rows]
    return "\n".join([*head, line(map(markdown_text, table.header)), line(["---"] * len(table.header)), *rows, ""])


def markdown_text(text: str) -> str:
    """Text that Markdown and the HTML within it leave as it is, on one line."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def latex(table: Table) -> str:
    r"""A floating table for \usepackage{booktabs}."""

    def line(texts: Iterable[str]) -> str:
        return " & ".join(texts) + r" \\"

    def cell(entry: Entry) -> str:
        text = latex_text(str(entry))
        return rf"\textbf{{{text}}}" if entry.best else text

    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{latex_text(f'{table.title}. {table.caption}'.strip())}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{'l' + 'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            line(map(latex_text, table.header)),
            r"\midrule",
            *(line(map(cell, row)) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = str.maketrans(
    {
        **{char: "\\" + char for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        TIMES: r"$\times$",
        "·": r"$\cdot$",
        DASH: "---",
        "\n": " ",
    }
)


def latex_text(text: str) -> str:
    """Text with every character that LaTeX would read as a command escaped."""
    return text.translate(_LATEX)


def terminal(table: Table) -> rich.table.Table:
    """The table for rich's console; the best entries in bold."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title=Text(table.title), caption=Text(table.caption), title_justify="left", caption_justify="left")
    for name in table.header:
        grid.add_column(Text(name))
    for row in table.rows:
        grid.add_row(*(Text(str(entry), style="bold" if entry.best else "") for entry in row))
    return grid


def _meaning(score: str, seeds: int | None = None) -> str:
    over = "seeds" if seeds is None else "1 seed" if seeds == 1 else f"{seeds} seeds"
    spread = f"mean over {over}"
    if seeds != 1:
        spread = f"mean ± half-width of the {CONFIDENCE:.0%} t-interval over {over}"
    return f"{score}, {'higher' if higher_is_better(score) else 'lower'} is better: {spread}."


def _usual_seeds(cells: pd.DataFrame) -> int | None:
    counts = cells.loc[cells["n"] > 0, "n"]
    return None if counts.empty else int(counts.mode().iloc[0])


def _number(value: float, decimals: int) -> str:
    return DASH if math.isnan(value) else f"{value:.{decimals}f}"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return "none" if math.isnan(value) else f"{value:g}"
    return str(value)
