"""Images in files: a PNG mask that lies on the image as a viewer shows it.

Where a camera noted that an image is to be turned (EXIF), image and mask are upright: the mask has the width and height
that a viewer shows, and no note of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgs.data.images import IMAGE_SUFFIXES, read_image, read_mask, resize_image, with_channels
from fedgs.errors import DataError
from fedgs.prediction.kind import Found, Kind, Mask, Probabilities, Reading

__all__ = ["IMAGES", "ImageReading"]

_MOST_PROBABLE = 2**16 - 1


@dataclass(frozen=True, slots=True)
class ImageReading:
    """An image as the network sees it; its own pixels are read again where they are to be shown."""

    path: Path
    shape: tuple[int, int, int]
    frame: NDArray[np.uint8]
    spacing_mm: None = None

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Gives the one slice."""
        yield self.frame

    def view(self, mask: Mask) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Gives the whole image."""
        return with_channels(read_image(self.path), 3), mask[0]


def _find(files: Sequence[Path]) -> list[Found]:
    return [Found(path, (path,), path.stem) for path in files if path.suffix.lower() in IMAGE_SUFFIXES]


def _read(path: Path, size: int, channels: int) -> ImageReading:
    """Reads an image as an index does, see `fedgs.data.cache.write_case`."""
    image = read_image(path)
    height, width, found = image.shape
    if found > channels:
        raise DataError(f"{path}: is a colour image, the run's network takes grey ones; convert it to grey first")
    return ImageReading(path, (1, height, width), with_channels(resize_image(image, size), channels))


def _encode_mask(_: Reading, mask: Mask) -> bytes:
    return _png(mask[0].astype(np.uint8) * 255)


def _encode_probabilities(_: Reading, probabilities: Probabilities) -> bytes:
    return _png(np.rint(probabilities[0] * _MOST_PROBABLE).astype(np.uint16), compress_level=1)


def _decode_mask(path: Path) -> Mask:
    return read_mask(path)[np.newaxis]


def _png(pixels: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


IMAGES = Kind(
    name="images",
    suffixes=IMAGE_SUFFIXES,
    mask_suffix=".png",
    probability_suffix=".png",
    find=_find,
    read=_read,
    encode_mask=_encode_mask,
    encode_probabilities=_encode_probabilities,
    decode_mask=_decode_mask,
)
