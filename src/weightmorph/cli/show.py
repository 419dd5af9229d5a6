"""What a command prints: tables and plain lines, with rich where someone watches, as bare text where not."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

__all__ = ["say", "table"]


def say(text: str) -> None:
    """A line or several on standard output, as they are."""
    print(text, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under a heading; in a pipe columns are two blanks apart and never cut."""
    if not sys.stdout.isatty():
        cells = [list(head), *map(list, rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        for line in cells if any(head) else cells[1:]:
            say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    shown = Table(show_header=any(head), box=None, pad_edge=False)
    for name in head:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(cell.replace("[", "\\[") for cell in row))
    Console().print(shown)
