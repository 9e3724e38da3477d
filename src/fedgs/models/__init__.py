"""Networks and objectives by name.

Nothing here imports torch or MONAI before it is needed, so that a command line can list the choices at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

from fedgs.errors import ConfigError, unknown_choice
from fedgs.models.objectives import OBJECTIVES, Objective, objective
from fedgs.models.outputs import HasContent, TakesApart, foreground, probabilities, segment
from fedgs.models.sizes import check_batch, check_size

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

__all__ = [
    "MODELS",
    "OBJECTIVES",
    "Entry",
    "HasContent",
    "Objective",
    "TakesApart",
    "build",
    "check_batch",
    "check_size",
    "entry",
    "foreground",
    "initialise",
    "load_published",
    "objective",
    "probabilities",
    "segment",
    "to_published",
]


class Entry(NamedTuple):
    """A network of the table: where its class is, and the objective that it is trained with unless told otherwise."""

    module: str
    class_name: str
    objective: str = "dice_batch"


MODELS: Mapping[str, Entry] = {
    "unet": Entry("fedgs.models.unet", "UNet"),
    "utnet": Entry("fedgs.models.utnet", "UTNet"),
    "unet_sdnet": Entry("fedgs.models.unet_sdnet", "SDNetUNet"),
    "sd_utnet": Entry("fedgs.models.sd_utnet", "SDUTNet", "disentangled"),
    "sd_utnet_server": Entry("fedgs.models.sd_utnet", "SDUTNetServer"),
    "sdnet": Entry("fedgs.models.sdnet", "SDNet", "disentangled"),
    "feddis": Entry("fedgs.models.feddis", "FedDis", "feddis"),
    "feddis_server": Entry("fedgs.models.feddis", "FedDisServer"),
    "monai:NAME": Entry("fedgs.models.monai_net", "MonaiNet"),
}
"""Every network by name; NAME stands for a class of MONAI's networks, for instance ``monai:SegResNet``."""

_GIVEN_TO_ALL = {"in_channels", "num_classes", "image_size", "architecture"}
_IMAGE_SIZE = int | tuple[int, int] | None


def entry(name: str) -> tuple[Entry, dict[str, str]]:
    """Finds a network in the table.

    Args:
        name: A key of `MODELS`, with something in the place of NAME.

    Returns:
        Its entry, and what stood in the place of NAME as the option ``architecture``.

    Raises:
        ConfigError: There is no such network.
    """
    kind, colon, architecture = name.partition(":")
    key = f"{kind}:NAME" if colon else kind
    if key not in MODELS:
        raise unknown_choice("model", name, MODELS)
    return MODELS[key], {"architecture": architecture} if colon else {}


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
            network can take them; None leaves that to the first forward pass. Some networks are made for one size and
            need it.
        **options: What the network's class takes besides, for instance ``norm="group"`` for "unet".

    Returns:
        A network of images (B, in_channels, H, W). Its output is logits (B, num_classes, H, W), or a NamedTuple that
        begins with probabilities; `segment` gives probabilities in either case.

    Raises:
        ConfigError: Unknown name or option, an option of another type, or a number of channels or classes that makes
            no sense.
        ShapeError: The network cannot take `image_size`; the message names the nearest size that it can.
    """
    found, given = entry(name)
    arguments: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes, **given, **options}
    network = getattr(import_module(found.module), found.class_name)
    parameters = signature(network, eval_str=True).parameters
    kinds = {option: parameter.annotation for option, parameter in parameters.items()}
    _require_types(name, kinds | {"image_size": _IMAGE_SIZE}, {**arguments, "image_size": image_size})
    if in_channels < 1 or num_classes < 2:
        raise ConfigError(
            f"model '{name}': expected in_channels >= 1 and num_classes >= 2 (background and lesion), "
            f"got in_channels={in_channels} and num_classes={num_classes}"
        )
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = parameters.keys() - _GIVEN_TO_ALL
        for option in options:
            if option not in known:
                raise unknown_choice(f"option of model '{name}'", option, known)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if "image_size" in parameters:
        if size is None:
            raise ConfigError(f"model '{name}' is made for images of one size; give image_size, in pixels")
        arguments["image_size"] = size
    from fedgs.models.instance_norm import with_instance_norm

    model: nn.Module = with_instance_norm(network(**arguments))
    if size is not None:
        check_size(model, *size)
    return model


def _require_types(name: str, kinds: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for option, value in given.items():
        kind = kinds.get(option, Any)
        if kind is not Any and not any(_is_of(value, choice) for choice in get_args(kind) or (kind,)):
            wanted = getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind)
            raise ConfigError(
                f"model '{name}': expected {option} to be of the type {wanted}, got {value!r} ({type(value).__name__})"
            )


def _is_of(value: Any, kind: Any) -> bool:
    """Unlike for isinstance, True is no whole number."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and [*map(type, value)] == [*get_args(kind)]
    return type(value) is kind


def load_published(
    source: Path | str | Mapping[str, Any],
    *,
    image_size: int | tuple[int, int] | None = None,
    careful: Callable[[str], None] = warnings.warn,
) -> nn.Module:
    """Makes the network that a published checkpoint is of; see `fedgs.models.published_files.load_published`."""
    from fedgs.models.published_files import load_published as load

    return load(source, image_size=image_size, careful=careful)


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """Gives a network's tensors under their published names; see `fedgs.models.published.to_published`."""
    from fedgs.models.published import to_published as published

    return published(model)


def initialise(model: nn.Module, generator: Generator) -> None:
    """Sets every weight of a network anew, as published; see `fedgs.models.initialisation.initialise`."""
    from fedgs.models.initialisation import initialise as initialise_

    initialise_(model, generator)
