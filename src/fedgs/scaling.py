"""How much an optimizer step counts: from masks to numbers, pure.

Source: Schutte et al., FedGS: Federated Gradient Scaling for Heterogeneous Medical Image Segmentation,
arXiv 2408.11701.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from fedgs.errors import ConfigError, ShapeError, unknown_choice

__all__ = ["DIFFICULTIES", "check_difficulty", "difficulties_of_batch", "difficulty_of_area", "scale_of_batch"]

DIFFICULTIES = ("image", "lesion")


def difficulty_of_area(area: int, pixels: int, *, base: float) -> float:
    """How hard one small image is.

    delta = tanh((ln(pixels / area) / ln(base))^2)

    Args:
        area: Foreground pixels (or voxels), 0 to ``pixels``.
        pixels: Pixels of the image, H * W, or D * H * W of a volume.
        base: Base of the logarithm, > 1, dimensionless; 100 for PolypGen, 1000 for LiTS.

    Returns:
        A number in [0, 1); 0 for an empty mask, which has no difficulty, and for one that fills the image.

    Raises:
        ConfigError: ``base`` is not above 1, or ``area`` is not within 0 and ``pixels``.

    >>> round(difficulty_of_area(1000, 512 * 512, base=100), 4)
    0.8981

    Source: Schutte et al., arXiv 2408.11701.
    """
    check_difficulty(base)
    if not 0 <= area <= pixels:
        raise ConfigError(f"area must lie between 0 and the {pixels} pixels of the image, got {area}")
    return _difficulty(area, pixels, math.log(base))


def scale_of_batch(masks: Tensor, is_small: Tensor, *, base: float, difficulty: str = "image") -> float:
    """How much one optimizer step counts in the update that a site sends.

    eta = 1 + 2/B * sum over the small images of tanh((ln(pixels / area) / ln(base))^2)

    Args:
        masks: Ground truth after augmentation, (B, H, W) or (B, D, H, W), bool.
        is_small: Flag per image from its un-augmented mask, (B,), bool.
        base: Base of the logarithm, > 1, dimensionless; 100 for PolypGen, 1000 for LiTS.
        difficulty: ``"image"`` takes the whole foreground of an image as its area, as published; ``"lesion"`` takes
            its smallest connected component (diagonal neighbours connect), however small: a mask from a JPEG file
            should be without specks, as an index keeps it.

    Returns:
        Dimensionless factor in [1, 3); exactly 1 for a batch without small lesions.

    Raises:
        ConfigError: ``base`` is not above 1, or ``difficulty`` is unknown.
        ShapeError: Shapes or types are not as described.

    Source: Schutte et al., FedGS, arXiv 2408.11701.
    """
    deltas = difficulties_of_batch(masks, is_small, base=base, difficulty=difficulty)
    return min(1.0 + 2.0 / len(masks) * math.fsum(deltas), math.nextafter(3.0, 0.0))


def difficulties_of_batch(masks: Tensor, is_small: Tensor, *, base: float, difficulty: str = "image") -> list[float]:
    """How hard each image of a batch is: delta of its area where it is flagged small, else 0.

    Args:
        masks: As for `scale_of_batch`, like all others.
        is_small: Flag per image, (B,), bool.
        base: Base of the logarithm, > 1.
        difficulty: ``"image"`` or ``"lesion"``.

    Returns:
        B numbers in [0, 1).

    Raises:
        ConfigError: As for `scale_of_batch`.
        ShapeError: As for `scale_of_batch`.
    """
    _check(masks, is_small, base, difficulty)
    pixels, log_base = math.prod(masks.shape[1:]), math.log(base)
    measure = _smallest_area if difficulty == "lesion" else np.count_nonzero
    return [
        _difficulty(int(measure(mask)), pixels, log_base) if flag else 0.0
        for mask, flag in zip(masks.cpu().numpy(), is_small.tolist(), strict=True)
    ]


def check_difficulty(base: float, difficulty: str = "image") -> None:
    """Checks the two choices behind a difficulty.

    Raises:
        ConfigError: ``base`` is not a finite number above 1, or ``difficulty`` is unknown.
    """
    if not isinstance(base, (int, float, np.number)) or not 1 < base < math.inf:
        raise ConfigError(f"base must be a finite number above 1, got {base!r}; 100 suits polyps, 1000 liver tumours")
    if difficulty not in DIFFICULTIES:
        raise unknown_choice("difficulty", difficulty, DIFFICULTIES)


def _difficulty(area: int, pixels: int, log_base: float) -> float:
    if area == 0:
        return 0.0
    return min(math.tanh((math.log(pixels / area) / log_base) ** 2), math.nextafter(1.0, 0.0))


def _check(masks: Tensor, is_small: Tensor, base: float, difficulty: str) -> None:
    check_difficulty(base, difficulty)
    if masks.dim() not in (3, 4) or masks.numel() == 0:
        raise ShapeError(f"masks must be (B, H, W) or (B, D, H, W) and not empty, got {tuple(masks.shape)}")
    if tuple(is_small.shape) != (len(masks),):
        raise ShapeError(f"is_small must hold one flag per mask, ({len(masks)},), got {tuple(is_small.shape)}")
    for name, tensor in (("masks", masks), ("is_small", is_small)):
        if tensor.dtype != torch.bool:
            raise ShapeError(f"{name} must be bool, got {tensor.dtype}; binarise first, for instance with `{name} > 0`")


def _smallest_area(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int:
    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return int(np.bincount(labels.ravel())[1:].min()) if count else 0
