"""FedPer: the last layers stay at the hospital."""

from __future__ import annotations

from torch.nn import Module

from fedgs.algorithms.composition import extended, plain
from fedgs.core import Algorithm
from fedgs.errors import ConfigError, unknown_choice
from fedgs.own import parts_of_sites
from fedgs.tensors import buffers_of, unwrap, weights_of

__all__ = ["fedper"]


def fedper(inner: Algorithm | None = None, *, head: str = "head") -> Algorithm:
    """Makes FedPer: every site keeps a part of the network, by default its head, and shares the rest.

    It sends less than FedAvg. A hospital without a head of its own gets the mean of the sites' heads, for its images
    and to start its training from. What the local optimizer is makes no difference.

    Args:
        inner: What is extended; McMahan's FedAvg unless given.
        head: Name of a submodule, for instance ``"head"`` of a U-Net or ``"segmentor"`` of a disentangled network.

    Raises:
        ConfigError: `inner` cannot be combined with it; or, once the network is known, that has no such part, or
            nothing else, or leaves that to the sites anyway.

    Source: Arivazhagan et al., Federated Learning with Personalization Layers, 2019, arXiv 1912.00818.
    """

    def kept(model: Module) -> set[str]:
        names = {*weights_of(model), *buffers_of(model)}
        kept_anyway = parts_of_sites(model)
        found = {name for name in names if name.startswith(f"{head}.")} - kept_anyway
        if not found or found == names - kept_anyway:
            children = {name for name, _ in unwrap(model).named_children()}
            parts = {name for name in children if any(other.startswith(f"{name}.") for other in names - kept_anyway)}
            raise ConfigError(f"fedper: {unknown_choice(f'part of {type(unwrap(model)).__name__}', head, parts)}")
        return found

    return extended(inner or plain(), "own head", name="fedper", keeps=kept)
