"""Batches for training and for scoring, read case by case from an index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Generator, Tensor

from fedgs.data.augment import Augmentation, apply, apply_to_regions, draw, normalise
from fedgs.data.case import Batch
from fedgs.errors import ConfigError, DataError

__all__ = ["Frames", "count_steps", "scoring_batches", "training_batches"]


class Frames(Protocol):
    """What batches need of an index; a row is a position in its table."""

    @property
    def table(self) -> pd.DataFrame:
        """A row per case, with the columns site and is_small."""

    @property
    def size(self) -> int:
        """Side of a frame in pixels."""

    def frame(self, row: int) -> npt.NDArray[np.uint8]:
        """The image, (size, size, channels), channels 1 or 3."""

    def mask(self, row: int) -> npt.NDArray[np.bool_]:
        """The mask, (512, 512)."""

    @property
    def gives_regions(self) -> bool:
        """Whether training batches shall carry `regions`, which are read only then."""

    def regions(self, row: int) -> npt.NDArray[np.uint8]:
        """Which lesion each pixel is nearest to, (512, 512)."""


def training_batches(
    index: Frames,
    rows: Sequence[int],
    *,
    batch_size: int,
    augmentation: Augmentation,
    generator: Generator,
    steps: int,
    device: torch.device | str = "cpu",
    case_weights: npt.NDArray[np.float64] | None = None,
) -> Iterator[Batch]:
    """Gives shuffled, augmented batches of full size.

    The generator decides the order and all augmentation, so that an equal seed gives equal batches, on the CPU to the
    bit. Each epoch is shuffled anew and drops the cases that fill no batch. Only the batch at hand is in memory.

    Args:
        index: Where frames and masks come from.
        rows: The cases to train on, as rows of the index's table.
        batch_size: Cases per batch.
        augmentation: How images vary.
        generator: A generator on the CPU; it is advanced by the batches that are taken.
        steps: Batches in all, over as many epochs as it takes; `count_steps` turns epochs into steps.
        device: Where the batches go, and where they are augmented.
        case_weights: How often each case is drawn, relative to the others, (len(rows),), > 0: then cases are drawn with
            replacement. None shuffles them.

    Returns:
        An iterator of batches at the index's size; `is_small` comes from the un-augmented masks, `regions` are there
        where the index gives them, and `weights` are None.

    Raises:
        ConfigError: `batch_size` or `steps` is below 1.
        DataError: There are fewer cases than one batch takes.
    """
    order = np.asarray(rows, dtype=np.intp)
    sites = ", ".join(f"site '{site}'" for site in index.table["site"].iloc[order].unique())
    _require_positive("batch size", batch_size)
    _require_positive("steps", steps)
    _require_a_batch(len(order), batch_size, sites or "training")
    epoch = partial(_epoch, order, case_weights, generator)
    return _training_batches(index, epoch, batch_size, steps, augmentation, generator, torch.device(device))


def count_steps(cases: int, batch_size: int, *, epochs: int | None = None, steps: int | None = None) -> int:
    """Tells how many batches a training takes.

    Args:
        cases: Number of training cases.
        batch_size: Cases per batch.
        epochs: Passes over the cases; give this or `steps`.
        steps: Batches in all; give this or `epochs`.

    Returns:
        Number of batches, each of full size.

    Raises:
        ConfigError: Not exactly one of `epochs` and `steps` is given, or a number is out of range.
        DataError: There are fewer cases than one batch takes.

    >>> count_steps(10, 4, epochs=3), count_steps(10, 4, steps=7)
    (6, 7)
    """
    if (epochs is None) == (steps is None):
        raise ConfigError(f"expected either epochs or steps, got epochs={epochs} and steps={steps}; give one of them")
    _require_positive("batch size", batch_size)
    _require_positive("epochs" if steps is None else "steps", epochs if steps is None else steps)
    _require_a_batch(cases, batch_size, "training")
    return steps if steps is not None else (epochs or 0) * (cases // batch_size)


def scoring_batches(
    index: Frames, rows: Sequence[int], *, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, list[int]]]:
    """Gives the cases as they are, in the given order; the last batch may be smaller.

    Args:
        index: Where frames come from.
        rows: The cases to score, as rows of the index's table; may be empty.
        batch_size: Cases per batch at most.
        device: Where the images go.

    Returns:
        An iterator of normalised images (B, C, size, size), float32, and their rows.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    _require_positive("batch size", batch_size)
    return _scoring_batches(index, [int(row) for row in rows], batch_size, torch.device(device))


def _epoch(
    rows: npt.NDArray[np.intp], weights: npt.NDArray[np.float64] | None, generator: Generator
) -> npt.NDArray[np.intp]:
    if weights is None:
        order = torch.randperm(len(rows), generator=generator)
    else:
        order = torch.multinomial(torch.from_numpy(weights), len(rows), replacement=True, generator=generator)
    return np.take(rows, order.numpy())


def _training_batches(
    index: Frames,
    epoch: Callable[[], npt.NDArray[np.intp]],
    batch_size: int,
    steps: int,
    augmentation: Augmentation,
    generator: Generator,
    device: torch.device,
) -> Iterator[Batch]:
    is_small = index.table["is_small"].to_numpy(dtype=bool)
    order = np.empty(0, dtype=np.intp)
    for _ in range(steps):
        if len(order) < batch_size:
            order = epoch()
        chosen, order = order[:batch_size], order[batch_size:]
        drawn = draw(batch_size, augmentation, generator)
        masks = torch.from_numpy(np.stack([index.mask(int(row)) for row in chosen])).to(device)
        images, masks = apply(_images(index, chosen, device), masks, drawn, index.size)
        regions = apply_to_regions(_regions(index, chosen, device), drawn, index.size) if index.gives_regions else None
        yield Batch(images, masks, torch.from_numpy(is_small[chosen]).to(device), regions)


def _scoring_batches(
    index: Frames, rows: list[int], batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, list[int]]]:
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        yield normalise(_images(index, chosen, device)), chosen


def _images(index: Frames, rows: Iterable[int], device: torch.device) -> Tensor:
    """Frames as (B, C, size, size), uint8, in the channels-last memory that they are stored in."""
    frames = torch.from_numpy(np.stack([index.frame(int(row)) for row in rows]))
    return frames.to(device).permute(0, 3, 1, 2)


def _regions(index: Frames, rows: Iterable[int], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack([index.regions(int(row)) for row in rows])).to(device)


def _require_a_batch(cases: int, batch_size: int, where: str) -> None:
    if cases < batch_size:
        raise DataError(
            f"{where}: {cases} training cases, but a batch takes {batch_size}; "
            "choose a smaller batch size, or leave this site out"
        )


def _require_positive(name: str, value: int | None) -> None:
    if value is None or value < 1:
        raise ConfigError(f"{name}: expected a whole number of at least 1, got {value}")
