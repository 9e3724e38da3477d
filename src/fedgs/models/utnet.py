"""UTNet: a U-Net whose deeper levels attend to a coarse grid of the whole image."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgs.errors import ConfigError
from fedgs.models.recompute import run_stage
from fedgs.models.sizes import check_batch, check_size

__all__ = [
    "AttentionBlock",
    "AttentionUp",
    "CrossAttention",
    "PlainUp",
    "RelativePositionBias",
    "ResidualBlock",
    "SelfAttention",
    "SeparableConv",
    "UTNet",
    "attend",
]


def resize(features: Tensor, height: int, width: int) -> Tensor:
    """Resizes (B, C, h, w) to (B, C, height, width), bilinear with aligned corners."""
    if features.shape[-2:] == (height, width):
        return features
    return functional.interpolate(features, size=(height, width), mode="bilinear", align_corners=True)


class ResidualBlock(nn.Module):
    """Twice (batch norm, ReLU, 3 x 3 convolution), added to a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.shortcut = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), projection)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H, W)."""
        hidden: Tensor = self.conv1(functional.relu(self.norm1(features), inplace=True))
        # Sums go into the output of a convolution, which no backward pass needs: at full size a fresh tensor costs more
        # than the addition.
        hidden = self.conv2(functional.relu(self.norm2(hidden), inplace=True))
        return hidden.add_(self.shortcut(features))


class SeparableConv(nn.Module):
    """A depthwise 3 x 3 convolution, then a pointwise one, without biases."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H, W)."""
        mixed: Tensor = self.pointwise(self.depthwise(features))
        return mixed


