"""Pillow's bilinear reduction of 8-bit images, in operations that TorchScript knows.

A run resizes its images by Pillow, which rounds to whole levels after the rows and again after the columns. A network
that leaves this package has no Pillow beside it, and every other library rounds otherwise; so the integer arithmetic is
done again here, to the bit. Pillow's weights are whole multiples of 2^-22.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedgs.data.images import resize_image

__all__ = ["reduces_tall_first", "resize_like_pillow"]


def taps_like_pillow(pixels: int, size: int) -> tuple[Tensor, Tensor]:
    """Gives which pixels of a side are averaged into each pixel of the result, and with which weights.

    Args:
        pixels: Of the side.
        size: Of the result's side.

    Returns:
        Positions and weights, (size, taps), int64 and int32; a weight is a multiple of 2^-22, and 0 beyond the side.
    """
    scale = float(pixels) / float(size)
    support = max(scale, 1.0)
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    first = (centre - support + 0.5).floor().clamp(min=0.0)
    end = (centre + support + 0.5).floor().clamp(max=float(pixels))
    taps = math.ceil(support) * 2 + 1
    weights: list[Tensor] = []
    for tap in range(taps):
        weight = 1.0 - ((first + float(tap) - centre + 0.5) * (1.0 / support)).abs()
        weights.append(torch.where(first + float(tap) < end, weight.clamp(min=0.0), torch.zeros_like(weight)))
    total = torch.zeros_like(centre)
    for weight in weights:  # one after the other, as Pillow adds them: another order rounds otherwise
        total = total + weight
    shares = (torch.stack(weights, 1) / total[:, None] * 4194304.0 + 0.5).floor().to(torch.int32)
    positions = (first[:, None] + torch.arange(taps, dtype=torch.float64)).clamp(max=float(pixels - 1))
    return positions.to(torch.int64), shares


def averaged(levels: Tensor, size: int, dim: int) -> Tensor:
    """Resizes one side of whole levels, and rounds to whole levels."""
    positions, shares = taps_like_pillow(levels.size(dim), size)
    positions, shares = positions.to(levels.device), shares.to(levels.device)
    along = [1] * levels.dim()
    along[dim] = size
    total = torch.zeros([1], dtype=torch.int32, device=levels.device) + 2097152
    for tap in range(positions.size(1)):
        total = total + levels.index_select(dim, positions[:, tap]) * shares[:, tap].reshape(along)
    return (total >> 22).clamp(0, 255)


def resize_like_pillow(levels: Tensor, size: int, tall_first: bool) -> Tensor:
    """Resizes images to a square as `fedgs.data.images.resize_image` does.

    Args:
        levels: (B, C, H, W), int32, from 0 to 255.
        size: Height and width of the result in pixels.
        tall_first: Whether tall images are made less high first, see `reduces_tall_first`.

    Returns:
        (B, C, size, size), int32.
    """
    height, width = levels.size(2), levels.size(3)
    if tall_first and height > size and height - size > 2 * (width - size):
        return averaged(averaged(levels, size, 2), size, 3)
    return averaged(averaged(levels, size, 3), size, 2)


def reduces_tall_first() -> bool:
    """Whether the Pillow that is installed makes tall images less high before they are made less wide.

    Newer versions do; each pass rounds to whole levels, so the order shows.
    """
    image = (np.arange(64 * 16) * 37 % 251).astype(np.uint8).reshape(64, 16, 1)
    levels = torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.int32)
    expected = torch.from_numpy(resize_image(image, 12).copy()).permute(2, 0, 1)[None]
    return torch.equal(resize_like_pillow(levels, 12, True).to(torch.uint8), expected)
