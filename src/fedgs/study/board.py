"""Shows people how far a study is: a table that is drawn in place in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedgs.progress import duration
from fedgs.study.runner import Status

__all__ = ["StudyWatcher", "show_study"]

_EVERY_S = 30.0


class StudyWatcher(Protocol):
    """Shows how far a study is, until it is closed."""

    def __call__(self, status: Status) -> None:
        """Takes note of how far it is."""

    def close(self) -> None:
        """Leaves the output as it was found."""


def show_study(console: Console) -> StudyWatcher:
    """Gives what shows a study where the output goes."""
    return _LiveStudy(console) if console.is_terminal else _StudyLines(console)


def _summary(status: Status) -> str:
    left = "" if status.seconds_left is None else f"  ETA {duration(status.seconds_left)}"
    failed = f", {len(status.failed)} failed" if status.failed else ""
    return f"{status.finished} of {status.runs} runs finished{failed}{left}"


def _short(path: str) -> str:
    """A run in few words, what tells it from its neighbours first."""
    return " ".join(reversed(path.split("/")[-2:]))


class _StudyLines:
    """A line when a run ends, and one every half minute."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, 0.0
        self._ended: tuple[int, int] | None = None

    def __call__(self, status: Status) -> None:
        ended = (status.finished, len(status.failed))
        if ended == self._ended and time.monotonic() - self._last < _EVERY_S:
            return
        self._ended, self._last = ended, time.monotonic()
        self._print(_summary(status))
        for path, told in status.running.items():
            self._print(f"  {_short(path)}  {told}")

    def close(self) -> None:
        """Nothing is left to be done."""

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class _LiveStudy:
    """A bar for the whole, and a line for each run under way."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._drawn = False

    def __call__(self, status: Status) -> None:
        if not self._drawn:
            self._live.start()
            self._drawn = True
        head = Table.grid(padding=(0, 2))
        head.add_row(Text(_summary(status)), ProgressBar(total=status.runs, completed=status.finished, width=20))
        lines = Table.grid(padding=(0, 2))
        for path, told in status.running.items():
            lines.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in (_short(path), told)))
        self._live.update(Group(head, lines))

    def close(self) -> None:
        """Leaves the terminal as it was found."""
        if self._drawn:
            self._live.stop()
            self._drawn = False
