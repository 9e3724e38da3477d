"""FedAvg: McMahan's, and the baseline of the FedGS publication."""

from __future__ import annotations

from functools import partial

from fedgs.algorithms.fedgs import ScaledSteps
from fedgs.algorithms.server_rules import mean_by
from fedgs.core import Algorithm, LocalRule

__all__ = ["fedavg", "fedavg_published"]


def fedavg(weight_by: str = "examples", count_weight_decay: bool = True) -> Algorithm:
    """Makes Federated Averaging: the server's weights become the weighted mean of the sites' weights.

    Args:
        weight_by: ``"examples"`` (McMahan) or ``"steps"``.
        count_weight_decay: Whether decoupled weight decay reaches the server, as it does when weights are averaged.

    Returns:
        The algorithm, as a value.

    Raises:
        ConfigError: ``weight_by`` is unknown.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
    """
    rule = LocalRule if count_weight_decay else partial(ScaledSteps, lambda batch: 1.0)
    return Algorithm("fedavg", rule, mean_by(weight_by))


def fedavg_published() -> Algorithm:
    """Makes the baseline of the FedGS publication: FedGS with eta = 1, to the bit.

    Against McMahan's it weights by steps and leaves decoupled weight decay out of the update.

    Source: Schutte et al., arXiv 2408.11701.
    """
    baseline = fedavg(weight_by="steps", count_weight_decay=False)
    return Algorithm("fedavg-published", baseline.local_rule, baseline.aggregate)
