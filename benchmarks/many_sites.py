"""A round of 10, 100 and 1,000 sites with a tiny network: time per site and memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import nn

import fedgs
from benchmarks.engine_round import begun, site_of
from benchmarks.measure import Row, announce, peak_memory
from fedgs.core import global_of
from fedgs.engine import Federation, Schedule, State, run_rounds

NOTHING = {"dice": {"mean": None, "n": 0}, "dice_s": {"mean": None, "n": 0}}


def run(*, quick: bool) -> Iterator[Row]:
    """Runs three rounds of each size in one process, the smallest first, after a warm-up that is not counted."""
    _round(100, rounds=2)
    times, memories = [], []
    for sites in (10, 100) if quick else (10, 100, 1000):
        announce(f"3 rounds of {sites} sites")
        seconds, memory = _round(sites, rounds=3)
        times.append(seconds / sites * 1e3)
        memories.append(memory)
        yield Row(f"round of {sites} sites, per site", times[-1], None, "ms")
        yield Row(f"memory of {sites} sites", memory, None, "MiB")
    met = times[-1] <= 1.2 * times[0]
    yield Row("time per site, most sites against 10", times[-1], times[0], "ms", "<= 1.2x", met)
    flat = memories[-1] - memories[0] <= 4
    yield Row("memory, most sites against 10", memories[-1], memories[0], "MiB", "flat (+ 4 MiB)", flat)


def _round(sites: int, *, rounds: int) -> tuple[float, float]:
    model = nn.Sequential(nn.Linear(1000, 20), nn.Linear(20, 2))
    make = {f"S{number:04d}": partial(site_of, f"S{number:04d}") for number in range(sites)}
    federation = Federation(model, fedgs.fedgs(), make, lambda state: NOTHING)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        store = begun(Path(folder))
        state = State(global_of(model))
        with peak_memory() as peak:
            for number in range(1, rounds + 1):
                started = time.perf_counter()
                state = run_rounds(federation, Schedule(number), state, store, lambda event: None)
                times.append(time.perf_counter() - started)
            extra = peak()
    return statistics.median(times), extra
