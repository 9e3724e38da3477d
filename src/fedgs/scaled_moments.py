"""Scales what gradients contribute rather than finished steps: a second first moment beside the optimizer's own.

A finished step of Adam is mostly old momentum, so its scale belongs to earlier batches as much as to its own. Here runs

    m'_s = beta1 * m'_(s-1) + (1 - beta1) * eta_s * g_s
    G    = sum over s of  lr / (1 - beta1^s) * m'_s / (sqrt(v_s / (1 - beta2^s)) + eps)

with the optimizer's own second moment v_s and its own count of steps s; g_s is the gradient as it enters the
optimizer's first moment. m' begins every round as a copy of the optimizer's first moment. SGD with momentum likewise;
without momentum, a scaled gradient is a scaled step.

What a gradient adds to a first moment is read off that moment before and after the step, m_s - beta1 * m_(s-1). So it
does not matter when gradients are made, clipped or set to zero, nor that torch changes some in place.
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
    before: Tensor | None = None  # the optimizer's own before the step; None where it has none yet


class ScaledMoments:
    """Keeps the second first moments of a round and gives what each step contributes.

    Args:
        optimizer: Adam, AdamW or SGD of torch.optim, or a subclass that leaves ``step`` alone.

    Raises:
        ConfigError: It is another one, or momentum is 0 in a group of parameters.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        rule = _RULES.get(kind_of(optimizer) or "")
        if rule is None:
            raise ConfigError(
                f"scale='gradient' needs to know how a gradient enters the optimizer's first moment, and knows it of "
                f"{', '.join(sorted(_RULES))}, not of {type(optimizer).__name__}; use one of these, or scale='steps'"
            )
        self._optimizer, (self._first, self._contribution) = optimizer, rule
        self._require_momentum()
        self.reset()

    def reset(self) -> None:
        """Begins a round."""
        self._moments: dict[int, _Moment] = {}
        self._lrs: list[float] = []

    @torch.no_grad()
    def before_step(self, parameters: Iterable[Parameter]) -> None:
        """Notes what the optimizer is about to overwrite.

        Args:
            parameters: Those that may move.

        Raises:
            ConfigError: Momentum has become 0 in a group of parameters.
        """
        self._require_momentum()
        self._lrs = [float(group["lr"]) for group in self._optimizer.param_groups]
        for parameter in parameters:
            state = self._optimizer.state.get(parameter, {})
            own = state.get(self._first)
            if (moment := self._moments.get(id(parameter))) is None:
                value = None if own is None else own.detach().to(wide(parameter.dtype), copy=True)
                moment = self._moments[id(parameter)] = _Moment(value, int(state.get("step", 0)))
            if own is None or moment.before is None:
                moment.before = None if own is None else own.detach().to(wide(parameter.dtype), copy=True)
            else:
                moment.before.copy_(own)

    @torch.no_grad()
    def contribution(self, number: int, parameter: Parameter, scale: float) -> Tensor:
        """Gives what the step just taken contributes to a parameter's direction, in at least float32.

        Args:
            number: Of the parameter's group.
            parameter: One that `before_step` was told of.
            scale: Of the step.
        """
        group, moment = self._optimizer.param_groups[number], self._moments[id(parameter)]
        state, kept = self._optimizer.state[parameter], _kept(group)
        now = state[self._first].detach()
        # In place: the memory that held the moment before is free now, and is filled anew before the next step.
        added = (
            scale * now.to(wide(now.dtype))
            if moment.before is None
            else moment.before.mul_(-kept).add_(now).mul_(scale)
        )
        moment.value = added.clone() if moment.value is None else moment.value.mul_(kept).add_(added)
        moment.steps += 1
        return self._contribution(moment.value, added, moment.steps, group, state).mul_(self._lrs[number])

    def _require_momentum(self) -> None:
        if self._first == _SGD and not all(_kept(group) for group in self._optimizer.param_groups):
            raise ConfigError(
                "scale='gradient' reads gradients off SGD's momentum, which is 0 in a group of parameters; give every "
                "group momentum, or none, for then a scaled gradient is a scaled step"
            )


def _kept(group: Group) -> float:
    return float(group["betas"][0] if "betas" in group else group["momentum"])


def _of_adam(value: Tensor, _: Tensor, steps: int, group: Group, state: Mapping[str, Any]) -> Tensor:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    second = state["max_exp_avg_sq" if group.get("amsgrad", False) else "exp_avg_sq"]
    length = second.to(value.dtype).sqrt().div_(math.sqrt(1 - beta2**steps)).add_(float(group["eps"]))
    return torch.div(value, length).div_(1 - beta1**steps)


def _of_sgd(value: Tensor, added: Tensor, _: int, group: Group, __: Mapping[str, Any]) -> Tensor:
    return torch.add(added, value, alpha=_kept(group)) if group["nesterov"] else value.clone()


_SGD = "momentum_buffer"

_Rule = tuple[str, Callable[[Tensor, Tensor, int, Group, Mapping[str, Any]], Tensor]]

_RULES: Mapping[str, _Rule] = {
    "Adam": ("exp_avg", _of_adam),
    "AdamW": ("exp_avg", _of_adam),
    "SGD": (_SGD, _of_sgd),
}
"""By the name of the optimizer: its first moment, and what a step contributes."""


def check_scaled(scale: str) -> None:
    """Raises ConfigError unless `scale` is one of `SCALED`."""
    if scale not in SCALED:
        raise unknown_choice("scale", scale, SCALED)


def moments_for(optimizer: Optimizer, scale: str, *, plain: bool) -> ScaledMoments | None:
    """Gives what scales gradients, or None where steps are scaled or it comes to the same, as for SGD without momentum.

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
    if kind_of(optimizer) == "SGD" and not any(_kept(group) for group in optimizer.param_groups):
        return None
    return ScaledMoments(optimizer)
