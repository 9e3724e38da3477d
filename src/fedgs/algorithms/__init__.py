"""Federated algorithms by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from fedgs.algorithms.ditto import ditto
from fedgs.algorithms.fedavg import fedavg, fedavg_published
from fedgs.algorithms.fedbn import fedbn, silobn
from fedgs.algorithms.fedgs import fedgs
from fedgs.algorithms.fedgs_gradient import fedgs_gradient
from fedgs.algorithms.fednova import fednova
from fedgs.algorithms.fedopt import fedopt
from fedgs.algorithms.fedper import fedper
from fedgs.algorithms.fedprox import fedprox
from fedgs.algorithms.matched import matched_global, matched_gradient, matched_site
from fedgs.algorithms.oversample_small import oversample_small
from fedgs.algorithms.references import central, local
from fedgs.algorithms.scaffold import scaffold
from fedgs.algorithms.shuffled_scale import shuffled_scale
from fedgs.algorithms.style_augmentation import require_styles, with_style_augmentation
from fedgs.algorithms.weighted_loss import weighted_loss
from fedgs.core import Algorithm
from fedgs.errors import ConfigError, unknown_choice

__all__ = [
    "ALGORITHMS",
    "EXTENSIONS",
    "Algorithm",
    "build",
    "central",
    "ditto",
    "fedavg",
    "fedavg_published",
    "fedbn",
    "fedgs",
    "fedgs_gradient",
    "fednova",
    "fedopt",
    "fedper",
    "fedprox",
    "local",
    "matched_global",
    "matched_gradient",
    "matched_site",
    "oversample_small",
    "require_styles",
    "scaffold",
    "shuffled_scale",
    "silobn",
    "weighted_loss",
    "with_style_augmentation",
]

ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = {
    "fedgs": fedgs,
    "fedgs-gradient": fedgs_gradient,
    "fedavg": fedavg,
    "fedavg-published": fedavg_published,
    "matched-global": matched_global,
    "matched-site": matched_site,
    "matched-gradient": matched_gradient,
    "shuffled-scale": shuffled_scale,
    "oversample-small": oversample_small,
    "weighted-loss": weighted_loss,
    "local": local,
    "central": central,
}
"""What makes each algorithm that says how a site trains and how its steps count."""

EXTENSIONS: Mapping[str, Callable[..., Algorithm]] = {
    "fedprox": fedprox,
    "fednova": fednova,
    "scaffold": scaffold,
    "fedopt": fedopt,
    "fedbn": fedbn,
    "silobn": silobn,
    "fedper": fedper,
    "ditto": ditto,
}
"""What makes an algorithm of another one, of FedAvg unless one is named; applied in this order, not that of names."""


def build(name: str, *, known: Mapping[str, Any], **options: Any) -> Algorithm:
    """Makes an algorithm by name.

    Args:
        name: At most one key of `ALGORITHMS` and any of `EXTENSIONS`, joined by plus signs, as in ``fedgs+fedbn``.
        known: What the surroundings know (``base`` of the data, ``lr`` of the sites); taken where it is wanted.
        **options: What was asked for; each must be an option of one of them.

    Returns:
        The algorithm, as a value.

    Raises:
        ConfigError: Unknown name or option, a value out of its range, or names that cannot be combined.
    """
    parts = name.split("+")
    for part in parts:
        if part not in ALGORITHMS and part not in EXTENSIONS:
            raise unknown_choice("algorithm", part, [*ALGORITHMS, *EXTENSIONS])
    bases = [part for part in parts if part in ALGORITHMS]
    if len(bases) > 1:
        raise ConfigError(
            f"'{bases[0]}' and '{bases[1]}' both say how a hospital's steps count; choose one of them, extended by any "
            f"of: {', '.join(EXTENSIONS)}"
        )
    accepted = {part: signature(_MAKERS[part]).parameters for part in parts}
    for option in options:
        if not any(option in of_part for of_part in accepted.values()):
            makers = [other for other, make in _MAKERS.items() if option in signature(make).parameters]
            raise ConfigError(f"'{option}' is no option of algorithm '{name}', but of {', '.join(makers) or 'none'}")
    algorithm: Algorithm | None = None
    for part in sorted(parts, key=[*_MAKERS].index):
        given = {key: value for key, value in {**known, **options}.items() if key in accepted[part]}
        algorithm = _MAKERS[part](algorithm, **given) if part in EXTENSIONS else _MAKERS[part](**given)
    assert algorithm is not None, "a name has at least one part"
    return algorithm


_MAKERS: Mapping[str, Callable[..., Algorithm]] = {**ALGORITHMS, **EXTENSIONS}
