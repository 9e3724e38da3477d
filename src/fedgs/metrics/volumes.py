"""Scores of a volume as a whole, in millimetres: a row of volumes.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedgs.metrics.case import THRESHOLDS
from fedgs.metrics.functional import confusion, dice
from fedgs.metrics.lesions import lesion_overlaps, matched_pairs
from fedgs.metrics.masks import Mask
from fedgs.metrics.surfaces import hd95, surface_dice, surface_distances

__all__ = ["DIAMETERS_MM", "SURFACE_TOLERANCE_MM", "VOLUME_SCORES", "volume_scores"]

DIAMETERS_MM: Mapping[str, tuple[float, float]] = {
    "below_10": (0.0, 10.0),
    "10_to_20": (10.0, 20.0),
    "above_20": (20.0, math.inf),
}
"""Strata of lesions by their diameter: from the first value on, below the second one; above 20 mm, 20 included."""

SURFACE_TOLERANCE_MM = 2.0
"""How far a boundary may be off in the surface Dice."""

_OF_STRATA = ("lesions", "predicted", *(f"{what}_{name}" for name in THRESHOLDS for what in ("found", "false")))

VOLUME_SCORES = (
    *("dice", "tp", "fp", "fn", "hd95_mm", "surface_dice", "true_ml", "predicted_ml", "free_slices", "false_slices"),
    *(f"{name}_{stratum}" for stratum in DIAMETERS_MM for name in _OF_STRATA),
)
"""What `volume_scores` gives."""


def volume_scores(prediction: Mask, truth: Mask, *, spacing: tuple[float, float, float]) -> dict[str, float]:
    """Computes all scores of a volume.

    A lesion is a component of voxels that touch by a face, an edge or a corner; its diameter is that of a ball of the
    same volume. A true lesion counts in the stratum of its own diameter, a predicted one in that of its own: it is
    found, or false, where it is matched, or not, by an IoU above 0.1 or 0.5 (as for images).

    Args:
        prediction: Predicted foreground, (slices, rows, columns), bool.
        truth: True foreground, the same shape, bool.
        spacing: Millimetres between slices, rows and columns.

    Returns:
        `VOLUME_SCORES`: Dice over all voxels (1 where both are empty), counts of voxels, HD95 in mm and surface Dice
        within `SURFACE_TOLERANCE_MM` (nan where undefined), volumes in ml, slices without truth and those of them with
        a prediction, and by stratum numbers of true and predicted lesions, of true ones found and of false ones.

    Raises:
        ShapeError: The masks do not fit together.
    """
    counts, distances = confusion(prediction, truth), surface_distances(prediction, truth, spacing=spacing)
    ml = math.prod(spacing) / 1000
    free = ~truth.any(axis=(1, 2))
    return {
        "dice": dice(counts),
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "hd95_mm": hd95(distances),
        "surface_dice": surface_dice(distances, tolerance=SURFACE_TOLERANCE_MM),
        "true_ml": (counts.tp + counts.fn) * ml,
        "predicted_ml": (counts.tp + counts.fp) * ml,
        "free_slices": int(free.sum()),
        "false_slices": int(prediction[free].any(axis=(1, 2)).sum()),
    } | _of_lesions(prediction, truth, ml * 1000)


def _of_lesions(prediction: Mask, truth: Mask, voxel_mm3: float) -> dict[str, float]:
    overlaps = lesion_overlaps(prediction, truth)
    true, predicted = (
        np.cbrt(6 * areas * voxel_mm3 / np.pi) for areas in (overlaps.true_areas, overlaps.predicted_areas)
    )
    pairs = {name: matched_pairs(overlaps, above=above) for name, above in THRESHOLDS.items()}
    scores: dict[str, float] = {}
    for stratum, bounds in DIAMETERS_MM.items():
        of_truth, of_prediction = _within(true, bounds), _within(predicted, bounds)
        scores |= {f"lesions_{stratum}": int(of_truth.sum()), f"predicted_{stratum}": int(of_prediction.sum())}
        for name, (found, matched) in pairs.items():
            scores[f"found_{name}_{stratum}"] = int(of_truth[found].sum())
            scores[f"false_{name}_{stratum}"] = int(of_prediction.sum() - of_prediction[matched].sum())
    return scores


def _within(diameters: NDArray[np.float64], bounds: tuple[float, float]) -> NDArray[np.bool_]:
    return (diameters >= bounds[0]) & (diameters < bounds[1])
