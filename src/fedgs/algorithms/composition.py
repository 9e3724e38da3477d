"""How algorithms are put together: one says how a site's steps count, extensions change one thing each.

An extension is a function from an algorithm to an algorithm, as in ``fedprox(fedgs(), mu=0.1)``. It names what it
changes, its trait; traits that exclude each other are refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.fedavg import fedavg
from fedgs.algorithms.server_rules import ServerRule
from fedgs.core import Algorithm, Global, LocalRule, Site, Update
from fedgs.errors import ConfigError
from fedgs.tensors import Tensors

if TYPE_CHECKING:
    from fedgs.data.case import Batch
    from fedgs.models.objectives import Objective

__all__ = ["EXCLUDES", "EXCLUDES_ALL", "Around", "extended", "plain", "require_compatible"]

EXCLUDES_ALL: Mapping[str, str] = {
    "alone": "hospitals share nothing, so there is nothing sent or averaged that could be changed",
    "pooled": "all data are in one place, so there are no hospitals whose differences could be corrected for",
}
"""Traits that nothing goes with, and why."""

EXCLUDES: Mapping[frozenset[str], str] = {
    frozenset({"scaled steps", "normalised steps"}): (
        "dividing a direction by what its steps count takes the mean scale of the hospital out again, which is half of "
        "what scaling does"
    ),
    frozenset({"proximal", "control variates"}): (
        "both hold a hospital back from drifting, and the control, a mean of gradients, would take the pull toward the "
        "server's weights for the hospital's own"
    ),
    frozenset({"normalised steps", "control variates"}): (
        "the controls are derived for the plain mean of directions, not for normalised ones"
    ),
    frozenset({"own norms", "own statistics"}): "hospitals that keep whole normalisation layers keep their statistics",
    **{
        frozenset({"personal", trait}): "the personal network of a hospital has everything of its own already"
        for trait in ("own norms", "own statistics", "own head")
    },
    frozenset(
        {"personal", "weighted loss"}
    ): "the personal network would train by the loss as it is, without the weights",
    frozenset({"personal", "styles"}): "the personal network would train without the other hospitals' styles",
}
"""Pairs of traits that do not go together, and why."""


def plain() -> Algorithm:
    """Makes what an extension extends unless told otherwise: McMahan's FedAvg, which then needs no mention by name."""
    return replace(fedavg(), name="")


def extended(
    inner: Algorithm,
    trait: str,
    *,
    name: str = "",
    around: Callable[[LocalRule], LocalRule] = lambda rule: rule,
    keeps: Callable[[Module], Collection[str]] = lambda model: (),
    rule: Callable[[ServerRule], ServerRule] = lambda rule: rule,
    **changes: Any,
) -> Algorithm:
    """Gives an algorithm that differs from another one by one thing.

    Args:
        inner: The other algorithm.
        trait: What differs, in words; `EXCLUDES` has those that do not go together.
        name: Added to the other's name after a plus sign.
        around: From the other's local rule to the new one.
        keeps: Names of tensors that sites keep besides.
        rule: From the other's server rule to the new one.
        **changes: Other fields of `Algorithm` in place of the other's.

    Raises:
        ConfigError: The other algorithm has a trait that excludes this one, or a server's half that cannot be changed.
    """
    require_compatible(inner, trait)
    server = inner.aggregate
    if not isinstance(server, ServerRule):
        raise ConfigError(
            f"algorithm '{inner.name}' aggregates by a function of its own, which cannot be extended; make it a "
            "ServerRule"
        )
    return replace(
        inner,
        name="+".join(filter(None, (inner.name, name))),
        local_rule=lambda: around(inner.local_rule()),
        aggregate=rule(server),
        keeps=lambda model: {*inner.keeps(model), *keeps(model)},
        traits=inner.traits | {trait},
        **changes,
    )


def require_compatible(inner: Algorithm, trait: str) -> None:
    """Raises ConfigError, with the reason, where an algorithm has a trait that excludes another one."""
    for other in sorted(inner.traits):
        reason = EXCLUDES_ALL.get(other) or EXCLUDES.get(frozenset({trait, other}))
        if trait == other:
            reason = "it is there already, and twice would be something else"
        if reason:
            raise ConfigError(f"'{inner.name}' ({other}) cannot be combined with '{trait}': {reason}; leave one out")


class Around(LocalRule):
    """A rule around another one; every hook as it stands here is the other's.

    Args:
        inner: The other rule.
    """

    def __init__(self, inner: LocalRule) -> None:
        self._inner = inner

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """As the other rule, like all that follow."""
        self._inner.begin(model, optimizer, sent, memory, site)

    def loss(self, model: Module, batch: Batch, objective: Objective) -> Mapping[str, Tensor]:
        """Gives the other rule's terms."""
        return self._inner.loss(model, batch, objective)

    def before_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Gradients that were changed before this is called count as changed."""
        self._inner.before_step(model, optimizer, batch)

    def after_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Weights have moved."""
        self._inner.after_step(model, optimizer, batch)

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Gives the other rule's update and memory."""
        return self._inner.finish(update, model, optimizer)
