"""What an output folder says of itself: what made its masks, which are done, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedgs.errors import ConfigError, understood
from fedgs.files import TEMPORARY_SUFFIX, append, read_json, sealed, write_atomically, write_json
from fedgs.locks import LOCK_FILE
from fedgs.prediction.kind import Source
from fedgs.prediction.options import PredictOptions
from fedgs.prediction.pipeline import Failed, Predicted
from fedgs.tables import as_csv

__all__ = ["COLUMNS", "Ledger"]

COLUMNS = (
    "input",
    "mask",
    "lesions",
    "lesion_pixels",
    "lesion_area_mm2",
    "lesion_volume_ml",
    "confidence",
    "seconds",
    "problem",
)
"""Columns of predictions.csv."""

_MADE_BY, _DONE, _TABLE = "predictions.json", "predictions.jsonl", "predictions.csv"


class Ledger:
    """The books of an output folder.

    Args:
        folder: The output folder.
        made_by: What decides how masks come out: networks and options, as JSON can hold it.

    Raises:
        ConfigError: The folder is a file or holds something else.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        self._folder, self._made_by = folder, made_by
        self._done: dict[str, dict[str, Any]] = {}
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder}: is a file; --out names a folder")
        if not self._is_begun and (foreign := [path.name for path in folder.glob("*") if not _is_ours(path)]):
            raise ConfigError(f"{folder}: holds '{min(foreign)}' and no predictions; choose a new folder with --out")

    @property
    def _is_begun(self) -> bool:
        return (self._folder / _MADE_BY).is_file()

    def begin(self, *, resume: bool) -> None:
        """Starts the books, or goes on with them.

        Args:
            resume: Whether masks that are there may stay.

        Raises:
            ConfigError: There are some and they may not, or other networks or options made them.
            CheckpointError: The books were altered.
        """
        if not self._is_begun:
            write_json(self._folder / _MADE_BY, sealed({"format": 1, **self._made_by}))
            return
        if not resume:
            raise ConfigError(f"{self._folder}: holds predictions already; choose another --out, or add --resume")
        if differences := _differences(read_json(self._folder / _MADE_BY), {"format": 1, **self._made_by}):
            raise ConfigError(
                f"{self._folder}: its masks were made with {'; '.join(differences)}; choose another --out, or give "
                "the same"
            )
        self._done = self._read()
        # What a crash left of a line must not end up inside the next one.
        write_atomically(self._folder / _DONE, "".join(map(_line, self._done.values())))

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self._folder / _DONE
        if not path.is_file():
            return {}
        with understood(path):
            lines = path.read_bytes().split(b"\n")[:-1]  # what a crash left of a line has no end
            entries = [dict(json.loads(line)) for line in lines]
            return {str(entry["input"]): entry for entry in entries}

    def has(self, source: Source, options: PredictOptions) -> bool:
        """Whether everything that is wanted of an input is there, and the input is the one that it was made of."""
        entry = self._done.get(source.name)
        if entry is None or not entry["files"] or entry["files"] != _fingerprint(source):
            return False
        return all((self._folder / place).is_file() for place in source.places(options))

    def enter(self, predicted: Predicted) -> None:
        """Notes an input whose files are written."""
        source = predicted.source
        entry = {
            "input": source.name,
            "mask": source.mask.as_posix(),
            "lesions": predicted.lesions,
            "lesion_pixels": predicted.pixels,
            "lesion_area_mm2": predicted.area_mm2,
            "lesion_volume_ml": predicted.volume_ml,
            "confidence": round(predicted.confidence, 4),
            "seconds": round(predicted.seconds, 3),
            "files": _fingerprint(source),
        }
        append(self._folder / _DONE, _line(entry))
        self._done[source.name] = entry

    def write_table(self, failed: Iterable[Failed]) -> pd.DataFrame:
        """Writes predictions.csv: everything that is done, and what failed this time."""
        problems = [{"input": each.source.name, "mask": "", "problem": each.reason} for each in failed]
        failed_now = {problem["input"] for problem in problems}
        done = [entry | {"problem": ""} for name, entry in self._done.items() if name not in failed_now]
        rows = sorted([*done, *problems], key=lambda row: str(row["input"]))
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        counts = dict.fromkeys(("lesions", "lesion_pixels"), "Int64")
        numbers = dict.fromkeys(("lesion_area_mm2", "lesion_volume_ml", "confidence", "seconds"), "Float64")
        table = table.astype(counts | numbers)
        write_atomically(self._folder / _TABLE, as_csv(table))
        return table


def _is_ours(path: Path) -> bool:
    return path.name == LOCK_FILE or path.name.endswith(TEMPORARY_SUFFIX)


def _fingerprint(source: Source) -> list[list[int]]:
    """Bytes and time of change of an input's files, by which a change is noticed without reading them."""
    try:
        return [[found.st_size, found.st_mtime_ns] for found in (path.stat() for path in source.files)]
    except OSError:  # gone since it was found; whoever reads it will tell
        return []


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names what made the masks that are there, where it is not what is given now."""
    differ = []
    for name in sorted((before.keys() | after.keys()) - {"checksum"}):
        ours, theirs = before.get(name), after.get(name)
        if ours != theirs:
            differ.append("other networks" if name == "networks" else f"{name} {ours} rather than {theirs}")
    return differ
