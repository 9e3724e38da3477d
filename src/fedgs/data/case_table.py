"""Tables that people write about their cases: whose patient, which hospital."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgs.errors import DataError

__all__ = ["read_case_table"]


def read_case_table(table: Path, needed: Sequence[str], optional: str) -> list[tuple[int, Mapping[str, str]]]:
    """Reads a table with a line per case; its columns may be separated by commas, semicolons or tabs.

    Args:
        table: A CSV file in UTF-8 whose first line names the columns, in any order and case.
        needed: Columns that it must have.
        optional: Another one that it may have.

    Returns:
        Line numbers and rows, values without spaces around them but for the case's name, which may have some.

    Raises:
        DataError: It is no such table; the message names the line.
    """
    wanted = f"{' and '.join(needed)}, and optionally {optional}"
    if not table.is_file():  # a pipe would be waited for
        raise DataError(f"{table}: is no file; expected a table with the columns {wanted}, or none at all")
    try:
        text = unicodedata.normalize("NFC", table.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: is not UTF-8; save it as 'CSV UTF-8'") from error
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    columns = [column.strip().lower() for column in reader.fieldnames or []]
    if not set(needed) <= set(columns):
        raise DataError(f"{table}: has the columns {columns}; expected {wanted}")
    if len(set(columns)) < len(columns):
        raise DataError(f"{table}: has the columns {columns}, one of them twice; remove or rename one")
    reader.fieldnames = columns
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: cannot be read ({error}); is a quote left open?") from error
    broken = [line for line, row in rows if None in row or None in row.values()]
    if broken:
        raise DataError(f"{table}, line {broken[0]}: expected {len(columns)} columns as in its first line")
    return [
        (line, {name: value if name == "case" else value.strip() for name, value in row.items()}) for line, row in rows
    ]
