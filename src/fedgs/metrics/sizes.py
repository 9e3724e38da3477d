"""Lesions by size: quartiles of their area, fixed on training images and applied to all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["quartile_of", "size_quartiles"]


def size_quartiles(areas: ArrayLike) -> tuple[float, float, float] | None:
    """Gives the three areas that divide images with a lesion into four groups of about equal size.

    Args:
        areas: Foreground of each training image, pixels, (N,); images without lesion (0) are left out.

    Returns:
        25th, 50th and 75th percentile, interpolated, in pixels; None where no image has a lesion.

    >>> size_quartiles([0, 10, 20, 30, 40, 50])
    (20.0, 30.0, 40.0)
    """
    of_lesions = np.asarray(areas, dtype=float)
    of_lesions = of_lesions[of_lesions > 0]
    if not of_lesions.size:
        return None
    low, middle, high = np.percentile(of_lesions, (25, 50, 75)).tolist()
    return low, middle, high


def quartile_of(area: float, thresholds: Sequence[float] | None) -> int | None:
    """Tells in which of the four groups an image is.

    Args:
        area: Foreground of the image, pixels.
        thresholds: What `size_quartiles` gave; None where there are none.

    Returns:
        0 without lesion, else 1 (smallest) to 4; an area that equals a threshold is below it. None without thresholds.

    >>> [quartile_of(area, (20.0, 30.0, 40.0)) for area in (0, 20, 21, 99)]
    [0, 1, 2, 4]
    """
    if thresholds is None:
        return None
    return 1 + sum(area > threshold for threshold in thresholds) if area > 0 else 0
