"""Networks and objectives by name.

Nothing here imports torch or MONAI before it is needed, so that a command line can list the choices at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from fedgs.errors import ConfigError, unknown_choice
from fedgs.models.objectives import OBJECTIVES, Objective, objective
from fedgs.models.outputs import foreground, probabilities
from fedgs.models.sizes import check_size

if TYPE_CHECKING:
    from torch import Generator, nn

__all__ = [
    "MODELS",
    "OBJECTIVES",
    "Objective",
    "build",
    "check_size",
    "foreground",
    "initialise",
    "objective",
    "probabilities",
]

MODELS: Mapping[str, tuple[str, str]] = {
    "unet": ("fedgs.models.unet", "UNet"),
    "utnet": ("fedgs.models.utnet", "UTNet"),
}
"""Module and class of every network by name."""

_GIVEN_TO_ALL = {"in_channels", "num_classes"}


def build(
    name: str,
    *,
    in_channels: int,
    num_classes: int = 2,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Makes a network by name; its weights are torch's until `initialise` sets them.

    Args:
        name: A key of `MODELS`.
        in_channels: Of the images, 3 for RGB, 1 for grey.
        num_classes: Background included.
        image_size: Side of the square images, or (height, width), in pixels, to find out before training whether the
            network can take them; None leaves that to the first forward pass.
        **options: What the network's class takes besides, for instance ``norm="group"`` for "unet".

    Returns:
        A network from images (B, in_channels, H, W) to logits (B, num_classes, H, W).

    Raises:
        ConfigError: Unknown name or option, or a number of channels or classes that makes no sense.
        ShapeError: The network cannot take `image_size`; the message names the nearest size that it can.
    """
    if name not in MODELS:
        raise unknown_choice("model", name, MODELS)
    if in_channels < 1 or num_classes < 2:
        raise ConfigError(
            f"model '{name}': expected in_channels >= 1 and num_classes >= 2 (background and lesion), "
            f"got in_channels={in_channels} and num_classes={num_classes}"
        )
    module, class_name = MODELS[name]
    network = getattr(import_module(module), class_name)
    known = signature(network).parameters.keys() - _GIVEN_TO_ALL
    for option in options:
        if option not in known:
            raise unknown_choice(f"option of model '{name}'", option, known)
    model: nn.Module = network(in_channels=in_channels, num_classes=num_classes, **options)
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        check_size(model, height, width)
    return model


def initialise(model: nn.Module, generator: Generator) -> None:
    """Sets every weight of a network anew, as published; see `fedgs.models.initialisation.initialise`."""
    from fedgs.models.initialisation import initialise as initialise_

    initialise_(model, generator)
