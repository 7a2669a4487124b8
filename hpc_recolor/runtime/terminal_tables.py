"""Tables of a few columns on terminals of any width."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# A column that folds is readable down to this width.
NARROW = 6
# After a column and its divider.
GAP = 2


@dataclass(frozen=True)
class Heading:
    """A column's name. is_number: aligned right and never folded; folds: long texts, anywhere; others, at spaces."""

    name: str
    is_number: bool = False
    folds: bool = False


@dataclass(frozen=True)
class Row:
    """The cells of a row, one a column. style: one of rich's, or None."""

    cells: Sequence[str]
    style: str | None = None


def print_table(headings: Sequence[Heading], rows: Sequence[Row]) -> None:
    """Print rows as a table on stdout; below each other, one cell a line, where the terminal is too narrow for that."""
    console = Console(markup=False, highlight=False, emoji=False)
    widths = _widths(headings, rows, console.width - GAP * len(headings) - 1)
    if widths is None:
        for row in rows:
            _print_stacked(console, headings, row)
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, width in zip(headings, widths, strict=True):
        justify: Literal["left", "right"] = "right" if heading.is_number else "left"
        table.add_column(heading.name, justify=justify, overflow="fold", width=width)
    for row in rows:
        table.add_row(*row.cells, style=row.style)
    console.print(table)


def print_lines(lines: Sequence[Sequence[str]]) -> None:
    """Print lines of cells, the first line of headings, aligned and never folded, for people and programs.

    On a terminal that is too narrow, as `print_table` does.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        first, *others = lines
        print_table([Heading(name, is_number=place > 0) for place, name in enumerate(first)], [*map(Row, others)])
        return
    for first_cell, *cells in lines:
        aligned = [first_cell.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]
        print("  ".join(aligned))
    sys.stdout.flush()


def _widths(headings: Sequence[Heading], rows: Sequence[Row], room: int) -> list[int] | None:
    """The columns' widths, or None if there is too little room. What is left over goes to those that lack least."""
    columns = [[row.cells[place] for row in rows] for place in range(len(headings))]
    widths = [_least_width(heading, cells) for heading, cells in zip(headings, columns, strict=True)]
    if sum(widths) > room:
        return None
    wanted = [
        max(len(line) for cell in (heading.name, *cells) for line in cell.split("\n"))
        for heading, cells in zip(headings, columns, strict=True)
    ]
    lacking = [max(0, want - width) for want, width in zip(wanted, widths, strict=True)]
    for place in sorted(range(len(headings)), key=lacking.__getitem__):
        widths[place] += min(lacking[place], room - sum(widths))
    return widths


def _least_width(heading: Heading, cells: Sequence[str]) -> int:
    widest = max((len(part) for cell in cells for part in ([cell] if heading.is_number else cell.split())), default=0)
    return max([*map(len, heading.name.split()), min(widest, NARROW) if heading.folds else widest])


def _print_stacked(console: Console, headings: Sequence[Heading], row: Row) -> None:
    first, *others = zip(headings, row.cells, strict=True)
    console.print(Text(first[1], style=row.style or "", overflow="fold"))
    for heading, cell in others:
        if cell:
            text = Text(f"{heading.name}: {cell}", style=row.style or "", overflow="fold")
            console.print(Padding(text, (0, 0, 0, 2)))
