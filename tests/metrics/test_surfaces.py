"""Distances of boundaries against brute force over all pairs of points, and against MONAI's distance transforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from fedgs.errors import DataError, ShapeError
from fedgs.metrics.surfaces import average_surface_distance, hd95, surface_dice, surface_distances
from metrics.pairs import BORDER, DEGENERATE, EMPTY, PIXEL, SQUARE, anything, box, images

pytestmark = pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")

spacings = st.sampled_from([0.5, 1.0, 2.5])


def all_three(prediction, truth, tolerance=1.0, spacing=None):
    distances = surface_distances(prediction, truth, spacing=spacing)
    return hd95(distances), average_surface_distance(distances), surface_dice(distances, tolerance=tolerance)


def boundary_by_loop(mask):
    points = []
    for point in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                beside = point.copy()
                beside[axis] += step
                outside = not 0 <= beside[axis] < mask.shape[axis]
                if outside or not mask[tuple(beside)]:
                    points.append(tuple(int(x) for x in point))
    return sorted(set(points))


def by_brute_force(prediction, truth, tolerance, spacing):
    predicted, true = boundary_by_loop(prediction), boundary_by_loop(truth)
    if not predicted and not true:
        return math.nan, math.nan, math.nan
    if not predicted or not true:
        return math.nan, math.nan, 0.0

    def to_nearest(points, others):
        return [min(math.dist(np.multiply(p, spacing), np.multiply(o, spacing)) for o in others) for p in points]

    ways = to_nearest(predicted, true), to_nearest(true, predicted)
    joined = ways[0] + ways[1]
    within = sum(distance <= tolerance for distance in joined)
    return max(np.percentile(way, 95) for way in ways), math.fsum(joined) / len(joined), within / len(joined)


def by_monai(prediction, truth, tolerance):
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    return (
        compute_hausdorff_distance(*pair, include_background=True, percentile=95).item(),
        compute_average_surface_distance(*pair, include_background=True, symmetric=True).item(),
        compute_surface_dice(*pair, class_thresholds=[tolerance], include_background=True).item(),
    )


@given(anything, st.tuples(spacings, spacings, spacings), st.sampled_from([0.0, 1.0, 1.5, 3.0]))
@settings(max_examples=80)
def test_random_masks_equal_brute_force(masks, spacing, tolerance):
    spacing = spacing[: masks[0].ndim]
    expected = by_brute_force(*masks, tolerance, spacing)
    assert all_three(*masks, tolerance, spacing) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 3.0])
def test_degenerate_masks_equal_brute_force(name, tolerance):
    expected = by_brute_force(*DEGENERATE[name], tolerance, (1.0, 1.0))
    assert all_three(*DEGENERATE[name], tolerance) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@given(images.filter(lambda masks: masks[0].any() and masks[1].any()), st.sampled_from([0.0, 1.0, 3.0]))
@settings(max_examples=60)
def test_random_masks_equal_monai(masks, tolerance):
    assert all_three(*masks, tolerance) == pytest.approx(by_monai(*masks, tolerance), abs=1e-5)


@pytest.mark.parametrize("name", [name for name, masks in DEGENERATE.items() if masks[0].any() and masks[1].any()])
def test_degenerate_masks_equal_monai(name):
    assert all_three(*DEGENERATE[name]) == pytest.approx(by_monai(*DEGENERATE[name], 1.0), abs=1e-5)


def test_outlines_at_full_size_equal_monai():
    rng = np.random.default_rng(0)
    prediction, truth = (ndimage.gaussian_filter(rng.normal(size=(512, 512)), 12) > 0.03 for _ in range(2))
    assert all_three(prediction, truth, 3.0) == pytest.approx(by_monai(prediction, truth, 3.0), rel=1e-5)


@given(anything)
@settings(max_examples=60)
def test_laws(masks):
    prediction, truth = masks
    hausdorff, average, share = all_three(prediction, truth)
    assert all_three(truth, prediction) == pytest.approx((hausdorff, average, share), nan_ok=True)
    padded = [np.pad(mask, 3) for mask in masks]
    assert all_three(*padded) == pytest.approx((hausdorff, average, share), nan_ok=True)
    assert all_three(*(mask[::-1] for mask in masks)) == pytest.approx((hausdorff, average, share), nan_ok=True)
    if truth.any():
        assert all_three(truth, truth) == (0.0, 0.0, 1.0)
    if prediction.any() and truth.any():
        diagonal = math.sqrt(sum(side**2 for side in truth.shape))
        assert 0 <= hausdorff < diagonal
        assert 0 <= average < diagonal
        assert 0 <= share <= 1
        doubled = all_three(prediction, truth, 2.0, (2.0,) * truth.ndim)
        assert doubled == pytest.approx((2 * hausdorff, 2 * average, share))


def test_what_stands_where_nothing_can_be_measured():
    assert all_three(EMPTY, EMPTY) == pytest.approx((math.nan,) * 3, nan_ok=True)
    for pair in ((SQUARE, EMPTY), (EMPTY, SQUARE)):
        assert all_three(*pair) == pytest.approx((math.nan, math.nan, 0.0), nan_ok=True)
        assert not surface_distances(*pair).are_defined


def test_a_lesion_on_the_border_has_its_boundary_along_it():
    rim = 2 * (6 + 12) - 4
    assert surface_distances(BORDER, PIXEL).to_truth.size == rim
    shorter = box(slice(0, 5), slice(20, 32))
    assert hd95(surface_distances(shorter, BORDER)) == 1.0


def test_one_pixel_is_its_own_boundary():
    distances = surface_distances(np.roll(PIXEL, (3, 4), axis=(0, 1)), PIXEL)
    assert distances.to_truth.tolist() == distances.to_prediction.tolist() == [5.0]


def test_a_far_speck_moves_the_average_and_not_the_percentile():
    speck = SQUARE | box(slice(23, 24), slice(31, 32))
    assert hd95(surface_distances(speck, SQUARE)) == 0.0
    assert average_surface_distance(surface_distances(speck, SQUARE)) > 0.2


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_a_tolerance_that_cannot_be_is_refused(tolerance):
    with pytest.raises(DataError, match="tolerance of the surface Dice must be at least 0"):
        surface_dice(surface_distances(SQUARE, SQUARE), tolerance=tolerance)


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing"),
    [
        (EMPTY, EMPTY[:5], None),
        (EMPTY.astype(float), EMPTY, None),
        (EMPTY[:0], EMPTY[:0], None),
        (EMPTY, EMPTY, (1.0,)),
        (EMPTY, EMPTY, (1.0, 0.0)),
        (EMPTY, EMPTY, (1.0, math.nan)),
        (EMPTY, EMPTY, "ab"),
    ],
)
def test_what_does_not_fit_is_refused(prediction, truth, spacing):
    with pytest.raises(ShapeError, match=r"expected two bool masks|spacing: expected 2 numbers above 0"):
        surface_distances(prediction, truth, spacing=spacing)
