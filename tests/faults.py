"""Commands in processes of their own that are killed, or find the disk full, at an instant that a test chooses."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import multiprocessing
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import fedgs.cli

IMPORTED_ONCE = [
    "fedgs.experiment",
    "fedgs.external",
    "fedgs.demo",
    "fedgs.report.html",
    "monai.networks.nets",
    "matplotlib.pyplot",
]
"""What a command imports late; the server that forks the processes has it."""

WRITE = "a write"
PLACES = {
    "indexing": "fedgs.data.cache:read_image",
    "training": "fedgs.scaled_update:ScaledUpdate.after_step",
    "aggregation": "fedgs.algorithms.server_rules:_Sums.of",
    "evaluation": "fedgs.evaluation:confusion",
}
"""Functions at whose call a process may end; a write is every opening for writing, renaming and removing of a file."""


@dataclass(frozen=True)
class Instant:
    """The ``number``-th time (from 1) that a process comes to a place."""

    place: str
    number: int

    def __str__(self) -> str:
        return f"{self.place} {self.number}"


@dataclass(frozen=True)
class Ended:
    """How a process ended; ``reached`` counts how often it came to each place, where it lived to tell."""

    exitcode: int
    output: str = ""
    reached: Mapping[str, int] = field(default_factory=dict)


def run(arguments: Sequence[str], root: Path, instant: Instant | None = None, fault: str = "kill") -> Ended:
    """Runs a command of fedgs in a new process.

    Args:
        arguments: Of the command line.
        root: Folder in which writes count.
        instant: Where the fault happens; nowhere if None.
        fault: "kill" (SIGKILL) or "full" (from then on the kernel lets no file grow).
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED_ONCE)
    ours, theirs = server.Pipe(duplex=False)
    process = server.Process(target=_child, args=(list(arguments), str(root), instant, fault, theirs, dict(os.environ)))
    process.start()
    theirs.close()
    told: tuple[int, str, dict[str, int]] | None = None
    with contextlib.suppress(EOFError):
        told = ours.recv()
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode) if told is None else Ended(*told)


def _child(
    arguments: list[str], root: str, instant: Instant | None, fault: str, pipe: Connection, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    reached: Counter[str] = Counter()

    def come_to(place: str) -> None:
        reached[place] += 1
        if instant == Instant(place, reached[place]):
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    for place, function in PLACES.items():
        _observe(function, functools.partial(come_to, place))
    sys.addaudithook(functools.partial(_hear, os.path.realpath(root), functools.partial(come_to, WRITE)))
    output, code = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            fedgs.cli.main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
    pipe.send((code, output.getvalue(), dict(reached)))


def _observe(function: str, called: functools.partial[None]) -> None:
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    @functools.wraps(original)
    def observed(*arguments: Any, **keywords: Any) -> Any:
        called()
        return original(*arguments, **keywords)

    setattr(owner, name, observed)


def _hear(root: str, written: functools.partial[None], event: str, arguments: tuple[Any, ...]) -> None:
    is_write = event in ("os.rename", "os.remove")
    if event == "open" and isinstance(arguments[2], int):
        is_write = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if is_write and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(root + os.sep):
            written()
