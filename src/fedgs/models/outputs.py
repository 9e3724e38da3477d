"""From what a network returns to the scores of its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["foreground", "in_full_precision", "probabilities"]


def in_full_precision(values: Tensor) -> Tensor:
    """Gives half-precision values as float32 and leaves the others alone.

    Sums over the pixels of a batch overflow float16 and lose their last digits in bfloat16.
    """
    return values.float() if values.dtype.itemsize < 4 else values


def probabilities(output: Tensor) -> Tensor:
    """Probability of every class at every pixel.

    Args:
        output: Logits of a network, (B, classes, H, W), any float type.

    Returns:
        The softmax over the classes, (B, classes, H, W), at least float32, in [0, 1].
    """
    return in_full_precision(output).softmax(dim=1)


def foreground(output: Tensor) -> Tensor:
    """Probability that a pixel is lesion (class 1).

    Args:
        output: Logits of a network, (B, classes, H, W), any float type.

    Returns:
        (B, H, W), at least float32, in [0, 1].
    """
    return probabilities(output)[:, 1]
