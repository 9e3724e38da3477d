"""The server's half of the algorithms: how the sites' updates become the next state."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedgs.core import Global, Update
from fedgs.errors import AggregationError, ConfigError, unknown_choice
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

    Returns:
        The rule. It raises AggregationError for updates that do not fit the server's state or are not finite.

    Raises:
        ConfigError: The weighting is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise unknown_choice("weighting", weighting, WEIGHTINGS)

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
                moment.add_(before.to(moment.device), alpha=momentum)
            moments[f"momentum/{name}"] = moment
            direction[name] = moment * lr
        return replace(_moved(state, direction, buffers), state={**state.state, **moments})

    return aggregate


@torch.no_grad()
def _mean(state: Global, updates: Mapping[str, Update], weighting: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    counts, names = {}, set()
    for site in sorted(updates):
        update = updates[site]
        counts[site] = WEIGHTINGS[weighting](update)
        names |= update.buffers.keys() & _averaged(state)
    total = sum(counts.values())
    if not 0 < total < math.inf or min(counts.values()) < 0:
        raise AggregationError(
            f"cannot average by {weighting}: per site they are {counts}; none may be below 0 and one must be above"
        )
    direction: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for site, count in counts.items():
        update = updates[site]
        _check(site, "direction", update.direction, state.weights)
        _check(
            site, "buffers", update.buffers, {name: state.buffers[name] for name in names}, also=state.buffers.keys()
        )
        accumulate(direction, update.direction, count / total)
        accumulate(buffers, {name: update.buffers[name] for name in sorted(names)}, count / total)
    for name, mean in {**direction, **buffers}.items():
        if not torch.isfinite(mean).all():
            sent = {site: {**updates[site].buffers, **updates[site].direction}[name] for site in counts}
            culprits = [site for site, tensor in sent.items() if not torch.isfinite(tensor).all()]
            raise AggregationError(f"updates of {culprits} hold values that are not finite in '{name}'; leave them out")
    return direction, buffers


def _averaged(state: Global) -> set[str]:
    """Names of the server's buffers that may be averaged; integers and flags never are, whatever an update holds."""
    return {name for name, buffer in state.buffers.items() if buffer.is_floating_point()}


@torch.no_grad()
def _moved(state: Global, direction: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Global:
    weights = {
        name: (weight - direction[name].to(weight.device)).to(weight.dtype) for name, weight in state.weights.items()
    }
    means = {name: mean.to(state.buffers[name]) for name, mean in buffers.items()}
    return replace(state, weights=weights, buffers={**state.buffers, **means}, round=state.round + 1)


def _check(site: str, kind: str, given: Tensors, wanted: Tensors, also: Collection[str] = ()) -> None:
    lacking, unknown = wanted.keys() - given.keys(), given.keys() - wanted.keys() - set(also)
    for problem, names in (("lacks", lacking), ("has unknown", unknown)):
        if names:
            raise AggregationError(
                f"site '{site}': {kind} {problem} '{min(names)}' ({len(names)} of {len(wanted)}); "
                "was this update made by another model?"
            )
    for name in wanted:
        if given[name].shape != wanted[name].shape:
            raise AggregationError(
                f"site '{site}': {kind} '{name}' has shape {tuple(given[name].shape)}, the server has "
                f"{tuple(wanted[name].shape)}; was this update made by another model?"
            )
