"""Soft Dice losses: of a batch, of each image, and from sums over any set of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["dice_loss_of_batch", "dice_loss_per_image", "mean_of_images", "soft_dice_loss"]

SMOOTHING = 0.1


def soft_dice_loss(overlap: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Soft Dice loss of sets of pixels, with the smoothing of the publication.

    loss = 1 - (2 * overlap + 0.1) / (predicted + true + 0.1)

    Args:
        overlap: Sum of p * y over each set, float; p is the probability of the foreground, y the ground truth.
        predicted: Sum of p, of the same shape.
        true: Sum of y, of the same shape.

    Returns:
        In [0, 1), of that shape; near 0 where scores and truth are both empty.

    Source: Schutte et al., FedGS, arXiv 2408.11701.
    """
    return 1 - (2 * overlap + SMOOTHING) / (predicted + true + SMOOTHING)


def dice_loss_of_batch(scores: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice loss over all pixels of a batch taken together, as published.

    Weights of images do not change it: it has no part of its own for each image.

    Args:
        scores: Probability of the foreground, (B, H, W), float32 or float64.
        truth: Ground truth, (B, H, W), bool.

    Returns:
        Scalar in [0, 1); near 0 where scores and truth are both empty.

    Source: Schutte et al., FedGS, arXiv 2408.11701.
    """
    return soft_dice_loss((scores * truth).sum(), scores.sum(), truth.sum())


def dice_loss_per_image(scores: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the images of the soft Dice loss of each, so that a small lesion counts as much as a large one.

    Args:
        scores: Probability of the foreground, (B, H, W), float32 or float64.
        truth: Ground truth, (B, H, W), bool.
        weights: How much each image counts, (B,), not negative; 1 each if None.

    Returns:
        Scalar, in [0, 1) without weights; equal to `dice_loss_of_batch` for one image.
    """
    pixels = (1, 2)
    losses = soft_dice_loss((scores * truth).sum(pixels), scores.sum(pixels), truth.sum(pixels))
    return mean_of_images(losses, weights)


def mean_of_images(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the images of weight times loss; the weights are not brought to a mean of 1.

    Args:
        losses: One per image, (B,), float.
        weights: (B,); 1 each if None.

    Returns:
        Scalar.
    """
    return losses.mean() if weights is None else (weights * losses).mean()
