"""Any two-dimensional segmentation network of MONAI, by the name of its class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import monai.networks.nets as monai_nets
import torch
from monai.utils.module import OptionalImportError
from torch import Generator, Tensor, nn

from fedgs.errors import ConfigError, ShapeError, unknown_choice

__all__ = ["MonaiNet", "architectures"]

_MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 25, 27, 28, 32, 36, 48, 49, 64, 96, 128)
_ROOMY = 160

# What constructors and forward passes that were not written for an option or a size raise.
_REFUSALS = (TypeError, ValueError, AssertionError, LookupError, AttributeError, ArithmeticError, RuntimeError)
Size = tuple[int, int]


class MonaiNet(nn.Module):
    """A network of MONAI; returns logits.

    Where a network gives several outputs, the first is taken.

    Attributes:
        memory_format: Channels last, which is faster, or contiguous, where the network takes nothing else.

    Args:
        in_channels: Of the images.
        num_classes: Background included.
        image_size: (height, width) of the images, in pixels; given to networks that are made for one size, and tried.
        architecture: Name of a class in `monai.networks.nets`, for instance ``SegResNet``.
        **options: What that class takes besides.

    Raises:
        ConfigError: No such class, options that it does not take, or one that does not segment images, or that gives
            several segmentations in training.
        ShapeError: The network cannot take the size; the message names the nearest that works.

    Source: MONAI, https://monai.io.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int = 2, image_size: Size, architecture: str, **options: Any
    ) -> None:
        super().__init__()
        kind = _class_of(architecture)
        self._make = partial(_make, kind, in_channels, num_classes, options)
        channels = (in_channels, num_classes)
        self.memory_format = _require(self._make, architecture, channels, image_size)
        self._image_size = image_size
        self.minimal_batch = 1 if _problem(self._make, channels, image_size, batch=1) is None else 2
        self.net = self._make(image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, in_channels, H, W) to logits (B, num_classes, H, W)."""
        return _first(self.net(images.contiguous(memory_format=self.memory_format)))

    def draw(self, generator: Generator) -> None:
        """Sets every weight anew, as MONAI does, from a generator that is advanced."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net.load_state_dict(self._make(self._image_size).state_dict())


def architectures() -> list[str]:
    """Names of MONAI's networks that map channels to channels; that does not make each of them fit for images."""
    found = {}
    for name, kind in inspect.getmembers(monai_nets, inspect.isclass):
        if issubclass(kind, nn.Module) and {"in_channels", "out_channels"} <= inspect.signature(kind).parameters.keys():
            found[kind] = kind.__name__ if hasattr(monai_nets, kind.__name__) else name
    return sorted(set(found.values()))


def _class_of(architecture: str) -> type[nn.Module]:
    kind = getattr(monai_nets, architecture, None)
    if architecture not in architectures() or not isinstance(kind, type):
        raise unknown_choice("network of MONAI", architecture, architectures())
    return kind


def _make(kind: type[nn.Module], in_channels: int, num_classes: int, options: dict[str, Any], size: Size) -> nn.Module:
    known = inspect.signature(kind).parameters
    given: dict[str, Any] = {"spatial_dims": 2, "in_channels": in_channels, "out_channels": num_classes}
    given |= {"img_size": size, "input_image_size": size}
    given = {name: value for name, value in given.items() if name in known} | options
    for option in options:
        if option not in known and "kwargs" not in known:
            raise unknown_choice(f"option of MONAI's {kind.__name__}", option, known)
    lacking = [name for name, parameter in known.items() if parameter.default is parameter.empty and name not in given]
    if [name for name in lacking if name != "kwargs"]:
        raise ConfigError(
            f"MONAI's {kind.__name__} needs {', '.join(lacking)}; give each by --model-option NAME=VALUE or under "
            "[model.model_options]"
        )
    try:
        return kind(**given)
    except OptionalImportError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"MONAI's {kind.__name__} needs another package: {reason}") from error
    except _REFUSALS as error:
        raise ConfigError(f"MONAI's {kind.__name__} refuses its options: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _first(output: Any) -> Tensor:
    while isinstance(output, (list, tuple)):
        output = output[0]
    tensor: Tensor = output
    return tensor


def _require(
    make: Callable[[Size], nn.Module], architecture: str, channels: tuple[int, int], size: Size
) -> torch.memory_format:
    """Tries a size on tensors without content, then, for the layout of memory, with content."""
    problem = _problem(make, channels, size)
    if problem is None:
        return _layout(make(size), torch.zeros(2, channels[0], *size))
    if (other := _nearest(partial(_works, make, channels), size)) is not None:
        came, fits = (f"{height} x {width}" for height, width in (size, other))
        raise ShapeError(f"{architecture} cannot take {came} pixels; the nearest size that works is {fits}")
    raise ConfigError(f"{architecture} with these options does not segment images of {size[0]} x {size[1]}: {problem}")


@torch.no_grad()
def _layout(network: nn.Module, images: Tensor) -> torch.memory_format:
    """Some networks view their features in a way that works in contiguous memory only."""
    last = torch.channels_last
    try:
        with torch.random.fork_rng(devices=[]):
            network.train().to(memory_format=last)(images.to(memory_format=last))  # type: ignore[call-overload]
    except RuntimeError:
        return torch.contiguous_format
    return last


def _problem(make: Callable[[Size], nn.Module], channels: tuple[int, int], size: Size, batch: int = 2) -> str | None:
    """Tries evaluation and training, in which some networks give other outputs."""
    expected = (batch, channels[1], *size)
    try:
        with torch.no_grad():
            network, images = make(size).to("meta"), torch.empty(batch, channels[0], *size, device="meta")
            evaluated, trained = (_shapes(network.train(training)(images)) for training in (False, True))
    except _REFUSALS as error:
        return _reason(error)
    if len(evaluated[0]) != len(expected):
        raise ConfigError(f"this network of MONAI gives {evaluated[0]} in place of a segmentation {expected}")
    if evaluated[0] != expected:
        return f"it gives {evaluated[0]} in place of {expected}"
    if trained[0] != expected or trained.count(expected) > 1:
        raise ConfigError(
            f"this network of MONAI gives {', '.join(map(str, trained))} in training in place of one segmentation "
            f"{expected}; choose options without deep supervision"
        )
    return None


def _shapes(output: Any) -> list[tuple[int, ...]]:
    """Of all tensors of an output, flat; () stands for anything else."""
    if isinstance(output, (list, tuple)):
        return [shape for part in output for shape in _shapes(part)]
    return [tuple(output.shape) if isinstance(output, Tensor) else ()]


def _works(make: Callable[[Size], nn.Module], channels: tuple[int, int], size: Size) -> bool:
    try:
        return _problem(make, channels, size) is None
    except ConfigError:  # some networks refuse a size when they are made
        return False


def _nearest(works: Callable[[Size], bool], size: Size) -> Size | None:
    """Finds of what the sides must be multiples, on roomy images, then the nearest size of that kind that works."""
    for multiple in _MULTIPLES:
        side = multiple * (max(3, _ROOMY // multiple) | 1)  # an odd multiple, so none of twice as much
        if works((side, side)):
            sides = [[max(pixels // multiple + more, 1) * multiple for more in (0, 1, 2)] for pixels in size]
            near: list[Size] = [(height, width) for height in sides[0] for width in sides[1]]
            near.sort(key=lambda other: (math.dist(size, other), -math.prod(other)))
            return next((other for other in near if works(other)), (side, side))
    return None
