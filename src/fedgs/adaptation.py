"""Statistics of batch normalisation that are re-estimated from a hospital's own images; no mask is read for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from fedgs.algorithms.fedbn import batch_norms_of
from fedgs.data.batches import Frames, scoring_batches
from fedgs.errors import ConfigError, DataError
from fedgs.models import segment
from fedgs.tensors import unwrap

__all__ = ["re_estimate", "require_statistics"]

_TOO_FEW_VALUES = "more than 1 value per channel"
"""What torch says where a layer normalises a single value, whose variance is not defined."""


def require_statistics(model: Module) -> None:
    """Refuses a network without anything to re-estimate.

    Raises:
        ConfigError: No layer of it is batch normalisation with running statistics.
    """
    if not _norms_with_statistics(model):
        raise ConfigError(
            "adapting re-estimates the statistics of batch normalisation, but this "
            f"{type(unwrap(model)).__name__} has none (instance and group norm keep no statistics); score the run "
            "without adapting, or choose one of a network with batch norm"
        )


@torch.inference_mode()
def re_estimate(
    model: Module,
    index: Frames,
    rows: Sequence[int],
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> None:
    """Estimates the running mean and variance of every batch normalisation anew, from the images of one hospital.

    The un-augmented images go through the network once, in their order. Meanwhile batch normalisation is in training
    mode, so that each layer sees what those before it make of the new statistics, and everything else in evaluation
    mode; the statistics become the plain mean over the batches. Batches differ by one image at most, so that images
    count alike. Weights, and layers that segmenting does not use, stay as they are.

    Args:
        model: A live network; its running statistics are overwritten. It is left in evaluation mode.
        index: Where the images come from; its masks are not asked for.
        rows: The hospital's cases, as rows of the index's table; at least one.
        batch_size: Images per batch at least, where there are as many, and below twice as many at most.
        device: Where the network is.
        autocast: Type of the activations; None computes in the type of the weights.

    Raises:
        ConfigError: The network has no such statistics.
        DataError: The hospital has a single image, and of it some layer sees a single value.

    Source: Li et al., Revisiting Batch Normalization For Practical Domain Adaptation (AdaBN), 2016, arXiv 1603.04779.
    """
    require_statistics(model)
    device = torch.device(device)
    with _averaging(model):
        # Of two images at least, since of one the deepest layers may see a single value.
        for part in np.array_split(np.asarray(rows), max(1, len(rows) // max(batch_size, 2))):
            ((images, _),) = scoring_batches(index, part.tolist(), batch_size=len(part), device=device)
            with torch.autocast(device.type, autocast) if autocast else contextlib.nullcontext():
                _see(model, images, str(index.table["site"].iloc[rows[0]]))


@contextlib.contextmanager
def _averaging(model: Module) -> Iterator[None]:
    """Puts batch normalisation alone into training mode; its statistics become the mean over the batches to come."""
    norms = _norms_with_statistics(model)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None  # torch then takes the mean since the counter was zero; what was there goes
        norm.num_batches_tracked = torch.tensor(0)
    try:
        yield
    finally:
        model.eval()
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _see(model: Module, images: torch.Tensor, site: str) -> None:
    try:
        segment(model, images)
    except ValueError as error:
        if _TOO_FEW_VALUES not in str(error):
            raise
        raise DataError(
            f"site '{site}': of its single image a layer of the network sees one value, which has no variance, so "
            "there are no statistics to adapt to; give it another image, or score it without adapting"
        ) from error


def _norms_with_statistics(model: Module) -> list[_BatchNorm]:
    return [norm for norm in batch_norms_of(model).values() if norm.running_mean is not None]
