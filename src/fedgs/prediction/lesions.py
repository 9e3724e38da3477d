"""From probabilities to lesions: which components stay, and how sure the network was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedgs.metrics.masks import box_around
from fedgs.prediction.kind import Mask, Probabilities

__all__ = ["Lesions", "confidence_of", "find_lesions"]


@dataclass(frozen=True, slots=True)
class Lesions:
    """What is marked in an input.

    Attributes:
        mask: (slices, rows, columns), bool.
        count: Connected components of it.
        pixels: Of all of them together; voxels of a volume.
    """

    mask: Mask
    count: int
    pixels: int


def find_lesions(
    probabilities: Probabilities, *, threshold: float, smallest: int = 0, largest_only: bool = False
) -> Lesions:
    """Marks what is probable enough, and drops components that are not wanted.

    Components connect over edges and corners, across slices too: 8 neighbours in an image, 26 in a volume.

    Args:
        probabilities: (slices, rows, columns), in [0, 1].
        threshold: A pixel is marked where its probability is above this.
        smallest: Pixels that a component needs to stay.
        largest_only: Keep the largest component alone; of equal ones the first in a scan by rows.

    >>> found = find_lesions(np.float32([[[0.9, 0.9, 0.1, 0.9]]]), threshold=0.5, largest_only=True)
    >>> found.mask.astype(int), found.count, found.pixels
    (array([[[1, 1, 0, 0]]]), 1, 2)
    """
    mask = probabilities > threshold
    box = box_around(mask)  # labels of a whole volume would take four times its memory
    labels = np.empty(mask[box].shape, dtype=np.int32)
    ndimage.label(mask[box], structure=np.ones((3, 3, 3), dtype=bool), output=labels)
    areas = np.bincount(labels.ravel(), minlength=1)[1:]
    stays = areas >= smallest
    if largest_only and stays.any():
        stays &= np.arange(len(areas)) == areas.argmax()
    if not stays.all():
        mask[box] = np.concatenate(([False], stays))[labels]
    return Lesions(mask, int(stays.sum()), int(areas[stays].sum()))


def confidence_of(probabilities: Probabilities, mask: Mask) -> float:
    """Tells how sure the network was of what it marked, or of there being nothing.

    The mean probability of the marked pixels; where nothing is marked, one minus the highest probability of all.

    Args:
        probabilities: (slices, rows, columns), in [0, 1].
        mask: What is marked, of the same shape.

    Returns:
        In [0, 1]. It compares inputs of one network, and is no probability of being right: no network is calibrated.

    >>> confidence_of(np.float32([[[0.75, 0.25]]]), np.array([[[True, False]]]))
    0.75
    >>> confidence_of(np.float32([[[0.75, 0.25]]]), np.array([[[False, False]]]))
    0.25
    """
    if mask.any():
        return float(probabilities[mask].mean(dtype=np.float64))
    return 1 - float(probabilities.max())
