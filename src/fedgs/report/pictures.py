"""Test images with outlines, small enough to live inside a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import contourpy
import numpy as np
import numpy.typing as npt
from PIL import Image

from fedgs.errors import DataError
from fedgs.report.records import Overlay
from fedgs.report.rendering import file_uri

__all__ = ["SIDE", "Picture", "Window", "outline", "picture_of", "picture_of_case"]

SIDE = 256
"""Pixels of a picture, as it is kept with a run and shown on a page."""

_MAX_OUTLINE = 30_000
_SMALLEST_WINDOW = 80

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """A square of a picture, in its pixels, that holds every outline of a case."""

    left: int
    top: int
    side: int

    @property
    def is_whole(self) -> bool:
        """True when nothing would be enlarged."""
        return self.side == SIDE


@dataclass(frozen=True, slots=True)
class Picture:
    """One case ready to be drawn.

    Attributes:
        image: Data URI of a JPEG, `SIDE` pixels square.
        truth: SVG path around the true lesions, in pixels of the image.
        predictions: SVG path per run; empty where nothing was found.
        window: The part worth enlarging, the same for all runs.
    """

    image: str
    truth: str
    predictions: Sequence[str]
    window: Window


def picture_of_case(overlays: Sequence[Overlay]) -> Picture:
    """Loads one case as all runs saw it.

    Args:
        overlays: The same case, one per run; image and truth are taken from the first.

    Raises:
        DataError: A picture cannot be read.
    """
    with _open(overlays[0].image) as image:
        return picture_of(image, _mask(overlays[0].truth), [_mask(overlay.prediction) for overlay in overlays])


def picture_of(image: Image.Image, truth: Mask, predictions: Sequence[Mask]) -> Picture:
    """Makes a case ready to be drawn.

    Args:
        image: Of any size; encoded anew, so that whatever else it carries (position, device, comments) stays behind.
        truth: (`SIDE`, `SIDE`), bool.
        predictions: The same per run.
    """
    return Picture(
        image=_data_uri(image),
        truth=outline(truth),
        predictions=[outline(prediction) for prediction in predictions],
        window=_window(np.logical_or.reduce([truth, *predictions])),
    )


def outline(mask: Mask) -> str:
    """Traces the borders of a mask.

    Args:
        mask: Foreground, (H, W), bool.

    Returns:
        Closed paths in the syntax of SVG, pixel (row, column) covering [column, column + 1) x [row, row + 1). A mask
        that is mostly noise keeps its longest borders only, so that a page stays small.

    >>> outline(np.zeros((4, 4), bool))
    ''
    """
    padded = np.pad(mask, 1).astype(np.float64)
    lines = [np.asarray(line)[:-1] - 0.5 for line in contourpy.contour_generator(z=padded).lines(0.5)]
    pieces: list[str] = []
    length = 0
    for line in sorted(lines, key=len, reverse=True):
        piece = f"M{'L'.join(f'{x:.1f} {y:.1f}' for x, y in line)}Z"
        length += len(piece)
        if pieces and length > _MAX_OUTLINE:
            break
        pieces.append(piece)
    return "".join(pieces)


def _window(mask: Mask) -> Window:
    if not mask.any():
        return Window(0, 0, SIDE)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = max(_SMALLEST_WINDOW, int(1.6 * extent))
    if side > 0.7 * SIDE:
        return Window(0, 0, SIDE)
    left, top = ((int(span[0] + span[-1] + 1) - side) // 2 for span in (columns, rows))
    return Window(min(max(left, 0), SIDE - side), min(max(top, 0), SIDE - side), side)


def _mask(path: Path) -> Mask:
    with _open(path) as image:
        grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.asarray(grey) > 127


def _data_uri(image: Image.Image) -> str:
    picture = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    Image.fromarray(np.asarray(picture)).save(stream, "JPEG", quality=88)
    return file_uri(stream.getvalue(), "image/jpeg")


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a picture that can be read ({error}); restore it from a copy") from error
    return image
