"""Runs the benchmarks, each in a process of its own, prints rows as they come, then a table, and writes JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row, run_alone

BENCHMARKS = (
    "optimizer_step",
    "scaling",
    "aggregation",
    "sample",
    "training_step",
    "objectives",
    "inference",
    "prediction",
    "engine_round",
    "many_sites",
)


def main() -> None:
    """Parses the arguments and runs what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which ones; all when left out: {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller images, a few minutes")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; as it chooses when left out")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks.json"), help="JSON file (default: %(default)s)"
    )
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark '{unknown[0]}'; choose from: {', '.join(BENCHMARKS)}")
    console = Console()
    if not console.is_terminal:
        console.width = 140
    found: dict[str, list[Row]] = {}
    started = time.monotonic()
    for name in given.names or BENCHMARKS:
        console.print(name, highlight=False)
        found[name] = _apart(name, quick=given.quick, threads=given.threads)
    seconds = time.monotonic() - started
    console.print(_table([row for rows in found.values() for row in rows]))
    machine = _machine()
    console.print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}; {seconds:.0f} s")
    content = {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": machine,
        "rows": {name: [asdict(row) | {"ratio": row.ratio} for row in rows] for name, rows in found.items()},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    given.out.with_suffix(".md").write_text(
        markdown([row for rows in found.values() for row in rows]), encoding="utf-8"
    )
    console.print(f"Also as JSON and Markdown: {given.out}, {given.out.with_suffix('.md')}", highlight=False)


def markdown(rows: Sequence[Row]) -> str:
    """Gives the table for a page."""
    lines = ["| what | ours | compared with | ratio | goal | met |", "| --- | ---: | ---: | ---: | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row.cells()[:6])} |" for row in rows)]) + "\n"


def _apart(name: str, *, quick: bool, threads: int) -> list[Row]:
    """Runs a benchmark in a fresh process, so that none finds memory or caches that another left."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_alone, name, quick, threads).result()


def _table(rows: Sequence[Row]) -> Table:
    table = Table("what", box=None, header_style="bold")
    for heading in ("ours", "compared with", "ratio", "goal", "met"):
        table.add_column(heading, justify="right")
    table.add_column("note")
    for row in rows:
        table.add_row(*row.cells())
    return table


def _machine() -> dict[str, Any]:
    import torch

    model = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": model[0] if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []


if __name__ == "__main__":
    main()
