"""SDNet: a U-Net gives the content; the style encoder sees the content beside the image."""

from __future__ import annotations

from fedgs.models.disentangled import CONTENT_CHANNELS, Disentangled
from fedgs.models.unet_sdnet import SDNetUNet

__all__ = ["SDNet"]


class SDNet(Disentangled):
    """Disentangled network around a U-Net, 39.5 million parameters at full width and 512 pixels.

    Args:
        in_channels: Of the images, for instance 3 for RGB.
        num_classes: Background included.
        image_size: (height, width) of the images, in pixels, at least 16; the style encoder takes no other.
        base_channels: Width of the U-Net's first level.
        recompute: As for `SDNetUNet`; also for the segmentor.

    Raises:
        ConfigError: `base_channels` is below 1.
        ShapeError: The U-Net cannot take the size.

    Source: Chartsias et al., Disentangled representation learning in cardiac image analysis, Medical Image Analysis
    2019, in the form of the FedGS publication.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int = 2,
        image_size: tuple[int, int],
        base_channels: int = 64,
        recompute: bool = False,
    ) -> None:
        encoder = SDNetUNet(
            in_channels=in_channels, num_classes=CONTENT_CHANNELS, base_channels=base_channels, recompute=recompute
        )
        sizes = {"in_channels": in_channels, "num_classes": num_classes}
        super().__init__(encoder, **sizes, image_size=image_size, style_sees_content=True, recompute=recompute)
