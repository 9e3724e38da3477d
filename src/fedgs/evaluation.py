"""Scores of a network on cases: predictions are resized to the mask, never the mask to the training grid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import Module
from torch.nn.functional import interpolate

from fedgs.data.batches import scoring_batches
from fedgs.data.index import Index
from fedgs.data.lesions import MASK_SIZE
from fedgs.data.linked import group_names
from fedgs.errors import TrainingError
from fedgs.metrics.case import detailed_scores
from fedgs.metrics.functional import confusion, dice
from fedgs.metrics.sizes import quartile_of
from fedgs.metrics.table import with_details
from fedgs.models import segment

__all__ = ["CALIBRATION_BAND", "SURFACE_TOLERANCE", "Prediction", "Scorer", "at_size", "lesion_probabilities"]

SURFACE_TOLERANCE = 3.0
"""How far a boundary may be off in the surface Dice, in pixels of 512; other sizes in proportion."""

CALIBRATION_BAND = 16
"""Width of the band around prediction and truth in which calibration is measured, in pixels of 512; likewise."""

Mask = NDArray[np.bool_]


class Prediction(NamedTuple):
    """A prediction beside the truth, all at the score size, and the row of the case in the index's table."""

    row: int
    mask: Mask
    truth: Mask
    probability: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scorer:
    """How predictions are made and scored.

    Attributes:
        score_size: ``"512"`` (512 x 512, as published) or ``"native"`` (the image's own size).
        batch_size: Images per forward pass.
        device: Where the network is.
        autocast: Type of the activations; None computes in the type of the weights.
        detailed: Whether the metrics of boundaries, lesions and calibration are computed too; else they stay empty.
        size_quartiles: Areas that divide the lesions of the training images, see `fedgs.metrics.sizes`; None leaves
            the column empty.
    """

    score_size: str = "512"
    batch_size: int = 8
    device: torch.device | str = "cpu"
    autocast: torch.dtype | None = None
    detailed: bool = False
    size_quartiles: Sequence[float] | None = None

    @torch.inference_mode()
    def predict(self, model: Module, index: Index, rows: Sequence[int]) -> Iterator[Prediction]:
        """Predicts cases one after the other; a pixel is lesion where its probability is above 1/2.

        Probabilities at the network's size are resized (bilinear) to the score size and compared there.

        Raises:
            TrainingError: The network gives something that is no number.
        """
        model.eval()
        device = torch.device(self.device)
        for images, batch_rows in scoring_batches(index, rows, batch_size=self.batch_size, device=device):
            lesion = lesion_probabilities(model, images, self.autocast)
            for row, probability in zip(batch_rows, lesion, strict=True):
                _require_numbers(probability, index.table.iloc[row])
                truth = index.native_mask(row) if self.score_size == "native" else index.mask(row)
                resized = at_size(probability, truth.shape)
                mask, given = (resized > 0.5).cpu().numpy(), resized.float().clamp(0, 1).cpu().numpy()
                yield Prediction(row, mask, truth, given)

    def score(
        self,
        model: Module,
        index: Index,
        rows: Sequence[int],
        *,
        part: str,
        number: int,
        on_prediction: Callable[[Prediction, float], None] = lambda prediction, dice: None,
    ) -> pd.DataFrame:
        """Scores cases.

        Args:
            model: A network with two classes; put into evaluation mode.
            index: Where the cases are.
            rows: Rows of the index's table.
            part: Name of the part that they are of.
            number: Round that the network is of.
            on_prediction: Told every prediction and its Dice.

        Returns:
            A row per case with the columns of scores.csv.
        """
        scores: list[dict[str, Any]] = []
        groups = group_names(index.table) if self.detailed else None
        for prediction in self.predict(model, index, rows):
            case = index.table.iloc[prediction.row]
            counts = confusion(prediction.mask, prediction.truth)
            scores.append(
                {name: case[name] for name in ("site", "case", "is_small", "is_tiny", "is_mixed", "lesion_area")}
                | {"round": number, "part": part, "dice": dice(counts), "pixels": prediction.truth.size, "network": ""}
                | counts._asdict()
                | {"size_quartile": quartile_of(case["lesion_area"], self.size_quartiles)}
                | (_details(prediction, index.small_rule.fraction) if self.detailed else {})
                | ({} if groups is None else {"group": groups[prediction.row]})
            )
            on_prediction(prediction, scores[-1]["dice"])
        return with_details(pd.DataFrame(scores))


def lesion_probabilities(model: Module, images: torch.Tensor, autocast: torch.dtype | None) -> torch.Tensor:
    """Gives the probability that a pixel is lesion.

    Args:
        model: A network with two classes, in evaluation mode.
        images: Normalised, (B, C, H, W), where the network is.
        autocast: Type of the activations; None computes in the type of the weights.

    Returns:
        (B, H, W), at least float32.
    """
    with torch.autocast(images.device.type, autocast) if autocast else contextlib.nullcontext():
        return segment(model, images)[:, 1]


def at_size(probability: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Resizes the probabilities of an image, (H, W), to another height and width (bilinear)."""
    return interpolate(probability[None, None], tuple(shape), mode="bilinear", align_corners=False)[0, 0]


def _details(prediction: Prediction, small: float) -> dict[str, float]:
    scale = prediction.truth.size**0.5 / MASK_SIZE
    return detailed_scores(
        prediction.mask,
        prediction.truth,
        prediction.probability,
        small=small,
        tolerance=SURFACE_TOLERANCE * scale,
        band=round(CALIBRATION_BAND * scale),
    )


def _require_numbers(probability: torch.Tensor, case: pd.Series) -> None:
    if not probability.isfinite().all():
        raise TrainingError(
            f"case '{case['case']}' ({case['site']}): expected a probability per pixel, the network gave what is no "
            "number; its training has diverged: train again with a smaller --lr, or take another checkpoint"
        )
