"""Pairs of masks that tests of the metrics draw from: random ones and those where something degenerates."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

EMPTY = np.zeros((24, 32), bool)


def box(*sides: slice, shape: tuple[int, ...] = EMPTY.shape) -> Mask:
    mask = np.zeros(shape, bool)
    mask[sides] = True
    return mask


PIXEL = box(slice(7, 8), slice(9, 10))
SQUARE = box(slice(5, 12), slice(6, 14))
BORDER = box(slice(0, 6), slice(20, 32))
TWO = SQUARE | box(slice(5, 12), slice(17, 24))
MERGED = box(slice(5, 12), slice(6, 24))

DEGENERATE = {
    "both empty": (EMPTY, EMPTY),
    "truth empty": (SQUARE, EMPTY),
    "prediction empty": (EMPTY, SQUARE),
    "equal": (SQUARE, SQUARE),
    "everything": (~EMPTY, ~EMPTY),
    "everything predicted": (~EMPTY, PIXEL),
    "apart": (BORDER, SQUARE),
    "one pixel": (PIXEL, PIXEL),
    "one pixel beside another": (PIXEL, np.roll(PIXEL, 1, axis=1)),
    "one pixel in a lesion": (SQUARE, PIXEL),
    "on the border": (BORDER, box(slice(0, 8), slice(22, 32))),
    "in the corner": (box(slice(23, 24), slice(31, 32)), box(slice(22, 24), slice(30, 32))),
    "lesions merge": (MERGED, TWO),
    "a lesion falls to pieces": (TWO, MERGED),
    "touching at a corner": (box(slice(0, 4), slice(0, 4)) | box(slice(4, 8), slice(4, 8)), SQUARE),
    "lines": (box(slice(3, 4), slice(0, 32)), box(slice(0, 24), slice(5, 6))),
}
"""A prediction and a truth by what is odd about them."""


def _pair(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[Mask, Mask]]:
    sparse = arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(False))
    rectangles = st.lists(
        st.tuples(*(st.tuples(st.integers(0, side - 1), st.integers(1, side)) for side in shape)), max_size=4
    ).map(lambda corners: _union(shape, corners))
    masks = st.one_of(sparse, rectangles)
    return st.tuples(masks, masks)


def _union(shape: tuple[int, ...], corners: list[tuple[tuple[int, int], ...]]) -> Mask:
    mask = np.zeros(shape, bool)
    for sides in corners:
        mask[tuple(slice(start, start + length) for start, length in sides)] = True
    return mask


images = array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(_pair)
"""Pairs of masks, (H, W)."""

anything = array_shapes(min_dims=2, max_dims=3, max_side=8).flatmap(_pair)
"""Pairs of masks, (H, W) or (D, H, W)."""
