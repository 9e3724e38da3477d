from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from fedgs.events import Event, RoundFinished, RoundStarted, RunFinished, RunStarted, Scoring, SiteFinished, StepTaken
from fedgs.progress import Clock, CountingBar, LiveBar, PlainLines, show_progress


def events(rounds: int = 2) -> Iterator[Event]:
    yield RunStarted("fedgs", rounds, 0, 4)
    for number in range(1, rounds + 1):
        yield RoundStarted(number, ("A", "B"))
        for site in "AB":
            for step in (1, 2):
                yield StepTaken(number, site, step, 0.5, {"dice": 0.5})
            yield SiteFinished(number, site, {"loss": 0.5})
        yield Scoring(number, "validation", 1, 1)
        validation = {"dice": {"mean": 0.25 * number, "n": 3}}
        yield RoundFinished(number, {"validation": validation, "sites": {}, "round": number})
    yield RunFinished({})


def test_lines_name_round_site_loss_dice_and_time_left() -> None:
    console = Console(file=io.StringIO(), width=80)
    listener = show_progress(console)
    assert isinstance(listener, PlainLines)
    for event in events():
        listener(event)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2
    for part in ("fedgs", "round 2/2", "loss 0.500", "Dice 0.500"):
        assert part in lines[1]
    assert "ETA 0s" in lines[0]
    assert "ETA" not in lines[1]  # what is left is to score test images


def test_a_long_round_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80)
    listener, now = PlainLines(console), time.monotonic()
    for index, event in enumerate(events(1)):
        monkeypatch.setattr(time, "monotonic", lambda index=index: now + 11 * index)
        listener(event)
    assert len(console.file.getvalue().splitlines()) >= 5  # type: ignore[attr-defined]


def test_the_bar_draws_and_closes_itself() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    listener = show_progress(console)
    assert isinstance(listener, LiveBar)
    for event in events():
        listener(event)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "fedgs: round" in drawn
    assert "2/2" in drawn
    assert "Dice 0.500" in drawn
    listener.close()


def test_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = Clock(), time.monotonic()
    for second, event in enumerate(events()):
        monkeypatch.setattr(time, "monotonic", lambda second=second: now + second)
        clock(event)
        if isinstance(event, RoundFinished) and event.round == 1:
            break
    assert clock.done == 1
    left = clock.seconds_left
    assert left is not None
    assert left == pytest.approx(second)  # as long again as the first round took


def test_indexing_shows_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80)
    bar, now = CountingBar(console, "indexing"), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 30)
    bar(50, 100)
    bar(100, 100)
    assert "indexing 50/100  ETA 30s" in console.file.getvalue()  # type: ignore[attr-defined]
