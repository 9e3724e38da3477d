"""A control: small lesions are seen more often, and every step counts alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedgs.algorithms.fedavg import fedavg_published
from fedgs.core import Algorithm
from fedgs.scaling import check_difficulty

__all__ = ["oversample_small"]


def oversample_small(base: float = 100.0) -> Algorithm:
    """Makes FedAvg as published in which a site draws its images with probabilities proportional to 1 + 2 delta.

    delta is the difficulty of the un-augmented mask, 0 unless flagged small. Kept as in FedAvg: number of steps, eta 1,
    the length of the server's step. Not kept: the batches, which are drawn with replacement. It is what practice does
    about rare cases. It sends what FedAvg sends.

    Args:
        base: Base of the logarithm in the difficulty, > 1.

    Raises:
        ConfigError: `base` is not above 1.
    """
    check_difficulty(base)

    def weights(is_small: NDArray[np.bool_], area: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):
            delta = np.tanh((np.log(area) / np.log(base)) ** 2)
        return np.where(is_small & (area > 0), 1 + 2 * delta, 1.0)

    return replace(fedavg_published(), name="oversample-small", case_weights=weights)
