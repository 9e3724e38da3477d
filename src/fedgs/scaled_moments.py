"""Scales what gradients contribute rather than finished steps: a second first moment beside the optimizer's own.

A finished step of Adam is mostly old momentum, so its scale belongs to earlier batches as much as to its own. Here runs

    m'_s = beta1 * m'_(s-1) + (1 - beta1) * eta_s * g_s
    G    = sum over s of  lr / (1 - beta1^s) * m'_s / (sqrt(v_s / (1 - beta2^s)) + eps)

with the optimizer's own second moment v_s and its own count of steps s; g_s is the gradient as it enters the
optimizer's first moment. m' begins every round as a copy of the optimizer's first moment. SGD with momentum likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fedgs.errors import ConfigError, unknown_choice
from fedgs.optimizers import kind_of
from fedgs.tensors import wide

__all__ = ["SCALED", "ScaledMoments", "check_scaled", "moments_for"]

SCALED = ("steps", "gradient")
"""What a scale may belong to."""

Group = Mapping[str, Any]


@dataclass(slots=True)
class _Moment:
    """The second first moment of one parameter in this round; None where the optimizer has none yet."""

    value: Tensor | None
    steps: int
    before: Tensor | None = None  # the parameter, where coupled decay makes it part of the gradient


class ScaledMoments:
    """Keeps the second first moments of a round and gives what each step contributes.

    Args:
        optimizer: Adam, AdamW or SGD of torch.optim, or a subclass that leaves ``step`` alone.

    Raises:
        ConfigError: It is another one.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        rule = _RULES.get(kind_of(optimizer) or "")
        if rule is None:
            raise ConfigError(
                f"scale='gradient' needs to know how a gradient enters the optimizer's first moment, and knows it of "
                f"{', '.join(sorted(_RULES))}, not of {type(optimizer).__name__}; use one of these, or scale='steps'"
            )
        self._optimizer, (self._first, self._contribution) = optimizer, rule
        self.reset()

    def reset(self) -> None:
        """Begins a round."""
        self._moments: dict[int, _Moment] = {}
        self._lrs: list[float] = []

    @torch.no_grad()
    def before_step(self, members: Iterable[tuple[int, Parameter]]) -> None:
        """Notes what the optimizer is about to overwrite.

        Args:
            members: The parameters that may move, each after the number of its group.
        """
        self._lrs = [float(group["lr"]) for group in self._optimizer.param_groups]
        for number, parameter in members:
            state, group = self._optimizer.state.get(parameter, {}), self._optimizer.param_groups[number]
            if (moment := self._moments.get(id(parameter))) is None:
                own = state.get(self._first)
                value = None if own is None else own.detach().to(wide(parameter.dtype), copy=True)
                moment = self._moments[id(parameter)] = _Moment(value, int(state.get("step", 0)))
            if group.get("weight_decay", 0) and not group.get("decoupled_weight_decay", False):
                moment.before = parameter.detach().clone()

    @torch.no_grad()
    def contribution(self, number: int, parameter: Parameter, scale: float) -> Tensor:
        """Gives what the step just taken contributes to a parameter's direction, in at least float32.

        Args:
            number: Of the parameter's group.
            parameter: One that `before_step` was told of.
            scale: Of the step.
        """
        assert parameter.grad is not None
        group, moment = self._optimizer.param_groups[number], self._moments[id(parameter)]
        gradient = parameter.grad.detach().to(wide(parameter.dtype))
        if group.get("maximize", False):
            gradient = -gradient
        if moment.before is not None:
            gradient = gradient.add(moment.before, alpha=float(group["weight_decay"]))
            moment.before = None
        moment.steps += 1
        return self._contribution(moment, scale * gradient, group, self._lrs[number], self._optimizer.state[parameter])


def _of_adam(moment: _Moment, scaled: Tensor, group: Group, lr: float, state: Mapping[str, Any]) -> Tensor:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    if moment.value is None:
        moment.value = torch.zeros_like(scaled)
    moment.value.lerp_(scaled, 1 - beta1)
    second = state["max_exp_avg_sq" if group.get("amsgrad", False) else "exp_avg_sq"]
    length = second.to(scaled.dtype).sqrt().div_(math.sqrt(1 - beta2**moment.steps)).add_(float(group["eps"]))
    return torch.div(moment.value, length).mul_(lr / (1 - beta1**moment.steps))


def _of_sgd(moment: _Moment, scaled: Tensor, group: Group, lr: float, _: Mapping[str, Any]) -> Tensor:
    momentum = float(group["momentum"])
    if not momentum:
        return lr * scaled
    if moment.value is None:
        moment.value = scaled.clone()
    else:
        moment.value.mul_(momentum).add_(scaled, alpha=1 - float(group["dampening"]))
    return lr * (scaled + momentum * moment.value if group["nesterov"] else moment.value)


_Rule = tuple[str, Callable[[_Moment, Tensor, Group, float, Mapping[str, Any]], Tensor]]

_RULES: Mapping[str, _Rule] = {
    "Adam": ("exp_avg", _of_adam),
    "AdamW": ("exp_avg", _of_adam),
    "SGD": ("momentum_buffer", _of_sgd),
}
"""By the name of the optimizer: its first moment, and what a step contributes."""


def check_scaled(scale: str) -> None:
    """Raises ConfigError unless `scale` is one of `SCALED`."""
    if scale not in SCALED:
        raise unknown_choice("scale", scale, SCALED)


def moments_for(optimizer: Optimizer, scale: str, *, plain: bool) -> ScaledMoments | None:
    """Gives what scales gradients, or None where steps are scaled.

    Args:
        optimizer: As for `ScaledMoments`.
        scale: One of `SCALED`.
        plain: Whether every step is counted by itself and without decoupled decay, as scaling of gradients needs.

    Raises:
        ConfigError: `scale` is unknown, or does not go with the optimizer or with what is counted.
    """
    check_scaled(scale)
    if scale == "steps":
        return None
    if not plain:
        raise ConfigError(
            "scale='gradient' counts gradients step by step, so it goes neither with count_weight_decay=True nor with "
            "exact=False; leave these out"
        )
    return ScaledMoments(optimizer)
