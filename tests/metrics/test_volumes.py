"""Scores of volumes in millimetres: against balls of known size, brute force, and the laws that every score obeys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from fedgs.errors import ShapeError
from fedgs.metrics.volumes import DIAMETERS_MM, VOLUME_SCORES, volume_scores

SPACING = (2.5, 0.8, 1.2)


def balls(*of: tuple[tuple[float, float, float], float], shape: tuple[int, int, int] = (40, 110, 80)) -> np.ndarray:
    """Balls by centre and diameter, in mm."""
    places = np.meshgrid(*(np.arange(count) * step for count, step in zip(shape, SPACING, strict=True)), indexing="ij")
    mask = np.zeros(shape, bool)
    for centre, diameter in of:
        mask |= sum((at - c) ** 2 for at, c in zip(places, centre, strict=True)) <= (diameter / 2) ** 2
    return mask


LARGE, MIDDLE, SMALL = ((30, 30, 30), 30.0), ((60, 60, 60), 15.0), ((85, 20, 80), 7.0)


def test_lesions_are_counted_by_their_own_diameter() -> None:
    truth, prediction = balls(LARGE, MIDDLE, SMALL), balls(LARGE, ((20, 75, 75), 8.0), ((80, 75, 20), 14.0))
    scores = volume_scores(prediction, truth, spacing=SPACING)
    assert tuple(scores) == VOLUME_SCORES
    assert [scores[f"lesions_{stratum}"] for stratum in DIAMETERS_MM] == [1, 1, 1]
    assert [scores[f"predicted_{stratum}"] for stratum in DIAMETERS_MM] == [1, 1, 1]
    for threshold in (10, 50):
        assert [scores[f"found_{threshold}_{stratum}"] for stratum in DIAMETERS_MM] == [0, 0, 1]
        assert [scores[f"false_{threshold}_{stratum}"] for stratum in DIAMETERS_MM] == [1, 1, 0]
    assert scores["true_ml"] == pytest.approx(
        sum(math.pi / 6 * d**3 for _, d in (LARGE, MIDDLE, SMALL)) / 1000, rel=0.05
    )


def test_a_half_seen_lesion_is_found_at_one_threshold_and_not_at_the_other() -> None:
    truth = balls(LARGE)
    prediction = truth.copy()
    prediction[:, :, : int(27 / SPACING[2])] = False
    scores = volume_scores(prediction, truth, spacing=SPACING)
    share = prediction.sum() / truth.sum()
    assert share > 0.1
    assert scores["found_10_above_20"] == 1
    assert scores["found_50_above_20"] == (share > 0.5)
    assert scores["dice"] == pytest.approx(2 * share / (1 + share))


@pytest.mark.parametrize("seed", range(3))
def test_slices_and_distances_agree_with_brute_force(seed: int) -> None:
    draw = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(draw.normal(size=(2, 12, 18, 15)), (0, 1, 2, 2))
    truth, prediction = smooth > 0.08
    truth[:3] = prediction[5] = False
    scores = volume_scores(prediction, truth, spacing=SPACING)
    assert scores["free_slices"] == sum(not each.any() for each in truth)
    assert scores["false_slices"] == sum(p.any() and not t.any() for p, t in zip(prediction, truth, strict=True))
    inside = [ndimage.binary_erosion(mask, border_value=0) for mask in (prediction, truth)]
    edges = [np.argwhere(mask & ~core) * SPACING for mask, core in zip((prediction, truth), inside, strict=True)]
    apart = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=2)
    nearest = apart.min(axis=1), apart.min(axis=0)
    assert scores["hd95_mm"] == pytest.approx(max(np.percentile(each, 95) for each in nearest))
    within = sum((each <= 2).sum() for each in nearest) / sum(each.size for each in nearest)
    assert scores["surface_dice"] == pytest.approx(within)


def test_a_perfect_prediction_and_none_at_all() -> None:
    truth, nothing = balls(LARGE, SMALL), np.zeros((40, 110, 80), bool)
    perfect, missed, free = (
        volume_scores(*each, spacing=SPACING) for each in ((truth, truth), (nothing, truth), (nothing, nothing))
    )
    assert (perfect["dice"], perfect["hd95_mm"], perfect["surface_dice"], perfect["false_slices"]) == (1, 0, 1, 0)
    assert perfect["found_50_below_10"] == perfect["lesions_below_10"] == 1
    assert (missed["dice"], missed["surface_dice"], missed["predicted_ml"]) == (0, 0, 0)
    assert math.isnan(missed["hd95_mm"])
    assert (free["dice"], free["free_slices"]) == (1, 40)
    assert math.isnan(free["surface_dice"])


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="one shape"):
        volume_scores(np.zeros((2, 3, 4), bool), np.zeros((2, 3, 5), bool), spacing=SPACING)
