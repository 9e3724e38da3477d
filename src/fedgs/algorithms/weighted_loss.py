"""A control: small lesions weigh more in the loss, and every step counts alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.fedavg import fedavg_published
from fedgs.algorithms.fedgs import ScaledSteps
from fedgs.core import Algorithm, Global, Site
from fedgs.scaling import check_difficulty, difficulties_of_batch
from fedgs.tensors import Tensors

if TYPE_CHECKING:
    from fedgs.data.case import Batch
    from fedgs.models.objectives import Objective

__all__ = ["weighted_loss"]

Weights = Callable[["Batch"], Tensor]


class _Weighted(ScaledSteps):
    """Steps that count alike, of a loss in which small lesions weigh more."""

    def __init__(self, weights: Weights, *, per_image: bool, normalised: bool) -> None:
        super().__init__(lambda batch: 1.0)
        self._weights, self._per_image, self._normalised = weights, per_image, normalised

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Finds the site's mean weight, if it is to be divided out."""
        super().begin(model, optimizer, sent, memory, site)
        means = [float(self._weights(batch).mean()) for batch in site.batches] if self._normalised else []
        self._mean = sum(means) / len(means) if means else 1.0

    def loss(self, model: Module, batch: Batch, objective: Objective) -> Mapping[str, Tensor]:
        """Weighs images, or all that the batch is to the objective."""
        weights = self._weights(batch) / self._mean
        if self._per_image:
            return super().loss(model, batch._replace(weights=weights.to(batch.images)), objective)
        scale = weights.mean().to(batch.images)
        return {name: scale * term for name, term in super().loss(model, batch, objective).items()}


def weighted_loss(
    base: float = 100.0, difficulty: str = "image", per_image: bool = False, normalised: bool = False
) -> Algorithm:
    """Makes FedAvg as published with a loss in which image i weighs 1 + 2 delta_i.

    With an objective that is formed per image, each image has its weight; with one that takes a batch together, such as
    `dice_batch`, the batch has the mean of them, its eta. Kept as in FedAvg: batches, number of steps, that all steps
    count alike. Not kept: the loss, and so the local training. An adaptive local optimizer divides a constant factor
    out again. It sends what FedAvg sends. `ditto` does not extend it: the personal network would not know the weights.

    Args:
        base: As for `fedgs`.
        difficulty: As for `fedgs`.
        per_image: Whether the objective honours a weight per image.
        normalised: Divide the weights by their mean over the site's round, so that no site's loss is larger as a whole;
            the batches are then read twice.

    Raises:
        ConfigError: A value is out of its range.
    """
    check_difficulty(base, difficulty)

    def weights(batch: Batch) -> Tensor:
        deltas = difficulties_of_batch(batch.masks, batch.is_small, base=base, difficulty=difficulty)
        return 1 + 2 * torch.tensor(deltas, dtype=torch.float64)

    rule = partial(_Weighted, weights, per_image=per_image, normalised=normalised)
    return replace(fedavg_published(), name="weighted-loss", local_rule=rule, traits=frozenset({"weighted loss"}))
