"""A control: the scales of FedGS, in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.fedgs import ScaledSteps, eta_of, fedgs
from fedgs.core import Algorithm, Global, Site
from fedgs.tensors import Tensors

if TYPE_CHECKING:
    from fedgs.data.case import Batch

__all__ = ["shuffled_scale"]


class _Shuffled(ScaledSteps):
    """Scaled steps whose scales are permuted over the steps of a site's round."""

    def __init__(self, eta: Callable[[Batch], float]) -> None:
        super().__init__(lambda batch: next(self._scales))
        self._eta_of_batch = eta

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Goes through the batches once without training."""
        super().begin(model, optimizer, sent, memory, site)
        etas = [self._eta_of_batch(batch) for batch in site.batches]
        order = torch.randperm(len(etas), generator=site.generator).tolist()
        self._scales = iter([etas[step] for step in order])


def shuffled_scale(base: float = 100.0, difficulty: str = "image") -> Algorithm:
    """Makes the control in which the etas of a site's round are those of FedGS, in a random order.

    Kept as in FedGS: batches, the multiset of etas and so their mean, and nearly the length of each update. Not kept:
    that the steps on small lesions are those that count more. The batches are read twice. It sends what FedAvg sends.

    Args:
        base: As for `fedgs`.
        difficulty: As for `fedgs`.

    Raises:
        ConfigError: A value is out of its range.
    """
    return replace(
        fedgs(base, difficulty), name="shuffled-scale", local_rule=partial(_Shuffled, eta_of(base, difficulty))
    )
