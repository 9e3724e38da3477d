"""What `fedgs predict` wrote, read without our readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def mask_at(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        levels = np.asarray(image)
    assert set(np.unique(levels)) <= {0, 255}
    return levels == 255


def levels_at(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def of_all(out: Path, kind: str = "") -> dict[str, np.ndarray]:
    """Every mask, or every map of probabilities, by its place."""
    folder = out / kind if kind else out
    apart = {out / "overlays", out / "probabilities"} - {folder}
    paths = [path for path in folder.rglob("*.png") if not apart & set(path.parents)]
    return {path.relative_to(folder).as_posix(): levels_at(path) for path in paths}
