"""Overlap of two masks; the same code for NumPy arrays and torch tensors on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fedgs.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Confusion", "confusion", "dice", "iou", "precision", "recall"]

Mask = TypeVar("Mask", npt.NDArray[np.bool_], "Tensor")


class Confusion(NamedTuple):
    """Pixels of a prediction against the truth; all that Dice needs, and all that is needed to average it again.

    Attributes:
        tp: Foreground in both, pixels.
        fp: Foreground in the prediction alone, pixels.
        fn: Foreground in the truth alone, pixels.
    """

    tp: int
    fp: int
    fn: int


def confusion(prediction: Mask, truth: Mask) -> Confusion:
    """Counts where a prediction and the truth agree and where they do not.

    Args:
        prediction: Predicted foreground, any shape, bool.
        truth: True foreground, the same shape, bool; both NumPy arrays, or both tensors on one device.

    Returns:
        Counts over all pixels, each at least 0; counts of several images are added up.

    Raises:
        ShapeError: The shapes differ, or one of them is not bool.

    >>> confusion(np.array([True, True, False]), np.array([True, False, True]))
    Confusion(tp=1, fp=1, fn=1)
    """
    if prediction.shape != truth.shape or not (_is_bool(prediction) and _is_bool(truth)):
        raise ShapeError(
            "confusion() expects two bool masks of one shape, "
            f"got a prediction {tuple(prediction.shape)} {prediction.dtype} and a truth {tuple(truth.shape)} "
            f"{truth.dtype}; resize the prediction to the mask and threshold it first"
        )
    both = int((prediction & truth).sum())
    return Confusion(tp=both, fp=int(prediction.sum()) - both, fn=int(truth.sum()) - both)


def dice(counts: Confusion) -> float:
    """Overlap of a prediction with the truth.

    Dice = 2 TP / (2 TP + FP + FN)

    Args:
        counts: What `confusion` returned.

    Returns:
        Dimensionless, in [0, 1]; 1.0 when prediction and truth are both empty, as published.

    Source: Dice, Ecology 26 (1945), 297-302.

    >>> dice(Confusion(tp=1, fp=1, fn=1))
    0.5
    >>> dice(Confusion(tp=0, fp=0, fn=0))
    1.0
    """
    total = 2 * counts.tp + counts.fp + counts.fn
    return 2 * counts.tp / total if total else 1.0


def iou(counts: Confusion) -> float:
    """Intersection over union (Jaccard index) of a prediction and the truth.

    IoU = TP / (TP + FP + FN) = Dice / (2 - Dice)

    Args:
        counts: What `confusion` returned.

    Returns:
        Dimensionless, in [0, 1]; 1.0 when prediction and truth are both empty, as for Dice.

    Source: Maier-Hein, Reinke et al., Metrics reloaded, Nature Methods 21 (2024), 195-212.

    >>> iou(Confusion(tp=1, fp=1, fn=1))
    0.3333333333333333
    """
    total = counts.tp + counts.fp + counts.fn
    return counts.tp / total if total else 1.0


def precision(counts: Confusion) -> float:
    """Share of the predicted foreground that is true, TP / (TP + FP); positive predictive value.

    Args:
        counts: What `confusion` returned.

    Returns:
        Dimensionless, in [0, 1]; nan where nothing is predicted.

    >>> precision(Confusion(tp=1, fp=3, fn=0))
    0.25
    """
    total = counts.tp + counts.fp
    return counts.tp / total if total else float("nan")


def recall(counts: Confusion) -> float:
    """Share of the true foreground that is predicted, TP / (TP + FN); sensitivity.

    Args:
        counts: What `confusion` returned.

    Returns:
        Dimensionless, in [0, 1]; nan where the truth is empty.

    >>> recall(Confusion(tp=1, fp=0, fn=3))
    0.25
    """
    total = counts.tp + counts.fn
    return counts.tp / total if total else float("nan")


def _is_bool(mask: npt.NDArray[np.bool_] | Tensor) -> bool:
    return str(mask.dtype).removeprefix("torch.") == "bool"
