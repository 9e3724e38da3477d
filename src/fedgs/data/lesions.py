"""Lesions of a mask and the two rules that call an image small; pure functions on arrays.

Flags, areas and counts are defined on a 512 x 512 nearest-neighbour copy of the mask, so that they depend neither on
the size of the image nor on the size that a network is trained at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedgs.errors import ConfigError, ShapeError

__all__ = [
    "MASK_SIZE",
    "MOST_REGIONS",
    "SMALLEST_COMPONENT",
    "SMALL_RULES",
    "Lesions",
    "SmallRule",
    "clean",
    "components_under",
    "find_lesions",
    "is_small_by_components",
    "is_small_by_total",
    "is_tiny",
    "is_within",
    "nearest_lesions",
    "resize_nearest",
]

Mask = NDArray[np.bool_]

MASK_SIZE = 512
"""Height and width in pixels of the masks that flags, areas and scores refer to."""

SMALLEST_COMPONENT = 4
"""Components of fewer pixels are specks of JPEG compression, not lesions."""

MOST_REGIONS = 255
"""Regions that a map of them tells apart; lesions beyond share the last one."""

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int8)
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Lesions:
    """The connected components of one mask.

    Attributes:
        areas: Pixels of each lesion, in the order in which a scan by rows meets them.
        specks: How many components were too small to be a lesion.
    """

    areas: tuple[int, ...]
    specks: int = 0

    @property
    def count(self) -> int:
        """Number of lesions."""
        return len(self.areas)

    @property
    def total(self) -> int:
        """Pixels of all lesions together."""
        return sum(self.areas)

    @property
    def smallest(self) -> int:
        """Pixels of the smallest lesion, 0 where there is none."""
        return min(self.areas, default=0)

    @property
    def largest(self) -> int:
        """Pixels of the largest lesion, 0 where there is none."""
        return max(self.areas, default=0)


@dataclass(frozen=True, slots=True)
class SmallRule:
    """When an image is flagged small, and the base of the logarithm that its difficulty uses.

    Attributes:
        kind: "components": any one lesion is small enough (PolypGen); "total": all lesions together are (LiTS).
        fraction: Largest share of the image that still counts as small, in (0, 1].
        base: Base of the logarithm in the difficulty, > 1.

    Raises:
        ConfigError: An unknown kind, a fraction outside (0, 1] or a base that is not above 1.

    Source: Schutte et al., FedGS, arXiv 2408.11701: 1/150 and 100 for PolypGen, 1/1000 and 1000 for LiTS.
    """

    kind: Literal["components", "total"] = "components"
    fraction: float = 1 / 150
    base: float = 100.0

    def __post_init__(self) -> None:
        """Validates the three values."""
        if self.kind not in ("components", "total"):
            raise ConfigError(f"small rule: expected 'components' or 'total', got {self.kind!r}")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"small fraction: expected a share in (0, 1] such as 1/150, got {self.fraction!r}")
        if not 1 < self.base < float("inf"):
            raise ConfigError(f"base: expected a number above 1 such as 100, got {self.base!r}")

    def is_small(self, *, smallest: int, total: int, pixels: int = MASK_SIZE**2) -> bool:
        """Whether a mask is flagged.

        Args:
            smallest: Pixels of the smallest lesion, 0 where there is none.
            total: Pixels of all lesions together.
            pixels: Pixels of the whole mask.

        Returns:
            Never True for an empty mask.
        """
        return is_within(smallest if self.kind == "components" else total, self.fraction, pixels)

    def is_tiny(self, *, smallest: int, total: int, pixels: int = MASK_SIZE**2) -> bool:
        """Whether a mask is flagged and small as a whole too, so that its Dice tells about the small lesion."""
        flagged = self.is_small(smallest=smallest, total=total, pixels=pixels)
        return flagged and is_within(total, self.fraction, pixels)

    def is_mixed(self, *, smallest: int, largest: int, total: int, pixels: int = MASK_SIZE**2) -> bool:
        """Whether a mask is flagged although it holds a large lesion too, about which its Dice tells more."""
        flagged = self.is_small(smallest=smallest, total=total, pixels=pixels)
        return flagged and not is_within(largest, self.fraction, pixels)


SMALL_RULES = {"components": SmallRule(), "total": SmallRule("total", 1 / 1000, 1000.0)}
"""The published rules by kind."""


def is_within(area: int, fraction: float, pixels: int) -> bool:
    """Whether 0 < area <= fraction * pixels; a rounding error of the product never decides.

    >>> is_within(2, 1 / 150, 300), is_within(3, 1 / 150, 300), is_within(0, 1 / 150, 300)
    (True, False, False)
    """
    return 0 < area <= fraction * pixels * _ROUNDING


def resize_nearest(mask: NDArray[Any], size: int = MASK_SIZE) -> NDArray[Any]:
    """Samples a mask on a square grid: row i of n comes from row floor(i * n / size), columns likewise.

    Args:
        mask: (H, W), any dtype, H and W at least 1.
        size: Height and width of the result in pixels.

    Returns:
        (size, size), same dtype; equal to what OpenCV's and torch's `nearest` give.

    >>> resize_nearest(np.array([[True, False, False]]), 2)
    array([[ True, False],
           [ True, False]])
    """
    height, width = _shape(mask)
    steps = np.arange(size)
    return mask[np.ix_(steps * height // size, steps * width // size)]


def find_lesions(mask: Mask, *, smallest: int = SMALLEST_COMPONENT) -> Lesions:
    """Finds the 8-connected components of a mask; those under 4 pixels are no lesions.

    Args:
        mask: (H, W), bool.
        smallest: Pixels that a component needs to be a lesion.

    Returns:
        The areas in pixels; empty for an empty mask.

    Raises:
        ShapeError: The mask is not two-dimensional and bool.

    >>> find_lesions(np.eye(5, dtype=bool))
    Lesions(areas=(5,), specks=0)
    """
    _, areas = _components(mask)
    lesions = areas[areas >= smallest]
    return Lesions(tuple(lesions.tolist()), int(areas.size - lesions.size))


def clean(mask: Mask, *, smallest: float = SMALLEST_COMPONENT) -> Mask:
    """Drops small components.

    Args:
        mask: (H, W), bool; stays as it is.
        smallest: Pixels that a component needs to stay.

    Returns:
        (H, W), bool: the lesions alone.

    >>> clean(np.array([[True, True, False, True], [True, True, False, False]])).astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0]])
    """
    labels, areas = _components(mask)
    if np.all(areas >= smallest):
        return mask.copy()
    return np.concatenate(([False], areas >= smallest))[labels]


def components_under(mask: Mask, marks: Mask) -> Mask:
    """Keeps the components of a mask that a nearest-neighbour copy of another size has kept.

    Args:
        mask: (H, W), bool.
        marks: Square copy of it by `resize_nearest`, possibly with components dropped, bool.

    Returns:
        (H, W), bool: the components with at least one pixel that is set in the copy.
    """
    labels, areas = _components(mask)
    rows, columns = (np.arange(len(marks)) * side // len(marks) for side in mask.shape)
    kept = np.zeros(len(areas) + 1, dtype=np.bool_)
    kept[labels[np.ix_(rows, columns)][marks]] = True
    kept[0] = False
    return kept[labels]


def nearest_lesions(mask: Mask) -> NDArray[np.uint8]:
    """Divides an image among its lesions: every pixel belongs to the lesion that is nearest to it.

    These are the Voronoi regions of the 8-connected components by Euclidean distance between pixel centres; a pixel
    that is as near to two lesions goes to one of them, always the same. The lesions are ``regions * mask``.

    Args:
        mask: (H, W), bool, of lesions alone: every component counts, so drop specks first (`clean`).

    Returns:
        (H, W): number of the lesion from 1, in the order in which a scan by rows meets them; 1 everywhere where there
        are fewer than two. From the 255th on all lesions share the number 255, and so count as one.

    Raises:
        ShapeError: The mask is not two-dimensional and bool.

    Source: Jaus et al., Every Component Counts, arXiv 2410.18684.

    >>> nearest_lesions(np.array([[True, False, False, False, True, True]]))
    array([[1, 1, 1, 2, 2, 2]], dtype=uint8)
    """
    labels, areas = _components(mask)
    if len(areas) < 2:
        return np.ones(mask.shape, dtype=np.uint8)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    regions: NDArray[np.int32] = labels[tuple(nearest)]
    return np.minimum(regions, MOST_REGIONS).astype(np.uint8)


def is_small_by_components(mask: Mask, *, fraction: float = 1 / 150, smallest: int = SMALLEST_COMPONENT) -> bool:
    """Flags a mask in which any lesion takes at most `fraction` of the image; never an empty one.

    Args:
        mask: Un-augmented mask, (H, W), bool, an array or a tensor on the CPU. Use 512 x 512 (`resize_nearest`), as an
            index does, for flags that do not depend on the size of the image.
        fraction: Largest share of H * W that counts as small.
        smallest: Pixels that a component needs to be a lesion.

    Source: spec of FedGS on PolypGen, 512 * 512 / area >= 150 for the smallest lesion.

    >>> mask = np.zeros((512, 512), dtype=bool)
    >>> mask[:300, :300] = mask[400:420, 400:420] = True
    >>> is_small_by_components(mask), is_small_by_total(mask)
    (True, False)
    """
    mask = np.asarray(mask)
    lesions = find_lesions(mask, smallest=smallest)
    return SmallRule("components", fraction).is_small(smallest=lesions.smallest, total=lesions.total, pixels=mask.size)


def is_small_by_total(mask: Mask, *, fraction: float = 1 / 1000, smallest: int = SMALLEST_COMPONENT) -> bool:
    """Flags a mask whose lesions together take at most `fraction` of the image; never an empty one.

    Args:
        mask: Un-augmented mask, (H, W), bool, an array or a tensor on the CPU. Use 512 x 512 (`resize_nearest`), as an
            index does, for flags that do not depend on the size of the image.
        fraction: Largest share of H * W that counts as small.
        smallest: Pixels that a component needs to be a lesion.

    Source: spec of FedGS on LiTS, 512 * 512 / area >= 1000.

    >>> mask = np.zeros((512, 512), dtype=bool)
    >>> mask[:16, :16] = True
    >>> is_small_by_total(mask), is_small_by_total(~mask)
    (True, False)
    """
    mask = np.asarray(mask)
    lesions = find_lesions(mask, smallest=smallest)
    return SmallRule("total", fraction).is_small(smallest=lesions.smallest, total=lesions.total, pixels=mask.size)


def is_tiny(mask: Mask, rule: SmallRule) -> bool:
    """Whether a mask is flagged by the rule and small as a whole; the stratum of Dice-T."""
    lesions = find_lesions(mask)
    return rule.is_tiny(smallest=lesions.smallest, total=lesions.total, pixels=mask.size)


def _components(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Labels from 1 in scan order, 0 for background, and the area of each label."""
    _shape(mask)
    if mask.dtype != np.bool_:
        raise ShapeError(f"expected a bool mask, got {mask.dtype}; compare it with a threshold first")
    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=_EIGHT_NEIGHBOURS, output=labels)
    return labels, np.bincount(labels.ravel())[1:]


def _shape(mask: NDArray[Any]) -> tuple[int, int]:
    if mask.ndim != 2 or mask.size == 0:
        raise ShapeError(f"expected one mask of shape (height, width) that is not empty, got shape {mask.shape}")
    return mask.shape[0], mask.shape[1]
