"""Ditto: beside the shared network, every hospital trains a personal one that is pulled toward it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.composition import Around, extended, plain
from fedgs.algorithms.fedprox import Pulled
from fedgs.core import Algorithm, Global, LocalRule, Site, Update, global_of, load, train_locally
from fedgs.errors import ConfigError
from fedgs.own import personal_in, personal_memory_of
from fedgs.tensors import Tensors

__all__ = ["WithPersonal", "ditto"]


class WithPersonal(Around):
    """Trains the shared network first, then the site's personal one on the same batches, by the site's objective alone.

    Args:
        inner: The rule around which this is.
        strength: Of the pull toward the server's weights, >= 0.
    """

    def __init__(self, inner: LocalRule, strength: float) -> None:
        super().__init__(inner)
        self._strength = strength

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Takes the personal network from the site's memory; a new one begins as the shared network is."""
        super().begin(model, optimizer, sent, memory, site)
        self._sent, self._site = sent, site
        self._personal = personal_in(memory) or {**(whole := global_of(model)).weights, **whole.buffers}

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Adds the personal network to what the site remembers."""
        update, memory = super().finish(update, model, optimizer)
        update = replace(update, direction=dict(update.direction))  # formed from the weights that now leave the model
        shared = global_of(model)
        begun = Global(
            {name: self._personal[name] for name in shared.weights},
            {name: self._personal[name] for name in shared.buffers},
        )
        rule = Pulled(LocalRule(), self._strength, self._sent.weights)
        alone = replace(self._site, own={}, on_step=lambda step, loss, terms: None)
        train_locally(model, rule, begun, {}, alone)
        personal = global_of(model)
        load(model, shared)
        return update, {**memory, **personal_memory_of({**personal.weights, **personal.buffers})}


def ditto(inner: Algorithm | None = None, *, ditto_lambda: float = 0.1) -> Algorithm:
    """Makes Ditto: a personal network v per site with the loss ``f(v) + lambda / 2 * |v - w_server|^2``.

    The shared network is trained as by `inner` and does not depend on the personal ones. A site's images are scored by
    its personal network, those of any other hospital by the shared one. It sends nothing that FedAvg does not send;
    every site takes twice the steps. With an adaptive local optimizer the pull is part of the gradient, see `fedprox`.

    Args:
        inner: How the shared network is trained; by McMahan's FedAvg unless given.
        ditto_lambda: Strength of the pull, >= 0; with 0 the personal networks are those of `local`. The paper tries
            0.05, 0.1, 0.2, 0.5, 1 and 2.

    Raises:
        ConfigError: ditto_lambda is below 0 or not finite, or `inner` cannot be combined with it.

    Source: Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021, arXiv 2012.04221.
    """
    if not 0 <= ditto_lambda < math.inf:
        raise ConfigError(f"ditto_lambda must be finite and not below 0, got {ditto_lambda}")
    return extended(inner or plain(), "personal", name="ditto", around=partial(WithPersonal, strength=ditto_lambda))
