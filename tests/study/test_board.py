"""How far a study is, for people: in place in a terminal, as lines elsewhere."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from fedgs.study.board import show_study
from fedgs.study.runner import Status

RUNNING = {"cells/from-trunk/without-C1-fold0-seed0/fedgs": "round 3/30  loss 0.4", "tune/fedgs/lr=0.1": "starting"}


def status(finished: int = 1, failed: int = 0) -> Status:
    return Status(9, finished, {f"cells/{number}": "why" for number in range(failed)}, RUNNING, 125.0)


def test_lines_come_when_a_run_ends_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=60)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = show_study(console)

    def lines(told: Status) -> list[str]:
        console.file = io.StringIO()
        shown(told)
        return console.file.getvalue().splitlines()

    assert lines(status()) == [
        "1 of 9 runs finished  ETA 2m05s",
        "  fedgs without-C1-fold0-seed0  round 3/30  loss 0.4",
        "  lr=0.1 fedgs  starting",
    ]
    assert lines(status()) == []
    assert lines(status(failed=1))[0] == "1 of 9 runs finished, 1 failed  ETA 2m05s"
    assert lines(status(2, 1))[0] == "2 of 9 runs finished, 1 failed  ETA 2m05s"
    assert lines(status(2, 1)) == []
    now[0] += 31
    assert len(lines(status(2, 1))) == 3
    shown.close()


def test_a_terminal_is_drawn_in_place_and_left_as_it_was_found() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    shown = show_study(console)
    shown(status())
    shown(status(5))
    shown.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "5 of 9 runs finished" in text
    assert "fedgs without-C1-fold0-seed0" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again
