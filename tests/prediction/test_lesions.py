"""Components against scipy's, one by one; and confidence in its two cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from fedgs.prediction.lesions import confidence_of, find_lesions

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
MAPS = SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])))


@given(MAPS, st.integers(0, 6), st.booleans())
def test_what_stays_are_the_components_that_are_wanted(
    probabilities: np.ndarray, smallest: int, largest_only: bool
) -> None:
    before = probabilities.copy()
    found = find_lesions(probabilities, threshold=0.5, smallest=smallest, largest_only=largest_only)
    assert np.array_equal(probabilities, before)
    labels, count = ndimage.label(probabilities > 0.5, np.ones((3, 3, 3)))
    components = [labels == number for number in range(1, count + 1)]
    wanted = [component for component in components if component.sum() >= smallest]
    if largest_only:
        wanted = [max(wanted, key=np.sum)] if wanted else []
    expected = np.logical_or.reduce([np.zeros(probabilities.shape, bool), *wanted])
    assert np.array_equal(found.mask, expected)
    assert (found.count, found.pixels) == (len(wanted), expected.sum())


@given(MAPS)
def test_confidence_is_a_share(probabilities: np.ndarray) -> None:
    mask = find_lesions(probabilities, threshold=0.5).mask
    confidence = confidence_of(probabilities, mask)
    assert 0 <= confidence <= 1
    assert confidence >= 0.5  # nothing above a half is left unmarked
    wanted = probabilities[mask].mean() if mask.any() else 1 - probabilities.max()
    assert confidence == pytest.approx(wanted, abs=1e-6)


def test_of_equal_components_the_first_stays() -> None:
    row = np.float32([[[0.9, 0.1, 0.9]]])
    assert find_lesions(row, threshold=0.5, largest_only=True).mask.tolist() == [[[True, False, False]]]
