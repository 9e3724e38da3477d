"""What the engine tells whoever listens: progress bar, log, TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Careful", "Event", "Listener", "RoundFinished", "RoundStarted", "RunFinished", "RunStarted", "Scoring"]
__all__ += ["SiteFinished", "StepTaken"]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins or goes on; ``finished`` rounds lie behind it."""

    name: str
    rounds: int
    finished: int
    steps_per_round: int


@dataclass(frozen=True, slots=True)
class Careful:
    """Something that a person should know; it does not stop the run."""

    message: str


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """The server's state goes out to these sites."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepTaken:
    """A site took an optimizer step, the ``step``-th of its round; ``terms`` add up to the loss."""

    round: int
    site: str
    step: int
    loss: float
    terms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SiteFinished:
    """A site sent its update; ``record`` is its entry of rounds.jsonl."""

    round: int
    site: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scoring:
    """Images of a part are being scored."""

    round: int
    part: str
    done: int
    cases: int


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """The round is on disk; ``record`` is its line of rounds.jsonl."""

    round: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is complete; ``summary`` is its summary.json."""

    summary: Mapping[str, Any]


Event = RunStarted | Careful | RoundStarted | StepTaken | SiteFinished | Scoring | RoundFinished | RunFinished
Listener = Callable[[Event], None]
