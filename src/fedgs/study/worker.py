"""One run of a study in a process of its own, so that whatever ends it ends it alone."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fedgs import experiment
from fedgs.config import RunConfig
from fedgs.errors import ConfigError, FedgsError
from fedgs.events import Event
from fedgs.locks import locked
from fedgs.progress import Clock

__all__ = ["Failed", "Progressed", "Succeeded", "Told", "work"]

_TELL_EVERY_S = 0.5
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far the run is: rounds done, with the share of the one under way, and a line for people."""

    rounds: float
    status: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The run is finished."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The run cannot be finished; why, for people."""

    message: str


Told = Progressed | Succeeded | Failed


def work(config: RunConfig, folder: Path, threads: int, pipe: Connection) -> None:
    """Trains, or goes on with, a run; what the process should be told to do.

    Args:
        config: Settings of the run.
        folder: Its folder.
        threads: How many cores it may use.
        pipe: Told a `Told` now and then; when nobody listens any more, the process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    torch.set_num_threads(threads)
    try:
        _wait_until_free(folder)
        experiment.train(config, folder, resume=True, listeners=[_Teller(pipe.send)])
        last: Told = Succeeded()
    except BrokenPipeError:
        os._exit(1)
    except (FedgsError, OSError) as error:
        last = Failed(str(error))
    except Exception:
        last = Failed(traceback.format_exc())
    pipe.send(last)


def _wait_until_free(folder: Path) -> None:
    """A run of a study that was killed a moment ago notices it at its next step only."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with locked(folder):
                return
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


class _Teller:
    """Hands on how far a run is, not more often than anyone could read."""

    def __init__(self, tell: Callable[[Told], None]) -> None:
        self._tell, self._clock, self._last = tell, Clock(), 0.0

    def __call__(self, event: Event) -> None:
        self._clock(event)
        if time.monotonic() - self._last > _TELL_EVERY_S:
            clock = self._clock
            self._tell(Progressed(clock.done, f"round {clock.round}/{clock.rounds}  {clock.status()}"))
            self._last = time.monotonic()
