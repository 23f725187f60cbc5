"""A table of text, and its forms in Markdown, in LaTeX and on a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table

DASH = "—"
TIMES = "×"
DAGGER = "†"  # after an entry that can't be told from the best
DOUBLE_DAGGER = "‡"  # after an interval that does not lie over seeds
WORDS = ("schedule", "state", "failure", "remarks", "reason")  # columns of words, not of numbers
WRAPPED = 40  # characters above which LaTeX wraps a column


@dataclass(frozen=True)
class Entry:
    """One entry of a table."""

    text: str
    note: str = ""
    best: bool = False
    tied: bool = False
    """Can't be told from the best."""

    @property
    def bold(self) -> bool:
        """Whether it is among the best."""
        return self.best or self.tied

    def __str__(self) -> str:
        marked = self.text + DAGGER if self.tied else self.text
        return f"{marked} ({self.note})" if self.note else marked


@dataclass(frozen=True)
class Table:
    """A title, what its numbers mean, and rows of entries under a header."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, under its title; the best entries in bold."""

    def line(texts: Iterable[str]) -> str:
        return f"| {' | '.join(texts)} |"

    def cell(entry: Entry) -> str:
        text = markdown_text(str(entry))
        return f"**{text}**" if entry.bold else text

    lines = [
        f"### {markdown_text(table.title)}",
        "",
        *([markdown_text(table.caption), ""] if table.caption else []),
        line(map(markdown_text, table.header)),
        line(["---"] * len(table.header)),
        *(line(map(cell, row)) for row in table.rows),
        "",
    ]
    return "\n".join(lines)


def markdown_text(text: str) -> str:
    """Text on one line, with all that Markdown and its HTML would interpret escaped."""
    return re.sub(r"([\\`*_\[\]|#$~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


PREAMBLE = "% Tables for \\input{tables}; they need \\usepackage{booktabs}.\n"


def latex(table: Table) -> str:
    r"""A floating table for \usepackage{booktabs}."""

    def line(texts: Iterable[str]) -> str:
        return " & ".join(texts) + r" \\"

    def cell(entry: Entry) -> str:
        text = latex_text(str(entry))
        return rf"\textbf{{{text}}}" if entry.bold else text

    def alignment(column: int, name: str) -> str:
        if name not in WORDS:
            return "r" if column else "l"
        return "p{5.5cm}" if any(len(row[column].text) > WRAPPED for row in table.rows) else "l"

    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    columns = "".join(alignment(*each) for each in enumerate(table.header))
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_text(f'{table.title}. {table.caption}'.strip())}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        line(map(latex_text, table.header)),
        r"\midrule",
        *(line(map(cell, row)) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


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
        "–": "--",
        DAGGER: r"$^\dagger$",
        DOUBLE_DAGGER: r"$^\ddagger$",
        "\n": " ",
    }
)


def latex_text(text: str) -> str:
    """Text with every character that LaTeX would interpret escaped."""
    return text.translate(_LATEX)


def terminal(table: Table) -> rich.table.Table:
    """The table for rich's console; the best entries in bold."""
    from rich.table import Table as Grid
    from rich.text import Text

    title, caption = Text(table.title), Text(table.caption)
    grid = Grid(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name in table.header:
        grid.add_column(Text(name), overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(str(entry), style="bold" if entry.bold else "") for entry in row))
    return grid
