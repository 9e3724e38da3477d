"""Which image sizes a network can take."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from fedgs.errors import ShapeError

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


def check_batch(model: object, images: int) -> None:
    """Refuses a number of images that the network cannot be trained on at once.

    A model that declares no `minimal_batch` is taken at its word.

    Args:
        model: The network.
        images: In a batch.

    Raises:
        ShapeError: They are too few.
    """
    minimum = getattr(model, "minimal_batch", 1)
    if images < minimum:
        raise ShapeError(
            f"{type(model).__name__} cannot be trained on a batch of {images}, because it normalises over the images "
            f"of a batch; use a batch size of at least {minimum}"
        )
