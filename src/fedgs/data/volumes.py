"""A volume as images: which of its slices are used, and how their values become levels of grey."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedgs.data.lesions import MASK_SIZE, find_lesions, resize_nearest
from fedgs.data.nifti import Scan, Space, read_labels, read_scan, read_space
from fedgs.data.slicing import AXES, Axis, Slicing, slicing_of
from fedgs.errors import ConfigError, DataError, unknown_choice

__all__ = ["SLICES", "SliceRules", "Volume", "diameters_mm", "read_volume"]

Chosen = Literal["target", "all"]

SLICES: tuple[Chosen, ...] = ("target", "all")
"""Slices that are used: those with enough of the target, or all."""

_TOUCHING = np.ones((3, 3, 3), dtype=np.int8)


@dataclass(frozen=True, slots=True)
class SliceRules:
    """How volumes become images.

    Attributes:
        label: Value of the target in the maps of labels.
        window: Values, in HU for CT, that become black and white.
        axis: Which way volumes are cut.
        slices: Which slices are used, one of `SLICES`.
        least_pixels: With ``target``, a slice is used that has more than so many pixels of it, at 512 x 512.
        empty_share: With ``target``, share of the used slices that have none of it, in [0, 1); they are taken at equal
            distances. A volume without target gives that share of its slices.

    Raises:
        ConfigError: A value is out of range.

    Source: Schutte et al., FedGS, arXiv 2408.11701: [-200, 200] HU and more than 50 pixels for LiTS.
    """

    label: int = 1
    window: tuple[float, float] = (-200.0, 200.0)
    axis: Axis = "axial"
    slices: Chosen = "target"
    least_pixels: int = 50
    empty_share: float = 0.0

    def __post_init__(self) -> None:
        """Validates the values."""
        if not 1 <= self.label <= 255:
            raise ConfigError(f"label: expected a whole number from 1 to 255, got {self.label}; 0 is the background")
        if not self.window[0] < self.window[1]:
            raise ConfigError(f"window: expected two values, the lower one first, such as -200 200; got {self.window}")
        if self.axis not in AXES:
            raise unknown_choice("axis", self.axis, AXES)
        if self.slices not in SLICES:
            raise unknown_choice("choice of slices", self.slices, SLICES)
        if self.least_pixels < 0:
            raise ConfigError(f"least pixels: expected 0 or more, got {self.least_pixels}")
        if not 0 <= self.empty_share < 1:
            raise ConfigError(f"empty share: expected a share from 0 to below 1, got {self.empty_share}")


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A volume with its target.

    Attributes:
        space: Where its voxels are.
        slicing: How it is cut.
        target: (slices, rows, columns), bool.
        rules: How it becomes images.
    """

    space: Space
    slicing: Slicing
    target: NDArray[np.bool_]
    rules: SliceRules
    _scan: Scan

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring slices, rows and columns, in mm."""
        of_slices, of_rows, of_columns = (self.space.spacing[axis] for axis in self.slicing.axes)
        return of_slices, of_rows, of_columns

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Gives a slice as levels of grey, (rows, columns, 1)."""
        low, high = self.rules.window
        values = self.slicing.cut(self._scan.voxels)[number].astype(np.float32)
        values *= self._scan.slope * 255 / (high - low)
        values += (self._scan.intercept - low) * 255 / (high - low)
        np.clip(np.rint(values, out=values), 0, 255, out=values)
        return np.asarray(values, dtype=np.uint8)[:, :, np.newaxis]

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Gives all slices, one after the other."""
        return map(self.frame, range(len(self.target)))

    def content_hash(self) -> str:
        """Hash of the voxels as they lie in the file, and of how they are stored; 32 hexadecimal digits."""
        voxels = self._scan.voxels.T
        digest = hashlib.blake2b(repr((voxels.shape, voxels.dtype.str)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(voxels).view(np.uint8).data)
        return digest.hexdigest()

    def used(self) -> list[int]:
        """Gives the slices that are used, ascending."""
        if self.rules.slices == "all":
            return list(range(len(self.target)))
        there = self.target.any(axis=(1, 2))
        areas = {int(n): find_lesions(resize_nearest(self.target[n], MASK_SIZE)).total for n in np.flatnonzero(there)}
        chosen = [number for number, area in areas.items() if area > self.rules.least_pixels]
        share = self.rules.empty_share
        empty = np.flatnonzero(~there)
        wanted = share * len(empty) if not there.any() else len(chosen) * share / (1 - share)
        return sorted([*chosen, *_evenly(empty, round(wanted))])


def read_volume(image: Path, mask: Path, rules: SliceRules) -> Volume:
    """Reads a volume with its map of labels.

    Args:
        image: A NIfTI file.
        mask: Another one, of the same shape and affine.
        rules: How it becomes images.

    Raises:
        DataError: One of them cannot be used, they do not belong together, or there is one slice only.
        MissingExtraError: nibabel is not installed.
    """
    space = read_space(image)
    slicing = slicing_of(space, rules.axis)
    if space.shape[slicing.axes[0]] == 1:
        raise DataError(f"{image}: has one slice; expected a volume, so index it as an image (PNG)")
    # The labels come first: what reading them takes is free again when the voxels, twice as large, are there.
    target = slicing.cut(read_labels(mask, image, space) == rules.label)
    return Volume(space, slicing, target, rules, read_scan(image))


def diameters_mm(target: NDArray[np.bool_], spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Gives for every slice the diameter of the largest lesion of which it shows a part.

    A lesion is a component of voxels that touch, be it by a corner; its diameter that of a ball of its volume.

    Args:
        target: (slices, rows, columns), bool.
        spacing: Of slices, rows and columns, in mm.

    Returns:
        (slices,), in mm; 0 where there is none.
    """
    found = np.zeros(len(target))
    boxes: Any = ndimage.find_objects(target.view(np.uint8))
    if not boxes:
        return found
    box = boxes[0]
    labels, _ = ndimage.label(target[box], structure=_TOUCHING)
    volumes = np.bincount(labels.ravel()) * float(np.prod(spacing))
    volumes[0] = 0
    for number, of_slice in enumerate(labels, start=box[0].start):
        found[number] = np.cbrt(6 * volumes[np.unique(of_slice)].max() / np.pi)
    return found


def _evenly(numbers: NDArray[np.intp], count: int) -> list[int]:
    if not len(numbers):
        return []
    places = (np.arange(min(count, len(numbers))) + 0.5) * len(numbers) / max(min(count, len(numbers)), 1)
    return [int(number) for number in numbers[places.astype(int)]]
