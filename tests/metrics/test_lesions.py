"""Lesions against a flood fill over pixels and a search over all matchings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgs.errors import ShapeError
from fedgs.metrics.lesions import Detected, lesion_overlaps, match_lesions
from metrics.pairs import BORDER, DEGENERATE, EMPTY, MERGED, PIXEL, SQUARE, TWO, anything, box

THRESHOLDS = (0.0, 0.1, 0.5)


def flood(mask) -> list[set[tuple[int, ...]]]:
    """Components by hand: every point takes in its neighbours until none is left."""
    left, found = {tuple(int(x) for x in point) for point in np.argwhere(mask)}, []
    steps = [step for step in itertools.product((-1, 0, 1), repeat=mask.ndim) if any(step)]
    while left:
        todo, component = [left.pop()], set()
        while todo:
            point = todo.pop()
            component.add(point)
            for step in steps:
                beside = tuple(a + b for a, b in zip(point, step, strict=True))
                if beside in left:
                    left.remove(beside)
                    todo.append(beside)
        found.append(component)
    return found


def best_sum(ious: list[list[float]], row: int = 0, taken: frozenset[int] = frozenset()) -> float:
    """The largest sum of IoU over all matchings, by trying them."""
    if row == len(ious):
        return 0.0
    tries = [best_sum(ious, row + 1, taken)]
    for column, iou in enumerate(ious[row]):
        if iou and column not in taken:
            tries.append(iou + best_sum(ious, row + 1, taken | {column}))
    return max(tries)


def matching_sums(prediction, truth, above):
    """The best sum, and every (found, small found, small false) that some best matching has."""
    true, predicted = flood(truth), flood(prediction)
    ious = [[len(t & p) / len(t | p) for p in predicted] for t in true]
    ious = [[iou if iou > above else 0.0 for iou in row] for row in ious]
    best, limit = best_sum(ious), truth.size / 4
    outcomes: set[tuple[int, int, int]] = set()

    def walk(row, pairs, total):
        if row == len(true):
            if total > best - 1e-12:
                matched = {column for _, column in pairs}
                small_found = sum(len(true[r]) <= limit for r, _ in pairs)
                false = sum(len(p) <= limit for c, p in enumerate(predicted) if c not in matched)
                outcomes.add((len(pairs), small_found, false))
            return
        walk(row + 1, pairs, total)
        for column, iou in enumerate(ious[row]):
            if iou and all(column != other for _, other in pairs):
                walk(row + 1, [*pairs, (row, column)], total + iou)

    walk(0, [], 0.0)
    return true, predicted, limit, outcomes


@given(anything.filter(lambda masks: len(flood(masks[0])) <= 5 and len(flood(masks[1])) <= 5))
@settings(max_examples=100)
@pytest.mark.parametrize("above", THRESHOLDS)
def test_random_masks_equal_a_search_over_all_matchings(above, masks):
    check_against_search(*masks, above)


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("above", THRESHOLDS)
def test_degenerate_masks_equal_a_search_over_all_matchings(name, above):
    check_against_search(*DEGENERATE[name], above)


def runs(*spans, length=20):
    """A mask of one row with some runs of lesion."""
    mask = np.zeros((1, length), dtype=bool)
    for start, end in spans:
        mask[0, start:end] = True
    return mask


@pytest.mark.parametrize("turn", [lambda mask: mask, np.fliplr, np.transpose])
def test_of_equal_matchings_the_one_with_more_pairs_then_small_lesions_is_taken(turn):
    several = runs((1, 2), (3, 9)), runs((0, 6), (7, 8))  # IoU 1/3, or twice 1/6
    small = runs((3, 9)), runs((2, 4), (7, 17))  # IoU 1/7 with either
    for prediction, truth in (several, small):
        check_against_search(turn(prediction), turn(truth), 0.1)
    assert match_lesions(lesion_overlaps(*map(turn, several)), above=0.1, small=1).found == 2
    assert match_lesions(lesion_overlaps(*map(turn, small)), above=0.1, small=1 / 4).found_small == 1


def check_against_search(prediction, truth, above):
    true, predicted, limit, outcomes = matching_sums(prediction, truth, above)
    found = match_lesions(lesion_overlaps(prediction, truth), above=above, small=1 / 4)
    assert (found.lesions, found.predicted) == (len(true), len(predicted))
    assert found.lesions_small == sum(len(t) <= limit for t in true)
    first = max(outcomes, key=lambda each: (each[0], each[1], -each[2]))
    assert (found.found, found.found_small, found.false_small) == first
    if above >= 0.5:
        assert len(outcomes) == 1


@given(anything)
@settings(max_examples=80)
def test_laws(masks):
    overlaps = lesion_overlaps(*masks)
    assert overlaps.true_areas.sum() == masks[1].sum()
    assert overlaps.predicted_areas.sum() == masks[0].sum()
    loose, strict = (match_lesions(overlaps, above=above, small=0.2) for above in (0.1, 0.5))
    assert strict.found <= loose.found <= min(loose.lesions, loose.predicted)
    assert strict.false_small >= loose.false_small - (loose.found - strict.found)
    for each in (loose, strict):
        assert each.found_small <= min(each.found, each.lesions_small)
        assert each.false_small <= each.predicted - each.found
    exchanged, turned = lesion_overlaps(*reversed(masks)), lesion_overlaps(*(np.flip(mask).T for mask in masks))
    for above in THRESHOLDS:
        there = match_lesions(overlaps, above=above, small=0.2)
        assert match_lesions(exchanged, above=above, small=0.2).found == there.found
        assert match_lesions(turned, above=above, small=0.2) == there
    itself = match_lesions(lesion_overlaps(masks[1], masks[1]), above=0.99)
    assert itself.found == itself.lesions == itself.predicted


def test_merged_lesions_are_one_find_at_most():
    merged = lesion_overlaps(MERGED, TWO)
    assert merged.iou.tolist() == pytest.approx([56 / 126, 49 / 126])
    assert match_lesions(merged, above=0.1) == Detected(2, 1, 1, 0, 0, 0)
    assert match_lesions(merged, above=0.5) == Detected(2, 1, 0, 0, 0, 0)


def test_pieces_of_a_lesion_are_one_find_and_one_false_one():
    assert match_lesions(lesion_overlaps(TWO, MERGED), above=0.1) == Detected(1, 2, 1, 0, 0, 0)


def test_diagonal_neighbours_are_one_lesion():
    stairs = np.eye(8, dtype=bool)
    assert lesion_overlaps(stairs, stairs).true_areas.tolist() == [8]


def test_one_pixel_and_the_border():
    assert match_lesions(lesion_overlaps(PIXEL, PIXEL), above=0.5) == Detected(1, 1, 1, 1, 1, 0)
    assert match_lesions(lesion_overlaps(EMPTY, PIXEL), above=0.5) == Detected(1, 0, 0, 1, 0, 0)
    assert match_lesions(lesion_overlaps(PIXEL, EMPTY), above=0.5) == Detected(0, 1, 0, 0, 0, 1)
    assert match_lesions(lesion_overlaps(BORDER, BORDER), above=0.5) == Detected(1, 1, 1, 0, 0, 0)


def test_the_threshold_itself_is_no_match():
    half = box(slice(5, 12), slice(6, 10))
    assert lesion_overlaps(half, SQUARE).iou.tolist() == [0.5]
    assert match_lesions(lesion_overlaps(half, SQUARE), above=0.5).found == 0


def test_small_is_by_the_lesions_own_size_and_a_match_of_another_size_is_neither_found_nor_false():
    size = EMPTY.size
    overlaps = lesion_overlaps(box(slice(5, 12), slice(6, 10)), SQUARE)
    assert match_lesions(overlaps, above=0.1, small=28 / size) == Detected(1, 1, 1, 0, 0, 0)
    assert match_lesions(overlaps, above=0.1, small=56 / size) == Detected(1, 1, 1, 1, 1, 0)
    assert match_lesions(overlaps, above=0.5, small=28 / size) == Detected(1, 1, 0, 0, 0, 1)


def test_noise_is_matched_in_no_time():
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((2, 512, 512)) > 0.85
    overlaps = lesion_overlaps(prediction, truth)
    assert len(overlaps.true_areas) > 5000
    assert match_lesions(overlaps, above=0.1).found > 1000


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="expected two bool masks of one shape"):
        lesion_overlaps(EMPTY, EMPTY[1:])


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_share_of_the_image_is_not_missed_by_rounding(height, width):
    mask = np.zeros((height, 2 * width), bool)
    mask[:, :width] = True
    assert match_lesions(lesion_overlaps(mask, mask), above=0.5, small=1 / 2).found_small == 1
