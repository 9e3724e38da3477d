"""Flips, rotation and colour jitter of whole batches: drawn first, on the CPU, then applied on any device.

Geometry. Image and mask show the same field of view, whatever their sizes. The centre of pixel i of a side of n pixels
lies at (i + 1/2) / n of it, and both are sampled at the same points of that field: the image bilinearly, the mask at
its nearest pixel, directly from 512 x 512 onto the training grid. Image and mask therefore stay aligned within half a
pixel of either under every draw. Sampling the mask at ``floor(i * 512 / size)`` instead, the rule by which it once came
to 512 pixels, would shift it against the image by up to half a training pixel, always to the same side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from fedgs.errors import ConfigError

__all__ = ["Augmentation", "Draw", "apply", "apply_to_regions", "denormalise", "draw", "normalise"]

RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)

# Luma and two chroma axes; grey has none of the latter.
_YIQ_FROM_RGB = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB_FROM_YIQ = torch.linalg.inv(_YIQ_FROM_RGB.double()).float()
# Masks are sampled this far from the ties between two pixels, so that rounding errors never decide them.
_TIE_PIXELS = 2.0**-12


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much training images vary.

    Flips, rotation and the probability of jitter are those of the publication; it does not tell how strong its jitter
    is. The strengths here are our choice: what an endoscope's light source and white balance plausibly do.

    Attributes:
        flip: Probability of a horizontal flip and, independently, of a vertical one, [0, 1].
        rotation_degrees: Angles are uniform in [-rotation_degrees, rotation_degrees], [0, 180].
        jitter: Probability that the colours of an image are changed, [0, 1].
        brightness: Factor on all values, uniform in 1 -+ brightness, [0, 1).
        contrast: Factor on the distance from the image's mean luma, uniform in 1 -+ contrast, [0, 1).
        saturation: Factor on the distance from a pixel's luma, uniform in 1 -+ saturation, [0, 1); RGB only.
        hue: Turn of the colour circle at equal luma, uniform in -+ hue, [0, 0.5]; 1 is a full turn; RGB only.

    Raises:
        ConfigError: A value is out of range.
    """

    flip: float = 0.5
    rotation_degrees: float = 90.0
    jitter: float = 0.3
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02

    def __post_init__(self) -> None:
        limits = {"rotation_degrees": 180.0, "hue": 0.5}
        for field in fields(self):
            value, limit = getattr(self, field.name), limits.get(field.name, 1.0)
            below_one = field.name in ("brightness", "contrast", "saturation")
            if not 0 <= value <= limit or (below_one and value == 1):
                bound = f"below {limit:g}" if below_one else f"at most {limit:g}"
                raise ConfigError(
                    f"augmentation {field.name}: expected a number of at least 0 and {bound}, got {value!r}"
                )

    @classmethod
    def none(cls) -> Augmentation:
        """No augmentation at all: images are normalised, masks sampled at the training size."""
        return cls(**{field.name: 0.0 for field in fields(cls)})


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What happens to each image of a batch; all tensors are (B,) and on the CPU.

    Attributes:
        flip_x: Mirror left and right, bool.
        flip_y: Mirror top and bottom, bool.
        angle: Anticlockwise rotation in radians after the flips, float32.
        jitter: Change the colours by the factors below, bool.
        brightness: Factor, float32.
        contrast: Factor, float32.
        saturation: Factor, float32.
        hue: Part of a full turn, float32.
    """

    flip_x: Tensor
    flip_y: Tensor
    angle: Tensor
    jitter: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor

    def moves(self) -> bool:
        """Whether any image is flipped or rotated."""
        return bool(self.flip_x.any() or self.flip_y.any() or self.angle.any())


def draw(batch_size: int, settings: Augmentation, generator: Generator) -> Draw:
    """Draws what happens to each image of a batch.

    Always takes 8 numbers per image, whatever the settings, so that two runs that differ in one setting share the rest.

    Args:
        batch_size: B, >= 1.
        settings: Probabilities and ranges.
        generator: A generator on the CPU, also where images are on another device.

    Returns:
        The draw.
    """
    uniform = torch.rand(8, batch_size, generator=generator)
    signed = 2 * uniform - 1
    return Draw(
        flip_x=uniform[0] < settings.flip,
        flip_y=uniform[1] < settings.flip,
        angle=signed[2] * math.radians(settings.rotation_degrees),
        jitter=uniform[3] < settings.jitter,
        brightness=1 + signed[4] * settings.brightness,
        contrast=1 + signed[5] * settings.contrast,
        saturation=1 + signed[6] * settings.saturation,
        hue=signed[7] * settings.hue,
    )


def apply(images: Tensor, masks: Tensor, draw: Draw, size: int) -> tuple[Tensor, Tensor]:
    """Augments and normalises a batch: colours first, then flips and rotation of image and mask by one grid.

    What the rotation brings in from outside is black in the image (before normalisation) and background in the mask.
    Nothing waits for the device, and the arguments stay as they are.

    Args:
        images: (B, C, H, W), uint8, or float32 in [0, 1]; C = 1 or 3.
        masks: (B, M, M), bool, of the same field of view at its own size (512 in an index), on the same device.
        draw: What to do, for B images.
        size: Side of the result in pixels.

    Returns:
        Normalised images (B, C, size, size), float32, contiguous; masks (B, size, size), bool.
    """
    grid = _sampling_grid(draw, size, images.device)
    mask_grid = _mask_grid(grid, masks)
    colours = _colour_matrices(draw, images.shape[1]).to(images.device)
    moves = draw.moves() or images.shape[-2:] != (size, size)
    augmented = torch.empty(*images.shape[:2], size, size, device=images.device)
    sampled = torch.empty(len(masks), size, size, dtype=torch.bool, device=masks.device)
    # One by one, since what is done to an image then finds it in the cache.
    for position, is_jittered in enumerate(draw.jitter.tolist()):
        image = _levels(images[position])
        if is_jittered:
            image = _with_jitter(image, colours[position])
        if moves:
            image = _sampled(image, grid[position], "bilinear")
        _normalise(image, out=augmented[position])
        mask = _sampled(masks[position, None].float(), mask_grid[position], "nearest")
        torch.gt(mask[0], 0.5, out=sampled[position])
    return augmented, sampled


def apply_to_regions(regions: Tensor, draw: Draw, size: int) -> Tensor:
    """Moves regions as `apply` moves the masks that they belong to, so that ``regions * masks`` are still the lesions.

    What the rotation brings in from outside continues the regions at the edge.

    Args:
        regions: (B, M, M), uint8, of the side of the masks.
        draw: What `apply` was given, for B images.
        size: Side of the result in pixels.

    Returns:
        (B, size, size), uint8.
    """
    grid = _mask_grid(_sampling_grid(draw, size, regions.device), regions)
    moved = torch.empty(len(regions), size, size, dtype=torch.uint8, device=regions.device)
    for position in range(len(regions)):
        moved[position] = _sampled(regions[position, None].float(), grid[position], "nearest", "border")[0]
    return moved


def normalise(images: Tensor) -> Tensor:
    """Gives images the mean and spread that networks are fed with: those of ImageNet.

    Args:
        images: (B, C, H, W), uint8, or float32 in [0, 1]; C = 3, or 1 for grey (mean 0.449, deviation 0.226).

    Returns:
        (value - mean) / deviation per channel, float32, a new contiguous tensor.
    """
    return _normalise(_levels(images), out=torch.empty(images.shape, device=images.device))


def denormalise(images: Tensor) -> Tensor:
    """Undoes `normalise`.

    Args:
        images: (B, C, H, W), any float type; C = 1 or 3.

    Returns:
        uint8 of the same shape; what lies beyond black or white becomes that.
    """
    mean, deviation = _statistics(images)
    return ((images * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _levels(images: Tensor) -> Tensor:
    """Gives levels from 0 to 1, contiguous."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return images.contiguous()