class RelativePositionBias(nn.Module):
    """A learned bias per head for every offset between the cells of a grid x grid partition of the image.

    Attributes:
        table: ((2 * grid - 1)^2, heads), the learned values.
        index: (grid^2, grid^2), int64: the row of the table for a query's cell and a key's cell, where the cells are
            numbered row by row; (dy + grid - 1) * (2 * grid - 1) + dx + grid - 1 for query cell minus key cell.
    """

    index: Tensor

    def __init__(self, heads: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(0.02 * torch.randn((2 * grid - 1) ** 2, heads))
        cell = torch.arange(grid * grid)
        row, column = cell // grid, cell % grid
        dy, dx = row[:, None] - row[None, :], column[:, None] - column[None, :]
        self.register_buffer("index", (dy + grid - 1) * (2 * grid - 1) + dx + grid - 1)

    def forward(self, height: int, width: int) -> Tensor:
        """Gives the bias of every query pixel, which is the one of the cell that contains it.

        Args:
            height: Of the queries' feature map, a multiple of the grid.
            width: Likewise.

        Returns:
            (heads, height * width, grid^2), keys last.
        """
        grid, heads = self.grid, self.table.shape[1]
        of_cells = self.table.index_select(0, self.index.flatten()).t()
        of_cells = of_cells.reshape(heads, grid, 1, grid, 1, grid * grid)
        of_pixels = of_cells.expand(heads, grid, height // grid, grid, width // grid, grid * grid)
        return of_pixels.reshape(heads, height * width, grid * grid)


def _heads_apart(features: Tensor, heads: int) -> Tensor:
    batch, channels, height, width = features.shape
    return features.reshape(batch, channels // heads, heads, height * width).permute(0, 2, 3, 1)


def attend(queries: Tensor, keys_and_values: Tensor, position_bias: RelativePositionBias) -> Tensor:
    """Lets every pixel look at a grid x grid summary of the image.

    softmax((q k^T + bias) / sqrt(dim_head)) v, per head, where the bias is scaled too.

    Args:
        queries: (B, dim_head * heads, H, W), the heads being the fast axis of the channels.
        keys_and_values: (B, 2 * dim_head * heads, h, w), the keys first; resized to the grid unless of that size.
        position_bias: Also tells the number of heads and the size of the grid.

    Returns:
        (B, dim_head * heads, H, W).
    """
    height, width = queries.shape[-2:]
    heads, grid = position_bias.table.shape[1], position_bias.grid
    keys, values = resize(keys_and_values, grid, grid).chunk(2, dim=1)
    q, k, v = (_heads_apart(part, heads) for part in (queries, keys, values))
    # Written out rather than fused: with at most grid^2 keys nothing large is saved, the fused kernel is not faster on
    # a CPU, and its other rounding alone moves outputs in evaluation beyond the tolerance of the published numbers.
    scale = q.shape[-1] ** -0.5
    weights = (q @ (k.transpose(2, 3) * scale) + position_bias(height, width) * scale).softmax(dim=-1)
    attended: Tensor = weights.to(v.dtype) @ v
    return attended.permute(0, 3, 1, 2).reshape(queries.shape)


class SelfAttention(nn.Module):
    """Attention of a feature map to a coarse grid of itself."""

    def __init__(self, channels: int, heads: int, grid: int) -> None:
        super().__init__()
        self.channels = channels
        self.to_qkv = SeparableConv(channels, 3 * channels)
        self.to_out = SeparableConv(channels, channels)
        self.position_bias = RelativePositionBias(heads, grid)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to the same shape; H and W are multiples of the grid."""
        queries, keys_and_values = self.to_qkv(features).split((self.channels, 2 * self.channels), dim=1)
        attended: Tensor = self.to_out(attend(queries, keys_and_values, self.position_bias))
        return attended


class CrossAttention(nn.Module):
    """Attention of a skip connection to a coarse grid of the level below."""

    def __init__(self, low_channels: int, channels: int, heads: int, grid: int) -> None:
        super().__init__()
        self.to_kv = SeparableConv(low_channels, 2 * channels)
        self.to_q = SeparableConv(channels, channels)
        self.to_out = SeparableConv(channels, channels)
        self.position_bias = RelativePositionBias(heads, grid)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        """Maps low (B, low_channels, h, w) and skip (B, channels, H, W) to the shape of skip."""
        attended: Tensor = self.to_out(attend(self.to_q(skip), self.to_kv(low), self.position_bias))
        return attended


class AttentionBlock(nn.Module):
    """Self-attention and a pointwise layer, each behind batch norm and added to its input."""

    def __init__(self, channels: int, heads: int, grid: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.attention = SelfAttention(channels, heads, grid)
        self.mlp_norm = nn.BatchNorm2d(channels)
        self.mlp = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to the same shape."""
        attended = self.attention(self.norm(features)).add_(features)
        mixed: Tensor = self.mlp(functional.relu(self.mlp_norm(attended), inplace=True))
        return mixed.add_(attended)


class AttentionUp(nn.Module):
    """One level up: the skip attends to the level below, then both are merged."""

    def __init__(self, low_channels: int, channels: int, heads: int, grid: int) -> None:
        super().__init__()
        self.low_norm = nn.BatchNorm2d(low_channels)
        self.skip_norm = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(low_channels, channels, 1)
        self.attention = CrossAttention(low_channels, channels, heads, grid)
        self.mlp_norm = nn.BatchNorm2d(channels)
        self.mlp = nn.Conv2d(channels, channels, 1, bias=False)
        self.merge = ResidualBlock(2 * channels, channels)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        """Maps low (B, low_channels, h, w) and skip (B, channels, H, W) to the shape of skip."""
        residual = resize(self.project(low), *skip.shape[-2:])
        attended = self.attention(self.low_norm(low), self.skip_norm(skip)).add_(residual)
        mixed = self.mlp(functional.relu(self.mlp_norm(attended), inplace=True)).add_(attended)
        merged: Tensor = self.merge(torch.cat((mixed, skip), dim=1))
        return merged


class PlainUp(nn.Module):
    """One level up without attention: upsampling, concatenation, two residual blocks."""

    def __init__(self, low_channels: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(low_channels, channels, 1)
        self.merge = nn.Sequential(ResidualBlock(2 * channels, channels), ResidualBlock(channels, channels))

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        """Maps low (B, low_channels, h, w) and skip (B, channels, H, W) to the shape of skip."""
        # Projecting first gives the same numbers as resizing first, on a quarter of the pixels.
        upsampled = resize(self.project(low), *skip.shape[-2:])
        merged: Tensor = self.merge(torch.cat((skip, upsampled), dim=1))
        return merged


def _attention_down(in_channels: int, out_channels: int, *, depth: int, heads: int, grid: int) -> nn.Sequential:
    blocks = (AttentionBlock(out_channels, heads, grid) for _ in range(depth))
    return nn.Sequential(nn.MaxPool2d(2), ResidualBlock(in_channels, out_channels), *blocks)


class UTNet(nn.Module):
    """U-Net with efficient attention; 14.4 million parameters at full width; returns logits.

    Height and width of the images are multiples of 16 * reduce_size pixels, 128 by default, because each of the
    feature maps that attend, down to a sixteenth of the image, is divided into reduce_size x reduce_size cells.

    Args:
        in_channels: Of the images, for instance 3 for RGB.
        num_classes: Background included.
        base_channels: Width of the first level; it doubles four times.
        reduce_size: Cells per side of the grid that keys and values are resized to.
        recompute: Compute every level again in the backward pass rather than keep its activations.

    Raises:
        ConfigError: `base_channels` or `reduce_size` is below 1.

    Source: Gao et al., UTNet: A Hybrid Transformer Architecture for Medical Image Segmentation, MICCAI 2021.
    """

    deepest_stride = 16
    """Pixels to a side of one of the deepest features, which batch norm cannot take one of alone."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int = 2,
        base_channels: int = 32,
        reduce_size: int = 8,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if base_channels < 1 or reduce_size < 1:
            raise ConfigError(
                f"UTNet: expected base_channels and reduce_size of at least 1, got {base_channels} and {reduce_size}"
            )
        b, grid = base_channels, reduce_size
        self.size_multiple = self.minimal_size = 16 * grid
        self._run = partial(run_stage, recompute=recompute)
        self.stem = nn.Sequential(ResidualBlock(in_channels, b), ResidualBlock(b, b))
        self.down1 = nn.Sequential(nn.MaxPool2d(2), ResidualBlock(b, 2 * b), ResidualBlock(2 * b, 2 * b))
        self.down2 = _attention_down(2 * b, 4 * b, depth=1, heads=2, grid=grid)
        self.down3 = _attention_down(4 * b, 8 * b, depth=2, heads=4, grid=grid)
        self.down4 = _attention_down(8 * b, 16 * b, depth=4, heads=8, grid=grid)
        self.up1 = AttentionUp(16 * b, 8 * b, heads=8, grid=grid)
        self.up2 = AttentionUp(8 * b, 4 * b, heads=4, grid=grid)
        self.up3 = PlainUp(4 * b, 2 * b)
        self.up4 = PlainUp(2 * b, b)
        self.head = nn.Conv2d(b, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Gives logits.

        Args:
            images: (B, C, H, W), float.

        Returns:
            (B, classes, H, W).

        Raises:
            ShapeError: The network cannot take H x W, or a single image below 32 pixels is trained on.
        """
        check_size(self, *images.shape[-2:])
        if self.training:
            check_batch(self, len(images), images.shape[-2:])
        full = self._run(self.stem, images)
        half = self._run(self.down1, full)
        quarter = self._run(self.down2, half)
        eighth = self._run(self.down3, quarter)
        features = self._run(self.up1, self._run(self.down4, eighth), eighth)
        features = self._run(self.up3, self._run(self.up2, features, quarter), half)
        features = self._run(self.up4, features, full)
        logits: Tensor = self.head(features)
        return logits
