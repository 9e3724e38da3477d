"""The server's half of the algorithms: how the sites' updates become the next state."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedgs.core import Global, Update
from fedgs.errors import AggregationError, ConfigError, unknown_choice
from fedgs.tensors import Tensors, wide

__all__ = ["WEIGHTINGS", "ServerRule", "mean_by", "with_momentum"]

ServerRule = Callable[[Global, Mapping[str, Update]], Global]

WEIGHTINGS: dict[str, Callable[[Update], int]] = {
    "examples": lambda update: update.num_examples,
    "steps": lambda update: update.num_steps,
}


def mean_by(weighting: str) -> ServerRule:
    """Makes the rule ``w <- w - sum_k (n_k / sum_j n_j) * direction_k``, with float buffers averaged likewise.

    Sums run over the sites in the order of their names, so that the order in which updates arrive changes no bit.
    Updates are read tensor by tensor; memory does not grow with the number of sites.

    Args:
        weighting: What n_k is: ``"examples"`` (McMahan et al. 2017) or ``"steps"`` (FedGS as published).

    Returns:
        The rule. It raises AggregationError for updates that do not fit the server's state or are not finite.

    Raises:
        ConfigError: The weighting is unknown.
    """
    _require_weighting(weighting)
    return lambda state, updates: _moved(state, updates, weighting, lambda name, mean: mean)


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
    _require_weighting(weighting)
    if not 0 < momentum < 1 or not 0 < lr < math.inf:
        raise ConfigError(f"server momentum must lie in (0, 1) and lr above 0, got momentum {momentum} and lr {lr}")

    def aggregate(state: Global, updates: Mapping[str, Update]) -> Global:
        moments: dict[str, Tensor] = {}

        def step(name: str, mean: Tensor) -> Tensor:
            moment = mean.div_(lr)
            if (before := state.state.get(f"momentum/{name}")) is not None:
                moment.add_(before.to(moment.device), alpha=momentum)
            moments[f"momentum/{name}"] = moment
            return moment * lr

        moved = _moved(state, updates, weighting, step)
        return replace(moved, state={**state.state, **moments})

    return aggregate


@torch.no_grad()
def _moved(
    state: Global, updates: Mapping[str, Update], weighting: str, step: Callable[[str, Tensor], Tensor]
) -> Global:
    """Gives the next state: the weights less what ``step`` makes of each mean direction, which it may overwrite."""
    shares = _shares(updates, weighting)
    averaged = _names_of_averaged(state, updates)
    for site in shares:
        _require_names(site, "direction", updates[site].direction, state.weights)
        _require_names(site, "buffers", updates[site].buffers, averaged, also=state.buffers)
    sums = _Sums(updates, shares)
    weights, buffers = {}, {}
    for name, weight in state.weights.items():
        change = step(name, sums.of("direction", name, weight.shape))
        weights[name] = torch.sub(weight.to(change.device), change, out=change).to(weight)
    for name in averaged:
        buffers[name] = sums.of("buffers", name, state.buffers[name].shape).to(state.buffers[name])
    sums.require_finite()
    return replace(state, weights=weights, buffers={**state.buffers, **buffers}, round=state.round + 1)


class _Sums:
    """Weighted sums of tensors over the sites, in at least float32; notes which of them are finite."""

    def __init__(self, updates: Mapping[str, Update], shares: Mapping[str, float]) -> None:
        self._updates, self._shares = updates, shares
        self._finite: dict[tuple[str, str], Tensor] = {}

    def of(self, part: str, name: str, shape: torch.Size) -> Tensor:
        """Sums up one tensor of a part of the updates; what it gives is nobody else's."""
        total: Tensor | None = None
        for site, share in self._shares.items():
            tensor: Tensor = getattr(self._updates[site], part)[name]
            if tensor.shape != shape:
                raise AggregationError(
                    f"site '{site}': {part} '{name}' has shape {tuple(tensor.shape)}, the server has {tuple(shape)}; "
                    "was this update made by another model?"
                )
            if total is None:
                total = tensor.detach().to(wide(tensor.dtype)) * share
            else:
                total.add_(tensor.to(total.device), alpha=share)
        assert total is not None
        if total.numel():
            self._finite[part, name] = torch.stack(total.aminmax()).isfinite().all()
        return total

    def require_finite(self) -> None:
        """Refuses sums that are not finite, and names the sites that are to blame; waits for the device once."""
        if not self._finite or torch.stack(list(self._finite.values())).all():
            return
        part, name = next(key for key, finite in self._finite.items() if not finite)
        tensors = {site: getattr(self._updates[site], part)[name] for site in self._shares}
        culprits = [site for site, tensor in tensors.items() if not torch.isfinite(tensor).all()] or list(tensors)
        raise AggregationError(f"updates of {culprits} hold values that are not finite in '{name}'; leave them out")


def _shares(updates: Mapping[str, Update], weighting: str) -> dict[str, float]:
    """The share of each site in the mean, in the order of their names."""
    counts = {site: WEIGHTINGS[weighting](updates[site]) for site in sorted(updates)}
    total = sum(counts.values())
    if not 0 < total < math.inf or min(counts.values()) < 0:
        raise AggregationError(
            f"cannot average by {weighting}: per site they are {counts}; none may be below 0 and one must be above"
        )
    return {site: count / total for site, count in counts.items()}


def _names_of_averaged(state: Global, updates: Mapping[str, Update]) -> list[str]:
    """Names of the server's float buffers that any site sends; integers and flags never are averaged."""
    sent = {name for update in updates.values() for name in update.buffers}
    return [name for name, buffer in state.buffers.items() if name in sent and buffer.is_floating_point()]


def _require_weighting(weighting: str) -> None:
    if weighting not in WEIGHTINGS:
        raise unknown_choice("weighting", weighting, WEIGHTINGS)


def _require_names(site: str, kind: str, given: Tensors, wanted: Collection[str], also: Collection[str] = ()) -> None:
    lacking, unknown = set(wanted) - given.keys(), given.keys() - set(wanted) - set(also)
    for problem, names in (("lacks", lacking), ("has unknown", unknown)):
        if names:
            raise AggregationError(
                f"site '{site}': {kind} {problem} '{min(names)}' ({len(names)} of {len(wanted)}); "
                "was this update made by another model?"
            )
