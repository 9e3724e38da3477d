"""What local training minimises: named terms whose sum is the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedgs.errors import ConfigError, unknown_choice
from fedgs.models.dice import dice_loss_of_batch, dice_loss_per_image, mean_of_images
from fedgs.models.lesion_losses import blob_dice_loss, region_dice_ce_losses
from fedgs.models.outputs import foreground, in_full_precision, log_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from fedgs.data.case import Batch
    from fedgs.models.disentangled import DisentangledOutput
    from fedgs.models.feddis import FedDisOutput

__all__ = ["OBJECTIVES", "Kind", "Objective", "objective"]

Objective = Callable[[Any, "Batch"], "dict[str, Tensor]"]
"""Takes a network's output and its batch; gives scalar terms by name, at least float32."""


def _dice_batch(output: Any, batch: Batch) -> dict[str, Tensor]:
    return {"dice": dice_loss_of_batch(foreground(output), batch.masks)}


def _dice_per_image(output: Any, batch: Batch) -> dict[str, Tensor]:
    return {"dice": dice_loss_per_image(foreground(output), batch.masks, batch.weights)}


def _cross_entropy(output: Any, batch: Batch) -> dict[str, Tensor]:
    # Imported here so that the command line lists the objectives without waiting for torch.
    from torch.nn import functional

    if batch.weights is not None:
        return {"cross_entropy": mean_of_images(_cross_entropy_map(output, batch).mean((1, 2)), batch.weights)}
    return {"cross_entropy": functional.nll_loss(log_probabilities(output), batch.masks.long())}


def _cross_entropy_map(output: Any, batch: Batch) -> Tensor:
    """-log of the probability of the true class of each pixel, (B, H, W)."""
    from torch.nn import functional

    return functional.nll_loss(log_probabilities(output), batch.masks.long(), reduction="none")


def _blob_dice(output: Any, batch: Batch) -> dict[str, Tensor]:
    scores = foreground(output)
    return {
        "dice": dice_loss_of_batch(scores, batch.masks),
        "blob": blob_dice_loss(scores, batch.masks, _regions(batch), batch.weights),
    }


def _cc_dice_ce(output: Any, batch: Batch) -> dict[str, Tensor]:
    scores, entropy = foreground(output), _cross_entropy_map(output, batch)
    dice, of_regions = region_dice_ce_losses(scores, entropy, batch.masks, _regions(batch), batch.weights)
    return {
        "dice": dice_loss_of_batch(scores, batch.masks),
        "cross_entropy": mean_of_images(entropy.mean((1, 2)), batch.weights),
        "cc_dice": dice,
        "cc_cross_entropy": of_regions,
    }


def _regions(batch: Batch) -> Tensor:
    if batch.regions is None:
        raise ConfigError(
            "this objective counts by lesion, but its batch has no regions; take batches from an "
            "index.with_regions(), or give Batch the regions by fedgs.data.lesions.nearest_lesions"
        )
    return batch.regions


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
    """What an objective adds up.

    Attributes:
        terms: Functions of a network's output and its batch, each of which gives terms by name.
        weights: Of every term.
        for_any: Whether any network can be trained with it.
        needs_regions: Whether its batches must carry the regions of the lesions.
        per_image: Whether all of it is a mean over images, so that the weights of the images in a batch apply to it as
            a whole. They apply to single terms of the others: not to Dice over the batch, KL and the like.
    """

    terms: tuple[Callable[[Any, Batch], Mapping[str, Tensor]], ...]
    weights: Mapping[str, float]
    for_any: bool = True
    needs_regions: bool = False
    per_image: bool = False


OBJECTIVES: Mapping[str, Kind] = {
    "dice_batch": Kind((_dice_batch,), {"dice": 1.0}),
    "dice_per_image": Kind((_dice_per_image,), {"dice": 1.0}, per_image=True),
    "dice_batch+ce": Kind((_dice_batch, _cross_entropy), {"dice": 1.0, "cross_entropy": 1.0}),
    "dice_per_image+ce": Kind((_dice_per_image, _cross_entropy), {"dice": 1.0, "cross_entropy": 1.0}, per_image=True),
    "blob_dice": Kind((_blob_dice,), {"dice": 2.0, "blob": 1.0}, needs_regions=True),
    "cc_dice_ce": Kind(
        (_cc_dice_ce,),
        {"dice": 1.0, "cross_entropy": 1.0, "cc_dice": 1.0, "cc_cross_entropy": 1.0},
        needs_regions=True,
    ),
    "disentangled": Kind((_disentangled,), {"dice": 10.0, "kl": 0.01, "style": 1.0, "reconstruction": 1.0}, False),
    "feddis": Kind((_feddis,), {"dice": 5.0, "reconstruction": 0.2, "likeness": 0.8}, False),
}
"""Objectives by name.

The weights of the last two are the published ones. ``blob_dice`` weights the whole by 2 and the single lesions by 1,
alpha and beta of the blob loss, and ``cc_dice_ce`` weights all by 1. The Dice loss over all pixels to which these two
add is that of ``dice_batch``, so that, cross-entropy apart, only the share of the single lesions is new against it.
"""


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
