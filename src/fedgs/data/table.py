"""The two files that make a folder an index: index.json (settings) and index.csv (a row per case)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedgs import tables
from fedgs.data.cache import Record
from fedgs.data.lesions import SmallRule
from fedgs.errors import DataError
from fedgs.files import write_atomically

__all__ = [
    "COLUMNS",
    "DamagedIndexError",
    "Settings",
    "flagged",
    "is_index",
    "make_table",
    "read_index",
    "read_settings",
    "write_index",
]

SETTINGS_FILE = "index.json"
TABLE_FILE = "index.csv"

COLUMNS = (
    *("site", "case", "patient", "width", "height", "channels"),
    *("lesion_area", "lesion_count", "smallest_lesion_area", "largest_lesion_area", "is_small", "is_tiny", "is_mixed"),
    *("image_hash", "mask_hash", "near_hash", "image", "mask", "specks"),
)
"""Columns of index.csv; areas are pixels of the 512 x 512 mask, paths relative to the source."""

_FORMAT = 4
_TEXT = ("site", "case", "patient", "image_hash", "mask_hash", "near_hash", "image", "mask")
_FLAGS = ("is_small", "is_tiny", "is_mixed")


class DamagedIndexError(DataError):
    """An index is unfinished, was altered or is of an older version; indexing again mends it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an index was made from and how.

    Attributes:
        source: Absolute path of the source folder.
        adapter: Name of the adapter that found the cases.
        size: Height and width of the frames in the cache, in pixels.
        small_rule: The rule behind `is_small`, `is_tiny` and `is_mixed`.
        table_hash: Hash of index.csv; None while indexing is under way.
        format: Which version of the two files it is.
    """

    source: str
    adapter: str
    size: int
    small_rule: SmallRule
    table_hash: str | None = None
    format: int = _FORMAT


def is_index(folder: Path) -> bool:
    """Whether a folder is an index, finished or not."""
    return (folder / SETTINGS_FILE).is_file()


def make_table(
    records: Sequence[Record], patients: Mapping[tuple[str, str], str | None], rule: SmallRule
) -> pd.DataFrame:
    """Makes the table of an index.

    Args:
        records: One per case, sorted by (site, case).
        patients: Patient by (site, case), None where unknown.
        rule: Decides which cases are small.

    Returns:
        A row per record with `COLUMNS`.
    """
    rows = [asdict(record) | {"patient": patients[record.site, record.case]} for record in records]
    return flagged(pd.DataFrame(rows), rule)[list(COLUMNS)]


def flagged(table: pd.DataFrame, rule: SmallRule) -> pd.DataFrame:
    """Gives a copy of the table with `is_small`, `is_tiny` and `is_mixed` by a rule."""
    areas = table[["smallest_lesion_area", "largest_lesion_area", "lesion_area"]].astype(int).to_numpy().tolist()
    flags = [
        (
            rule.is_small(smallest=smallest, total=total),
            rule.is_tiny(smallest=smallest, total=total),
            rule.is_mixed(smallest=smallest, largest=largest, total=total),
        )
        for smallest, largest, total in areas
    ]
    return table.assign(**pd.DataFrame(flags, table.index, _FLAGS, dtype=bool))


def write_index(folder: Path, settings: Settings, table: pd.DataFrame | None) -> None:
    """Writes settings, then the table; both atomically and only where they change.

    Args:
        folder: Folder of the index.
        settings: Their `table_hash` is set to that of the table, their `format` to this version's.
        table: None while indexing is under way.
    """
    text = None if table is None else tables.as_csv(table)
    content = asdict(settings) | {"format": _FORMAT, "table_hash": None if text is None else _hash(text)}
    _write(folder / SETTINGS_FILE, _sealed(content))
    if text is not None:
        _write(folder / TABLE_FILE, text)


def read_settings(folder: Path) -> Settings:
    """Reads index.json.

    Raises:
        DamagedIndexError: It was altered.
        DataError: It is missing or was written by a newer version.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise DataError(
            f"{folder}: is no index (no {SETTINGS_FILE}); make one with 'fedgs index SOURCE --out {folder}'"
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > _FORMAT:
            raise DataError(f"{path}: format {content['format']}, this version of fedgs reads {_FORMAT}; update fedgs")
        content.pop("checksum")
        if _sealed(content) != text:
            raise ValueError("checksum")
        rule = SmallRule(**content["small_rule"])
        return Settings(
            content["source"], content["adapter"], content["size"], rule, content["table_hash"], content["format"]
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedIndexError(f"{path}: was altered or damaged; run 'fedgs index' again") from error


def read_index(folder: Path) -> tuple[Settings, pd.DataFrame]:
    """Reads settings and table.

    Raises:
        DamagedIndexError: The table is missing, was not written together with the settings, or is of an older version.
        DataError: The folder is no index, or one of a newer version.
    """
    settings, path = read_settings(folder), folder / TABLE_FILE
    if settings.format < _FORMAT:
        raise DamagedIndexError(
            f"{folder}: was made by an older version of fedgs (format {settings.format}, this one reads {_FORMAT}); "
            f"run 'fedgs index' again on {settings.source}"
        )
    if settings.table_hash is None or not path.is_file():
        raise DamagedIndexError(f"{folder}: indexing was not finished; run 'fedgs index' again, it goes on from there")
    if hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() != settings.table_hash:
        raise DamagedIndexError(f"{path}: was altered or damaged; run 'fedgs index' again, which takes seconds")
    table = tables.read_csv(path, {name: bool if name in _FLAGS else int for name in COLUMNS if name not in _TEXT})
    return settings, table.assign(patient=table["patient"].where(table["patient"] != "", None))


def _sealed(content: Mapping[str, Any]) -> str:
    body = json.dumps(content, indent=2, sort_keys=True)
    return json.dumps({**content, "checksum": _hash(body)}, indent=2, sort_keys=True) + "\n"


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomically(path, text)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
