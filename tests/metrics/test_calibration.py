"""Calibration against a loop over pixels and bins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedgs.errors import DataError, ShapeError
from fedgs.metrics.calibration import calibration_error
from metrics.pairs import BORDER, DEGENERATE, EMPTY, PIXEL, SQUARE, anything

probabilities = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
maps = anything.flatmap(
    lambda masks: st.tuples(arrays(np.float64, masks[0].shape, elements=probabilities), st.just(masks))
)


def by_loop(probability, prediction, truth, band, bins):
    marked = np.argwhere(prediction | truth)
    members = {number: [] for number in range(bins)}
    for point in itertools.product(*map(range, truth.shape)):
        if any(np.abs(other - point).max() <= band for other in marked):
            p = float(probability[point])
            number = next(number for number in reversed(range(bins)) if p * bins >= number)
            members[number].append((p, bool(truth[point])))
    count = sum(map(len, members.values()))
    if count == 0:
        return math.nan
    gaps = [
        len(pairs) * abs(math.fsum(p for p, _ in pairs) / len(pairs) - sum(y for _, y in pairs) / len(pairs))
        for pairs in members.values()
        if pairs
    ]
    return math.fsum(gaps) / count


@given(maps, st.integers(0, 3), st.sampled_from([1, 4, 15]))
@settings(max_examples=60)
def test_random_maps_equal_a_loop(drawn, band, bins):
    probability, masks = drawn
    expected = by_loop(probability, *masks, band, bins)
    found = calibration_error(probability, *masks, band=band, bins=bins)
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert math.isnan(found) or 0 <= found <= 1


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_masks_equal_a_loop(name):
    prediction, truth = DEGENERATE[name]
    probability = np.where(prediction, 0.8, 0.1)
    expected = by_loop(probability, prediction, truth, 2, 15)
    assert calibration_error(probability, prediction, truth, band=2) == pytest.approx(expected, nan_ok=True)


def test_a_sure_and_right_network_has_no_error_and_a_sure_and_wrong_one_all():
    for truth in (SQUARE, PIXEL, BORDER):
        assert calibration_error(truth.astype(np.float32), truth, truth, band=4) == 0.0
    assert calibration_error((~SQUARE).astype(float), ~SQUARE, SQUARE, band=4) == 1.0


def test_constant_probabilities_are_off_by_their_distance_to_the_share_of_lesion():
    for value in (0.0, 0.25, 1.0):
        probability = np.full(SQUARE.shape, value)
        found = calibration_error(probability, probability > 0.5, SQUARE, band=100)
        assert found == pytest.approx(abs(value - SQUARE.mean()))


def test_background_beyond_the_band_does_not_count():
    probability = np.where(SQUARE, 0.7, 0.2)
    near = calibration_error(probability, SQUARE, SQUARE, band=2)
    wide = [np.pad(each, 100) for each in (probability, SQUARE)]
    assert calibration_error(wide[0], wide[1], wide[1], band=2) == near


def test_without_anything_marked_there_is_no_band():
    assert math.isnan(calibration_error(np.full(EMPTY.shape, 0.4), EMPTY, EMPTY, band=5))


@pytest.mark.parametrize("value", [math.nan, -0.01, 1.01, math.inf])
def test_what_is_no_probability_is_refused(value):
    probability = np.full(SQUARE.shape, 0.5)
    probability[3, 4] = value
    with pytest.raises(DataError, match=r"expected probabilities in \[0, 1\], but 1 of 768 are not, such as"):
        calibration_error(probability, SQUARE, SQUARE, band=3)


@pytest.mark.parametrize("options", [{"band": -1}, {"band": 3, "bins": 0}])
def test_a_band_or_bins_that_cannot_be_are_refused(options):
    with pytest.raises(DataError, match="expected a band of at least 0 elements and at least 1 bin"):
        calibration_error(np.full(SQUARE.shape, 0.5), SQUARE, SQUARE, **options)


def test_another_shape_is_refused():
    with pytest.raises(ShapeError, match="expected probabilities of the masks' shape"):
        calibration_error(np.zeros((2, 2)), SQUARE, SQUARE, band=3)
