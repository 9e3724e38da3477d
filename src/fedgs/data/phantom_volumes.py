"""Generated hospitals with CT of the abdomen, in the layout of LiTS, for demonstrations and tests."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgs.data.phantom import appearing
from fedgs.data.phantom_ct import Grid, Patient, draw_ct, draw_grid, draw_patient, generator
from fedgs.errors import ConfigError, MissingExtraError

__all__ = ["SITES_FILE", "generate_ct"]

SITES_FILE = "sites.csv"

_RADII_MM = ((9.0, 28.0), (2.6, 7.0))
"""Smallest and largest radius of the tumours of the first site and of the last one; those between lie between."""

_NOISE_HU, _SHIFT_HU = (10.0, 22.0), (-12.0, 12.0)
_SLICES_MM = (2.5, 5.0, 3.0, 1.5, 4.0)
_WITHOUT_EVERY = 5
_MOST_TUMOURS = 4


@dataclass(frozen=True, slots=True)
class _Scan:
    """A volume before it is drawn."""

    number: int
    site: str
    patient: Patient
    grid: Grid

    @property
    def case(self) -> str:
        """Its name."""
        return f"volume-{self.number}"


def generate_ct(folder: Path, *, sites: int = 3, volumes: int = 5, size: int = 128, seed: int = 0) -> None:
    """Fills a folder with CT volumes of several hospitals; equal arguments give equal bytes.

    The first site has large tumours, the last one small ones; noise, intensities and the distance of the slices differ,
    too. Axes come in any order and direction and are slightly rotated. Every fifth volume has no tumour.

    Args:
        folder: Absent or empty; it appears all at once when everything is there. It will hold ``volume-N.nii.gz``,
            ``segmentation-N.nii.gz`` (0 background, 1 liver, 2 tumour) and ``sites.csv``.
        sites: How many hospitals, at least 1.
        volumes: Per site, at least 1.
        size: Voxels along either side of an axial slice, at least 32.
        seed: Seed of everything drawn.

    Raises:
        ConfigError: Too few sites or volumes, or too small ones.
        DataError: The folder holds something already.
        MissingExtraError: nibabel is not installed.
    """
    if sites < 1 or volumes < 1 or size < 32:
        raise ConfigError(
            f"phantom: expected at least 1 site, 1 volume per site and a size of 32; got {sites}, {volumes} and {size}"
        )
    try:
        import nibabel
    except ImportError as error:
        raise MissingExtraError("volumes", "writing NIfTI") from error
    with appearing(folder) as partial:
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("case", "site", "patient"))
        for scan in _scans(sites, volumes, size, seed):
            hu, mask = draw_ct(scan.patient, scan.grid, generator(seed, scan.site, scan.case, "noise"))
            for name, voxels in ((scan.case, hu), (f"segmentation-{scan.number}", mask)):
                image = nibabel.Nifti1Image(voxels, scan.grid.affine)
                image.set_sform(scan.grid.affine, code="scanner")
                image.set_qform(scan.grid.affine, code="scanner")
                image.header.set_xyzt_units("mm")
                nibabel.save(image, partial / f"{name}.nii.gz")
            rows.writerow((scan.case, scan.site, f"P{scan.number:03d}"))
        (partial / SITES_FILE).write_text(table.getvalue(), encoding="utf-8")


def _scans(sites: int, volumes: int, size: int, seed: int) -> Iterator[_Scan]:
    for place in range(sites):
        share, name = place / max(sites - 1, 1), f"CT{place + 1}"
        radii = tuple(float(np.exp(np.interp(share, (0, 1), np.log(ends)))) for ends in zip(*_RADII_MM, strict=True))
        noise, shift = (float(np.interp(share, (0, 1), ends)) for ends in (_NOISE_HU, _SHIFT_HU))
        for of_site in range(volumes):
            number = place * volumes + of_site
            rng = generator(seed, name, str(of_site))
            has_none = of_site % _WITHOUT_EVERY == _WITHOUT_EVERY - 1
            tumours = 0 if has_none else int(rng.integers(1, _MOST_TUMOURS + 1))
            patient = draw_patient((radii[0], radii[1]), tumours, noise, shift, rng)
            yield _Scan(number, name, patient, draw_grid(size, _SLICES_MM[place % len(_SLICES_MM)], rng))
