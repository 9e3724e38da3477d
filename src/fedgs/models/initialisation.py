"""The initial weights of a network, drawn from one generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedgs.errors import ConfigError
from fedgs.models.utnet import RelativePositionBias

__all__ = ["initialise"]


@runtime_checkable
class DrawsItself(Protocol):
    """A network whose weights are drawn in a way of its own."""

    def draw(self, generator: Generator) -> None:
        """Sets every weight anew."""
        ...


def _xavier(layer: Any, generator: Generator) -> None:
    # Drawn where the generator lives, so that a network on another device starts from the same numbers.
    drawn = torch.empty(layer.weight.shape, device=generator.device)
    layer.weight.copy_(nn.init.xavier_normal_(drawn, generator=generator))
    if layer.bias is not None:
        layer.bias.zero_()


def _small_normal(bias: Any, generator: Generator) -> None:
    table: Tensor = bias.table
    table.copy_(0.02 * torch.randn(table.shape, generator=generator, device=generator.device))


def _constants(layer: Any, _: Generator) -> None:
    layer.reset_parameters()


_RULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any, Generator], None]], ...] = (
    ((nn.modules.conv._ConvNd, nn.Linear), _xavier),
    ((_NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU), _constants),
    ((RelativePositionBias,), _small_normal),
)


@torch.no_grad()
def initialise(model: nn.Module, generator: Generator) -> None:
    """Sets every weight of a network anew, as published.

    Convolutions (transposed too) and linear layers: xavier-normal weights, zero biases. Normalisation: 1 and 0, fresh
    running statistics. Slope of a PReLU: 0.25. Tables of relative position: normal with standard deviation 0.02.
    A network with a method ``draw(generator)`` is drawn by that instead.

    The result depends on the architecture and the generator only, not on the weights before or on the device.

    Args:
        model: The network; changed in place.
        generator: Source of all randomness; advanced.

    Raises:
        ConfigError: A module owns parameters of a kind that has no rule.
    """
    if isinstance(model, DrawsItself):
        model.draw(generator)
        return
    for name, module in model.named_modules():
        for kinds, rule in _RULES:
            if isinstance(module, kinds):
                rule(module, generator)
                break
        else:
            if next(module.parameters(recurse=False), None) is not None:
                raise ConfigError(
                    f"there is no rule to initialise '{name}', a {type(module).__name__} with parameters of its own; "
                    "initialise this network yourself"
                )
