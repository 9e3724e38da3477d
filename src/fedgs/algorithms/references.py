"""What a federation is measured against: sites that share nothing, and one that has all data."""

from __future__ import annotations

from torch.nn import Module

from fedgs.algorithms.server_rules import mean_by
from fedgs.core import Algorithm, LocalRule
from fedgs.tensors import buffers_of, weights_of

__all__ = ["central", "local"]


def local() -> Algorithm:
    """Makes the lower reference: every site trains a network of its own, and nothing travels.

    Sites take as many optimizer steps as in a federation, and each round begins with fresh moments as there. A site's
    images are scored by its own network; those of a hospital without one by the network of every site, whose scores are
    averaged image by image.

    Returns:
        The algorithm, as a value.
    """
    return Algorithm("local", LocalRule, mean_by("steps"), keeps=_everything, traits=frozenset({"alone"}))


def central() -> Algorithm:
    """Makes the upper reference: one network is trained on the data of all sites together.

    A round takes as many optimizer steps as those of all sites in a federation, and begins with fresh moments as there.

    Returns:
        The algorithm, as a value.
    """
    return Algorithm("central", LocalRule, mean_by("steps"), keeps=_nothing, pools=True, traits=frozenset({"pooled"}))


def _everything(model: Module) -> set[str]:
    return {*weights_of(model), *buffers_of(model)}


def _nothing(_: Module) -> tuple[str, ...]:
    return ()
