"""How commands print: tables, colour and JSON.

Rule: what goes to a terminal may be coloured and fitted to its width; what goes to a pipe or file is plain, complete,
a line a row. NO_COLOR (any value) turns colour off. rich is imported only for a table on a terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netagent.model import Finding

RED, GREEN, YELLOW, BOLD, DIM = "31", "32", "33", "1", "2"
_RICH = {RED: "red", GREEN: "green", YELLOW: "yellow"}

# The colour of each word that a view uses for a state.
COLOURS = {
    "healthy": GREEN,
    "up": GREEN,
    "installed": GREEN,
    "held": GREEN,
    "degraded": YELLOW,
    "pending": YELLOW,
    "unknown": YELLOW,
    "restored": YELLOW,
    "warning": YELLOW,
    "down": RED,
    "unreachable": RED,
    "failing": RED,
    "failed": RED,
    "lost": RED,
    "conflict": RED,
    "error": RED,
    "add": GREEN,
    "change": YELLOW,
    "remove": RED,
}


def on_terminal() -> bool:
    return sys.stdout.isatty()


def coloured() -> bool:
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, *codes: str) -> str:
    """The text in these colours, where there is colour."""
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if codes and coloured() else text


def state(word: str) -> str:
    """A state in its colour."""
    return paint(word, COLOURS[word]) if word in COLOURS else word


def clean(text: str) -> str:
    """Without control characters: names and messages come from other hosts' records and must not steer a terminal."""
    return (
        text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    )


def warn(finding: Finding) -> None:
    """Say on standard error what was found in what was given."""
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    print(f"{finding.severity}: {clean(finding.message + remedy)}", file=sys.stderr)


def table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, states: int | None = None, indent: int = 0
) -> None:
    """Print rows under titles. `states` is the column that holds a state, coloured by its word."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if on_terminal():
        _rich(titles, cells, states, indent)
        return
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in (titles, *cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(" " * indent + line.rstrip())


def _rich(titles: Sequence[str], rows: list[list[str]], states: int | None, indent: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for title in titles:
        grid.add_column(title, overflow="fold")
    for row in rows:
        styles = [_RICH.get(COLOURS.get(cell, ""), "") if n == states else "" for n, cell in enumerate(row)]
        grid.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
    Console(no_color=not coloured(), highlight=False).print(Padding(grid, (0, 0, 0, indent)))


def json(value: Any, *, indent: int = 2) -> None:
    """A value as JSON, as the agent would encode it: in UTF-8, whatever the terminal's letters are (RFC 8259).

    An `indent` of -1 keeps it on one line.
    """
    import msgspec

    document = msgspec.json.format(msgspec.json.encode(value), indent=indent) + b"\n"
    sys.stdout.flush()
    sys.stdout.buffer.write(document)
