"""Images to compare a network with itself on, before and after it is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedgs.config import RunConfig
from fedgs.data import find_cases
from fedgs.data.cache import content_hash
from fedgs.data.images import read_image
from fedgs.data.table import is_index, read_index
from fedgs.errors import FedgsError

__all__ = ["Sample", "draw_sample", "read_sample"]

_IMAGES = 2
_PREFERRED = ("test_out", "test_in", "validation", "train")


@dataclass(frozen=True, slots=True)
class Sample:
    """Two images, (H, W, C), uint8, and in words what they are."""

    images: tuple[NDArray[np.uint8], ...]
    told: str


def read_sample(config: RunConfig, split: pd.DataFrame, channels: int) -> Sample:
    """Gives images of the run, tested ones if there are any; generated ones where its data are not within reach.

    Args:
        config: Settings of the run, which name its data.
        split: Its cases and the hashes of their images; an image that was changed since is not taken.
        channels: That the network takes.
    """
    found: list[NDArray[np.uint8]] = []
    with suppress(FedgsError, OSError):
        for image, image_hash in _files(config, split):
            with suppress(FedgsError, OSError):
                levels = read_image(image)
                if content_hash(levels) == image_hash and levels.shape[2] in (1, channels):
                    found.append(levels)
            if len(found) == _IMAGES:
                return Sample(tuple(found), f"{_IMAGES} images of the run's data")
    return draw_sample(config.data.size, channels)


def draw_sample(size: int, channels: int) -> Sample:
    """Gives two generated images, a wide and a tall one, always the same."""
    draw = np.random.default_rng(0)
    shapes = ((size + size // 3, 2 * size), (2 * size, size + size // 3))
    blocks = (draw.integers(0, 256, (-(-high // 8), -(-wide // 8), channels), np.uint8) for high, wide in shapes)
    images = [block.repeat(8, 0).repeat(8, 1)[:high, :wide] for block, (high, wide) in zip(blocks, shapes, strict=True)]
    return Sample(tuple(images), f"{_IMAGES} generated images, since the run's data were not within reach")


def _files(config: RunConfig, split: pd.DataFrame) -> Iterator[tuple[Path, str]]:
    """Names the run's images and their hashes; nothing is read, made or cached."""
    source = Path(config.data.data) if config.data.data else None
    if source is None or not source.is_dir() or not any(source.iterdir()):
        return
    if is_index(source):
        settings, table, _ = read_index(source)
        rows = table[["site", "case", "image"]].to_numpy().tolist()
        paths = {(site, case): Path(settings.source) / image for site, case, image in rows}
    else:
        paths = {(case.site, case.name): case.image for case in find_cases(source, config.data.adapter)}
    wanted = split[split["part"].isin(_PREFERRED)]
    order = wanted["part"].map(_PREFERRED.index)
    ordered = wanted.assign(order=order).sort_values(["order", "site", "case"])
    for site, case, image_hash in ordered[["site", "case", "image_hash"]].to_numpy().tolist():
        if (site, case) in paths:
            yield paths[site, case], image_hash
