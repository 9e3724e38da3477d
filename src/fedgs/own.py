"""What a site keeps of its model: which tensors, and how its memory holds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.nn import Module

from fedgs.tensors import Tensors, buffers_of, unwrap, weights_of

__all__ = [
    "memory_of",
    "own_for",
    "own_in",
    "own_of",
    "parts_of_sites",
    "personal_in",
    "personal_memory_of",
    "without_own",
]

_OWN = "own/"
"""Before the names of what a site keeps of its model, in its memory."""

_PERSONAL = "personal/"
"""Before the names of a site's personal network, which is trained beside the shared one."""


def parts_of_sites(model: Module) -> frozenset[str]:
    """Names of the tensors that sites keep because the network says so, by the attribute ``site_parts``.

    That is a tuple of names of its submodules, for instance the style encoder of a disentangled network.
    """
    parts = tuple(f"{part}." for part in getattr(unwrap(model), "site_parts", ()))
    return frozenset(name for name in (*weights_of(model), *buffers_of(model)) if name.startswith(parts))


def own_of(model: Module, kept: Collection[str]) -> dict[str, Tensor]:
    """Gives a copy of what a site keeps of its model."""
    tensors: dict[str, Tensor] = {**weights_of(model), **buffers_of(model)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if name in kept}


def own_in(memory: Tensors) -> dict[str, Tensor]:
    """Gives what a site keeps of its model, from its memory."""
    return {name.removeprefix(_OWN): tensor for name, tensor in memory.items() if name.startswith(_OWN)}


def own_for(site: str, memories: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """Gives what is a site's own of the model: what it keeps, or, where it keeps nothing yet, the mean of the others'.

    Args:
        site: Name of the site, whether it was ever seen or not.
        memories: What each site remembers.

    Returns:
        Tensors by name; of integers in a mean, those of the first site by name. Nothing where no site keeps anything.
    """
    if own := own_in(memories.get(site, {})):
        return own
    known = [own for name in sorted(memories) if (own := own_in(memories[name]))]
    # On the CPU, since after a resumption some memories are there and others where the network is.
    return {name: _mean([own[name].cpu() for own in known]) for name in (known[0] if known else ())}


def _mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(0) if tensors[0].is_floating_point() else tensors[0]


def memory_of(own: Tensors) -> dict[str, Tensor]:
    """Gives what a site keeps of its model, as its memory has it."""
    return {f"{_OWN}{name}": tensor for name, tensor in own.items()}


def without_own(memory: Tensors) -> dict[str, Tensor]:
    """Gives what a site remembers beside its own part of the model."""
    return {name: tensor for name, tensor in memory.items() if not name.startswith(_OWN)}


def personal_in(memory: Tensors) -> dict[str, Tensor]:
    """Gives a site's personal network, from its memory."""
    return {name.removeprefix(_PERSONAL): tensor for name, tensor in memory.items() if name.startswith(_PERSONAL)}


def personal_memory_of(network: Tensors) -> dict[str, Tensor]:
    """Gives a site's personal network, as its memory has it."""
    return {f"{_PERSONAL}{name}": tensor for name, tensor in network.items()}
