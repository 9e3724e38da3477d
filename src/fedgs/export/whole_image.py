"""A network that takes images as MONAI loads them, of any size, and gives probabilities at that size."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedgs.export.deployed import plainly, quiet
from fedgs.export.preprocessing import Preprocessing
from fedgs.export.resampling import reduces_tall_first, resize_like_pillow

__all__ = ["WholeImage", "scripted"]


class WholeImage(nn.Module):
    """Everything between the levels of an image and the probabilities of its pixels, for TorchScript.

    MONAI's own transforms resize by other rules and round otherwise, so a bundle made of them would not give the masks
    of the run. What is inside the network cannot be done wrongly outside.

    Args:
        network: From (B, C, size, size) to probabilities, in TorchScript.
        preprocessing: That of the run.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.size, self.channels = preprocessing.size, preprocessing.channels
        self.tall_first = reduces_tall_first()
        mean, deviation = (torch.tensor(values)[:, None, None] for values in preprocessing.statistics)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, images: Tensor) -> Tensor:
        """Gives probabilities.

        Args:
            images: Levels from 0 to 255, (B, 1 or C, X, Y), or slices of a volume (B, 1 or C, X, Y, Z); x first, as
                MONAI loads them.

        Returns:
            (B, classes, X, Y) or (B, classes, X, Y, Z), float32.
        """
        if images.dim() == 5:
            slices = [self.of_slice(images[:, :, :, :, number]) for number in range(images.size(4))]
            return torch.stack(slices, 4)
        return self.of_slice(images)

    def of_slice(self, images: Tensor) -> Tensor:
        """Gives the probabilities of images, (B, 1 or C, X, Y)."""
        if images.size(1) != self.channels and images.size(1) != 1:
            raise ValueError(f"expected images of 1 or {self.channels} channels, got {images.size(1)}")
        if not bool(((images >= 0) & (images <= 255)).all()):
            raise ValueError("expected levels from 0 to 255; bring the image there by a window of levels")
        upright = images.transpose(2, 3)
        levels = resize_like_pillow(upright.round().to(torch.int32), self.size, self.tall_first)
        shape = [levels.size(0), self.channels, self.size, self.size]
        normalised = (levels.expand(shape).to(torch.float32) / 255 - self.mean) / self.deviation  # type: ignore[operator]
        probabilities = self.network(normalised)
        sides = [upright.size(2), upright.size(3)]
        return interpolate(probabilities, sides, mode="bilinear", align_corners=False).transpose(2, 3).contiguous()


def scripted(network: nn.Module, images: Tensor, preprocessing: Preprocessing) -> torch.jit.ScriptModule:
    """Gives a network with everything around it as TorchScript, which MONAI Label and Deploy load.

    Args:
        network: That of the run; its layout of memory changes in place.
        images: An example.
        preprocessing: That of the run.
    """
    with quiet(), warnings.catch_warnings(), torch.no_grad():
        # It warns of every check of a shape; whether the graph is right is found out on images, not by reading it.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(plainly(network), (images,), check_trace=False)  # type: ignore[no-untyped-call]
        whole: torch.jit.ScriptModule = torch.jit.script(WholeImage(traced, preprocessing).eval())
    return whole
