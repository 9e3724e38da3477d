from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from fedgs.data.lesions import (
    MOST_REGIONS,
    SMALL_RULES,
    Lesions,
    SmallRule,
    clean,
    components_under,
    find_lesions,
    is_small_by_components,
    is_small_by_total,
    is_tiny,
    nearest_lesions,
    resize_nearest,
)
from fedgs.errors import ConfigError, ShapeError

Mask = NDArray[np.bool_]
masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))


def flood_fill(mask: Mask) -> list[list[tuple[int, int]]]:
    """8-connected components by brute force, in the order of a scan by rows."""
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    components = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        component, queue = [], [start]
        while queue:
            row, column = queue.pop()
            component.append((row, column))
            around = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= around
            queue.extend(around)
        components.append(component)
    return components


def square(side: int, size: int = 512) -> Mask:
    mask = np.zeros((size, size), dtype=bool)
    mask[:side, :side] = True
    return mask


@given(masks)
@settings(max_examples=200)
def test_components_equal_a_flood_fill(mask: Mask) -> None:
    components = flood_fill(mask)
    expected = Lesions(tuple(len(c) for c in components if len(c) >= 4), sum(len(c) < 4 for c in components))
    assert find_lesions(mask) == expected
    kept = np.zeros_like(mask)
    for component in components:
        if len(component) >= 4:
            kept[tuple(zip(*component, strict=True))] = True
    np.testing.assert_array_equal(clean(mask), kept)


@given(masks)
@settings(max_examples=100)
def test_cleaning_again_changes_nothing_and_orientation_does_not_matter(mask: Mask) -> None:
    cleaned = clean(mask)
    np.testing.assert_array_equal(clean(cleaned), cleaned)
    assert find_lesions(cleaned).specks == 0
    for turned in (mask.T, mask[::-1], np.rot90(mask)):
        assert sorted(find_lesions(turned).areas) == sorted(find_lesions(mask).areas)


