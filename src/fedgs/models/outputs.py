"""From what a network returns, or from images, to the probabilities of the pixels.

A network returns logits, or a NamedTuple whose first field is probabilities. One whose forward pass does more than
segmenting has a method ``segment(images)`` that gives the probabilities alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "HasContent",
    "Segments",
    "TakesApart",
    "foreground",
    "in_full_precision",
    "log_probabilities",
    "probabilities",
    "segment",
]


@runtime_checkable
class Segments(Protocol):
    """A network that gives probabilities by a way of its own."""

    def segment(self, images: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to probabilities (B, classes, H, W)."""
        ...


@runtime_checkable
class HasContent(Protocol):
    """A network that says where things are before it says what they are."""

    def content(self, images: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to where things are, (B, channels, h, w)."""
        ...


@runtime_checkable
class TakesApart(HasContent, Protocol):
    """A network that takes images apart into content and style, and makes them again from the two."""

    def mean_style(self, images: Tensor, content: Tensor) -> Tensor:
        """Maps images and their content to what they look like; nothing random is in it."""
        ...

    def render(self, content: Tensor, style: Tensor) -> Tensor:
        """Makes images (B, C, H, W) in (-1, 1) again."""
        ...


def segment(model: nn.Module, images: Tensor) -> Tensor:
    """Gives the probability of every class at every pixel, in the plain way of any network.

    Args:
        model: A network; whether it is in training or evaluation mode is up to the caller.
        images: (B, C, H, W), float.

    Returns:
        (B, classes, H, W), at least float32, in [0, 1].
    """
    if isinstance(model, Segments):
        return in_full_precision(model.segment(images))
    return probabilities(model(images))


def in_full_precision(values: Tensor) -> Tensor:
    """Gives half-precision values as float32 and leaves the others alone.

    Sums over the pixels of a batch overflow float16 and lose their last digits in bfloat16.
    """
    return values.float() if values.dtype.itemsize < 4 else values


def probabilities(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Probability of every class at every pixel.

    Args:
        output: Of a network: logits (B, classes, H, W), any float type, or a tuple that begins with probabilities.

    Returns:
        (B, classes, H, W), at least float32, in [0, 1].
    """
    if isinstance(output, tuple):
        return in_full_precision(output[0])
    return in_full_precision(output).softmax(dim=1)


def log_probabilities(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Logarithm of `probabilities`, without rounding to minus infinity where it can be helped."""
    if isinstance(output, tuple):
        values = in_full_precision(output[0])
        return values.clamp_min(1e-12).log()
    return in_full_precision(output).log_softmax(dim=1)


def foreground(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Probability that a pixel is lesion (class 1).

    Args:
        output: As for `probabilities`.

    Returns:
        (B, H, W), at least float32, in [0, 1].
    """
    return probabilities(output)[:, 1]
