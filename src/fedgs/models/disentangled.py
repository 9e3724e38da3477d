"""What SDNet and SD-UTNet have in common: an image is taken apart into spatial content and a vector of style.

The content (anatomy) has the image's size and says where things are; the style (modality, scanner) is a short vector
that says what they look like. The segmentation is made from the content alone.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgs.errors import ShapeError
from fedgs.models.recompute import run_stage
from fedgs.models.sizes import check_batch, check_size

__all__ = [
    "AdaIN",
    "ContentNetwork",
    "ContentOutput",
    "Disentangled",
    "DisentangledOutput",
    "Segmentor",
    "Style",
    "StyleDecoder",
    "StyleEncoder",
]

CONTENT_CHANNELS = 8
STYLE_VALUES = 8


class DisentangledOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
        segmentation: Probabilities, (B, classes, H, W).
        reconstruction: The image made again from its content and style, (B, C, H, W), in (-1, 1).
        z: Style, (B, 8), drawn around `mu`, also in evaluation.
        z_again: Style of the reconstruction, (B, 8); None in evaluation.
        mu: Mean of the style, (B, 8).
        logvar: Logarithm of its variance, (B, 8).
    """

    segmentation: Tensor
    reconstruction: Tensor
    z: Tensor
    z_again: Tensor | None
    mu: Tensor
    logvar: Tensor


class Style(NamedTuple):
    """A style that was drawn, its mean, and the logarithm of its variance; (B, 8) each."""

    z: Tensor
    mu: Tensor
    logvar: Tensor


def _halving(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2, inplace=True))


