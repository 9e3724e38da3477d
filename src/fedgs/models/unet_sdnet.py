"""The U-Net of SDNet: wide, with biases, and nearest upsampling to the size of each skip."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgs.errors import ConfigError
from fedgs.models.recompute import run_stage
from fedgs.models.sizes import check_batch, check_size

__all__ = ["SDNetUNet"]


def conv_norm(in_channels: int, out_channels: int, kernel: int = 3) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Makes a convolution that keeps the size, and the batch norm behind it."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2), nn.BatchNorm2d(out_channels)


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    first, second = conv_norm(in_channels, out_channels), conv_norm(out_channels, out_channels)
    return nn.Sequential(*first, nn.ReLU(inplace=True), *second, nn.ReLU(inplace=True))


def _halved(channels: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(channels, channels // 2))


class Bottleneck(nn.Module):
    """Twice (ReLU, 3 x 3 convolution, batch norm), added to (ReLU, 1 x 1 convolution, batch norm)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.ReLU(), *conv_norm(in_channels, out_channels))
        self.second = nn.Sequential(nn.ReLU(inplace=True), *conv_norm(out_channels, out_channels))
        self.shortcut = nn.Sequential(nn.ReLU(), *conv_norm(in_channels, out_channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H, W)."""
        mixed: Tensor = self.second(self.first(features)) + self.shortcut(features)
        return mixed


class SDNetUNet(nn.Module):
    """The U-Net that SDNet takes its content from, 35.1 million parameters at full width; returns logits.

    Any height and width of at least 16 pixels, which four halvings leave one of; a single image below 32 cannot be
    trained on.

    Args:
        in_channels: Of the images, for instance 3 for RGB.
        num_classes: Background included.
        base_channels: Width of the first level; it doubles four times.
        recompute: Compute every level again in the backward pass rather than keep its activations.

    Raises:
        ConfigError: `base_channels` is below 1.

    Source: Chartsias et al., Disentangled representation learning in cardiac image analysis, Medical Image Analysis
    2019, in the form of the FedGS publication.
    """

    size_multiple = 1
    minimal_size = 16
    deepest_stride = 16
    """Pixels to a side of one of the deepest features, which batch norm cannot take one of alone."""

    def __init__(
        self, *, in_channels: int, num_classes: int = 2, base_channels: int = 64, recompute: bool = False
    ) -> None:
        super().__init__()
        if base_channels < 1:
            raise ConfigError(f"unet_sdnet: expected base_channels of at least 1, got {base_channels}")
        b = base_channels
        self._run = partial(run_stage, recompute=recompute)
        self.down1, self.down2 = _double(in_channels, b), _double(b, 2 * b)
        self.down3, self.down4 = _double(2 * b, 4 * b), _double(4 * b, 8 * b)
        self.bottleneck = Bottleneck(8 * b, 16 * b)
        self.project1, self.merge1 = _halved(16 * b), _double(16 * b, 8 * b)
        self.project2, self.merge2 = _halved(8 * b), _double(8 * b, 4 * b)
        self.project3, self.merge3 = _halved(4 * b), _double(4 * b, 2 * b)
        self.project4, self.merge4 = _halved(2 * b), _double(2 * b, b)
        self.head = nn.Conv2d(b, num_classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Gives logits.

        Args:
            images: (B, C, H, W), float.

        Returns:
            (B, classes, H, W).

        Raises:
            ShapeError: H or W is below 16 pixels, or a single image below 32 is trained on.
        """
        check_size(self, *images.shape[-2:])
        if self.training:
            check_batch(self, len(images), images.shape[-2:])
        full = self._run(self.down1, images)
        half = self._run(self.down2, functional.max_pool2d(full, 2))
        quarter = self._run(self.down3, functional.max_pool2d(half, 2))
        eighth = self._run(self.down4, functional.max_pool2d(quarter, 2))
        features = self.bottleneck(functional.max_pool2d(eighth, 2))
        for project, merge, skip in (
            (self.project1, self.merge1, eighth),
            (self.project2, self.merge2, quarter),
            (self.project3, self.merge3, half),
            (self.project4, self.merge4, full),
        ):
            upsampled = project(functional.interpolate(features, size=skip.shape[-2:], mode="nearest"))
            features = self._run(merge, torch.cat((upsampled, skip), dim=1))
        logits: Tensor = self.head(features)
        return logits
