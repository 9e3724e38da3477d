"""All metrics of one case that go beyond counting pixels: a row's part of scores.csv."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedgs.metrics.calibration import calibration_error
from fedgs.metrics.lesions import lesion_overlaps, match_lesions
from fedgs.metrics.masks import Mask
from fedgs.metrics.surfaces import average_surface_distance, hd95, surface_dice, surface_distances

__all__ = ["THRESHOLDS", "detailed_scores"]

THRESHOLDS = {10: 0.1, 50: 0.5}
"""IoU that a match of two lesions exceeds, by its name in percent."""


def detailed_scores(
    prediction: Mask,
    truth: Mask,
    probability: NDArray[np.floating],
    *,
    small: float,
    tolerance: float,
    band: int,
) -> dict[str, float]:
    """Computes the metrics of boundaries, lesions and calibration.

    Args:
        prediction: Predicted foreground, (H, W), bool.
        truth: True foreground, (H, W), bool.
        probability: Of foreground, (H, W), in [0, 1].
        small: Largest share of the image that a small lesion covers.
        tolerance: Of the surface Dice, pixels.
        band: Around prediction and truth, of the calibration error, pixels.

    Returns:
        `fedgs.metrics.table.DETAILS`, without the quartile; nan where a metric is undefined.

    Raises:
        ShapeError: The shapes differ, or a mask is not bool.
        DataError: A probability is not a number in [0, 1].
    """
    distances, overlaps = surface_distances(prediction, truth), lesion_overlaps(prediction, truth)
    found = {name: match_lesions(overlaps, above=above, small=small) for name, above in THRESHOLDS.items()}
    lesions = found[50]
    scores = {
        "diagonal": math.hypot(*truth.shape),
        "hd95": hd95(distances),
        "assd": average_surface_distance(distances),
        "surface_dice": surface_dice(distances, tolerance=tolerance),
        "ece": calibration_error(probability, prediction, truth, band=band),
        "lesions": lesions.lesions,
        "lesions_small": lesions.lesions_small,
        "predicted_lesions": lesions.predicted,
    }
    for name, detected in found.items():
        scores |= {
            f"found_{name}": detected.found,
            f"found_small_{name}": detected.found_small,
            f"false_small_{name}": detected.false_small,
        }
    return scores
