"""The server's half of the algorithms: how the sites' updates become the next state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedgs.core import Global, Update
from fedgs.errors import AggregationError, ConfigError
from fedgs.tensors import Tensors, accumulate

__all__ = ["WEIGHTINGS", "ServerRule", "mean_by", "with_momentum"]

ServerRule = Callable[[Global, Mapping[str, Update]], Global]

WEIGHTINGS: dict[str, Callable[[Update], int]] = {
    "examples": lambda update: update.num_examples,
    "steps": lambda update: update.num_steps,
}


def mean_by(weighting: str) -> ServerRule:
    """Makes the rule ``w <- w - sum_k (n_k / sum_j n_j) * direction_k``, with float buffers averaged likewise.

    Sums run over the sites in the order of their names, so that the order in which updates arrive changes no bit.
    Updates are read one site at a time; memory does not grow with the number of sites.

    Args:
        weighting: What n_k is: ``"examples"`` (McMahan et al. 2017) or ``"steps"`` (FedGS as published).

    Raises:
        ConfigError: The weighting is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(f"unknown weighting '{weighting}'; choose one of {', '.join(WEIGHTINGS)}")

    def aggregate(state: Global, updates: Mapping[str, Update]) -> Global:
        direction, buffers = _mean(state, updates, weighting)
        return _moved(state, direction, buffers)

    return aggregate


def with_momentum(weighting: str, *, momentum: float, lr: float) -> ServerRule:
    """Makes the rule ``m <- momentum * m + G / lr;  w <- w - lr * m`` with G the mean direction.

    The moments live in ``Global.state["momentum/<name>"]``, absent before the first round, in which m = G / lr.

    Args:
        weighting: As for `mean_by`.
        momentum: In (0, 1).
        lr: Learning rate of the sites, > 0.

    Raises:
        ConfigError: A value is out of its range.
    """
    if not 0 < momentum < 1 or not 0 < lr < math.inf:
        raise ConfigError(f"server momentum must lie in (0, 1) and lr above 0, got momentum {momentum} and lr {lr}")

    def aggregate(state: Global, updates: Mapping[str, Update]) -> Global:
        direction, buffers = _mean(state, updates, weighting)
        moments: dict[str, Tensor] = {}
        for name, mean in direction.items():
            moment = mean.div_(lr)
            if (before := state.state.get(f"momentum/{name}")) is not None:
                moment.add_(before, alpha=momentum)
            moments[f"momentum/{name}"] = moment
            direction[name] = moment * lr
        return replace(_moved(state, direction, buffers), state={**state.state, **moments})

    return aggregate


@torch.no_grad()
def _mean(state: Global, updates: Mapping[str, Update], weighting: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    counts = {site: WEIGHTINGS[weighting](updates[site]) for site in sorted(updates)}
    total = sum(counts.values())
    if total <= 0 or min(counts.values()) < 0:
        raise AggregationError(f"nothing to average: {weighting} per site are {counts}; at least one must be above 0")
    direction: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    averaged: Tensors | None = None
    for site, count in counts.items():
        update = updates[site]
        averaged = update.buffers if averaged is None else averaged
        _check(site, "direction", update.direction, state.weights)
        _check(site, "buffers", update.buffers, {name: state.buffers.get(name, averaged[name]) for name in averaged})
        accumulate(direction, update.direction, count / total)
        accumulate(buffers, update.buffers, count / total)
    for name, mean in direction.items():
        if not torch.isfinite(mean).all():
            culprits = [site for site in counts if not torch.isfinite(updates[site].direction[name]).all()]
            raise AggregationError(
                f"the updates of {culprits} hold values that are not finite in '{name}'; leave them out"
            )
    return direction, buffers


@torch.no_grad()
def _moved(state: Global, direction: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Global:
    weights = {
        name: (weight - direction[name].to(weight.device)).to(weight.dtype) for name, weight in state.weights.items()
    }
    means = {name: mean.to(state.buffers[name].dtype) for name, mean in buffers.items()}
    return replace(state, weights=weights, buffers={**state.buffers, **means}, round=state.round + 1)


def _check(site: str, kind: str, given: Tensors, wanted: Tensors) -> None:
    for problem, names in (("lacks", wanted.keys() - given.keys()), ("has unknown", given.keys() - wanted.keys())):
        if names:
            raise AggregationError(
                f"site '{site}': {kind} {problem} '{min(names)}' ({len(names)} of {len(wanted)}); "
                "was this update made by another model?"
            )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise AggregationError(
                f"site '{site}': {kind} '{name}' has shape {tuple(tensor.shape)}, the server has "
                f"{tuple(wanted[name].shape)}; was this update made by another model?"
            )
