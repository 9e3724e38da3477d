"""FedGS that scales what gradients contribute rather than finished steps: a candidate of ours, not published."""

from __future__ import annotations

from fedgs.algorithms.fedgs import fedgs
from fedgs.core import Algorithm

__all__ = ["fedgs_gradient"]


def fedgs_gradient(
    base: float = 100.0, difficulty: str = "image", server_momentum: float = 0.0, lr: float | None = None
) -> Algorithm:
    """Makes FedGS that scales what gradients contribute rather than finished steps; a candidate, not published.

    A step of Adam holds a tenth of its own batch's gradient, the rest is of earlier batches; here eta goes with the
    gradient through the momentum, see `fedgs.scaled_moments`. With every eta 1 it is FedGS with every eta 1, within
    rounding. It sends what FedAvg sends; counting a step takes twice the time of FedGS, and half as much memory again.

    Args:
        base: As for `fedgs`, like all others.
        difficulty: ``"image"`` or ``"lesion"``.
        server_momentum: In [0, 1).
        lr: Learning rate of the sites.
    """
    return fedgs(base, difficulty, server_momentum, lr, scale="gradient")
