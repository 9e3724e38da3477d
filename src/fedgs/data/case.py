"""What one image with its mask is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from fedgs.data.volumes import SliceRules

__all__ = ["Adapter", "Batch", "Case", "CaseWeights"]


@dataclass(frozen=True, slots=True)
class Case:
    """One image or volume of one site, as an adapter found it.

    Attributes:
        site: Name of the hospital or silo.
        name: Stem of the image file, unique within the site.
        image: Path of the image file.
        mask: Path of the mask file.
        patient: Patient (or examination) within the site; None where the source does not tell.
        slices: How a volume becomes images; None for an image.
    """

    site: str
    name: str
    image: Path
    mask: Path
    patient: str | None = None
    slices: SliceRules | None = None


Adapter = Callable[[Path], Sequence[Case]]
"""Finds the cases of a source folder, sorted by (site, name); raises DataError that shows the layout it wants."""


CaseWeights = Callable[[Any, Any], Any]
"""From the cases of a site, flags of small ones (n,), bool, and lesion areas as shares of the image (n,), float, to how
often each is drawn, relative to the others, (n,), float, > 0; all NumPy arrays."""


class Batch(NamedTuple):
    """What a local optimizer step sees.

    Attributes:
        images: (B, C, H, W), float32, normalised.
        masks: Ground truth after augmentation, (B, H, W), bool.
        is_small: Flag per image from its un-augmented 512 x 512 mask, (B,), bool.
        regions: Which lesion of its image each pixel is nearest to, from 1, (B, H, W), uint8, moved with the masks, so
            that ``regions * masks`` are the lesions; None where the objective does not ask for it.
        weights: How much each image counts in an objective that is a mean over images, (B,), float32; None for 1 each.
    """

    images: Tensor
    masks: Tensor
    is_small: Tensor
    regions: Tensor | None = None
    weights: Tensor | None = None
