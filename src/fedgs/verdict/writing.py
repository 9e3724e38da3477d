"""Writes what a comparison came to."""

from __future__ import annotations

from pathlib import Path

from fedgs.errors import ConfigError
from fedgs.files import sealed, write_json
from fedgs.verdict.judging import Comparison
from fedgs.verdict.telling import as_json

__all__ = ["write_comparison"]


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Writes comparison.json; a file that is there already is replaced in one step.

    Args:
        comparison: What is written.
        out: A folder; made when missing.

    Returns:
        What was written.

    Raises:
        ConfigError: `out` is a file.
        OSError: It cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; --out names a folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", sealed(as_json(comparison)))
    return [out / "comparison.json"]
