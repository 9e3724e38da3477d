"""Losses in which every lesion of an image counts the same, whatever its size: blob loss and CC-DiceCE.

Both add a term to a loss over all pixels. For each lesion C_k of an image that term is a loss over some of the pixels,
and it is averaged over the K lesions, so that a lesion of 20 pixels weighs as much as one of 20,000. They differ in the
pixels: the image without the other lesions, or the part of the image that is nearer to C_k than to any other lesion.

Lesions are not searched for here. Every pixel comes with the number of the lesion it is nearest to, found once on the
un-augmented mask and moved with it, so that a step costs a few sums by (image, number). A lesion that the rotation has
brought out of view, or that vanished when the mask was resized, is none of the K.

All sums are float32 or float64. On a GPU they are added up in no fixed order, so two runs may differ in the last bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedgs.models.dice import mean_of_images, soft_dice_loss

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["blob_dice_loss", "region_dice_ce_losses"]

_NUMBERS = 256


def blob_dice_loss(scores: Tensor, truth: Tensor, regions: Tensor, weights: Tensor | None = None) -> Tensor:
    """Soft Dice loss of each lesion on the image without the other lesions: the blob term of the blob loss.

    L_blob = 1/K * sum over k of Dice loss(p, C_k; image without the other C_j)

    averaged over the images that show a lesion. False alarms outside of all lesions therefore count in every one of the
    K losses. The whole objective is alpha * L_global + beta * L_blob.

    Args:
        scores: Probability of the foreground p, (B, H, W), float32 or float64.
        truth: Ground truth, (B, H, W), bool.
        regions: Number of the nearest lesion, (B, H, W), uint8.
        weights: How much each image counts, (B,), not negative; 1 each if None.

    Returns:
        Scalar, in [0, 1) without weights; 0 where no image shows a lesion. With one lesion per image it is
        `fedgs.models.dice.dice_loss_per_image`.

    Source: Kofler et al., blob loss, arXiv 2205.08209; the mean over the images that show a lesion is that of the
    authors' implementation, the smoothing of 0.1 that of the other Dice losses here (1e-5 in their example).
    """
    overlap, true = _sums_by_region([scores * truth, truth.to(scores)], regions)
    background = (scores * ~truth).sum((1, 2))
    # Within its region a lesion is all that is true, so what is predicted on the lesion is the overlap.
    losses = soft_dice_loss(overlap, background[:, None] + overlap, true)
    is_seen = true > 0
    has_lesion = is_seen.any(1)
    of_images = _mean_where(losses, is_seen)
    return _mean_where(of_images if weights is None else weights * of_images, has_lesion)


def region_dice_ce_losses(
    scores: Tensor, cross_entropy: Tensor, truth: Tensor, regions: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Dice loss and cross-entropy within the region of each lesion: the second half of CC-DiceCE.

    L_CC = 1/K * sum over k of [Dice loss(p, y; V_k) + CE(p, y; V_k)],    V_k = pixels nearest to lesion C_k

    averaged over the images. An image that shows no lesion is one region as a whole. The whole objective is
    DiceCE(p, y; image) + L_CC.

    What is taken from where: the sum with equal weights, the mean over the lesions of an image and then over the
    images, CE as the mean over the pixels of a region, and the whole image where there is no lesion, are CC-DiceCE as
    its authors restate it in a later paper (arXiv 2609.30223, eq. 1, 2 and 4 with alpha = 0) and in the code released
    with that; the formulas of the first paper (arXiv 2511.17146) were not at hand, only its abstract. The regions are
    those of CC-Metrics. Ours are three things: distances are in pixels of the square 512 x 512 mask before
    augmentation; where a lesion is out of view the pixels of its region count in the loss over all pixels alone, while
    the authors, who divide what is in view, give them to the next lesion; and Dice has the smoothing of 0.1 of the
    other Dice losses here (theirs is 1e-5, or 0).

    Args:
        scores: Probability of the foreground p, (B, H, W), float32 or float64.
        cross_entropy: -log of the probability of the true class of each pixel, (B, H, W), of the same type.
        truth: Ground truth y, (B, H, W), bool.
        regions: Number of the nearest lesion, (B, H, W), uint8.
        weights: How much each image counts, (B,), not negative; 1 each if None.

    Returns:
        Two scalars, Dice loss and cross-entropy; with at most one lesion per image these are the means over the images
        of what the whole image gives.

    Source: Bouteille et al., Learning to Look Closer, arXiv 2511.17146, and BiCC, arXiv 2609.30223; regions from Jaus
    et al., Every Component Counts, arXiv 2410.18684.
    """
    sums = _sums_by_region(
        [scores * truth, scores, truth.to(scores), cross_entropy, cross_entropy.new_ones(truth.shape)], regions
    )
    is_seen = sums[2] > 0
    is_whole = ~is_seen.any(1, keepdim=True)
    # Number 0 is nobody's: an image without lesion is entered there as a whole.
    sums = _with_first(sums, sums.sum(-1, keepdim=True))
    is_seen = _with_first(is_seen, is_whole)
    overlap, predicted, true, entropy, pixels = sums
    dice = _mean_where(soft_dice_loss(overlap, predicted, true), is_seen)
    return (
        mean_of_images(dice, weights),
        mean_of_images(_mean_where(entropy / pixels.clamp_min(1), is_seen), weights),
    )


def _sums_by_region(values: list[Tensor], regions: Tensor) -> Tensor:
    """Sums each of n maps (B, H, W) over the pixels of each number: (n, B, 256)."""
    import torch

    numbers = regions.long()
    slots = values[0].new_zeros(*regions.shape[:-1], _NUMBERS)
    # Row by row first: one running sum over a whole image would lose digits.
    return torch.stack([slots.scatter_add(-1, numbers, value).sum(-2) for value in values])


def _with_first(values: Tensor, first: Tensor) -> Tensor:
    """Gives the values by number with others in the place of number 0."""
    import torch

    return torch.cat([first, values[..., 1:]], -1)


def _mean_where(values: Tensor, included: Tensor) -> Tensor:
    """Mean over the last dimension of the values that are included; 0 where none is."""
    return (values * included).sum(-1) / included.sum(-1).clamp_min(1)
