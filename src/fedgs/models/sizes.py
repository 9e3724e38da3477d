"""Which image sizes a network can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fedgs.errors import ShapeError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["KnowsItsSizes", "check_batch", "check_size", "nearest_size"]


@runtime_checkable
class KnowsItsSizes(Protocol):
    """A network whose images must be multiples of something.

    Attributes:
        size_multiple: Height and width are multiples of this many pixels.
        minimal_size: Height and width are at least this many pixels; itself a multiple.
    """

    size_multiple: int
    minimal_size: int


def nearest_size(pixels: int, *, multiple: int, minimum: int) -> int:
    """Gives the multiple that lies nearest to a height or width; of two, the larger.

    >>> [nearest_size(pixels, multiple=128, minimum=128) for pixels in (1, 128, 191, 192, 500)]
    [128, 128, 128, 256, 512]
    """
    return max(minimum, (pixels + multiple // 2) // multiple * multiple)


def check_size(model: object, height: int, width: int) -> None:
    """Refuses an image size that the network cannot take.

    A model that declares no `size_multiple` and `minimal_size` is taken at its word: nothing is checked.

    Args:
        model: The network.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Raises:
        ShapeError: The size does not fit; the message names the nearest size that does.
    """
    if not isinstance(model, KnowsItsSizes):
        return
    multiple, minimum = model.size_multiple, model.minimal_size
    if all(pixels >= minimum and pixels % multiple == 0 for pixels in (height, width)):
        return
    fit = [nearest_size(pixels, multiple=multiple, minimum=minimum) for pixels in (height, width)]
    least = f" and at least {minimum}" if minimum > multiple else ""
    raise ShapeError(
        f"{type(model).__name__} takes images whose height and width are multiples of {multiple}{least} pixels, "
        f"got {height} x {width}; the nearest size that works is {fit[0]} x {fit[1]}"
    )


def check_batch(model: nn.Module, images: int, size: int | Sequence[int] | None = None) -> None:
    """Refuses a number of images that the network cannot be trained on at once.

    A network that declares no `minimal_batch`, and of no part a `deepest_stride`, is taken at its word.

    Args:
        model: The network.
        images: In a batch.
        size: Side of the square images, or (height, width), in pixels; of the smallest images, networks that normalise
            their deepest features over the batch need more than one.

    Raises:
        ShapeError: They are too few.
    """
    sides = (size,) if isinstance(size, int) else tuple(size or ())
    always = getattr(model, "minimal_batch", 1)
    enough = 2 * max(getattr(part, "deepest_stride", 0) for part in model.modules())
    minimum = max(always, 2) if sides and max(sides) < enough else always
    if images < minimum:
        larger = f", or images of at least {enough} pixels to a side" if minimum > always else ""
        raise ShapeError(
            f"{type(model).__name__} cannot be trained on a batch of {images}, because it normalises over the images "
            f"of a batch; use a batch size of at least {minimum}{larger}"
        )
