"""CSV tables with names in them, which a spreadsheet can open without running what a name says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedgs.errors import DataError

__all__ = ["NULLABLE", "as_csv", "escape", "read_csv", "unescape"]

NULLABLE: Mapping[type, str] = {int: "Int64", float: "float64", bool: "boolean", str: "string"}
"""Types of pandas for columns in which a cell may be empty."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_ESCAPE = "'"


def escape(text: str) -> str:
    """Puts an apostrophe before text that a spreadsheet would take for a formula, and before one that is there already.

    >>> escape("=1+1"), escape("'a"), escape("a=1")
    ("'=1+1", "''a", 'a=1')
    """
    return _ESCAPE + text if text.startswith((*_FORMULA, _ESCAPE)) else text


def unescape(text: str) -> str:
    """Gives back what was given to `escape`.

    >>> unescape(escape("'=1")), unescape("a")
    ("'=1", 'a')
    """
    return text.removeprefix(_ESCAPE)


def as_csv(table: pd.DataFrame) -> str:
    """Writes a table as CSV; the text in it is escaped."""
    names = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name].dtype)]
    safe = {name: [escape(cell) if isinstance(cell, str) else cell for cell in table[name]] for name in names}
    return table.assign(**safe).to_csv(index=False, lineterminator="\n")


def read_csv(path: Path, types: Mapping[str, type], *, optional: Collection[str] = ()) -> pd.DataFrame:
    """Reads what `as_csv` wrote; text stays what it was, be it ``007`` or ``NA``, and numbers are exact.

    Args:
        path: The table, UTF-8.
        types: `int`, `float` or `bool` by column; other columns are text.
        optional: Columns in which a cell may be empty, with the types of pandas in `NULLABLE`.

    Raises:
        DataError: It cannot be read, or a value is not of its type.
    """
    try:
        table = pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8")
        for name in table.columns:
            kind = types.get(name, str)
            parse = _PARSED[kind]
            if name in optional:
                cells = [parse(cell) if cell else None for cell in table[name]]
                table[name] = pd.Series(cells, index=table.index, dtype=NULLABLE[kind])
            else:
                table[name] = pd.Series([parse(cell) for cell in table[name]], index=table.index, dtype=kind)
    except (OSError, ValueError, OverflowError) as error:
        wanted = "restore it from a copy, or make it again"
        raise DataError(f"{path}: cannot be read as a table of fedgs ({error}); {wanted}") from error
    return table


def _flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"expected True or False, got '{text}'")
    return text == "True"


_PARSED: Mapping[type, Callable[[str], Any]] = {str: unescape, int: int, float: float, bool: _flag}
