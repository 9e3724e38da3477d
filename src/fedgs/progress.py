"""Listeners that show people how a run goes: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from fedgs.events import (
    Careful,
    Event,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    Scoring,
    SiteFinished,
    StepTaken,
)

__all__ = ["Clock", "CountingBar", "LiveBar", "PlainLines", "duration", "show_progress"]

_QUIET_S = 10.0
_PATIENCE_S = 1.0


def duration(seconds: float) -> str:
    """Writes a time span for people.

    >>> duration(59), duration(61), duration(7384)
    ('59s', '1m01s', '2h03m')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Clock:
    """Follows a run and tells how far it is, and how long the rest will take at the pace so far."""

    def __init__(self) -> None:
        self.name = self.where = ""
        self.loss: float | None = None
        self.terms: Mapping[str, float] = {}
        self.dice: float | None = None
        self.round = self.rounds = self.finished = self.steps = self.steps_per_round = 0
        self._started = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Takes note of an event."""
        match event:
            case RunStarted():
                self.name, self.rounds, self.steps_per_round = event.name, event.rounds, event.steps_per_round
                self.finished = self.round = event.finished
                self._before, self._started = event.finished, time.monotonic()
            case RoundStarted():
                self.round, self.steps = event.round, 0
            case StepTaken():
                self.steps += 1
                self.where, self.loss, self.terms = event.site, event.loss, event.terms
            case Scoring():
                self.where = f"scoring {event.part} {event.done}/{event.cases}"
            case RoundFinished():
                self.finished, self.steps = event.round, 0
                if event.record["validation"]:
                    self.dice = event.record["validation"]["dice"]["mean"]

    @property
    def done(self) -> float:
        """Rounds done, with the share of the round under way."""
        return self.finished + min(self.steps / max(self.steps_per_round, 1), 1) * 0.95 if self.rounds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last round is done; None before the first steps, and after it, when tests are scored."""
        gone, left = (self.done - self._before, self.rounds - self.done) if self.rounds else (0.0, 0.0)
        return (time.monotonic() - self._started) / gone * left if gone > 0 and left > 0 else None

    def status(self) -> str:
        """Site, loss, Dice and time left, in one line."""
        left = self.seconds_left
        loss = "" if self.loss is None else f"  loss {self.loss:.3f}"
        if len(self.terms) > 1:
            loss += f" ({', '.join(f'{name} {value:.3f}' for name, value in self.terms.items())})"
        dice = "" if self.dice is None else f"  Dice {self.dice:.3f}"
        return f"{self.where}{loss}{dice}" + ("" if left is None else f"  ETA {duration(left)}")


class PlainLines:
    """A line per round, and one at least every ten seconds; for logs and pipes.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._clock, self._last = console, Clock(), time.monotonic()

    def __call__(self, event: Event) -> None:
        """Writes a line if it is time."""
        self._clock(event)
        if isinstance(event, Careful):
            _warn(self._console, event)
        quiet = time.monotonic() - self._last > _QUIET_S
        if isinstance(event, RoundFinished) or (quiet and isinstance(event, (StepTaken, SiteFinished, Scoring))):
            clock = self._clock
            line = f"{clock.name}  round {clock.round}/{clock.rounds}  {clock.status()}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
            self._last = time.monotonic()


class _Status(ProgressColumn):
    max_refresh = 0.2

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        """Writes the clock's status."""
        return Text(self._clock.status(), no_wrap=True, overflow="ellipsis")


class _Bar:
    """A bar that is drawn in place, from `_draw` to `close`."""

    def __init__(self, console: Console, *columns: ProgressColumn, **options: Any) -> None:
        self._bar = Progress(*columns, console=console, **options)
        self._drawn = False

    def _draw(self) -> None:
        if not self._drawn:
            self._bar.start()
            self._drawn = True

    def close(self) -> None:
        """Leaves the terminal as it was found."""
        if self._drawn:
            self._bar.stop()
            self._drawn = False


class LiveBar(_Bar):
    """The bar of a run; it closes itself when the run ends.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._clock = Clock()
        columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), _Status(self._clock))
        super().__init__(console, *columns, refresh_per_second=4)
        self._task = self._bar.add_task("", total=None, visible=False)

    def __call__(self, event: Event) -> None:
        """Moves the bar."""
        self._clock(event)
        if isinstance(event, Careful):
            _warn(self._bar.console, event)
        clock = self._clock
        if isinstance(event, RunStarted):
            self._draw()
            self._bar.update(self._task, description=f"{clock.name}: round", total=clock.rounds, visible=True)
        self._bar.update(self._task, completed=clock.finished)
        if isinstance(event, RunFinished):
            self.close()


class CountingBar(_Bar):
    """Shows how many cases are done, from the second second on.

    Args:
        console: Where to write.
        what: What is being done, for instance "indexing".
    """

    def __init__(self, console: Console, what: str) -> None:
        super().__init__(console, TextColumn(what), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
        self._console, self._what = console, what
        self._started = self._last = time.monotonic()
        self._task = self._bar.add_task("", total=None)

    def __call__(self, done: int, cases: int) -> None:
        """Moves the bar, or writes a line every ten seconds where there is no terminal."""
        now = time.monotonic()
        if self._console.is_terminal:
            if now - self._started > _PATIENCE_S:
                self._draw()
            self._bar.update(self._task, completed=done, total=cases)
        elif now - self._last > _QUIET_S:
            left = (now - self._started) / max(done, 1) * (cases - done)
            self._console.print(f"{self._what} {done}/{cases}  ETA {duration(left)}", highlight=False)
            self._last = now
        if done == cases:
            self.close()


def show_progress(console: Console) -> LiveBar | PlainLines:
    """Gives the listener that suits where the output goes."""
    return LiveBar(console) if console.is_terminal else PlainLines(console)


def _warn(console: Console, event: Careful) -> None:
    console.print(f"Careful: {event.message}", highlight=False, soft_wrap=True, markup=False)
