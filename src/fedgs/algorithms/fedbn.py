"""FedBN and SiloBN: batch normalisation, or its statistics alone, stay at the hospital."""

from __future__ import annotations

from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from fedgs.algorithms.composition import extended, plain
from fedgs.core import Algorithm
from fedgs.errors import ConfigError
from fedgs.tensors import buffers_of, unwrap, weights_of

__all__ = ["batch_norms_of", "fedbn", "silobn"]


def fedbn(inner: Algorithm | None = None) -> Algorithm:
    """Makes FedBN: every site keeps its batch normalisation, scale, shift and running statistics.

    It sends less than FedAvg. A site's images are scored by the shared network with the site's own layers. A hospital
    that has none, since it joins later or was left out, gets the mean of the sites' layers, for its images and to start
    its training from. With an adaptive local optimizer nothing changes: moments start anew in every round either way.

    Args:
        inner: What is extended; McMahan's FedAvg unless given.

    Raises:
        ConfigError: `inner` cannot be combined with it; or, once the network is known, that has no batch norm.

    Source: Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021,
    arXiv 2102.07623.
    """
    return extended(
        inner or plain(),
        "own norms",
        name="fedbn",
        keeps=lambda model: _of_norms(model, "fedbn", {*weights_of(model), *buffers_of(model)}),
    )


def silobn(inner: Algorithm | None = None) -> Algorithm:
    """Makes SiloBN: every site keeps the running statistics of its batch normalisation; scale and shift are shared.

    Otherwise like `fedbn`, also for hospitals without statistics of their own.

    Args:
        inner: What is extended; McMahan's FedAvg unless given.

    Raises:
        ConfigError: As for `fedbn`.

    Source: Andreux et al., Siloed Federated Learning for Multi-Centric Histopathology Datasets, DCL 2020,
    arXiv 2008.07424.
    """
    return extended(
        inner or plain(),
        "own statistics",
        name="silobn",
        keeps=lambda model: _of_norms(model, "silobn", set(buffers_of(model))),
    )


def batch_norms_of(model: Module) -> dict[str, _BatchNorm]:
    """Gives the layers of a model that are batch normalisation, by name; instance and group norm are not."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, _BatchNorm)}


def _of_norms(model: Module, algorithm: str, names: set[str]) -> set[str]:
    layers = tuple(f"{name}." for name in batch_norms_of(model))
    kept = {name for name in names if name.startswith(layers)}
    if not kept:
        raise ConfigError(
            f"{algorithm} keeps batch normalisation at the hospital, but this {type(unwrap(model)).__name__} has none "
            "(instance and group norm keep no statistics and are shared); choose a network with batch norm, or leave "
            f"{algorithm} out"
        )
    return kept
