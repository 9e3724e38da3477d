"""SD-UTNet: UTNet gives the content, a small encoder the style of an image."""

from __future__ import annotations

from fedgs.models.disentangled import CONTENT_CHANNELS, ContentNetwork, Disentangled
from fedgs.models.utnet import UTNet

__all__ = ["SDUTNet", "SDUTNetServer"]


class SDUTNet(Disentangled):
    """Disentangled network around UTNet, 18.8 million parameters at full width and 512 pixels.

    Height and width are multiples of 16 * reduce_size pixels, 128 by default.

    Args:
        in_channels: Of the images, for instance 3 for RGB.
        num_classes: Background included.
        image_size: (height, width) of the images, in pixels; the style encoder takes no other.
        base_channels: Width of UTNet's first level.
        reduce_size: As for `UTNet`.
        recompute: As for `UTNet`; also for the segmentor.

    Raises:
        ConfigError: `base_channels` or `reduce_size` is below 1.
        ShapeError: UTNet cannot take the size.

    Source: Schutte et al., FedGS, arXiv 2408.11701, after Chartsias et al. 2019 and Gao et al. 2021.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int = 2,
        image_size: tuple[int, int],
        base_channels: int = 32,
        reduce_size: int = 8,
        recompute: bool = False,
    ) -> None:
        encoder = UTNet(
            in_channels=in_channels,
            num_classes=CONTENT_CHANNELS,
            base_channels=base_channels,
            reduce_size=reduce_size,
            recompute=recompute,
        )
        sizes = {"in_channels": in_channels, "num_classes": num_classes}
        super().__init__(encoder, **sizes, image_size=image_size, style_sees_content=False, recompute=recompute)


class SDUTNetServer(ContentNetwork):
    """What of SD-UTNet travels between hospitals that keep their styles: content encoder and segmentor.

    Args:
        in_channels: As for `SDUTNet`, like all others.
        num_classes: Background included.
        base_channels: Width of UTNet's first level.
        reduce_size: As for `UTNet`.

    Raises:
        ConfigError: `base_channels` or `reduce_size` is below 1.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int = 2, base_channels: int = 32, reduce_size: int = 8
    ) -> None:
        encoder = UTNet(
            in_channels=in_channels, num_classes=CONTENT_CHANNELS, base_channels=base_channels, reduce_size=reduce_size
        )
        super().__init__(encoder, num_classes=num_classes)
        self.size_multiple, self.minimal_size = encoder.size_multiple, encoder.minimal_size
