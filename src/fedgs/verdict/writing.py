"""Writes what a comparison came to."""

from __future__ import annotations

from pathlib import Path

from fedgs.data.index import Index
from fedgs.errors import ConfigError
from fedgs.files import TEMPORARY_SUFFIX, json_text, sealed, write_atomically
from fedgs.report.rendering import require_extra
from fedgs.verdict.judging import Comparison
from fedgs.verdict.telling import as_json

__all__ = ["write_comparison"]


def write_comparison(
    comparison: Comparison, out: Path, *, with_page: bool = True, index: Index | None = None
) -> list[Path]:
    """Writes index.html and comparison.json, each in one step.

    Where comparison.json is, the page beside it is of the same comparison: an earlier one goes before the page is
    written, and the new one comes last.

    Args:
        comparison: What is written.
        out: A folder; made when missing.
        with_page: Whether the page is wanted, which needs the extra ``report``.
        index: Images of the hospitals, for pictures of cells of a study.

    Returns:
        What was written.

    Raises:
        ConfigError: `out` is a file, or the index holds other images.
        DataError: A picture cannot be read.
        MissingExtraError: jinja2 or matplotlib is not installed.
        OSError: It cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; --out names a folder")
    content = json_text(sealed(as_json(comparison)))  # first, so that a number that JSON lacks leaves nothing
    written = []
    if with_page:
        require_extra()
        from fedgs.verdict.page import page

        text = page(comparison, index=index)
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.json").unlink(missing_ok=True)
        write_atomically(out / "index.html", text)
        written.append(out / "index.html")
    else:
        (out / "index.html").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", content)
    for left in out.glob(f"*{TEMPORARY_SUFFIX}"):  # by a process that was killed
        left.unlink(missing_ok=True)
    return [*written, out / "comparison.json"]
