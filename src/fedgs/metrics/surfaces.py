"""Distances between the boundaries of two masks; images and volumes, in pixels or in millimetres.

The boundary of a mask is its foreground elements that have background beside them along an axis; beyond the edge of the
image is background, so a lesion that is cut off there has its boundary along the edge. Distances are between centres of
elements.

Source: Maier-Hein, Reinke et al., Metrics reloaded, Nature Methods 21 (2024), 195-212.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from fedgs.errors import DataError, ShapeError
from fedgs.metrics.masks import Mask, box_around, require_pair

__all__ = ["SurfaceDistances", "average_surface_distance", "hd95", "surface_dice", "surface_distances"]

Distances = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """From every boundary element of one mask the distance to the nearest of the other.

    Attributes:
        to_truth: An entry per boundary element of the prediction; inf where the truth is empty.
        to_prediction: An entry per boundary element of the truth; inf where the prediction is empty.
    """

    to_truth: Distances
    to_prediction: Distances

    @property
    def are_defined(self) -> bool:
        """Whether both masks have a boundary."""
        return self.to_truth.size > 0 and self.to_prediction.size > 0


def surface_distances(prediction: Mask, truth: Mask, *, spacing: Sequence[float] | None = None) -> SurfaceDistances:
    """Measures the distances between the boundaries of two masks, exactly.

    Args:
        prediction: Predicted foreground, (H, W) or (D, H, W), bool.
        truth: True foreground, the same shape, bool.
        spacing: Millimetres between neighbours along each axis, all above 0; None measures in pixels.

    Returns:
        Distances in both directions, all at least 0.

    Raises:
        ShapeError: The masks do not fit together, or the spacing does not fit them.
    """
    require_pair(prediction, truth)
    try:
        scale = np.ones(truth.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    except (TypeError, ValueError):
        scale = np.zeros(0)
    if scale.shape != (truth.ndim,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ShapeError(f"spacing: expected {truth.ndim} numbers above 0, one per axis of the masks, got {spacing!r}")
    box = box_around(prediction | truth)
    predicted, true = (np.argwhere(_boundary(mask[box])) * scale for mask in (prediction, truth))
    return SurfaceDistances(_nearest(predicted, true), _nearest(true, predicted))


def hd95(distances: SurfaceDistances) -> float:
    """Hausdorff distance without its worst twentieth.

    HD95 = max(P95 of the distances to the truth, P95 of the distances to the prediction), percentiles interpolated

    Args:
        distances: What `surface_distances` returned.

    Returns:
        At least 0, in the unit of the distances; nan where one mask or both are empty.
    """
    return _where_defined(distances, lambda *both: max(np.percentile(each, 95) for each in both))


def average_surface_distance(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance (ASSD).

    ASSD = (sum of the distances to the truth + sum of those to the prediction) / number of both

    Args:
        distances: What `surface_distances` returned.

    Returns:
        As `hd95`.
    """
    return _where_defined(distances, lambda *both: sum(each.sum() for each in both) / sum(each.size for each in both))


def surface_dice(distances: SurfaceDistances, *, tolerance: float) -> float:
    """Share of both boundaries that lies within a tolerance of the other one (normalised surface Dice).

    Args:
        distances: What `surface_distances` returned.
        tolerance: How far a boundary may be off, at least 0, in the unit of the distances.

    Returns:
        In [0, 1]; 0 where one mask is empty, nan where both are.

    Raises:
        DataError: The tolerance is below 0 or no number.

    Source: Nikolov et al., J Med Internet Res 23 (2021), e26151; boundary elements count alike here.
    """
    if not tolerance >= 0:
        raise DataError(f"the tolerance of the surface Dice must be at least 0, got {tolerance}")
    total = distances.to_truth.size + distances.to_prediction.size
    if total == 0:
        return float("nan")
    within = (distances.to_truth <= tolerance).sum() + (distances.to_prediction <= tolerance).sum()
    return float(within / total)


def _where_defined(distances: SurfaceDistances, measure: Callable[..., float]) -> float:
    """Measures both directions; nan where one mask is empty, since nothing is at a distance from it."""
    if not distances.are_defined:
        return float("nan")
    return float(measure(distances.to_truth, distances.to_prediction))


def _boundary(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + mask.shape[axis])
            inside &= padded[tuple(window)]
    return mask & ~inside


def _nearest(from_points: NDArray[np.float64], to_points: NDArray[np.float64]) -> Distances:
    if not len(to_points):
        return np.full(len(from_points), np.inf)
    return np.asarray(KDTree(to_points).query(from_points)[0], dtype=np.float64).reshape(len(from_points))
