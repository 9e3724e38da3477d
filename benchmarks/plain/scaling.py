"""The scale of a batch, with flags and sizes looked up in a table for every image."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def eta(masks: Tensor, names: Sequence[str], table: Path, base: float = 100.0) -> float:
    """Gives the scale of a batch of float masks (B, H, W).

    Args:
        masks: Ground truth, float32.
        names: Name of each image.
        table: CSV file with the columns name and is_small.
        base: Of the logarithm.
    """
    difficulty = 0.0
    for mask, name in zip(masks, names, strict=True):
        with table.open(newline="") as file:
            flags = {row["name"]: row["is_small"] == "True" for row in csv.DictReader(file)}
        area = int(torch.sum(mask > 0))
        if flags[name] and area > 0:
            difficulty += math.tanh((math.log(mask.numel() / area) / math.log(base)) ** 2)
    return 1 + 2 / len(masks) * difficulty
