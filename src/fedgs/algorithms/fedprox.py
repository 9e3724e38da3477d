"""FedProx: a site's loss also pulls it toward the server's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.composition import Around, extended, plain
from fedgs.core import Algorithm, Global, LocalRule, Site
from fedgs.errors import ConfigError
from fedgs.tensors import Tensors, weights_of, wide

if TYPE_CHECKING:
    from fedgs.data.case import Batch
    from fedgs.models.objectives import Objective

__all__ = ["Pulled", "fedprox"]


class Pulled(Around):
    """Local training whose loss has the term ``strength / 2 * |w - w_anchor|^2`` besides.

    Args:
        inner: The rule around which this is.
        strength: Of the pull, >= 0.
        anchor: Where it pulls to; None is what the server sent.
    """

    def __init__(self, inner: LocalRule, strength: float, anchor: Tensors | None = None) -> None:
        super().__init__(inner)
        self._strength, self._anchor = strength, anchor

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Pairs the live weights with those that they are pulled to; what sites keep is not pulled."""
        super().begin(model, optimizer, sent, memory, site)
        live, anchor = weights_of(model), sent.weights if self._anchor is None else self._anchor
        self._pairs = [(live[name], anchor[name].detach().to(live[name])) for name in anchor]

    def loss(self, model: Module, batch: Batch, objective: Objective) -> Mapping[str, Tensor]:
        """Adds the term `proximal`, as a number: its gradient is so simple that it is added where gradients are."""
        terms = super().loss(model, batch, objective)
        with torch.no_grad():
            squares = [(weight - anchor).to(wide(weight.dtype)).square().sum() for weight, anchor in self._pairs]
            return {**terms, "proximal": self._strength / 2 * torch.stack(squares).sum()}

    @torch.no_grad()
    def before_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Adds the pull to every gradient; a weight without one does not move anyway."""
        for weight, anchor in self._pairs:
            if weight.grad is not None:
                weight.grad.add_(weight - anchor, alpha=self._strength)
        super().before_step(model, optimizer, batch)


def fedprox(inner: Algorithm | None = None, *, mu: float = 0.01) -> Algorithm:
    """Makes FedProx: ``loss + mu / 2 * |w - w_server|^2`` at every site.

    With an adaptive optimizer the pull is part of the gradient, so its length is normalised like the rest: mu decides
    how often the pull wins, not how far a step goes. It sends nothing that FedAvg does not send.

    Args:
        inner: What is extended; McMahan's FedAvg unless given.
        mu: Strength of the pull, >= 0; with 0 it is `inner`. The paper tries 0.001, 0.01, 0.1 and 1 and names no
            default.

    Raises:
        ConfigError: mu is below 0 or not finite, or `inner` cannot be combined with it.

    Source: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv 1812.06127.
    """
    if not 0 <= mu < math.inf:
        raise ConfigError(f"mu of fedprox must be finite and not below 0, got {mu}")
    return extended(inner or plain(), "proximal", name="fedprox", around=partial(Pulled, strength=mu))
