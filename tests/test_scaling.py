import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgs.errors import ConfigError, ShapeError
from fedgs.scaling import difficulty_of_area, scale_of_batch


def masks_of(areas: list[int], side: int = 512) -> torch.Tensor:
    flat = torch.arange(side * side)[None, :] < torch.tensor(areas)[:, None]
    return flat.reshape(len(areas), side, side)


def test_eta_meets_the_golden_numbers(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "scale.json").read_text())
    bases = {"polypgen": 100.0, "lits": 1000.0}
    for data, values in golden["single_512px_batch1"].items():
        for area, eta in values.items():
            ours = scale_of_batch(masks_of([int(area)]), torch.tensor([True]), base=bases[data])
            assert ours == pytest.approx(eta, abs=1e-6)
    for case in golden["batches_512px"]:
        ours = scale_of_batch(masks_of(case["areas"]), torch.tensor(case["small"]), base=bases[case["dataset"]])
        assert ours == pytest.approx(case["p_factor"] or 1.0, abs=1e-6)


@given(
    st.lists(st.tuples(st.integers(0, 64), st.booleans()), min_size=1, max_size=6),
    st.floats(1.01, 1e4),
)
def test_eta_is_the_formula_and_stays_in_range(images: list[tuple[int, bool]], base: float) -> None:
    areas, small = [area for area, _ in images], [flag for _, flag in images]
    eta = scale_of_batch(masks_of(areas, 8), torch.tensor(small), base=base)
    deltas = [np.tanh((np.log(64 / a) / np.log(base)) ** 2) for a, flag in images if flag and a]
    assert eta == pytest.approx(1 + 2 / len(images) * sum(deltas))
    assert 1 <= eta < 3


def test_eta_stays_below_3_where_rounding_would_reach_it() -> None:
    assert 2.999 < scale_of_batch(masks_of([1]), torch.tensor([True]), base=1.01) < 3


def test_a_batch_without_small_lesions_counts_once_exactly() -> None:
    assert scale_of_batch(masks_of([5, 7], 8), torch.tensor([False, False]), base=100) == 1.0


def test_a_mask_that_was_rotated_out_has_no_difficulty() -> None:
    assert scale_of_batch(masks_of([0], 8), torch.tensor([True]), base=100) == 1.0


def test_difficulty_of_the_lesion_takes_the_smallest_component() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, :8, :8] = True
    mask[0, 12, 12] = mask[0, 13, 13] = True  # touch at a corner: one component
    small = torch.tensor([True])
    assert scale_of_batch(mask, small, base=100, difficulty="lesion") == pytest.approx(
        1 + 2 * difficulty_of_area(2, 256, base=100)
    )
    assert scale_of_batch(mask, small, base=100) == pytest.approx(1 + 2 * difficulty_of_area(66, 256, base=100))


def test_a_volume_counts_its_voxels() -> None:
    volume = torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    volume[0, 1, 2:4, 2:4] = True
    flags = torch.tensor([True])
    expected = pytest.approx(1 + 2 * math.tanh((math.log(256 / 4) / math.log(1000)) ** 2))
    assert scale_of_batch(volume, flags, base=1000) == expected
    assert scale_of_batch(volume, flags, base=1000, difficulty="lesion") == expected


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"base": 1.0}, ConfigError, "above 1"),
        ({"base": math.nan}, ConfigError, "above 1"),
        ({"difficulty": "size"}, ConfigError, "image, lesion"),
        ({"masks": torch.ones(2, 8, 8)}, ShapeError, "bool"),
        ({"masks": torch.ones(8, 8, dtype=torch.bool)}, ShapeError, r"\(B, H, W\)"),
        ({"is_small": torch.tensor([True])}, ShapeError, "one flag per mask"),
        ({"is_small": torch.tensor([1, 0])}, ShapeError, "bool"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, object], error: type[Exception], says: str) -> None:
    fine: dict[str, object] = {"masks": masks_of([1, 2], 8), "is_small": torch.tensor([True, False]), "base": 100.0}
    with pytest.raises(error, match=says):
        scale_of_batch(**(fine | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("area", [-1, 65])
def test_an_impossible_area_is_refused(area: int) -> None:
    with pytest.raises(ConfigError, match="between 0 and the 64 pixels"):
        difficulty_of_area(area, 64, base=100)
