from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedgs.data.lesions import SmallRule
from fedgs.errors import TrainingError
from fedgs.evaluation import Prediction, Scorer
from fedgs.metrics.table import DETAILS, SCORE_COLUMNS, summarise


class Frames:
    """An index of one case at 64 px, whose lesion is six connected pixels at 512."""

    def __init__(self) -> None:
        self.size, self.channels = 64, 1
        self.small_rule = SmallRule()
        self.truth = np.zeros((512, 512), bool)
        self.truth[100:102, 202:205] = True
        self.native = np.zeros((90, 130), bool)
        self.native[17:19, 50:52] = True
        self.table = pd.DataFrame(
            {
                "site": ["A"],
                "case": ["x"],
                "is_small": [True],
                "is_tiny": [True],
                "is_mixed": [False],
                "lesion_area": [6],
                "patient": [None],
                "image_hash": ["5e"],
                "near_hash": [""],
            }
        )

    def frame(self, row: int) -> np.ndarray:
        return np.zeros((64, 64, 1), np.uint8)

    def mask(self, row: int) -> np.ndarray:
        return self.truth

    def native_mask(self, row: int) -> np.ndarray:
        return self.native


class Fixed(nn.Module):
    """Predicts what it is told, as logits."""

    def __init__(self, foreground: Tensor) -> None:
        super().__init__()
        logits = torch.where(foreground, 9.0, -9.0)
        self.register_buffer("logits", torch.stack([torch.zeros_like(logits), logits])[None])

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1, -1, -1)


def scored(foreground: Tensor, **options: object) -> pd.DataFrame:
    scorer = Scorer(**options)  # type: ignore[arg-type]
    return scorer.score(Fixed(foreground), Frames(), [0], part="validation", number=3)  # type: ignore[arg-type]


def test_a_lesion_that_vanishes_at_the_training_size_still_counts() -> None:
    frames = Frames()
    assert not frames.truth[::8, ::8].any()  # nearest at 64 px has lost it
    rows = scored(torch.zeros(64, 64, dtype=torch.bool))
    assert list(rows.columns) == list(SCORE_COLUMNS)
    row = rows.iloc[0]
    assert (row["tp"], row["fp"], row["fn"], row["dice"], row["pixels"]) == (0, 0, 6, 0.0, 512 * 512)
    assert summarise(rows)["dice_t"] == {"mean": 0.0, "n": 1}


def test_a_prediction_is_resized_to_the_mask() -> None:
    foreground = torch.zeros(64, 64, dtype=torch.bool)
    foreground[12, 25] = True
    row = scored(foreground).iloc[0]
    assert row["tp"] == 6
    assert 0 < row["fp"] < 200
    assert row["dice"] == pytest.approx(12 / (12 + row["fp"]))


def test_native_scores_use_the_images_own_size() -> None:
    row = scored(torch.ones(64, 64, dtype=torch.bool), score_size="native").iloc[0]
    assert (row["tp"], row["fp"], row["pixels"]) == (4, 90 * 130 - 4, 90 * 130)


def test_a_probability_of_one_half_is_background() -> None:
    class Undecided(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 2, 64, 64)

    seen: list[Prediction] = []
    Scorer().score(
        Undecided(), Frames(), [0], part="p", number=1, on_prediction=lambda prediction, dice: seen.append(prediction)
    )  # type: ignore[arg-type]
    assert not seen[0].mask.any()


def test_details_are_computed_where_they_are_asked_for() -> None:
    everything = torch.ones(64, 64, dtype=torch.bool)
    plain, detailed = (scored(everything, detailed=each, size_quartiles=(1.0, 6.0, 9.0)).iloc[0] for each in (0, 1))
    assert plain["size_quartile"] == detailed["size_quartile"] == 2
    of_the_mask = ["is_mixed", "size_quartile"]
    assert plain[[name for name in (*DETAILS, "group") if name not in of_the_mask]].isna().all()
    assert detailed["group"] == "A/x"
    assert detailed["diagonal"] == pytest.approx(512 * 2**0.5)
    assert detailed["hd95"] > 200
    assert detailed["surface_dice"] == 0.0
    assert detailed["ece"] == pytest.approx(1 - 6 / 512**2, abs=1e-3)
    assert (detailed["lesions"], detailed["lesions_small"], detailed["predicted_lesions"]) == (1, 1, 1)
    assert (detailed["found_10"], detailed["false_small_10"]) == (0, 0)
    assert pd.isna(scored(everything).iloc[0]["size_quartile"])


def probabilities(model_size: tuple[int, int], inside: np.ndarray, outside: float) -> nn.Module:
    """A network that gives 0.9 inside and something else outside."""

    class Given(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            lesion = torch.where(torch.from_numpy(inside), 0.9, outside).expand(len(images), 1, *model_size)
            return torch.cat([torch.zeros_like(lesion), torch.logit(lesion)], dim=1)

    return Given()


@pytest.mark.parametrize(("size", "within", "beyond", "band"), [("512", 3, 4, 16), ("native", 1, 2, 5)])
def test_tolerance_and_band_are_as_stated_at_every_score_size(size: str, within: int, beyond: int, band: int) -> None:
    frames = Frames()
    frames.native = np.zeros((171, 171), bool)  # a third of 512: the tolerance is 1 pixel, the band 5
    truth = frames.truth if size == "512" else frames.native
    truth[...] = False
    truth[60:90, 50:80] = True

    def details(shift: int) -> pd.Series:
        model = probabilities(truth.shape, np.roll(truth, shift, axis=1), 0.3)
        scorer = Scorer(size, detailed=True)
        return scorer.score(model, frames, [0], part="test_in", number=1).iloc[0]  # type: ignore[arg-type]

    assert details(within)["surface_dice"] == 1.0
    assert details(beyond)["surface_dice"] < 1.0
    inside, around = 30**2, (30 + 2 * band) ** 2 - 30**2
    assert details(0)["ece"] == pytest.approx((inside * 0.1 + around * 0.3) / (inside + around), rel=1e-5)


def test_details_of_a_miss_and_at_the_images_own_size() -> None:
    missed = scored(torch.zeros(64, 64, dtype=torch.bool), detailed=True, score_size="native").iloc[0]
    assert missed["diagonal"] == pytest.approx((90**2 + 130**2) ** 0.5)
    assert pd.isna(missed["hd95"])
    assert pd.isna(missed["assd"])
    assert (missed["surface_dice"], missed["lesions"], missed["predicted_lesions"]) == (0.0, 1, 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_network_that_gives_no_numbers_is_no_miss(value: float) -> None:
    class Diverged(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2, 64, 64), value)

    with pytest.raises(TrainingError, match=r"case 'x' \(A\): expected a probability per pixel.*smaller --lr"):
        Scorer().score(Diverged(), Frames(), [0], part="p", number=1)  # type: ignore[arg-type]


def test_no_case_gives_an_empty_table() -> None:
    rows = Scorer().score(Fixed(torch.ones(64, 64, dtype=torch.bool)), Frames(), [], part="p", number=1)  # type: ignore[arg-type]
    assert list(rows.columns) == list(SCORE_COLUMNS)
    assert summarise(rows)["dice"] == {"mean": None, "n": 0}
