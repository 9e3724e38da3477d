"""What local training minimises: named terms whose sum is the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fedgs.errors import unknown_choice
from fedgs.models.outputs import foreground, in_full_precision

if TYPE_CHECKING:
    from torch import Tensor

    from fedgs.data.case import Batch

__all__ = ["OBJECTIVES", "Objective", "dice_loss_of_batch", "dice_loss_per_image", "objective"]

Objective = Callable[["Tensor", "Batch"], "dict[str, Tensor]"]
"""Takes a network's output, (B, classes, H, W), and its batch; gives scalar terms by name, at least float32."""

SMOOTHING = 0.1


def dice_loss_of_batch(scores: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice loss over all pixels of a batch taken together, as published.

    loss = 1 - (2 * sum(p * y) + 0.1) / (sum(p) + sum(y) + 0.1)

    Args:
        scores: Probability of the foreground p, (B, H, W), float32 or float64.
        truth: Ground truth y, (B, H, W), bool.

    Returns:
        Scalar in [0, 1); near 0 where scores and truth are both empty.

    Source: Schutte et al., FedGS, arXiv 2408.11701.
    """
    overlap = (scores * truth).sum()
    return 1 - (2 * overlap + SMOOTHING) / (scores.sum() + truth.sum() + SMOOTHING)


def dice_loss_per_image(scores: Tensor, truth: Tensor) -> Tensor:
    """Mean over the images of the soft Dice loss of each, so that a small lesion counts as much as a large one.

    Args:
        scores: Probability of the foreground, (B, H, W), float32 or float64.
        truth: Ground truth, (B, H, W), bool.

    Returns:
        Scalar in [0, 1); equal to `dice_loss_of_batch` for one image.
    """
    pixels = (1, 2)
    overlap = (scores * truth).sum(pixels)
    return (1 - (2 * overlap + SMOOTHING) / (scores.sum(pixels) + truth.sum(pixels) + SMOOTHING)).mean()


def _cross_entropy(output: Tensor, truth: Tensor) -> Tensor:
    # Imported here so that the command line lists the objectives without waiting for torch.
    from torch.nn import functional

    return functional.cross_entropy(in_full_precision(output), truth.long())


def _dice_batch(output: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"dice": dice_loss_of_batch(foreground(output), batch.masks)}


def _dice_per_image(output: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"dice": dice_loss_per_image(foreground(output), batch.masks)}


def _dice_batch_and_cross_entropy(output: Tensor, batch: Batch) -> dict[str, Tensor]:
    return _dice_batch(output, batch) | {"cross_entropy": _cross_entropy(output, batch.masks)}


def _dice_per_image_and_cross_entropy(output: Tensor, batch: Batch) -> dict[str, Tensor]:
    return _dice_per_image(output, batch) | {"cross_entropy": _cross_entropy(output, batch.masks)}


OBJECTIVES: Mapping[str, Objective] = {
    "dice_batch": _dice_batch,
    "dice_per_image": _dice_per_image,
    "dice_batch+ce": _dice_batch_and_cross_entropy,
    "dice_per_image+ce": _dice_per_image_and_cross_entropy,
}


def objective(name: str) -> Objective:
    """Gives the objective of that name.

    Args:
        name: A key of `OBJECTIVES`; "dice_batch" is the published one.

    Returns:
        A function of a network's output and its batch that gives the terms of the loss by name; the loss is their
        sum.

    Raises:
        ConfigError: There is no objective of that name.
    """
    if name not in OBJECTIVES:
        raise unknown_choice("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
