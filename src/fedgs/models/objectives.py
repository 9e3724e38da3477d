"""What local training minimises: named terms whose sum is the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedgs.errors import ConfigError, unknown_choice
from fedgs.models.outputs import foreground, in_full_precision, log_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from fedgs.data.case import Batch
    from fedgs.models.disentangled import DisentangledOutput
    from fedgs.models.feddis import FedDisOutput

__all__ = ["OBJECTIVES", "Kind", "Objective", "dice_loss_of_batch", "dice_loss_per_image", "objective"]

Objective = Callable[[Any, "Batch"], "dict[str, Tensor]"]
"""Takes a network's output and its batch; gives scalar terms by name, at least float32."""

SMOOTHING = 0.1


def dice_loss_of_batch(scores: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice loss over all pixels of a batch taken together, as published.

    loss = 1 - (2 * sum(p * y) + 0.1) / (sum(p) + sum(y) + 0.1)

    Args:
        scores: Probability of the foreground p, (B, H, W), float32 or float64.
        truth: Ground truth y, (B, H, W), bool.

    Returns:
        Scalar in [0, 1); near 0 where scores and truth are both empty.

    Source: Schutte et al., FedGS, arXiv 2408.11701.
    """
    overlap = (scores * truth).sum()
    return 1 - (2 * overlap + SMOOTHING) / (scores.sum() + truth.sum() + SMOOTHING)


def dice_loss_per_image(scores: Tensor, truth: Tensor) -> Tensor:
    """Mean over the images of the soft Dice loss of each, so that a small lesion counts as much as a large one.

    Args:
        scores: Probability of the foreground, (B, H, W), float32 or float64.
        truth: Ground truth, (B, H, W), bool.

    Returns:
        Scalar in [0, 1); equal to `dice_loss_of_batch` for one image.
    """
    pixels = (1, 2)
    overlap = (scores * truth).sum(pixels)
    return (1 - (2 * overlap + SMOOTHING) / (scores.sum(pixels) + truth.sum(pixels) + SMOOTHING)).mean()


def _dice_batch(output: Any, batch: Batch) -> dict[str, Tensor]:
    return {"dice": dice_loss_of_batch(foreground(output), batch.masks)}


def _dice_per_image(output: Any, batch: Batch) -> dict[str, Tensor]:
    return {"dice": dice_loss_per_image(foreground(output), batch.masks)}


def _cross_entropy(output: Any, batch: Batch) -> dict[str, Tensor]:
    # Imported here so that the command line lists the objectives without waiting for torch.
    from torch.nn import functional

    return {"cross_entropy": functional.nll_loss(log_probabilities(output), batch.masks.long())}


def _disentangled(output: DisentangledOutput, batch: Batch) -> dict[str, Tensor]:
    """Terms of SDNet and SD-UTNet; KL from a standard normal style, and two mean absolute differences."""
    from torch.nn.functional import l1_loss

    assert output.z_again is not None, "in training there is one"
    kl = -0.5 * (1 + output.logvar - output.mu**2 - output.logvar.exp()).sum(1).mean()
    return {
        **_dice_batch(output, batch),
        "kl": kl,
        "style": l1_loss(in_full_precision(output.z_again), output.z),
        "reconstruction": l1_loss(in_full_precision(output.reconstruction), batch.images),
    }


def _feddis(output: FedDisOutput, batch: Batch) -> dict[str, Tensor]:
    """Terms of FedDis: appearance and projected shape shall be unlike."""
    from torch.nn.functional import cosine_similarity, l1_loss

    one, other = (in_full_precision(code).flatten(1) for code in (output.appearance_code, output.projected_shape_code))
    return {
        **_dice_batch(output, batch),
        "reconstruction": l1_loss(in_full_precision(output.reconstruction), batch.images),
        "likeness": cosine_similarity(one, other).mean(),
    }


@dataclass(frozen=True, slots=True)
class Kind:
    """What an objective adds up: terms by name, each of them with a weight; not all are for any network."""

    terms: tuple[Callable[[Any, Batch], Mapping[str, Tensor]], ...]
    weights: Mapping[str, float]
    for_any: bool = True


OBJECTIVES: Mapping[str, Kind] = {
    "dice_batch": Kind((_dice_batch,), {"dice": 1.0}),
    "dice_per_image": Kind((_dice_per_image,), {"dice": 1.0}),
    "dice_batch+ce": Kind((_dice_batch, _cross_entropy), {"dice": 1.0, "cross_entropy": 1.0}),
    "dice_per_image+ce": Kind((_dice_per_image, _cross_entropy), {"dice": 1.0, "cross_entropy": 1.0}),
    "disentangled": Kind((_disentangled,), {"dice": 10.0, "kl": 0.01, "style": 1.0, "reconstruction": 1.0}, False),
    "feddis": Kind((_feddis,), {"dice": 5.0, "reconstruction": 0.2, "likeness": 0.8}, False),
}
"""Objectives by name; the weights of the last two are the published ones."""


def objective(name: str, **weights: float) -> Objective:
    """Gives the objective of that name.

    Args:
        name: A key of `OBJECTIVES`; "dice_batch" is the published one of networks that segment and do nothing else.
        **weights: Of terms, in place of their own.

    Returns:
        A function of a network's output and its batch that gives the weighted terms of the loss by name; the loss is
        their sum.

    Raises:
        ConfigError: There is no objective or no term of that name, or a weight is not finite.
    """
    if name not in OBJECTIVES:
        raise unknown_choice("objective", name, OBJECTIVES)
    kind = OBJECTIVES[name]
    for term, weight in weights.items():
        if term not in kind.weights:
            raise unknown_choice(f"term of objective '{name}'", term, kind.weights)
        if not math.isfinite(weight) or weight < 0:
            raise ConfigError(
                f"objective '{name}': the weight of '{term}' must be finite and not negative, got {weight}"
            )
    scaled = {**kind.weights, **weights}

    def terms_of(output: Any, batch: Batch) -> dict[str, Tensor]:
        terms = {term: value for part in kind.terms for term, value in part(output, batch).items()}
        return {term: value if scaled[term] == 1 else scaled[term] * value for term, value in terms.items()}

    return terms_of
