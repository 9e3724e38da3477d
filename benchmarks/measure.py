"""Paired timings and peaks of memory."""

from __future__ import annotations

import ctypes
import gc
import importlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        ours: Its value.
        plain: What it is compared with, measured in the same run; None where the goal is absolute.
        unit: Of both values.
        goal: In words.
        met: Whether the goal is reached; None where there is none.
        note: What a reader should know.
    """

    what: str
    ours: float
    plain: float | None
    unit: str
    goal: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by plain."""
        return self.ours / self.plain if self.plain else None

    def cells(self) -> tuple[str, ...]:
        """What a table shows: what, ours, compared with, ratio, goal, met and note."""
        plain = "" if self.plain is None else f"{self.plain:.3g} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}" if self.ratio >= 0.095 else f"{self.ratio:.3f}"
        met = "" if self.met is None else "yes" if self.met else "no"
        return self.what, f"{self.ours:.3g} {self.unit}", plain, ratio, self.goal, met, self.note


def against(what: str, ours: float, plain: float, *, at_most: float, unit: str = "ms", note: str = "") -> Row:
    """Makes a row whose goal is a ratio."""
    goal = f"<= 1/{1 / at_most:g}" if at_most < 1 else f"<= {at_most:g}x"
    return Row(what, ours, plain, unit, goal, ours / plain <= at_most, note)


def paired(ways: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2) -> dict[str, float]:
    """Times several ways in turn, A B C A B C …, so that a machine that others use slows all of them alike.

    Args:
        ways: What to call, by name.
        repeats: Counted calls of each.
        warmup: Calls of each before.

    Returns:
        Median of each in milliseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + repeats):
        for name, call in ways.items():
            started = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def resident() -> int:
    """Bytes of anonymous memory of this process: what it allocated, without files that are mapped."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Gives a function that tells, in MiB, how far memory rose above where it stood; sampled every half millisecond."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = highest = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: (max(highest, resident()) - before) / MIB
    finally:
        done.set()
        watcher.join()


def announce(what: str) -> None:
    """Prints what is measured next, where that takes long."""
    _say(f"{what} ...")


def run_alone(name: str, quick: bool, threads: int) -> list[Row]:
    """Runs one benchmark and prints each row as soon as it is measured; meant for a fresh process.

    Args:
        name: Its module.
        quick: Fewer repeats.
        threads: Threads of torch; 0 leaves the choice to it.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = []
    for row in importlib.import_module(f"benchmarks.{name}").run(quick=quick):
        what, ours, plain, ratio, *_ = row.cells()
        _say(f"{what}: {ours}" + (f", compared with {plain}: {ratio}" if plain else ""))
        rows.append(row)
    return rows


def _say(text: str) -> None:
    Console(soft_wrap=True).print(f"  {text}", highlight=False, markup=False)
