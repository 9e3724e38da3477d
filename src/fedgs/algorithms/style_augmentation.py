"""Style augmentation: a site sees its images in the style of another site, too, and must find the same content in them.

Sites that keep their style parts (encoder and decoder of a disentangled network) give a copy of them to the server.
From a given round on, a site is handed those of another site, frozen, and adds to its loss

    content = mean of abs(content(rendered) - content(image)),  rendered = decoder'(content(image), style'(image)),

where style' and decoder' are the other site's and `rendered` is held fixed. The other site changes from round to round.

It is stage 2 of the federated disentanglement behind the FedGS publication (Schutte et al., arXiv 2408.11701). There,
sites hand each other these weights through a folder; here they travel through the server, as a declared part of what is
sent, and a site may keep its own to itself.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import l1_loss
from torch.optim import Optimizer

from fedgs.algorithms.composition import Around, extended
from fedgs.core import Algorithm, Global, LocalRule, Site, Update
from fedgs.errors import ConfigError
from fedgs.own import own_of, parts_of_sites
from fedgs.tensors import Tensors, unwrap

if TYPE_CHECKING:
    from fedgs.data.case import Batch
    from fedgs.models.disentangled import Disentangled
    from fedgs.models.objectives import Objective

__all__ = ["StyleAugmentation", "partner_of", "require_styles", "with_style_augmentation"]

_STYLE = "style/"
_ROUND = "round"
"""Beside the tensors of a style: in which round its site gave it."""


def with_style_augmentation(
    algorithm: Algorithm, from_round: int, *, weight: float = 1.0, private: Collection[str] = ()
) -> Algorithm:
    """Adds style augmentation to an algorithm; scaling and aggregation stay what they are.

    Args:
        algorithm: What is done besides.
        from_round: First round in which sites see each other's styles, >= 2: before, there are none.
        weight: Of the term of consistent content.
        private: Names of sites that do not give their style parts; they are handed those of others all the same.

    Returns:
        The algorithm, as a value.

    Raises:
        ConfigError: `from_round` is below 2.
    """
    if from_round < 2:
        raise ConfigError(
            f"style_from must be at least 2, got {from_round}: in the first round no site has a style yet"
        )

    def send(state: Global, site: str) -> Global:
        sent = algorithm.send(state, site)
        partner = partner_of(site, _givers(state), state.round + 1) if state.round + 1 >= from_round else None
        if partner is None:
            return sent
        prefix = f"{_STYLE}{partner}/"
        style = {name: tensor for name, tensor in state.state.items() if name.startswith(prefix)}
        return replace(sent, extra={**sent.extra, **style})

    def with_styles(_: Global, moved: Global, updates: Mapping[str, Update]) -> Global:
        given = {
            f"{_STYLE}{site}/{name.removeprefix(_STYLE)}": updates[site].extra[name]
            for site in sorted(updates)
            for name in updates[site].extra
            if name.startswith(_STYLE)
        }
        return replace(moved, state={**moved.state, **given})

    return extended(
        algorithm,
        "styles",
        around=partial(StyleAugmentation, from_round=from_round, weight=weight, private=private),
        rule=lambda rule: replace(rule, after=(*rule.after, with_styles)),
        send=send,
    )


def partner_of(site: str, givers: Collection[str], number: int) -> str | None:
    """Tells whose style a site is handed in a round: a rotation, in which no giver serves two givers.

    >>> [partner_of("B", ["A", "B", "C"], number) for number in (2, 3, 4)]
    ['C', 'A', 'C']
    >>> partner_of("A", ["A"], 2) is None
    True
    """
    order = sorted(givers)
    if site in order:
        others = len(order) - 1
        return order[(order.index(site) + 1 + number % others) % len(order)] if others else None
    return order[number % len(order)] if order else None


def _givers(state: Global) -> set[str]:
    return {name.removeprefix(_STYLE).rpartition("/")[0] for name in state.state if name.startswith(_STYLE)}


class StyleAugmentation(Around):
    """A site's half: another rule, and the term of consistent content.

    Args:
        inner: The other rule.
        from_round: As for `with_style_augmentation`, like the others.
        weight: Of the term.
        private: Sites that give nothing.
    """

    def __init__(self, inner: LocalRule, from_round: int, *, weight: float, private: Collection[str]) -> None:
        super().__init__(inner)
        self._from_round, self._weight, self._private = from_round, weight, private

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Builds the other site's style parts, frozen."""
        super().begin(model, optimizer, sent, memory, site)
        self._round = site.round
        self._gives = site.name not in self._private and site.round + 1 >= self._from_round
        foreign = {name: tensor for name, tensor in sent.extra.items() if name.startswith(_STYLE)}
        self._partner = next(iter(foreign), "").removeprefix(_STYLE).rpartition("/")[0]
        prefix = f"{_STYLE}{self._partner}/"
        self._foreign = _frozen(require_styles(model), foreign, prefix) if foreign else {}
        self._partner_round = int(foreign[prefix + _ROUND]) if foreign else 0

    def loss(self, model: Module, batch: Batch, objective: Objective) -> Mapping[str, Tensor]:
        """Adds the distance between the contents of an image and of itself in the other style."""
        if not self._foreign:
            return super().loss(model, batch, objective)
        network, seen = require_styles(model), list[Tensor]()
        watch = network.bounded.register_forward_hook(lambda module, given, made: seen.append(made))
        try:
            terms = super().loss(model, batch, objective)
        finally:
            watch.remove()
        content = seen[0]  # of the images themselves, which come first
        rendered = network.in_style(batch.images, content.detach(), **self._foreign)
        distance = l1_loss(network.content(rendered).float(), content.float())
        return {**terms, "content": self._weight * distance}

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Gives the site's own style parts, unless it keeps them to itself."""
        update, memory = super().finish(update, model, optimizer)
        if self._gives:
            own = own_of(model, parts_of_sites(model))
            given = {**own, _ROUND: torch.tensor(self._round)}
            update = replace(update, extra={**update.extra, **{f"{_STYLE}{name}": given[name] for name in given}})
        metrics: dict[str, Any] = {**update.metrics}
        if self._partner:
            metrics |= {"style_of": self._partner, "style_round": self._partner_round}
        return replace(update, metrics=metrics), memory


def require_styles(model: Module) -> Disentangled:
    """Gives a network that renders images in a style.

    Raises:
        ConfigError: It is none.
    """
    from fedgs.models.disentangled import Disentangled

    network = unwrap(model)
    if not isinstance(network, Disentangled):
        raise ConfigError(
            f"style augmentation needs a network that renders images in a style, such as sd_utnet or sdnet; "
            f"{type(network).__name__} does not"
        )
    return network


def _frozen(network: Disentangled, tensors: Tensors, prefix: str) -> dict[str, Module]:
    """Copies of the network's own style parts that hold these tensors instead."""
    parts: dict[str, Module] = {}
    for part in network.site_parts:
        module = copy.deepcopy(getattr(network, part))
        start = f"{prefix}{part}."
        module.load_state_dict({name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)})
        parts[part] = module.eval().requires_grad_(False)
    return parts
