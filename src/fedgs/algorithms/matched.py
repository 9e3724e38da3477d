"""Controls: the sites' steps count alike, and the updates are as long as those of FedGS would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.algorithms.fedavg import fedavg_published
from fedgs.algorithms.fedgs import ScaledSteps, eta_of
from fedgs.algorithms.server_rules import ServerRule, Shares
from fedgs.core import Algorithm, Update
from fedgs.tensors import Difference, Tensors

if TYPE_CHECKING:
    from fedgs.data.case import Batch

__all__ = ["matched_global", "matched_gradient", "matched_site"]

_ETA = "mean_eta"


class _Watched(ScaledSteps):
    """Steps that count alike, while what FedGS would have scaled them by is noted."""

    def __init__(self, eta: Callable[[Batch], float], *, at_site: bool) -> None:
        super().__init__(lambda batch: 1.0)
        self._eta_of_batch, self._at_site, self._etas = eta, at_site, list[float]()

    def before_step(self, model: Module, optimizer: Optimizer, batch: Batch) -> None:
        """Notes the scale of the batch."""
        super().before_step(model, optimizer, batch)
        self._etas.append(self._eta_of_batch(batch))

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Multiplies the whole direction by the site's mean scale, or sends that for the server to do so."""
        update, memory = super().finish(update, model, optimizer)
        mean = sum(self._etas) / max(len(self._etas), 1)
        update = replace(update, metrics={**update.metrics, _ETA: mean})
        if not self._at_site:
            return replace(update, extra={**update.extra, _ETA: torch.tensor(mean, dtype=torch.float64)}), memory
        direction = {name: mean * tensor for name, tensor in update.direction.items()}
        ratio = update.metrics["norm_ratio"]
        metrics = {**update.metrics, "norm_ratio": None if ratio is None else ratio * mean}
        return replace(update, direction=direction, metrics=metrics), memory


class _AsLong(ScaledSteps):
    """Steps that count alike, in an update as long as that of scaled gradients."""

    def finish(self, update: Update, model: Module, optimizer: Optimizer) -> tuple[Update, Tensors]:
        """Gives the direction with every eta 1 the length of the one that was scaled."""
        unscaled = Difference(self._start, self._live, self._decayed)
        update, memory = super().finish(update, model, optimizer)
        ratio = update.metrics["norm_ratio"]
        direction = {name: (1.0 if ratio is None else ratio) * tensor for name, tensor in unscaled.items()}
        metrics = {**update.metrics, "cosine": None if ratio is None else 1.0}
        return replace(update, direction={**update.direction, **direction}, metrics=metrics), memory


def matched_site(base: float = 100.0, difficulty: str = "image") -> Algorithm:
    """Makes the control in which each update is multiplied by its site's mean eta of the round.

    Kept as in FedGS: batches and their etas; nearly, length of the server's step and re-weighting of hospitals. Not
    kept: which of a site's steps count more. FedGS less this control is that alone. For `fedgs_gradient`, whose updates
    are longer than by their mean eta, `matched_gradient` is the control. It sends what FedAvg sends.

    Args:
        base: As for `fedgs`.
        difficulty: As for `fedgs`.

    Raises:
        ConfigError: A value is out of its range.
    """
    return _matched("matched-site", base, difficulty, at_site=True)


def matched_gradient(base: float = 100.0, difficulty: str = "image") -> Algorithm:
    """Makes the control in which each update is as long as that of `fedgs_gradient`, and points where FedAvg's does.

    With G what `fedgs_gradient` sends and G0 the same with every eta 1, it sends ``|G|/|G0| * G0``. Kept: batches,
    length of each update, re-weighting of hospitals. Not kept: where the update points. So `fedgs_gradient` less this
    control is direction alone; less `matched_site` it is also what its updates are longer by. It sends what FedAvg
    sends, and costs a site what `fedgs_gradient` costs.

    Args:
        base: As for `fedgs`.
        difficulty: As for `fedgs`.

    Raises:
        ConfigError: A value is out of its range; or, at the first step, an optimizer that `fedgs_gradient` refuses.
    """
    rule = partial(_AsLong, eta_of(base, difficulty), scale="gradient")
    return replace(fedavg_published(), name="matched-gradient", local_rule=rule, traits=frozenset({"scaled steps"}))


def matched_global(base: float = 100.0, difficulty: str = "image") -> Algorithm:
    """Makes the control in which every update is multiplied by the mean eta of the whole round, weighted by steps.

    Kept as in FedGS: batches and their etas; nearly, length of the server's step. Not kept: which steps count more, and
    which hospitals. `matched_site` less this control is the re-weighting of hospitals; this control less FedAvg as
    published is the length of the step. It sends one number more than FedAvg, the site's mean eta. The factor of a
    round is `scale` under `server` in rounds.jsonl. Where what it is extended by weights sites otherwise, so is the
    mean (`scaffold`: all alike).

    Args:
        base: As for `fedgs`.
        difficulty: As for `fedgs`.

    Raises:
        ConfigError: A value is out of its range.
    """
    made = _matched("matched-global", base, difficulty, at_site=False)
    return replace(made, aggregate=ServerRule("steps", coefficients=_times_mean_eta))


def _times_mean_eta(updates: Mapping[str, Update], shares: Shares) -> Shares:
    factor = sum(share * float(updates[site].extra[_ETA]) for site, share in shares.items())
    return {site: share * factor for site, share in shares.items()}


def _matched(name: str, base: float, difficulty: str, *, at_site: bool) -> Algorithm:
    rule = partial(_Watched, eta_of(base, difficulty), at_site=at_site)
    return replace(fedavg_published(), name=name, local_rule=rule, traits=frozenset({"scaled steps"}))
