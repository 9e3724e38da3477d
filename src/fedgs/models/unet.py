"""MONAI's residual U-Net in two dimensions: the small, fast network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import monai.networks.nets.unet as monai_unet
from torch import Tensor, nn

from fedgs.errors import unknown_choice
from fedgs.models.sizes import check_size

__all__ = ["UNet"]

CHANNELS = (16, 32, 64, 128, 256)

NORMS: Mapping[str, Any] = {
    "batch": "batch",
    "instance": ("instance", {"affine": True}),
    "group": ("group", {"num_groups": 8}),
}


class UNet(nn.Module):
    """A U-Net with residual units, 1.6 million parameters; returns logits.

    MONAI's network gives 16 features per pixel and a 1 x 1 convolution turns them into logits: asked for the logits
    themselves, MONAI would normalise over as many channels as there are classes on the way.

    Images are multiples of 16 pixels, because four halvings must be undone exactly to meet their skips, and at least
    32 pixels, because a deepest feature map of one pixel cannot be normalised.

    Args:
        in_channels: Of the images, for instance 3 for RGB.
        num_classes: Background included.
        norm: "batch", "instance" or "group" (8 groups); the last two keep no running statistics.

    Raises:
        ConfigError: Unknown `norm`.

    Source: Kerfoot et al., Left-Ventricle Quantification Using Residual U-Net, 2018, as implemented in MONAI.
    """

    size_multiple = 16
    minimal_size = 32

    def __init__(self, *, in_channels: int, num_classes: int = 2, norm: str = "batch") -> None:
        super().__init__()
        if not isinstance(norm, str) or norm not in NORMS:
            raise unknown_choice("norm", norm, NORMS)
        self.body = monai_unet.UNet(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=CHANNELS[0],
            channels=CHANNELS,
            strides=(2, 2, 2, 2),
            num_res_units=2,
            norm=NORMS[norm],
        )
        self.head = nn.Conv2d(CHANNELS[0], num_classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Gives logits.

        Args:
            images: (B, C, H, W), float.

        Returns:
            (B, classes, H, W).

        Raises:
            ShapeError: The network cannot take H x W.
        """
        check_size(self, *images.shape[-2:])
        logits: Tensor = self.head(self.body(images))
        return logits