class StyleEncoder(nn.Module):
    """Four strided convolutions and a linear layer, which fixes the size of the images.

    Args:
        in_channels: Of the input.
        height: Of the input, in pixels.
        width: Likewise.
    """

    def __init__(self, in_channels: int, height: int, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = _halving(in_channels, 16), _halving(16, 32)
        self.down3, self.down4 = _halving(32, 64), _halving(64, 128)
        self.hidden = nn.Linear(128 * -(-height // 16) * -(-width // 16), 32)
        self.norm = nn.BatchNorm1d(32)
        self.mu = nn.Linear(32, STYLE_VALUES)
        self.logvar = nn.Linear(32, STYLE_VALUES)

    def forward(self, features: Tensor) -> Style:
        """Maps (B, in_channels, H, W) to a style drawn from torch's generator."""
        for down in (self.down1, self.down2, self.down3, self.down4):
            features = down(features)
        # The linear layer counts positions channel by channel, whatever the memory format.
        hidden = functional.leaky_relu(self.norm(self.hidden(features.flatten(1))), 0.03)
        mu, logvar = self.mu(hidden).float(), self.logvar(hidden).float()
        deviation = (logvar / 2).exp()
        return Style(mu + deviation * torch.randn_like(deviation), mu, logvar)


class AdaIN(nn.Module):
    """Instance normalisation whose shift and scale are given per sample.

    The buffers are never used; published checkpoints have them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Maps (B, C, H, W), with shift and scale (B, C), to the same shape."""
        normalised = functional.instance_norm(features)
        return normalised * scale[:, :, None, None] + shift[:, :, None, None]


class StyleDecoder(nn.Module):
    """Renders an image from content and style, which sets shift and scale of three normalisations.

    Args:
        out_channels: Of the images.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        c = CONTENT_CHANNELS
        self.hidden1, self.hidden2 = nn.Linear(STYLE_VALUES, 256), nn.Linear(256, 256)
        self.to_norms = nn.Linear(256, 3 * 2 * c)
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, out_channels, 3, padding=1)
        self.adain1, self.adain2, self.adain3 = AdaIN(c), AdaIN(c), AdaIN(c)

    def forward(self, content: Tensor, z: Tensor) -> Tensor:
        """Maps content (B, 8, H, W) and style (B, 8) to images (B, out_channels, H, W) in (-1, 1)."""
        hidden = z
        for layer in (self.hidden1, self.hidden2, self.to_norms):
            hidden = functional.relu(layer(hidden))
        shift1, scale1, shift2, scale2, shift3, scale3 = hidden.chunk(6, dim=1)
        features = self.adain1(self.conv1(content), shift1, scale1)
        features = self.adain2(self.conv2(features), shift2, scale2)
        features = self.adain3(self.conv3(features), shift3, scale3)
        return torch.tanh(self.conv4(features))


class Segmentor(nn.Module):
    """From content to probabilities, by two convolutions and a pointwise one."""

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, width, 3, padding=1) for channels in (CONTENT_CHANNELS, width))
        self.conv1 = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(second, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, content: Tensor) -> Tensor:
        """Maps (B, 8, H, W) to probabilities (B, classes, H, W), float32 also where activations are not."""
        logits: Tensor = self.head(self.conv2(self.conv1(content)))
        return logits.float().softmax(dim=1)


class ContentOutput(NamedTuple):
    """Probabilities, (B, classes, H, W), and the content that they are made from, (B, 8, H, W)."""

    segmentation: Tensor
    content: Tensor


class ContentNetwork(nn.Module):
    """The part of a disentangled network that travels: content encoder and segmentor.

    Args:
        content_encoder: From images to 8 channels of the same size, before the tanh.
        num_classes: Background included.
    """

    def __init__(self, content_encoder: nn.Module, *, num_classes: int) -> None:
        super().__init__()
        self.content_encoder = content_encoder
        self.segmentor = Segmentor(num_classes)

    def segment(self, images: Tensor) -> Tensor:
        """Gives probabilities, (B, classes, H, W)."""
        segmentation: Tensor = self(images).segmentation
        return segmentation

    def content(self, images: Tensor) -> Tensor:
        """Gives the content of images, (B, 8, H, W), in (-1, 1)."""
        return torch.tanh(self.content_encoder(images))

    def forward(self, images: Tensor) -> ContentOutput:
        """Segments images, (B, C, H, W).

        Raises:
            ShapeError: The content encoder cannot take H x W.
        """
        content = self.content(images)
        return ContentOutput(self.segmentor(content), content)


class Disentangled(nn.Module):
    """Content encoder and segmentor, style encoder and decoder.

    Args:
        content_encoder: From images to 8 channels of the same size, before the tanh.
        in_channels: Of the images.
        num_classes: Background included.
        image_size: (height, width), in pixels; the style encoder takes no other.
        style_sees_content: Whether the style encoder is given the content along with the image.
        recompute: Compute the segmentor again in the backward pass rather than keep its activations.
    """

    site_parts = ("style_encoder", "decoder")
    """What a site keeps for itself when content is shared."""

    minimal_batch = 2
    """In training: the style's batch norm has one value per sample and channel."""

    def __init__(
        self,
        content_encoder: nn.Module,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        style_sees_content: bool,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self._run = partial(run_stage, recompute=recompute)
        check_size(content_encoder, *image_size)
        self.image_size, self._style_sees_content = image_size, style_sees_content
        self.content_encoder, self.bounded = content_encoder, nn.Tanh()
        self.segmentor = Segmentor(num_classes)
        self.style_encoder = StyleEncoder(in_channels + CONTENT_CHANNELS * style_sees_content, *image_size)
        self.decoder = StyleDecoder(in_channels)

    def content(self, images: Tensor) -> Tensor:
        """Gives the content of images, (B, 8, H, W), in (-1, 1); what `bounded` gives."""
        content: Tensor = self.bounded(self.content_encoder(images))
        return content

    def style(self, images: Tensor, content: Tensor) -> Style:
        """Draws the style of images, whose content is given."""
        style: Style = self.style_encoder(self._seen_by_style(images, content))
        return style

    def mean_style(self, images: Tensor, content: Tensor) -> Tensor:
        """Gives the mean of the style of images, (B, 8), which nothing random is in."""
        return self.style(images, content).mu

    def in_style(self, images: Tensor, content: Tensor, *, style_encoder: nn.Module, decoder: nn.Module) -> Tensor:
        """Makes images again with the style encoder and decoder of another site; no gradient flows through."""
        with torch.no_grad():
            rendered: Tensor = decoder(content, style_encoder(self._seen_by_style(images, content)).z)
        return rendered

    def _seen_by_style(self, images: Tensor, content: Tensor) -> Tensor:
        return torch.cat((content, images), 1) if self._style_sees_content else images

    def render(self, content: Tensor, style: Tensor) -> Tensor:
        """Makes images, (B, C, H, W), in (-1, 1), of some content in some style."""
        images: Tensor = self.decoder(content, style)
        return images

    def segment(self, images: Tensor) -> Tensor:
        """Gives probabilities, (B, classes, H, W), by the content alone; images of other sizes may do."""
        segmentation: Tensor = self.segmentor(self.content(images))
        return segmentation

    def forward(self, images: Tensor) -> DisentangledOutput:
        """Takes images apart and makes them again.

        Args:
            images: (B, C, H, W), float; B is at least 2 in training.

        Raises:
            ShapeError: H x W is not the size that the network was made for, or a single image is trained on.
        """
        size = tuple(images.shape[-2:])
        if size != self.image_size:
            made, came = (f"{height} x {width}" for height, width in (self.image_size, size))
            raise ShapeError(
                f"{type(self).__name__}: its style encoder was made for images of {made} pixels, got {came}; resize "
                f"them to {made}, or make the network for {came}"
            )
        if self.training:
            check_batch(self, len(images))
        content = self.content(images)
        segmentation = self._run(self.segmentor, content)
        style = self.style(images, content)
        reconstruction = self.render(content, style.z)
        again = self._style_again(reconstruction) if self.training else None
        return DisentangledOutput(segmentation, reconstruction, style.z, again, style.mu, style.logvar)

    def _style_again(self, reconstruction: Tensor) -> Tensor:
        needed = self.content(reconstruction) if self._style_sees_content else reconstruction
        return self.style(reconstruction, needed).z
