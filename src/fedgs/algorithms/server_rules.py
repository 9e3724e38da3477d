"""The server's half of the algorithms: how the sites' updates become the next state."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgs.core import Global, Update
from fedgs.errors import AggregationError, ConfigError, unknown_choice
from fedgs.tensors import Tensors, wide

__all__ = ["WEIGHTINGS", "ServerMomentum", "ServerRule", "ServerStep", "mean_by", "straight", "with_momentum"]

WEIGHTINGS: dict[str, Callable[[Update], int]] = {
    "examples": lambda update: update.num_examples,
    "steps": lambda update: update.num_steps,
    "sites": lambda update: 1,
}

Shares = Mapping[str, float]
"""A number per site, by its name."""

ServerStep = Callable[[Tensors, str, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From what the server remembers, a tensor's name and its mean direction, which may be overwritten, to the decrease of
that tensor and what the server remembers of it."""


def straight(_remembered: Tensors, _name: str, mean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The step of federated averaging: weights decrease by the mean direction."""
    return mean, {}


@dataclass(frozen=True, slots=True)
class ServerRule:
    """The rule ``w <- w - step(sum_k c_k * direction_k)``, with float buffers averaged by shares that sum to 1.

    Sums run over the sites in the order of their names, so that the order in which updates arrive changes no bit.
    Updates are read tensor by tensor; memory does not grow with the number of sites.

    Attributes:
        weighting: What a site's share is proportional to: ``"examples"`` (McMahan et al. 2017), ``"steps"`` (FedGS as
            published) or ``"sites"`` (all alike).
        coefficients: The c_k, from the updates and the shares; None takes the shares.
        step: What the server makes of the sum.
        after: What else changes in the server's state, given that before and after and the updates.

    Raises:
        ConfigError: The weighting is unknown.
    """

    weighting: str
    coefficients: Callable[[Mapping[str, Update], Shares], Shares] | None = None
    step: ServerStep = straight
    after: tuple[Callable[[Global, Global, Mapping[str, Update]], Global], ...] = ()

    def __post_init__(self) -> None:
        """Checks the weighting."""
        if self.weighting not in WEIGHTINGS:
            raise unknown_choice("weighting", self.weighting, WEIGHTINGS)

    @torch.no_grad()
    def __call__(self, state: Global, updates: Mapping[str, Update]) -> Global:
        """Gives the next state.

        Raises:
            AggregationError: Updates do not fit the server's state or are not finite.
        """
        shares = _shares(updates, self.weighting)
        averaged = _names_of_averaged(state, updates)
        for site in shares:
            _require_names(site, "direction", updates[site].direction, state.weights)
            _require_names(site, "buffers", updates[site].buffers, averaged, also=state.buffers)
        factors = shares if self.coefficients is None else self.coefficients(updates, shares)
        sums = _Sums(updates)
        weights, buffers, remembered = {}, {}, dict(state.state)
        for name, weight in state.weights.items():
            change, kept = self.step(state.state, name, sums.of("direction", name, weight.shape, factors))
            remembered |= kept
            weights[name] = torch.sub(weight.to(change.device), change, out=change).to(weight)
        for name in averaged:
            old = state.buffers[name]
            buffers[name] = sums.of("buffers", name, old.shape, shares).to(old)
        sums.require_finite()
        moved = replace(
            state,
            weights=weights,
            buffers={**state.buffers, **buffers},
            state=remembered,
            round=state.round + 1,
            metrics={} if self.coefficients is None else {"scale": math.fsum(factors.values())},
        )
        for change_also in self.after:
            moved = change_also(state, moved, updates)
        return moved


def mean_by(weighting: str) -> ServerRule:
    """Makes the rule ``w <- w - sum_k (n_k / sum_j n_j) * direction_k``, with float buffers averaged likewise.

    Args:
        weighting: What n_k is: ``"examples"`` (McMahan et al. 2017), ``"steps"`` (FedGS as published) or ``"sites"``.

    Raises:
        ConfigError: The weighting is unknown.
    """
    return ServerRule(weighting)


def with_momentum(weighting: str, *, momentum: float, lr: float) -> ServerRule:
    """Makes the rule ``m <- momentum * m + G / lr;  w <- w - lr * m`` with G the mean direction.

    Args:
        weighting: As for `mean_by`.
        momentum: In (0, 1).
        lr: Learning rate of the sites, > 0.

    Raises:
        ConfigError: A value is out of its range.
    """
    return ServerRule(weighting, step=ServerMomentum(momentum, lr))


@dataclass(frozen=True, slots=True)
class ServerMomentum:
    """The server step ``m <- momentum * m + G / lr;  w <- w - lr * m``.

    The moments live in ``Global.state["momentum/<name>"]``, absent before the first round, in which m = G / lr.
    """

    momentum: float
    lr: float

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 < self.momentum < 1 or not 0 < self.lr < math.inf:
            raise ConfigError(
                f"server momentum must lie in (0, 1) and lr above 0, got momentum {self.momentum} and lr {self.lr}"
            )

    def __call__(self, remembered: Tensors, name: str, mean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gives the change of one tensor and its moment."""
        moment = mean.div_(self.lr)
        if (before := remembered.get(f"momentum/{name}")) is not None:
            moment.add_(before.to(moment.device), alpha=self.momentum)
        return moment * self.lr, {f"momentum/{name}": moment}


class _Sums:
    """Weighted sums of tensors over the sites, in at least float32; notes which of them are finite."""

    def __init__(self, updates: Mapping[str, Update]) -> None:
        self._updates = updates
        self._finite: dict[tuple[str, str], Tensor] = {}

    def of(self, part: str, name: str, shape: torch.Size, factors: Shares) -> Tensor:
        """Sums up one tensor of a part of the updates; what it gives is nobody else's."""
        total: Tensor | None = None
        for site, share in factors.items():
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
        tensors = {site: getattr(update, part)[name] for site, update in self._updates.items()}
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


def _require_names(site: str, kind: str, given: Tensors, wanted: Collection[str], also: Collection[str] = ()) -> None:
    lacking, unknown = set(wanted) - given.keys(), given.keys() - set(wanted) - set(also)
    for problem, names in (("lacks", lacking), ("has unknown", unknown)):
        if names:
            raise AggregationError(
                f"site '{site}': {kind} {problem} '{min(names)}' ({len(names)} of {len(wanted)}); "
                "was this update made by another model?"
            )
