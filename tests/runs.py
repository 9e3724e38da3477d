"""Small runs on a phantom, for the tests of engine, run folder and command line."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedgs.cli import main
from fedgs.config import RunConfig, configure
from fedgs.data import phantom

FLAGS = {"size": 32, "rounds": 3, "local_steps": 3, "lr": 1e-3, "seed": 1}


def make_phantom(folder: Path, cases: int = 20, seed: int = 0) -> Path:
    phantom.generate(folder, seed=seed, cases_per_site=cases, size=64)
    return folder


def tiny_config(data: Path, **changes: Any) -> RunConfig:
    return configure(data=str(data), **(FLAGS | changes))


def flags(**values: Any) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedgs.cli", *arguments]


def environment() -> dict[str, str]:
    """For processes that train: with one thread, since the threads of two trainings spin against each other."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def fedgs(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process, which spares the imports, and gives what it printed and its exit code."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
    done = subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
