"""FedDis: the shape of an anatomy is shared between hospitals, its appearance is not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

from fedgs.errors import ConfigError
from fedgs.models.sizes import check_size

__all__ = ["Decoder", "Encoder", "FedDis", "FedDisOutput", "FedDisServer", "FedDisServerOutput"]

_LEAKY = "LEAKYRELU"
_SOFTMAX = ("SOFTMAX", {"dim": 1})


class FedDisOutput(NamedTuple):
    """What a forward pass of the site's network gives.

    Attributes:
        segmentation: Probabilities, (B, classes, H, W).
        reconstruction: The image made again from its shape and appearance, (B, C, H, W), in (-1, 1).
        shape_code: (B, 4 w, H / 8, W / 8), where w is the width of the shape encoder.
        appearance_code: (B, w, H / 8, W / 8).
        unused: Always None; it keeps the positions of the published implementation.
        projected_shape_code: (B, w, H / 8, W / 8), to be unlike the appearance.
    """

    segmentation: Tensor
    reconstruction: Tensor
    shape_code: Tensor
    appearance_code: Tensor
    unused: None
    projected_shape_code: Tensor


class FedDisServerOutput(NamedTuple):
    """What a forward pass of the server's network gives, as `FedDisOutput`; the reconstruction is from shape alone."""

    segmentation: Tensor
    reconstruction: Tensor
    shape_code: Tensor


def _block(in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    settings = {"kernel_size": 5, "strides": 2, "norm": "BATCH", "act": _LEAKY} | options
    block: nn.Module = Convolution(2, in_channels, out_channels, **settings)
    return block


class Encoder(nn.Sequential):
    """Convolutions that halve the size and end in the given widths."""

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__(*(_block(*channels) for channels in pairwise((in_channels, *widths))))


class Decoder(nn.Sequential):
    """Transposed convolutions over the widths reversed, of which the first keeps its width, and a pointwise one."""

    def __init__(self, widths: Sequence[int], out_channels: int, activation: Any) -> None:
        steps = pairwise((widths[-1], *reversed(widths)))
        final = _block(widths[0], out_channels, kernel_size=1, strides=1, norm="INSTANCE", act=activation)
        super().__init__(*(_block(*channels, is_transposed=True) for channels in steps), final)


def _widths(base: int) -> tuple[int, int, int]:
    if base < 1:
        raise ConfigError(f"feddis: expected base_channels of at least 1, got {base}")
    return base, 2 * base, 4 * base


class FedDisServer(nn.Module):
    """The part of FedDis that travels: shape encoder, its decoder, and the segmentation decoder.

    Height and width are multiples of 8 pixels and at least 16.

    Args:
        in_channels: Of the images, for instance 3 for RGB.
        num_classes: Background included.
        base_channels: Width of the shape encoder's first level; it doubles twice.

    Raises:
        ConfigError: `base_channels` is below 1.

    Source: Bercea et al., Federated disentangled representation learning for unsupervised brain anomaly detection,
    Nature Machine Intelligence 2022, in the form that the FedGS publication compares with.
    """

    size_multiple, minimal_size = 8, 16

    def __init__(self, *, in_channels: int, num_classes: int = 2, base_channels: int = 128) -> None:
        super().__init__()
        widths = _widths(base_channels)
        self.shape_encoder = Encoder(in_channels, widths)
        self.shape_decoder = Decoder(widths, in_channels, "TANH")
        self.segmentation_decoder = Decoder(widths, num_classes, _SOFTMAX)

    def segment(self, images: Tensor) -> Tensor:
        """Gives probabilities, (B, classes, H, W), by the shape alone."""
        check_size(self, *images.shape[-2:])
        segmentation: Tensor = self.segmentation_decoder(self.shape_encoder(images))
        return segmentation

    def content(self, images: Tensor) -> Tensor:
        """Gives the code of the shape of images, (B, 4 * base_channels, H / 8, W / 8)."""
        shape: Tensor = self.shape_encoder(images)
        return shape

    def forward(self, images: Tensor) -> FedDisServerOutput:
        """Segments images, (B, C, H, W), and makes them again from their shape.

        Raises:
            ShapeError: The network cannot take H x W.
        """
        check_size(self, *images.shape[-2:])
        shape = self.shape_encoder(images)
        return FedDisServerOutput(self.segmentation_decoder(shape), self.shape_decoder(shape), shape)


class FedDis(nn.Module):
    """The network of a site in FedDis, 26.4 million parameters at full width: a code of shape and one of appearance.

    Height and width are multiples of 8 pixels and at least 16.

    Args:
        in_channels: Of the images, for instance 3 for RGB.
        num_classes: Background included.
        base_channels: Width of the shape encoder's first level, a multiple of 4; it doubles twice. The appearance
            encoder is a quarter as wide.

    Raises:
        ConfigError: `base_channels` is no positive multiple of 4.

    Source: As for `FedDisServer`.
    """

    size_multiple, minimal_size = 8, 16
    site_parts = ("appearance_encoder", "appearance_decoder", "merger", "projector")
    """What a site keeps for itself when shape is shared."""

    def __init__(self, *, in_channels: int, num_classes: int = 2, base_channels: int = 128) -> None:
        super().__init__()
        if base_channels % 4:
            raise ConfigError(f"feddis: expected base_channels to be a multiple of 4, got {base_channels}")
        shape, appearance = _widths(base_channels), _widths(base_channels // 4)
        self.shape_encoder = Encoder(in_channels, shape)
        self.appearance_encoder = Encoder(in_channels, appearance)
        self.shape_decoder = Decoder(shape, in_channels, _LEAKY)
        self.appearance_decoder = Decoder(appearance, in_channels, _LEAKY)
        self.segmentation_decoder = Decoder(shape, num_classes, _SOFTMAX)
        self.merger = nn.Conv2d(2 * in_channels, in_channels, 1)
        self.projector = nn.Conv2d(shape[-1], appearance[-1], 1)

    def segment(self, images: Tensor) -> Tensor:
        """Gives probabilities, (B, classes, H, W), by the shape alone."""
        check_size(self, *images.shape[-2:])
        segmentation: Tensor = self.segmentation_decoder(self.shape_encoder(images))
        return segmentation

    def content(self, images: Tensor) -> Tensor:
        """Gives the code of the shape of images, (B, 4 * base_channels, H / 8, W / 8)."""
        shape: Tensor = self.shape_encoder(images)
        return shape

    def mean_style(self, images: Tensor, content: Tensor) -> Tensor:
        """Gives the code of the appearance of images, (B, base_channels, H / 8, W / 8), whatever their shape."""
        appearance: Tensor = self.appearance_encoder(images)
        return appearance

    def render(self, content: Tensor, style: Tensor) -> Tensor:
        """Makes images, (B, C, H, W), in (-1, 1), of the codes of shape and appearance."""
        both = torch.cat((self.shape_decoder(content), self.appearance_decoder(style)), dim=1)
        return torch.tanh(self.merger(both))

    def forward(self, images: Tensor) -> FedDisOutput:
        """Takes images, (B, C, H, W), apart and makes them again.

        Raises:
            ShapeError: The network cannot take H x W.
        """
        check_size(self, *images.shape[-2:])
        shape = self.content(images)
        appearance = self.mean_style(images, shape)
        reconstruction = self.render(shape, appearance)
        segmentation = self.segmentation_decoder(shape)
        return FedDisOutput(segmentation, reconstruction, shape, appearance, None, self.projector(shape))