def _normalise(images: Tensor, *, out: Tensor) -> Tensor:
    mean, deviation = _statistics(images)
    return torch.sub(images, mean, out=out).div_(deviation)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (C, 1, 1)."""
    rgb = images.shape[-3] == 3
    mean, deviation = (
        torch.tensor(values, device=images.device)[:, None, None]
        for values in ((RGB_MEAN, RGB_STD) if rgb else (GREY_MEAN, GREY_STD))
    )
    return mean, deviation


def _sampled(image: Tensor, grid: Tensor, mode: str, outside: str = "zeros") -> Tensor:
    return grid_sample(image[None], grid[None], mode=mode, padding_mode=outside, align_corners=False)[0]


def _mask_grid(grid: Tensor, masks: Tensor) -> Tensor:
    return grid + 2 * _TIE_PIXELS / masks.shape[-1]


def _sampling_grid(draw: Draw, size: int, device: torch.device) -> Tensor:
    """Where each pixel of the result is sampled, (B, size, size, 2) as (x, y), from -1 to 1 over the field of view."""
    # A point is x + iy: adding complex numbers writes both coordinates at once, 3 times as fast as one by one.
    cos, sin = draw.angle.cos(), draw.angle.sin()
    x_sign, y_sign = 1 - 2 * draw.flip_x.float(), 1 - 2 * draw.flip_y.float()
    rightwards = torch.complex(x_sign * cos, y_sign * sin).to(device)[:, None]
    downwards = torch.complex(-x_sign * sin, y_sign * cos).to(device)[:, None]
    axis = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    return torch.view_as_real((rightwards * axis)[:, None, :] + (downwards * axis)[:, :, None])


def _with_jitter(image: Tensor, colours: Tensor) -> Tensor:
    pixels = image.reshape(len(image), -1)
    changed = torch.addmm(colours[-1] @ pixels.mean(1), colours[:-1], pixels)
    return changed.clamp_(0, 1).view(image.shape)


def _colour_matrices(draw: Draw, channels: int) -> Tensor:
    """Brightness, contrast, saturation and hue as one affine map of colours, (B, channels + 1, channels).

    Applied to a colour v of an image with the mean colour m it is M[:-1] v + M[-1] m: all four are linear, and
    saturation and hue leave the luma as it is.
    """
    scale, of_mean = draw.brightness * draw.contrast, draw.brightness * (1 - draw.contrast)
    if channels == 1:
        return torch.stack([scale, of_mean], -1)[..., None]
    turn = -2 * math.pi * draw.hue  # From red towards yellow where hue is positive.
    chroma = torch.zeros(len(scale), 3, 3)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = draw.saturation * turn.cos()
    chroma[:, 2, 1] = draw.saturation * turn.sin()
    chroma[:, 1, 2] = -chroma[:, 2, 1]
    mixing = scale[:, None, None] * (_RGB_FROM_YIQ @ chroma @ _YIQ_FROM_RGB)
    return torch.cat([mixing, (of_mean[:, None] * _YIQ_FROM_RGB[0])[:, None]], 1)
