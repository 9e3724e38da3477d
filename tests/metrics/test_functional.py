"""Counts and Dice against brute force, scipy and MONAI; NumPy and torch give the same numbers."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.metrics import DiceMetric, compute_iou, get_confusion_matrix
from monai.metrics.confusion_matrix import compute_confusion_matrix_metric
from scipy.spatial.distance import dice as dice_dissimilarity

import fedgs.metrics.functional
from fedgs.errors import ShapeError
from fedgs.metrics.functional import Confusion, confusion, dice, iou, precision, recall
from metrics.pairs import DEGENERATE, anything

pairs = array_shapes(min_dims=1, max_dims=3, max_side=6).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


@given(pairs)
@settings(max_examples=60)
def test_counts_equal_a_loop_over_pixels(masks):
    prediction, truth = masks
    tp = fp = fn = 0
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        tp, fp, fn = tp + (p and t), fp + (p and not t), fn + (t and not p)
    assert confusion(prediction, truth) == (tp, fp, fn)
    assert confusion(torch.from_numpy(prediction), torch.from_numpy(truth)) == (tp, fp, fn)


@given(pairs)
@settings(max_examples=60)
def test_dice_is_symmetric_bounded_and_equals_scipy(masks):
    prediction, truth = masks
    value = dice(confusion(prediction, truth))
    assert 0.0 <= value <= 1.0
    assert value == dice(confusion(truth, prediction))
    if prediction.any() or truth.any():
        assert value == pytest.approx(1.0 - dice_dissimilarity(prediction.ravel(), truth.ravel()), abs=1e-12)


def test_dice_equals_monai_image_by_image():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(6, 1, 32, 32, generator=generator) > 0.6
    truth = torch.rand(6, 1, 32, 32, generator=generator) > 0.8
    expected = DiceMetric(include_background=True, reduction="none")(prediction.float(), truth.float()).squeeze(1)
    ours = torch.tensor([dice(confusion(p, t)) for p, t in zip(prediction, truth, strict=True)])
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [([0, 0], [0, 0], 1.0), ([1, 0], [0, 0], 0.0), ([0, 0], [0, 1], 0.0), ([1, 0], [0, 1], 0.0), ([1, 1], [1, 1], 1.0)],
)
def test_dice_at_its_ends(prediction, truth, expected):
    assert dice(confusion(np.array(prediction, bool), np.array(truth, bool))) == expected


def monai_of(prediction, truth):
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    counts = get_confusion_matrix(*pair)
    ratios = [compute_confusion_matrix_metric(name, counts).item() for name in ("precision", "recall")]
    return [compute_iou(*pair).item(), *ratios]


@given(anything)
@settings(max_examples=60)
def test_ratios_equal_monai_and_sets_of_pixels(masks):
    check_ratios(*masks)


@pytest.mark.parametrize("name", DEGENERATE)
def test_ratios_of_degenerate_masks(name):
    check_ratios(*DEGENERATE[name])


def check_ratios(prediction, truth):
    counts = confusion(prediction, truth)
    ours = iou(counts), precision(counts), recall(counts)
    predicted, true = ({tuple(point) for point in np.argwhere(mask).tolist()} for mask in (prediction, truth))
    common = len(predicted & true)
    assert ours[0] == (common / len(predicted | true) if predicted | true else 1.0)
    assert ours[1] == pytest.approx(common / len(predicted) if predicted else np.nan, nan_ok=True)
    assert ours[2] == pytest.approx(common / len(true) if true else np.nan, nan_ok=True)
    assert ours[0] == pytest.approx(dice(counts) / (2 - dice(counts)))
    if predicted and true:
        assert ours == pytest.approx(monai_of(prediction, truth), abs=1e-6)


def test_counts_of_images_add_up_to_the_count_of_all():
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((2, 5, 16, 16)) > 0.5
    parts = [confusion(p, t) for p, t in zip(prediction, truth, strict=True)]
    assert Confusion(*(sum(column) for column in zip(*parts, strict=True))) == confusion(prediction, truth)


def test_counts_are_plain_integers():
    empty = torch.zeros(2, 2, dtype=torch.bool)
    assert all(type(count) is int for count in confusion(empty, empty) + confusion(empty.numpy(), empty.numpy()))


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        (np.zeros((4, 4), bool), np.zeros((4, 5), bool)),
        (np.zeros((1, 4), bool), np.zeros((4, 4), bool)),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), bool)),
        (torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4)),
    ],
)
def test_other_shapes_and_types_are_refused_with_what_came(prediction, truth):
    with pytest.raises(ShapeError, match=r"two bool masks of one shape, got a prediction \(\d, 4\)"):
        confusion(prediction, truth)


def test_examples_in_docstrings():
    assert doctest.testmod(fedgs.metrics.functional).attempted >= 3
    assert doctest.testmod(fedgs.metrics.functional).failed == 0
