"""The official PolypGen release: data_C1/images_C1/NAME.jpg with data_C1/masks_C1/NAME_mask.jpg, any sites.

Source: Ali et al., A multi-centre polyp detection and segmentation dataset for generalisability assessment,
Scientific Data 10:75 (2023), doi 10.1038/s41597-023-01981-y.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedgs.data.case import Case
from fedgs.data.pairing import contents, folders, pair_files, require_folder
from fedgs.errors import DataError

__all__ = ["LAYOUT", "find_cases", "looks_like", "patient_of"]

LAYOUT = "the PolypGen layout: data_SITE/images_SITE/NAME.jpg and data_SITE/masks_SITE/NAME_mask.jpg"

_PREFIX = "data_"
_PATIENT = (re.compile(r"(\d+)_endocv\d+_(?:positive|negative)_", re.IGNORECASE), re.compile(r"(\d+OLCV\d+)_"))


def looks_like(source: Path) -> bool:
    """Whether any folder of the source is laid out as a PolypGen site."""
    return any(_image_folder(folder).is_dir() for folder in folders(source) if folder.name.startswith(_PREFIX))


def find_cases(source: Path) -> list[Case]:
    """Finds the cases of the folder that holds data_C1, data_C2 and so on, whichever of them are there.

    Raises:
        DataError: No such folder, an incomplete one, or images and masks that do not pair.
    """
    require_folder(source, LAYOUT)
    sites = [folder for folder in folders(source) if folder.name.startswith(_PREFIX)]
    if not sites:
        raise DataError(f"{source}: holds {contents(source)}; expected {LAYOUT}")
    return [case for folder in sites for case in _cases_of(folder)]


def patient_of(stem: str) -> str | None:
    """The patient or examination that a file name tells, by its pattern alone.

    >>> patient_of("31_endocv2021_positive_1318"), patient_of("177OLCV1_100H0038"), patient_of("100H0050")
    ('31', '177OLCV1', None)
    """
    matches = (pattern.match(stem) for pattern in _PATIENT)
    return next((match.group(1) for match in matches if match), None)


def _cases_of(folder: Path) -> list[Case]:
    images, masks = _image_folder(folder), folder / f"masks_{_site(folder)}"
    for wanted in (images, masks):
        if not wanted.is_dir():
            raise DataError(f"{folder}: holds {contents(folder)} but no folder '{wanted.name}'; expected {LAYOUT}")
    return pair_files(_site(folder), images, masks, mask_stems=_mask_stems, patient_of=patient_of)


def _mask_stems(stem: str) -> tuple[str, ...]:
    # C3 has C3_EndoCV2021_00489_.jpg with C3_EndoCV2021_00489_mask.jpg.
    return f"{stem}_mask", f"{stem.rstrip('_')}_mask", stem


def _site(folder: Path) -> str:
    return folder.name.removeprefix(_PREFIX)


def _image_folder(folder: Path) -> Path:
    return folder / f"images_{_site(folder)}"
