"""How a volume is cut into slices that look as a radiologist knows them, and how slices become a volume again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedgs.data.nifti import Space

__all__ = ["AXES", "Axis", "Slicing", "slicing_of"]

Axis = Literal["axial", "largest-spacing"]

AXES: tuple[Axis, ...] = ("axial", "largest-spacing")
"""Which way to cut: across the body, or between the voxels that are farthest apart."""

_RIGHT, _FRONT, _HEAD = 0, 1, 2
_ROWS_AND_COLUMNS = {_HEAD: (_FRONT, _RIGHT), _FRONT: (_HEAD, _RIGHT), _RIGHT: (_HEAD, _FRONT)}


@dataclass(frozen=True, slots=True)
class Slicing:
    """Which axes of an array become slices, rows and columns, and which of them run the other way.

    Attributes:
        axes: Axis of the array that becomes the slice, the row and the column.
        reversed: Whether each of these is turned round.
    """

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]

    def cut(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Gives a volume as (slices, rows, columns), a view."""
        return np.transpose(voxels, self.axes)[self._steps]

    def join(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Gives slices as the volume that they were cut from, a view; the inverse of `cut`."""
        return np.transpose(slices[self._steps], np.argsort(self.axes))

    @property
    def _steps(self) -> tuple[slice, slice, slice]:
        first, second, third = (slice(None, None, -1 if turned else 1) for turned in self.reversed)
        return first, second, third


def slicing_of(space: Space, axis: Axis) -> Slicing:
    """Tells how to cut a volume.

    Axial slices begin at the feet; a slice has the front of the body above and its right side on the left, as
    radiologists look at them. Coronal and sagittal ones have the head above.

    Args:
        space: Where the voxels are.
        axis: ``axial``, or ``largest-spacing`` for data that are fine in any plane but one.
    """
    from nibabel.orientations import io_orientation

    orientation = io_orientation(space.affine)
    world, direction = orientation[:, 0].astype(int).tolist(), orientation[:, 1].tolist()
    across = _HEAD if axis == "axial" else _farthest_apart(space, world)
    chosen = [world.index(wanted) for wanted in (across, *_ROWS_AND_COLUMNS[across])]
    onward = [1.0 if wanted == across == _HEAD else -1.0 for wanted in (across, *_ROWS_AND_COLUMNS[across])]
    first, second, third = (direction[at] != wanted for at, wanted in zip(chosen, onward, strict=True))
    return Slicing((chosen[0], chosen[1], chosen[2]), (first, second, third))


def _farthest_apart(space: Space, world: list[int]) -> int:
    """The direction in the patient with the largest spacing, that to the head where it is as large as another."""
    spacing = dict(zip(world, space.spacing, strict=True))
    return max((_HEAD, _FRONT, _RIGHT), key=lambda direction: round(spacing[direction], 3))
