"""Federated algorithms by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from fedgs.algorithms.fedavg import fedavg, fedavg_published
from fedgs.algorithms.fedgs import fedgs
from fedgs.algorithms.references import central, local
from fedgs.algorithms.style_augmentation import require_styles, with_style_augmentation
from fedgs.core import Algorithm
from fedgs.errors import ConfigError, unknown_choice

__all__ = ["ALGORITHMS", "Algorithm", "build", "require_styles", "with_style_augmentation"]

ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = {
    "fedavg": fedavg,
    "fedavg-published": fedavg_published,
    "fedgs": fedgs,
    "local": local,
    "central": central,
}
"""What makes each algorithm."""


def build(name: str, *, known: Mapping[str, Any], **options: Any) -> Algorithm:
    """Makes an algorithm by name.

    Args:
        name: A key of `ALGORITHMS`.
        known: What the surroundings know (``base`` of the data, ``lr`` of the sites); taken where it is wanted.
        **options: What was asked for; each must be an option of this algorithm.

    Returns:
        The algorithm, as a value.

    Raises:
        ConfigError: Unknown name or option, or a value out of its range.
    """
    if name not in ALGORITHMS:
        raise unknown_choice("algorithm", name, ALGORITHMS)
    accepted = signature(ALGORITHMS[name]).parameters
    for option in options:
        if option not in accepted:
            makers = [other for other, make in ALGORITHMS.items() if option in signature(make).parameters]
            raise ConfigError(f"'{option}' is no option of algorithm '{name}', but of {', '.join(makers) or 'none'}")
    return ALGORITHMS[name](**{key: value for key, value in known.items() if key in accepted} | options)
