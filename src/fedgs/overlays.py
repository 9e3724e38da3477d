"""Test cases with small lesions: pictures of some, and predictions of all, small enough to be kept with every run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fedgs.data.images import as_picture, shrunk
from fedgs.data.index import Index
from fedgs.evaluation import Prediction
from fedgs.files import write_atomically
from fedgs.tables import as_csv

__all__ = ["Gallery", "Masks"]

SIDE = 256
MOST = 60


class Gallery:
    """Keeps the pictures of a run's small test cases.

    Args:
        folder: Where they go; made when missing.
        index: Where the frames come from.
        rows: Test cases, of which the flagged ones are kept; where these are more than `MOST`, evenly over their areas.
    """

    def __init__(self, folder: Path, index: Index, rows: list[int]) -> None:
        small = index.table.iloc[rows].query("is_small").sort_values(["lesion_area", "site", "case"])
        self._folder, self._index = folder, index
        places = np.unique(np.linspace(0, len(small) - 1, min(len(small), MOST)).round().astype(int))
        self._names = {int(small.index[place]): f"case-{place:02d}" for place in places}
        self._cases: list[dict[str, Any]] = []

    def keep(self, part: str, prediction: Prediction, dice: float) -> None:
        """Writes the pictures of a prediction, if it is one of those that are kept."""
        name = self._names.pop(prediction.row, None)  # the first network's, where several are scored
        if name is None:
            return
        self._folder.mkdir(exist_ok=True)
        image = as_picture(self._index.frame(prediction.row)).convert("RGB")
        _write(self._folder / f"{name}-image.jpg", image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), quality=85)
        for kind, mask in (("truth", prediction.truth), ("prediction", prediction.mask)):
            _write(self._folder / f"{name}-{kind}.png", Image.fromarray(shrunk(mask, SIDE).astype(np.uint8) * 255))
        case = self._index.table.iloc[prediction.row]
        about = {column: case[column] for column in ("site", "case", "is_tiny", "lesion_area")}
        self._cases.append({"part": part, **about, "dice": dice, "name": name})

    def close(self) -> None:
        """Writes the list of the pictures."""
        if self._cases:
            write_atomically(self._folder / "cases.csv", as_csv(pd.DataFrame(self._cases)))


class Masks:
    """Keeps what was predicted for every flagged test case, in full, as a PNG of one bit per pixel.

    Args:
        folder: Where they go; made when missing.
        index: Where the cases come from.
        rows: Test cases, of which the flagged ones are kept.
    """

    def __init__(self, folder: Path, index: Index, rows: list[int]) -> None:
        self._folder = folder
        self._cases = index.table.iloc[rows].query("is_small")[["site", "case"]]
        self._parts: dict[int, str] = {}

    def keep(self, part: str, prediction: Prediction) -> None:
        """Writes a prediction, if it is one of those that are kept; the first network's, where several are scored."""
        if prediction.row not in self._cases.index or prediction.row in self._parts:
            return
        self._folder.mkdir(exist_ok=True)
        _write(self._folder / _mask_name(prediction.row), Image.fromarray(prediction.mask), optimize=True)
        self._parts[prediction.row] = part

    def close(self) -> None:
        """Writes the list of them."""
        if self._parts:
            rows = sorted(self._parts)
            about = {"part": [self._parts[row] for row in rows], "name": [_mask_name(row) for row in rows]}
            write_atomically(self._folder / "cases.csv", as_csv(self._cases.loc[rows].assign(**about)))


def _mask_name(row: int) -> str:
    return f"{row:05d}.png"


def _write(path: Path, image: Image.Image, **options: Any) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG" if path.suffix == ".jpg" else "PNG", **options)
    write_atomically(path, buffer.getvalue(), durable=False)
