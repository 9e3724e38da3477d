"""Pictures with an outline around what is marked."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from fedgs.data.images import shrunk

__all__ = ["MOST_PIXELS", "draw_overlay", "fitted"]

MOST_PIXELS = 1024
"""Longer side of a picture at most; larger ones are scaled down."""

_LINE, _CASING = (47, 224, 255), (0, 0, 0)
_WIDTH = 1 / 600
"""Half the width of the line, as a share of the longer side."""


def fitted(
    picture: NDArray[np.uint8], marked: NDArray[np.bool_], most: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Scales a picture and what is marked in it down, if need be; nothing that is marked vanishes.

    Args:
        picture: (height, width, 3).
        marked: (height, width).
        most: Pixels of the longer side of the result.
    """
    scale = most / max(marked.shape)
    if scale >= 1:
        return picture, marked
    height, width = (max(1, round(side * scale)) for side in marked.shape)
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    return np.asarray(small), shrunk(marked, (height, width))


def draw_overlay(picture: NDArray[np.uint8], marked: NDArray[np.bool_]) -> bytes:
    """Draws a line around what is marked, outside of it, so that all of a small lesion can be seen.

    Args:
        picture: (height, width, 3).
        marked: (height, width).

    Returns:
        A PNG.
    """
    picture, marked = fitted(picture, marked, MOST_PIXELS)
    drawn = picture.copy()
    if marked.any():
        width = max(1, round(max(marked.shape) * _WIDTH))
        distance = ndimage.distance_transform_edt(~marked)
        drawn[(distance > 0) & (distance <= 4 * width)] = _CASING
        drawn[(distance > width) & (distance <= 3 * width)] = _LINE
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "PNG")
    return buffer.getvalue()
