"""What happens to an image before the network, and to its answer after it, as a run does both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgs.data.augment import GREY_MEAN, GREY_STD, RGB_MEAN, RGB_STD, normalise
from fedgs.data.images import resize_image

__all__ = ["THRESHOLD", "Preprocessing"]

THRESHOLD = 0.5
"""A pixel is lesion where its probability, at the size of the image, is above this."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From images as they are stored to what the network takes.

    Attributes:
        size: Height and width in pixels that images are resized to.
        channels: 3 for RGB, 1 for grey.
    """

    size: int
    channels: int

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel, of levels from 0 to 1."""
        return (RGB_MEAN, RGB_STD) if self.channels == 3 else (GREY_MEAN, GREY_STD)

    def apply(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Gives images, each (H, W, 1 or C), uint8, as (B, C, size, size), float32."""
        frames = [np.broadcast_to(resize_image(image, self.size), self.shape) for image in images]
        return normalise(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image before it is normalised, channels last."""
        return self.size, self.size, self.channels

    def describe(self) -> dict[str, Any]:
        """Gives what JSON can hold: everything that is needed to do the same elsewhere."""
        mean, deviation = self.statistics
        return {
            "input": {
                "name": "images",
                "layout": "batch, channel, row, column",
                "shape": ["batch", self.channels, self.size, self.size],
                "type": "float32",
                "channel_order": "RGB" if self.channels == 3 else "grey",
            },
            "resize": {
                "height": self.size,
                "width": self.size,
                "keep_aspect_ratio": False,
                "rule": "bilinear with antialiasing, rounded to whole levels after each direction, as Pillow's "
                "Image.resize(size, BILINEAR) of 8-bit images",
            },
            "scale": {"divide_by": 255, "then_subtract_mean": list(mean), "then_divide_by": list(deviation)},
            "output": {
                "name": "probabilities",
                "meaning": "probability per class after the softmax; they sum to 1",
                "classes": ["background", "lesion"],
            },
            "mask": {
                "resize": "the lesion's probability, bilinear without aligned corners, to the image's own size",
                "threshold": THRESHOLD,
                "rule": "lesion where the probability is above the threshold",
            },
        }
