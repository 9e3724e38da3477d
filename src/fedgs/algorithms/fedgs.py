"""FedGS: optimizer steps on small, hard lesions count more in the update that a site sends.

A site trains as ever and beside it accumulates ``G = sum of eta_s * u_s`` over its steps, u_s being the optimizer's
step and eta_s the scale of its batch. The server moves its weights by the mean of the G, weighted by steps.

Source: Schutte et al., FedGS: Federated Gradient Scaling for Heterogeneous Medical Image Segmentation,
arXiv 2408.11701.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.server_rules import mean_by, with_momentum
from fedgs.core import Algorithm, Global, LocalRule, Site, Update
from fedgs.errors import ConfigError
from fedgs.scaled_update import ScaledUpdate
from fedgs.scaling import check_difficulty, scale_of_batch
from fedgs.tensors import Tensors

if TYPE_CHECKING:
    from fedgs.data.case import Batch

__all__ = ["ScaledSteps", "fedgs"]


class ScaledSteps(LocalRule):
    """Plain local training whose steps are counted with a scale per batch.

    Args:
        scale: Batch -> how much its step counts.
        count_weight_decay: As for `ScaledUpdate`.
    """

    def __init__(self, scale: Callable[[Batch], float], *, count_weight_decay: bool = False) -> None:
        self._scale, self._count_weight_decay = scale, count_weight_decay

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Starts counting from zero."""
        self._scaled = ScaledUpdate(model, optimizer, count_weight_decay=self._count_weight_decay)

    def before_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Remembers the weights."""
        self._scaled.before_step(self._scale(batch))

    def after_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Adds the scaled step."""
        self._scaled.after_step()

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Sends the sum of the scaled steps in place of the plain difference of the weights."""
        scaled = self._scaled.finish(update.num_examples)
        return replace(update, direction=scaled.direction, metrics={**update.metrics, **scaled.metrics}), {}


def fedgs(
    base: float = 100.0, difficulty: str = "image", server_momentum: float = 0.0, lr: float | None = None
) -> Algorithm:
    """Makes FedGS as published: eta of the batch scales each step, decoupled decay is not counted, steps are weights.

    Args:
        base: Base of the logarithm in the difficulty, > 1; 100 for PolypGen, 1000 for LiTS.
        difficulty: ``"image"`` (published) or ``"lesion"``, see `scale_of_batch`.
        server_momentum: In [0, 1); 0 is none.
        lr: Learning rate of the sites; required with momentum.

    Returns:
        The algorithm, as a value.

    Raises:
        ConfigError: A value is out of its range, or momentum came without lr.

    Source: Schutte et al., arXiv 2408.11701.
    """
    check_difficulty(base, difficulty)
    if server_momentum and lr is None:
        raise ConfigError("server_momentum needs lr, the learning rate of the sites")

    def eta(batch: Batch) -> float:
        return scale_of_batch(batch.masks, batch.is_small, base=base, difficulty=difficulty)

    rule = with_momentum("steps", momentum=server_momentum, lr=lr or 0.0) if server_momentum else mean_by("steps")
    return Algorithm("fedgs", partial(ScaledSteps, eta), rule)
