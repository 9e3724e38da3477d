"""SCAFFOLD: every gradient of a site is corrected by how the site's gradients differ from those of all sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.composition import Around, extended, plain
from fedgs.core import Algorithm, Global, Site, Update
from fedgs.tensors import Tensors, weights_of, wide

if TYPE_CHECKING:
    from fedgs.data.case import Batch

__all__ = ["Corrected", "scaffold"]

_CONTROL = "control/"
_SITES = "scaffold/sites"


class Corrected(Around):
    """Local training whose gradients become ``g - c_site + c_server``; c_site is the mean g of its last round."""

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Takes the server's control from what it sent, and the site's own from its memory; at first it is zero."""
        super().begin(model, optimizer, sent, memory, site)
        live = weights_of(model)
        self._weights = {name: live[name] for name in sent.weights}
        self._own = {
            name: memory[_CONTROL + name].to(weight) if _CONTROL + name in memory else torch.zeros_like(weight)
            for name, weight in self._weights.items()
        }
        self._correction = {
            name: sent.extra[_CONTROL + name].to(weight) - self._own[name] for name, weight in self._weights.items()
        }
        self._sums = {
            name: torch.zeros_like(weight, dtype=wide(weight.dtype)) for name, weight in self._weights.items()
        }
        self._steps = 0

    @torch.no_grad()
    def before_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Notes the gradients, then corrects them."""
        self._steps += 1
        for name, weight in self._weights.items():
            if weight.grad is not None:
                self._sums[name] += weight.grad
                weight.grad += self._correction[name]
        super().before_step(model, optimizer, batch)

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Sends by how much the site's control has changed."""
        update, memory = super().finish(update, model, optimizer)
        controls = {name: total / max(self._steps, 1) for name, total in self._sums.items()}
        changes = {_CONTROL + name: control - self._own[name] for name, control in controls.items()}
        remembered = {_CONTROL + name: control for name, control in controls.items()}
        return replace(update, extra={**update.extra, **changes}), {**memory, **remembered}


def scaffold(inner: Algorithm | None = None) -> Algorithm:
    """Makes SCAFFOLD: local gradients ``g - c_k + c``; then ``c <- c + sum_k (c_k_new - c_k_old) / N``, N sites in all.

    c_k is the mean of the site's uncorrected gradients in its last round. Under plain SGD that equals option II of the
    paper, ``c_k - c + (w_server - w_k) / (T_k * lr)``, and it means the same with an adaptive optimizer, which divides
    by lengths of its own afterwards. Against FedAvg it sends as much again in both directions: c to the sites, changes
    of c_k to the server. The first change is c_k itself, since c_k = 0 before, so a server that adds them up knows the
    mean gradient of every site in every round, without noise. To an unseen hospital the server's weights apply.

    Whatever is extended, the server's mean gives every site the same weight, as in the paper (with a server step of 1),
    in place of examples or steps: c is such a mean, too, and by other weights the corrections c - c_k would not cancel.

    Args:
        inner: What is extended; McMahan's FedAvg unless given.

    Raises:
        ConfigError: `inner` cannot be combined with it.

    Source: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020,
    arXiv 1910.06378.
    """
    base = inner or plain()

    def start(state: Global, sites: Collection[str]) -> Global:
        begun = base.start(state, sites)
        controls = {_CONTROL + name: torch.zeros_like(weight) for name, weight in state.weights.items()}
        count = torch.tensor(len(sites))
        return replace(begun, extra={**begun.extra, **controls}, state={**begun.state, _SITES: count})

    return extended(
        base,
        "control variates",
        name="scaffold",
        around=Corrected,
        rule=lambda rule: replace(rule, weighting="sites", after=(*rule.after, _move_control)),
        start=start,
    )


@torch.no_grad()
def _move_control(before: Global, moved: Global, updates: Mapping[str, Update]) -> Global:
    count = int(before.state[_SITES])
    controls = {}
    for name in before.weights:
        control = before.extra[_CONTROL + name]
        total = torch.zeros_like(control, dtype=wide(control.dtype))
        for site in sorted(updates):
            total += updates[site].extra[_CONTROL + name].to(total)
        controls[_CONTROL + name] = (control + total / count).to(control)
    return replace(moved, extra={**moved.extra, **controls})
