"""Synthetic run folders, the same in every session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from made_runs import write_run

BuildRun = Callable[..., Path]


@pytest.fixture
def build_run(tmp_path: Path) -> BuildRun:
    """Writes run folders below the test's own folder: ``build_run("name", algorithm=…)``."""

    def build(name: str, **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return build


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The two runs that most reports compare; read only."""
    folder = tmp_path_factory.mktemp("pair")
    return (
        write_run(folder / "fedavg-published", algorithm="fedavg-published"),
        write_run(folder / "fedgs", algorithm="fedgs"),
    )
