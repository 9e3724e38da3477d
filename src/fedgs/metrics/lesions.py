"""Which lesions were found: connected components of truth and prediction, matched one to one.

Components of images connect over edges and corners (8 neighbours), those of volumes over faces, edges and corners (26).

Source: Maier-Hein, Reinke et al., Metrics reloaded, Nature Methods 21 (2024), 195-212: objects are located by the IoU
of their masks and assigned by the Hungarian algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fedgs.metrics.masks import Mask, box_around, require_pair

__all__ = ["Detected", "Overlaps", "lesion_overlaps", "match_lesions", "matched_pairs"]

Numbers = NDArray[np.int64]

_ROUNDING = 1 + 1e-9
_TIES = (1e-9, 1e-11, 1e-13)
"""What a pair counts beside its IoU, and what a small true and a small predicted lesion in it do; less than any IoU."""


@dataclass(frozen=True, slots=True)
class Overlaps:
    """The lesions of two masks and how they overlap.

    Attributes:
        true_areas: Elements of each true lesion, in scan order, int.
        predicted_areas: The same of each predicted lesion.
        true: Number of the true lesion of each pair that shares an element, int.
        predicted: Number of the predicted lesion of each pair.
        iou: Intersection over union of each pair, in (0, 1].
        size: Elements of the whole image.
    """

    true_areas: NDArray[np.int64]
    predicted_areas: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    iou: NDArray[np.float64]
    size: int


@dataclass(frozen=True, slots=True)
class Detected:
    """Counts of lesions in one image; sums over images give sensitivity, precision and F1.

    Attributes:
        lesions: True lesions.
        predicted: Predicted lesions.
        found: Matched pairs; ``lesions - found`` are missed, ``predicted - found`` are false.
        lesions_small: True lesions that are small.
        found_small: Those of them that were matched.
        false_small: Predicted lesions that are small and were not matched.
    """

    lesions: int
    predicted: int
    found: int
    lesions_small: int
    found_small: int
    false_small: int


def lesion_overlaps(prediction: Mask, truth: Mask) -> Overlaps:
    """Labels both masks and measures every overlap.

    Args:
        prediction: Predicted foreground, (H, W) or (D, H, W), bool.
        truth: True foreground, the same shape, bool.

    Raises:
        ShapeError: The masks do not fit together.
    """
    require_pair(prediction, truth)
    box = box_around(prediction | truth)
    structure = np.ones((3,) * truth.ndim, dtype=bool)
    predicted, predicted_areas = _labels(prediction[box], structure)
    true, true_areas = _labels(truth[box], structure)
    both = (predicted > 0) & (true > 0)
    width = len(predicted_areas)
    pairs, shared = np.unique((true[both] - 1).astype(np.int64) * width + predicted[both] - 1, return_counts=True)
    row, column = pairs // max(width, 1), pairs % max(width, 1)
    union = true_areas[row] + predicted_areas[column] - shared
    return Overlaps(true_areas, predicted_areas, row, column, shared / union, truth.size)


def match_lesions(overlaps: Overlaps, *, above: float, small: float = 1 / 150) -> Detected:
    """Matches lesions one to one and counts them.

    A pair may match where its IoU is above the threshold. Of all such matchings the one with the largest sum of IoU is
    taken, and of equal ones that with more pairs, then with more small lesions; so turning both masks changes no count.
    Above 1/2 there is only one, for no lesion can have two partners. So where two true lesions merge in the
    prediction, one of them is found at most, and where one is predicted in pieces, the other pieces are false.

    A lesion is small by its own size. A small predicted lesion that matches one that is not small is neither found nor
    false among the small ones.

    Args:
        overlaps: What `lesion_overlaps` returned.
        above: IoU that a match exceeds, in [0, 1).
        small: Largest share of the image that a small lesion covers.
    """
    shape = (len(overlaps.true_areas), len(overlaps.predicted_areas))
    limit = small * overlaps.size * _ROUNDING
    small_true, small_predicted = overlaps.true_areas <= limit, overlaps.predicted_areas <= limit
    true, predicted = matched_pairs(overlaps, above=above, small=small)
    matched = np.zeros(shape[1], dtype=bool)
    matched[predicted] = True
    return Detected(
        lesions=shape[0],
        predicted=shape[1],
        found=len(true),
        lesions_small=int(small_true.sum()),
        found_small=int(small_true[true].sum()),
        false_small=int((small_predicted & ~matched).sum()),
    )


def matched_pairs(overlaps: Overlaps, *, above: float, small: float = 1 / 150) -> tuple[Numbers, Numbers]:
    """Gives the lesions that `match_lesions` matches.

    Args:
        overlaps: What `lesion_overlaps` returned.
        above: IoU that a match exceeds, in [0, 1).
        small: Largest share of the image that a small lesion covers; it decides between equal matchings alone.

    Returns:
        Numbers of the true and of the predicted lesions, from 0, pair by pair.
    """
    keep = overlaps.iou > above
    true, predicted, iou = overlaps.true[keep], overlaps.predicted[keep], overlaps.iou[keep]
    limit = small * overlaps.size * _ROUNDING
    small_true, small_predicted = overlaps.true_areas <= limit, overlaps.predicted_areas <= limit
    gain = iou + _TIES[0] + _TIES[1] * small_true[true] + _TIES[2] * small_predicted[predicted]
    groups = _conflicts(true, predicted, (len(overlaps.true_areas), len(overlaps.predicted_areas)))
    chosen = np.array([pair for group in groups for pair in _best(group, true, predicted, gain)], dtype=int)
    return true[chosen], predicted[chosen]


def _labels(mask: Mask, structure: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=structure, output=labels)
    return labels, np.bincount(labels.ravel(), minlength=1)[1:]


def _conflicts(
    true: NDArray[np.int64], predicted: NDArray[np.int64], shape: tuple[int, int]
) -> Iterator[NDArray[np.int64]]:
    """Gives the pairs in groups that have no lesion in common, so that each group is matched for itself."""
    nodes = sum(shape)
    links = coo_array((np.ones(len(true)), (true, predicted + shape[0])), shape=(nodes, nodes))
    group_of = connected_components(links, directed=False)[1][true]
    order = np.argsort(group_of, kind="stable")
    starts = np.flatnonzero(np.diff(group_of[order])) + 1
    yield from (group for group in np.split(order, starts) if len(group))


def _best(
    group: NDArray[np.int64], true: NDArray[np.int64], predicted: NDArray[np.int64], gain: NDArray[np.float64]
) -> list[int]:
    """Gives the pairs of a group, by their position, whose sum of gains is largest."""
    if len(group) == 1:
        return [int(group[0])]
    rows, columns = (np.unique(numbers[group], return_inverse=True)[1] for numbers in (true, predicted))
    of_pair = np.zeros((rows.max() + 1, columns.max() + 1))
    of_pair[rows, columns] = gain[group]
    position = np.full(of_pair.shape, -1)
    position[rows, columns] = group
    return [int(pair) for pair in position[linear_sum_assignment(of_pair, maximize=True)] if pair >= 0]
