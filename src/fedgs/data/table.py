"""The files that make a folder an index: index.json (settings), index.csv (images) and, for volumes, volumes.csv."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedgs import tables
from fedgs.data.cache import Entry
from fedgs.data.case import Case
from fedgs.data.lesions import SmallRule
from fedgs.data.volumes import SliceRules
from fedgs.errors import DataError
from fedgs.files import write_atomically

__all__ = [
    "COLUMNS",
    "OF_SLICES",
    "OF_VOLUMES",
    "DamagedIndexError",
    "Settings",
    "flagged",
    "is_index",
    "make_table",
    "make_volumes",
    "read_index",
    "read_settings",
    "write_index",
]

SETTINGS_FILE = "index.json"
TABLE_FILE = "index.csv"
VOLUMES_FILE = "volumes.csv"

COLUMNS = (
    *("site", "case", "patient", "width", "height", "channels"),
    *("lesion_area", "lesion_count", "smallest_lesion_area", "largest_lesion_area", "is_small", "is_tiny", "is_mixed"),
    *("image_hash", "mask_hash", "near_hash", "image", "mask", "specks"),
)
"""Columns of index.csv; areas are pixels of the 512 x 512 mask, paths relative to the source."""

OF_SLICES = ("volume", "slice", "diameter_mm")
"""Further columns where the images are slices of volumes."""

OF_VOLUMES = (
    *("site", "volume", "patient", "slices", "used", "with_target", "rows", "columns"),
    *("slice_mm", "row_mm", "column_mm", "target_ml", "image", "mask"),
)
"""Columns of volumes.csv."""

_FORMAT = 4
_TEXT = ("site", "case", "patient", "image_hash", "mask_hash", "near_hash", "image", "mask", "volume")
_MEASURES = ("diameter_mm", "slice_mm", "row_mm", "column_mm", "target_ml")
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
        slices: How volumes became images; None where the source holds images.
        table_hash: Hash of index.csv and, for volumes, of volumes.csv; None while indexing is under way.
        format: Which version of the two files it is.
    """

    source: str
    adapter: str
    size: int
    small_rule: SmallRule
    slices: SliceRules | None = None
    table_hash: str | None = None
    format: int = _FORMAT


def is_index(folder: Path) -> bool:
    """Whether a folder is an index, finished or not."""
    return (folder / SETTINGS_FILE).is_file()


def make_table(entries: Sequence[Entry], cases: Sequence[Case], rule: SmallRule) -> pd.DataFrame:
    """Makes the table of an index.

    Args:
        entries: Of the cases.
        cases: As an adapter found them, sorted by (site, name).
        rule: Decides which images are small.

    Returns:
        A row per image with `COLUMNS`, sorted by (site, case), and with `OF_SLICES` where they are slices. A volume
        whose patient is unknown is taken to be of one of its own.
    """
    rows = [
        asdict(record) | {"patient": case.patient or record.volume or None}
        for entry, case in zip(entries, cases, strict=True)
        for record in entry.records
    ]
    columns = [*COLUMNS, *(OF_SLICES if any(case.slices for case in cases) else ())]
    if not rows:
        return pd.DataFrame(columns=columns)
    return flagged(pd.DataFrame(rows), rule)[columns].sort_values(["site", "case"], ignore_index=True)


def make_volumes(entries: Sequence[Entry], cases: Sequence[Case]) -> pd.DataFrame | None:
    """Makes the table of the volumes, with a row also for those of which no slice is used; None where there are none.

    Args:
        entries: Of the cases.
        cases: As an adapter found them.
    """
    rows = [
        {"site": case.site, "volume": case.name, "patient": case.patient or case.name, "used": len(entry.records)}
        | {"image": entry.image, "mask": entry.mask}
        | dict(zip(("slice_mm", "row_mm", "column_mm"), entry.volume.spacing_mm, strict=True))
        | {name: getattr(entry.volume, name) for name in ("slices", "with_target", "rows", "columns", "target_ml")}
        for entry, case in zip(entries, cases, strict=True)
        if entry.volume
    ]
    return pd.DataFrame(rows)[list(OF_VOLUMES)] if rows else None


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


def write_index(
    folder: Path, settings: Settings, table: pd.DataFrame | None, volumes: pd.DataFrame | None = None
) -> None:
    """Writes settings, then the tables; all atomically and only where they change.

    Args:
        folder: Folder of the index.
        settings: Their `table_hash` is set to that of the tables, their `format` to this version's.
        table: Of the images; None while indexing is under way.
        volumes: Of the volumes, where there are any.
    """
    tables_ = {TABLE_FILE: table, VOLUMES_FILE: volumes}
    texts = {name: tables.as_csv(found) for name, found in tables_.items() if found is not None}
    content = asdict(settings) | {"format": _FORMAT, "table_hash": _hash("".join(texts.values())) if texts else None}
    _write(folder / SETTINGS_FILE, _sealed(content))
    for name, text in texts.items():
        _write(folder / name, text)


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
        slices = content.pop("slices", None)
        return Settings(
            **content
            | {"small_rule": SmallRule(**content["small_rule"])}
            | {"slices": slices and SliceRules(**slices | {"window": tuple(slices["window"])})}
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedIndexError(f"{path}: was altered or damaged; run 'fedgs index' again") from error


def read_index(folder: Path) -> tuple[Settings, pd.DataFrame, pd.DataFrame | None]:
    """Reads settings, the table of the images and, where there are volumes, theirs.

    Raises:
        DamagedIndexError: A table is missing, was not written together with the settings, or is of an older version.
        DataError: The folder is no index, or one of a newer version.
    """
    settings, path = read_settings(folder), folder / TABLE_FILE
    if settings.format < _FORMAT:
        raise DamagedIndexError(
            f"{folder}: was made by an older version of fedgs (format {settings.format}, this one reads {_FORMAT}); "
            f"run 'fedgs index' again on {settings.source}"
        )
    paths = [path, *([folder / VOLUMES_FILE] if settings.slices else [])]
    if settings.table_hash is None or not all(each.is_file() for each in paths):
        raise DamagedIndexError(f"{folder}: indexing was not finished; run 'fedgs index' again, it goes on from there")
    if _hash(*(each.read_bytes() for each in paths)) != settings.table_hash:
        raise DamagedIndexError(f"{path}: was altered or damaged; run 'fedgs index' again, which takes seconds")
    images = _read(path, (*COLUMNS, *(OF_SLICES if settings.slices else ())))
    volumes = _read(folder / VOLUMES_FILE, OF_VOLUMES) if settings.slices else None
    return settings, images.assign(patient=images["patient"].where(images["patient"] != "", None)), volumes


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    kinds = {name: bool if name in _FLAGS else float if name in _MEASURES else int for name in columns}
    return tables.read_csv(path, {name: kind for name, kind in kinds.items() if name not in _TEXT})


def _sealed(content: Mapping[str, Any]) -> str:
    body = json.dumps(content, indent=2, sort_keys=True)
    return json.dumps({**content, "checksum": _hash(body)}, indent=2, sort_keys=True) + "\n"


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomically(path, text)


def _hash(*contents: str | bytes) -> str:
    together = b"".join(each.encode() if isinstance(each, str) else each for each in contents)
    return hashlib.blake2b(together, digest_size=16).hexdigest()
