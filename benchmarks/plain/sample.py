"""A training sample read and augmented image by image with Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def sample(image_file: Path, mask_file: Path, size: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Reads a frame and its mask from disk, resizes, flips, rotates and changes colours.

    Returns:
        Normalised image (3, size, size), float32, and mask (size, size), bool.
    """
    image = Image.open(image_file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    mask = Image.open(mask_file).convert("L").resize((size, size), Image.Resampling.NEAREST)
    for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        if draw.random() < 0.5:
            image, mask = image.transpose(flip), mask.transpose(flip)
    angle = draw.uniform(-90, 90)
    image = image.rotate(angle, Image.Resampling.BILINEAR)
    mask = mask.rotate(angle, Image.Resampling.NEAREST)
    if draw.random() < 0.3:
        for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = kind(image).enhance(draw.uniform(0.8, 1.2))
    pixels = (np.asarray(image, dtype=np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), torch.from_numpy(np.asarray(mask) > 127)
