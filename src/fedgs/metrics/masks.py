"""What the metrics of masks share: the check of a pair, and the smallest box that holds all of its foreground."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedgs.errors import ShapeError

__all__ = ["Mask", "box_around", "require_pair"]

Mask = NDArray[np.bool_]


def require_pair(prediction: Mask, truth: Mask) -> None:
    """Makes sure that two masks can be compared.

    Args:
        prediction: Predicted foreground, one image or volume, bool.
        truth: True foreground, the same shape, bool.

    Raises:
        ShapeError: The shapes differ, one of them is not bool, or they have no dimension or no element.
    """
    if prediction.shape != truth.shape or {prediction.dtype, truth.dtype} != {np.dtype(bool)} or truth.size == 0:
        raise ShapeError(
            "expected two bool masks of one shape with at least one pixel, got a prediction "
            f"{prediction.shape} {prediction.dtype} and a truth {truth.shape} {truth.dtype}; resize the prediction to "
            "the mask and threshold it first"
        )


def box_around(mask: Mask, *, margin: int = 0) -> tuple[slice, ...]:
    """Gives the smallest box with all foreground in it.

    Args:
        mask: Any number of dimensions, bool.
        margin: Elements added on every side, as far as the mask reaches.

    Returns:
        A slice per dimension; all of them empty where there is no foreground.

    >>> box_around(np.array([[False, True, False], [False, True, True]]))
    (slice(0, 2, None), slice(1, 3, None))
    """
    found = ndimage.find_objects(mask.view(np.uint8))
    if not found or found[0] is None:
        return (slice(0, 0),) * mask.ndim
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in found[0])
