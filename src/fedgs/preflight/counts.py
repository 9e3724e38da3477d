"""What a hospital's images say before training, as counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from fedgs.data.index import Index
from fedgs.data.lesions import MASK_SIZE, SmallRule, is_within, resize_nearest
from fedgs.data.linked import near_rows
from fedgs.scaling import difficulty_of_area

__all__ = ["AREA_BINS", "IMPLAUSIBLE", "SIZES", "AtSize", "Preflight", "SiteCounts", "Vanished", "count"]

SIZES = (64, 128, 192, 256, 384, 512)
"""Sides of training images that are looked at beside the one that is asked about, in pixels."""

AREA_BINS = 2 * MASK_SIZE.bit_length() - 1
"""Bins of lesion areas: bin b counts areas from 2^b to 2^(b+1) - 1 pixels of the 512 x 512 mask."""

IMPLAUSIBLE = 0.8
"""Share of an image that no lesions cover."""


@dataclass(frozen=True, slots=True)
class AtSize:
    """What is left of a site's lesions at a training size.

    Attributes:
        vanished: Lesions without a single pixel.
        emptied: Images with lesions of which none has a pixel.
        smallest: Pixels of the smallest lesion that is left; None where there is none.
    """

    vanished: int | None
    emptied: int | None
    smallest: int | None


@dataclass(frozen=True, slots=True)
class SiteCounts:
    """Counts of one site; None is a count that was suppressed, since it, or what its whole has beside it, is 1 to 4.

    Attributes:
        images: All of them.
        lesion_free: Without a lesion.
        small: Flagged small.
        tiny: Small as a whole.
        mixed: Flagged small, but with a large lesion too.
        lesions: Connected components of all masks.
        small_lesions: Those that are small by their own size.
        areas: (AREA_BINS,): lesions by area.
        difficulty: Sum over the images flagged small of their difficulty; None where `small` is suppressed.
        difficulty_squares: The same of its squares.
        duplicates: Images that have an identical one at the site.
        near_duplicates: Images that show what another one of the site shows.
        specks: Images with specks, which do not count as lesions.
        implausible: Images that lesions cover to more than 80 %.
        sizes: What is left at training sizes, by side in pixels.
        almost_all: Names of suppressed counts that are all but 1 to 4 of their whole, such as ``small``, or
            ``vanished@128`` for those at a size; the others are 1 to 4.
    """

    images: int
    lesion_free: int | None
    small: int | None
    tiny: int | None
    mixed: int | None
    lesions: int | None
    small_lesions: int | None
    areas: Sequence[int | None]
    difficulty: float | None
    difficulty_squares: float | None
    duplicates: int | None
    near_duplicates: int | None
    specks: int | None
    implausible: int | None
    sizes: Mapping[int, AtSize]
    almost_all: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Vanished:
    """A lesion that has no pixel at the training size; stays at the hospital."""

    site: str
    case: str
    area: int


@dataclass(frozen=True, slots=True)
class Preflight:
    """What sites counted, and how.

    Attributes:
        size: Side of the training images in pixels.
        batch_size: Images per optimizer step.
        rule: What counts as a small lesion.
        sites: By name.
        vanished: Lesions that have no pixel at `size`; known only where the images are.
    """

    size: int
    batch_size: int
    rule: SmallRule
    sites: Mapping[str, SiteCounts]
    vanished: Sequence[Vanished] = field(default=())


def count(
    index: Index,
    *,
    size: int,
    batch_size: int,
    watch: Callable[[int, int], None] = lambda done, of: None,
) -> Preflight:
    """Counts what is in an index; reads every mask once.

    Args:
        index: The data.
        size: Side of the training images in pixels.
        batch_size: Images per optimizer step.
        watch: Told how many images are done.

    Raises:
        DataError: The cache is damaged.
    """
    sides = sorted({size, *SIZES})
    lesions: dict[str, list[NDArray[np.int64]]] = {}
    vanished = []
    for row, (site, case) in enumerate(zip(index.table["site"], index.table["case"], strict=True)):
        watch(row, len(index))
        found = _lesions(index.mask(row), sides)
        lesions.setdefault(site, []).append(found)
        gone = found[found[:, 1 + sides.index(size)] == 0, 0].tolist()
        vanished += [Vanished(site, case, area) for area in gone]
    watch(len(index), len(index))
    sites = {
        str(site): _site(rows, lesions[str(site)], sides, index.small_rule)
        for site, rows in index.table.groupby("site", sort=True)
    }
    return Preflight(size, batch_size, index.small_rule, sites, vanished)


def _lesions(mask: NDArray[np.bool_], sides: Sequence[int]) -> NDArray[np.int64]:
    """Pixels of each lesion, (lesions, 1 + sides): of the mask, then at each training size."""
    labels = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))[0]
    count = int(labels.max())
    at_sizes = [np.bincount(labels.ravel(), minlength=count + 1)[1:]]
    for side in sides:
        at_sizes.append(np.bincount(resize_nearest(labels, side).ravel(), minlength=count + 1)[1:])
    return np.stack(at_sizes, axis=1).astype(np.int64)


def _site(
    rows: pd.DataFrame, lesions: Sequence[NDArray[np.int64]], sides: Sequence[int], rule: SmallRule
) -> SiteCounts:
    pixels = MASK_SIZE**2
    together = np.concatenate([np.zeros((0, 1 + len(sides)), dtype=np.int64), *lesions])
    areas = together[:, 0]
    deltas = [
        difficulty_of_area(int(area), pixels, base=rule.base) if small else 0.0
        for area, small in zip(rows["lesion_area"], rows["is_small"], strict=True)
    ]
    near = {case for group in near_rows(rows.reset_index(drop=True)) for case in group}
    return SiteCounts(
        images=len(rows),
        lesion_free=int((rows["lesion_area"] == 0).sum()),
        small=int(rows["is_small"].sum()),
        tiny=int(rows["is_tiny"].sum()),
        mixed=int(rows["is_mixed"].sum()),
        lesions=len(areas),
        small_lesions=sum(is_within(int(area), rule.fraction, pixels) for area in areas),
        areas=np.bincount(np.log2(areas).astype(int), minlength=AREA_BINS).tolist(),
        difficulty=float(np.sum(deltas)),
        difficulty_squares=float(np.sum(np.square(deltas))),
        duplicates=int(rows.duplicated("image_hash", keep=False).sum()),
        near_duplicates=len(near),
        specks=int((rows["specks"] > 0).sum()),
        implausible=int((rows["lesion_area"] > IMPLAUSIBLE * pixels).sum()),
        sizes={side: _at(side_number, lesions) for side_number, side in enumerate(sides, start=1)},
    )


def _at(column: int, lesions: Sequence[NDArray[np.int64]]) -> AtSize:
    left = [image[:, column] for image in lesions if len(image)]
    together = np.concatenate([np.zeros(0, dtype=np.int64), *left])
    return AtSize(
        vanished=int((together == 0).sum()),
        emptied=sum(not image.any() for image in left),
        smallest=int(together[together > 0].min()) if (together > 0).any() else None,
    )
