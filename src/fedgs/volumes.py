"""Volumes as wholes: predicted slice by slice, every slice whatever rule chose those for training, and scored in mm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import Module

from fedgs.core import load
from fedgs.data.augment import normalise
from fedgs.data.images import resize_image, with_channels
from fedgs.data.index import Index
from fedgs.data.volumes import Volume, read_volume
from fedgs.engine import State
from fedgs.errors import TrainingError
from fedgs.evaluation import Scorer, at_size, lesion_probabilities
from fedgs.metrics.volumes import volume_scores
from fedgs.scoring import networks_for
from fedgs.summary import TESTS

__all__ = ["predict_slices", "score_volumes"]

ABOUT = ("round", "part", "network", "site", "volume", "slices")
"""Columns of volumes.csv beside `fedgs.metrics.volumes.VOLUME_SCORES`."""


@torch.inference_mode()
def predict_slices(
    scorer: Scorer, model: Module, frames: Iterator[NDArray[np.uint8]], size: int, channels: int
) -> Iterator[NDArray[np.float32]]:
    """Predicts slices one after the other, at their own size.

    Args:
        scorer: Batch size, device and type of the activations.
        model: A network with two classes; put into evaluation mode.
        frames: Slices as levels of grey, (rows, columns, 1).
        size: Height and width that the network is fed.
        channels: Channels that it is fed.

    Returns:
        The probability of the target, (rows, columns), in [0, 1], slice by slice.

    Raises:
        TrainingError: The network gives something that is no number.
    """
    model.eval()
    device = torch.device(scorer.device)
    for batch in _batches(frames, scorer.batch_size):
        squares = [with_channels(resize_image(frame, size), channels) for frame in batch]
        images = normalise(torch.from_numpy(np.stack(squares)).to(device).permute(0, 3, 1, 2))
        probability = lesion_probabilities(model, images, scorer.autocast)
        if not probability.isfinite().all():
            raise TrainingError(
                "expected a probability per voxel, the network gave what is no number; its training has diverged: "
                "train again with a smaller --lr, or take another checkpoint"
            )
        for frame, found in zip(batch, probability, strict=True):
            yield at_size(found, frame.shape[:2]).float().clamp(0, 1).cpu().numpy()


def score_volumes(
    scorer: Scorer,
    model: Module,
    state: State,
    index: Index,
    parts: pd.Series,
    *,
    on_volume: Callable[[str, int, int], None] = lambda part, done, of: None,
) -> pd.DataFrame:
    """Scores volumes by a state: its shared tensors together with what the site of each volume keeps.

    Args:
        scorer: How.
        model: A live network, overwritten.
        state: What a round left, or a checkpoint holds.
        index: Of volumes, whose source is there.
        parts: Part of every volume of the index's table of them; those of `fedgs.summary.TESTS` are scored.
        on_volume: Told of the part, and how many of its volumes are done.

    Returns:
        A row per volume and network with the columns `ABOUT` and `fedgs.metrics.volumes.VOLUME_SCORES`.

    Raises:
        DataError: A volume is gone, or cannot be used any more.
    """
    if index.volumes is None or index.slices is None:
        raise TypeError("the index holds images")
    rows: list[dict[str, Any]] = []
    for part in TESTS:
        chosen = index.volumes[(parts == part).to_numpy()]
        for done, about in enumerate(chosen.to_dict("records"), start=1):
            volume = read_volume(index.source / about["image"], index.source / about["mask"], index.slices)
            known = {"round": state.server.round, "part": part, "site": about["site"], "volume": about["volume"]}
            for network, own in networks_for(state, str(about["site"])).items():
                load(model, state.server, own)
                scores = volume_scores(_predicted(scorer, model, volume, index), volume.target, spacing=volume.spacing)
                rows.append(known | {"network": network, "slices": len(volume.target)} | scores)
            on_volume(part, done, len(chosen))
    return pd.DataFrame(rows)


def _predicted(scorer: Scorer, model: Module, volume: Volume, index: Index) -> NDArray[np.bool_]:
    found = np.empty(volume.target.shape, dtype=np.bool_)
    slices = predict_slices(scorer, model, volume.frames(), index.size, index.channels)
    for number, probability in enumerate(slices):
        found[number] = probability > 0.5
    return found


def _batches(frames: Iterator[NDArray[np.uint8]], size: int) -> Iterator[Sequence[NDArray[np.uint8]]]:
    batch: list[NDArray[np.uint8]] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
