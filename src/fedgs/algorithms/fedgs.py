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

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.server_rules import mean_by, with_momentum
from fedgs.core import Algorithm, Global, LocalRule, Site, Update
from fedgs.errors import ConfigError
from fedgs.scaled_moments import check_scaled
from fedgs.scaled_update import ScaledUpdate
from fedgs.scaling import check_difficulty, scale_of_batch
from fedgs.tensors import Difference, Tensors, accumulate, compare, weights_of

if TYPE_CHECKING:
    from fedgs.data.case import Batch

__all__ = ["ScaledSteps", "eta_of", "fedgs"]


class ScaledSteps(LocalRule):
    """Plain local training whose steps are counted with a scale per batch.

    Args:
        eta: Batch -> how much its step counts.
        count_weight_decay: As for `ScaledUpdate`.
        scale: What is scaled, as for `ScaledUpdate`.
    """

    def __init__(
        self, eta: Callable[[Batch], float], *, count_weight_decay: bool = False, scale: str = "steps"
    ) -> None:
        self._eta, self._counts_decay, self._scale = eta, count_weight_decay, scale

    def begin(self, model: Module, optimizer: Optimizer, sent: Global, memory: Tensors, site: Site) -> None:
        """Starts counting from zero."""
        self._start, self._decayed = sent.weights, dict[str, Tensor]()
        self._live = {name: weight for name, weight in weights_of(model).items() if name in sent.weights}
        self._scaled = ScaledUpdate(model, optimizer, count_weight_decay=self._counts_decay, scale=self._scale)

    def before_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Remembers the weights, and what of them decoupled decay is about to take."""
        self._scaled.before_step(self._eta(batch))
        accumulate(self._decayed, self._live, self._scaled.decay_of_step())

    def after_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Adds the scaled step."""
        self._scaled.after_step()

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Sends the sum of the scaled steps in place of the plain difference of the weights, and says how they differ.

        Metrics: `mean_eta`; `norm_ratio` and `cosine`, length and angle against the same direction with every eta 1.
        """
        unscaled = Difference(self._start, self._live, self._decayed)
        scaled = self._scaled.finish(update.num_examples)
        direction = {name: tensor for name, tensor in scaled.direction.items() if name in self._start}
        ratio, cosine = compare(direction, unscaled)
        metrics = {**update.metrics, **scaled.metrics, "norm_ratio": ratio, "cosine": cosine}
        return replace(update, direction=direction, metrics=metrics), {}


def eta_of(base: float, difficulty: str) -> Callable[[Batch], float]:
    """Makes what tells the scale of a batch, see `scale_of_batch`.

    Raises:
        ConfigError: A value is out of its range.
    """
    check_difficulty(base, difficulty)
    return lambda batch: scale_of_batch(batch.masks, batch.is_small, base=base, difficulty=difficulty)


def fedgs(
    base: float = 100.0,
    difficulty: str = "image",
    server_momentum: float = 0.0,
    lr: float | None = None,
    scale: str = "steps",
) -> Algorithm:
    """Makes FedGS as published: eta of the batch scales each step, decoupled decay is not counted, steps are weights.

    Args:
        base: Base of the logarithm in the difficulty, > 1; 100 for PolypGen, 1000 for LiTS.
        difficulty: ``"image"`` (published) or ``"lesion"``, see `scale_of_batch`.
        server_momentum: In [0, 1); 0 is none.
        lr: Learning rate of the sites; required with momentum.
        scale: ``"steps"`` (published) or ``"gradient"``, a candidate of ours, see `fedgs_gradient`.

    Returns:
        The algorithm, as a value.

    Raises:
        ConfigError: A value is out of its range, or momentum came without lr.

    Source: Schutte et al., arXiv 2408.11701.
    """
    check_scaled(scale)
    if server_momentum and lr is None:
        raise ConfigError("server_momentum needs lr, the learning rate of the sites")
    rule = with_momentum("steps", momentum=server_momentum, lr=lr or 0.0) if server_momentum else mean_by("steps")
    local_rule = partial(ScaledSteps, eta_of(base, difficulty), scale=scale)
    name = "fedgs" if scale == "steps" else "fedgs-gradient"
    return Algorithm(name, local_rule, rule, traits=frozenset({"scaled steps"}))
