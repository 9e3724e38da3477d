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
from fedgs.metrics.functional import confusion, dice
from fedgs.metrics.table import SCORE_COLUMNS
from fedgs.models import segment

__all__ = ["Prediction", "Scorer"]

Mask = NDArray[np.bool_]


class Prediction(NamedTuple):
    """A predicted mask beside the truth, both at the score size, and the row of the case in the index's table."""

    row: int
    mask: Mask
    truth: Mask


@dataclass(frozen=True, slots=True)
class Scorer:
    """How predictions are made and scored.

    Attributes:
        score_size: ``"512"`` (512 x 512, as published) or ``"native"`` (the image's own size).
        batch_size: Images per forward pass.
        device: Where the network is.
        autocast: Type of the activations; None computes in the type of the weights.
    """

    score_size: str = "512"
    batch_size: int = 8
    device: torch.device | str = "cpu"
    autocast: torch.dtype | None = None

    @torch.inference_mode()
    def predict(self, model: Module, index: Index, rows: Sequence[int]) -> Iterator[Prediction]:
        """Predicts cases one after the other; a pixel is lesion where its probability is above 1/2.

        Probabilities at the network's size are resized (bilinear) to the score size and compared there.
        """
        model.eval()
        device = torch.device(self.device)
        for images, batch_rows in scoring_batches(index, rows, batch_size=self.batch_size, device=device):
            with torch.autocast(device.type, self.autocast) if self.autocast else contextlib.nullcontext():
                lesion = segment(model, images)[:, 1]
            for row, probability in zip(batch_rows, lesion, strict=True):
                truth = index.native_mask(row) if self.score_size == "native" else index.mask(row)
                resized = interpolate(probability[None, None], truth.shape, mode="bilinear", align_corners=False)
                yield Prediction(row, (resized[0, 0] > 0.5).cpu().numpy(), truth)

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
        for prediction in self.predict(model, index, rows):
            case = index.table.iloc[prediction.row]
            counts = confusion(prediction.mask, prediction.truth)
            scores.append(
                {name: case[name] for name in ("site", "case", "is_small", "is_tiny", "lesion_area")}
                | {"round": number, "part": part, "dice": dice(counts), "pixels": prediction.truth.size, "network": ""}
                | counts._asdict()
            )
            on_prediction(prediction, scores[-1]["dice"])
        return pd.DataFrame(scores, columns=list(SCORE_COLUMNS))