def test_cleaning_gives_a_copy_also_where_nothing_is_dropped() -> None:
    mask = square(4)
    clean(mask)[0, 0] = False
    assert mask[0, 0]


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.integers(1, 64))
@settings(max_examples=100)
def test_resizing_equals_torch_nearest_and_the_formula(mask: Mask, size: int) -> None:
    height, width = mask.shape
    formula = [[mask[i * height // size, j * width // size] for j in range(size)] for i in range(size)]
    resized = resize_nearest(mask, size)
    np.testing.assert_array_equal(resized, formula)


@pytest.mark.parametrize("shape", [(1080, 1350), (410, 512), (288, 512), (64, 96), (512, 512)])
def test_resizing_to_512_equals_torch_nearest(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    byte = torch.from_numpy(mask.astype(np.float32))[None, None]
    expected = torch.nn.functional.interpolate(byte, size=(512, 512), mode="nearest")[0, 0].numpy() > 0
    np.testing.assert_array_equal(resize_nearest(mask), expected)


def test_one_small_lesion_among_large_ones_flags_by_components_but_is_not_tiny() -> None:
    mask = square(200)
    mask[400:410, 400:410] = True
    assert is_small_by_components(mask)
    assert not is_small_by_total(mask)
    assert not is_tiny(mask, SmallRule())
    assert is_tiny(square(10), SmallRule())
    assert is_tiny(square(10), SMALL_RULES["total"])


@given(st.lists(st.integers(1, 30_000), max_size=4), st.sampled_from(sorted(SMALL_RULES)))
def test_what_is_flagged_is_tiny_or_mixed_or_several_small_ones_that_exceed_the_limit_together(
    areas: list[int], kind: str
) -> None:
    rule, lesions = SMALL_RULES[kind], Lesions(tuple(areas))
    limit = 512 * 512 * rule.fraction
    flagged = rule.is_small(smallest=lesions.smallest, total=lesions.total)
    tiny = rule.is_tiny(smallest=lesions.smallest, total=lesions.total)
    mixed = rule.is_mixed(smallest=lesions.smallest, largest=lesions.largest, total=lesions.total)
    assert mixed == (flagged and any(area > limit for area in areas))
    assert tiny == (flagged and sum(areas) <= limit)
    assert not (tiny and mixed)


def test_an_empty_mask_is_never_small_even_where_specks_are_in_it() -> None:
    specks = np.zeros((512, 512), dtype=bool)
    specks[::9, ::9] = True
    for mask in (np.zeros((512, 512), dtype=bool), specks):
        assert not is_small_by_components(mask, fraction=1)
        assert not is_small_by_total(mask, fraction=1)


@pytest.mark.parametrize("tau", [3, 7, 49, 150, 1000])
def test_the_threshold_itself_counts_as_small(tau: int) -> None:
    width = 40 * tau
    mask = np.zeros((1, width), dtype=bool)
    mask[0, :40] = True
    longer = mask.copy()
    longer[0, 40] = True
    for is_small in (is_small_by_components, is_small_by_total):
        assert is_small(mask, fraction=1 / tau)
        assert not is_small(longer, fraction=1 / tau)


@pytest.mark.parametrize(
    ("kind", "fraction", "base"),
    [("largest", 0.1, 100), ("total", 0, 100), ("total", 1.1, 100), ("total", float("nan"), 100), ("total", 0.1, 1)],
)
def test_a_rule_that_cannot_work_is_refused(kind: str, fraction: float, base: float) -> None:
    with pytest.raises(ConfigError, match="expected"):
        SmallRule(kind, fraction, base)  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros((0, 2), dtype=bool), np.zeros((1, 2, 2), dtype=bool)])
def test_other_arrays_are_refused(mask: Mask) -> None:
    with pytest.raises(ShapeError, match="expected"):
        find_lesions(mask)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(100, 1500), st.integers(100, 1500), st.integers(1, 12))
def test_native_components_live_and_die_with_their_512_copy(seed: int, height: int, width: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(count):
        y, x = rng.integers(height), rng.integers(width)
        mask[y : y + rng.integers(1, 12), x : x + rng.integers(1, 12)] = True
    small = clean(resize_nearest(mask))
    kept = components_under(mask, small)
    assert kept.any() == small.any()
    assert not (kept & ~mask).any()
    assert np.array_equal(clean(resize_nearest(kept)), small)


@given(masks)
def test_every_pixel_is_given_to_a_lesion_that_is_nearest(mask: Mask) -> None:
    components = flood_fill(mask)
    regions = nearest_lesions(mask)
    assert regions.dtype == np.uint8
    assert regions.shape == mask.shape
    if len(components) < 2:
        assert (regions == 1).all()
        return
    rows, columns = np.indices(mask.shape)
    squared = np.stack(
        [
            np.min([(rows - row) ** 2 + (columns - column) ** 2 for row, column in component], axis=0)
            for component in components
        ]
    )
    given = np.take_along_axis(squared, regions[None].astype(np.intp) - 1, axis=0)[0]
    np.testing.assert_array_equal(given, squared.min(0))
    for number, component in enumerate(components, start=1):
        assert all(regions[place] == number for place in component)


@given(masks)
def test_regions_are_those_of_the_distance_transform(mask: Mask) -> None:
    """Where no two lesions are as near; one transform per lesion instead of one for all."""
    components = flood_fill(mask)
    if len(components) < 2:
        return
    distances = np.empty((len(components), *mask.shape))
    for distance, component in zip(distances, components, strict=True):
        others = np.ones_like(mask)
        others[tuple(np.transpose(component))] = False
        distance[:] = ndimage.distance_transform_edt(others)
    nearest_two = np.sort(distances, axis=0)[:2]
    clear = nearest_two[1] - nearest_two[0] > 1e-9
    np.testing.assert_array_equal(nearest_lesions(mask)[clear], distances.argmin(0)[clear] + 1)


def test_lesions_beyond_255_share_the_last_number() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[::2, ::2] = True
    regions = nearest_lesions(mask)
    assert find_lesions(mask, smallest=1).count == 400
    assert np.unique(regions).tolist() == list(range(1, MOST_REGIONS + 1))
    assert (regions[mask] == np.minimum(np.arange(1, 401), 255)).all()
