"""What commands print with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["counting", "make_console", "print_table"]


def make_console() -> Console:
    """Makes what writes to the standard output."""
    from rich.console import Console

    return Console()


def print_table(console: Console, table: Table) -> None:
    """Prints a table; where there is no terminal, as wide as it needs, since a number must never be cut off."""
    if not console.is_terminal:
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table)


@contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many cases are done, once it takes longer than a moment."""
    from fedgs.progress import CountingBar

    bar = CountingBar(console, what)
    try:
        yield bar
    finally:
        bar.close()
