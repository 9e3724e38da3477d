"""The page about predictions: a table of all inputs, and pictures of those that the network was least sure of."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from fedgs.files import write_atomically
from fedgs.report.pictures import outline
from fedgs.report.rendering import file_uri, rendered

__all__ = ["MOST_SHOWN", "SIDE", "Shown", "write_predictions"]

SIDE = 320
"""Longer side of a picture on the page at most, in pixels."""

MOST_SHOWN = 60
"""Pictures on the page."""

_MOST_ROWS = 2_000
_MOST_BYTES = 6 * 2**20


@dataclass(frozen=True, slots=True)
class Shown:
    """An input with what is marked in it.

    Attributes:
        name: Of the input.
        picture: (height, width, 3), uint8.
        marked: (height, width), bool.
    """

    name: str
    picture: npt.NDArray[np.uint8]
    marked: npt.NDArray[np.bool_]


def write_predictions(out: Path, runs: Sequence[str], table: pd.DataFrame, shown: Sequence[Shown]) -> Path:
    """Writes a page that names no other file and makes no request, of a few megabytes however many inputs there are.

    Args:
        out: The HTML file.
        runs: Names of the runs whose networks made the masks.
        table: As in predictions.csv.
        shown: Inputs to show, those first that are worth most.

    Returns:
        `out`.
    """
    done, failed = table[table["problem"] == ""], table[table["problem"] != ""]
    content = {
        "runs": runs,
        "inputs": len(table),
        "with_lesions": int((done["lesions"] > 0).sum()),
        "without": int((done["lesions"] == 0).sum()),
        "failed": [{"input": row["input"], "problem": row["problem"]} for row in _records(failed.head(_MOST_ROWS))],
        "failures": len(failed),
        "rows": _records(done.head(_MOST_ROWS)),
        "done": len(done),
        "pictures": _pictures(shown, {row["input"]: row for row in _records(done)}),
        "has_mm": bool(done["lesion_area_mm2"].notna().any() or done["lesion_volume_ml"].notna().any()),
    }
    write_atomically(out, rendered("predictions.html.j2", content))
    return out


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def _pictures(shown: Sequence[Shown], rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    pictures, size = list[dict[str, Any]](), 0
    for each in shown:
        image, path = _jpeg_uri(each.picture), outline(each.marked)
        size += len(image) + len(path)
        if pictures and size > _MOST_BYTES:
            break
        height, width = each.marked.shape
        pictures.append({"image": image, "outline": path, "width": width, "height": height, "row": rows[each.name]})
    return pictures


def _jpeg_uri(picture: npt.NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=85)
    return file_uri(stream.getvalue(), "image/jpeg")
