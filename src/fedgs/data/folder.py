"""One's own images: SITE/images/NAME.png with SITE/masks/NAME.png, and optionally a table of patients."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedgs.data.case import Case
from fedgs.data.case_table import read_case_table
from fedgs.data.images import IMAGE_SUFFIXES
from fedgs.data.pairing import contents, folders, pair_files, require_folder
from fedgs.errors import DataError

__all__ = ["LAYOUT", "PATIENTS_FILE", "find_cases", "looks_like"]

LAYOUT = "the folder layout: SITE/images/NAME.png and SITE/masks/NAME.png (PNG, JPEG, TIFF, BMP or WebP)"

PATIENTS_FILE = "patients.csv"
"""Optional table in the source with the columns case and patient, and site where a case name is not unique."""


def looks_like(source: Path) -> bool:
    """Whether any folder of the source holds a folder of images or of masks."""
    return any((folder / name).is_dir() for folder in folders(source) for name in ("images", "masks"))


def find_cases(source: Path) -> list[Case]:
    """Finds the cases of a folder of sites; a mask has the name of its image, or that name with '_mask' behind it.

    Raises:
        DataError: Another layout, images and masks that do not pair, or a table of patients that does not fit.
    """
    require_folder(source, LAYOUT)
    sites = folders(source)
    if not sites or (source / "images").is_dir():
        raise DataError(f"{source}: holds {contents(source)}; expected a folder per site in {LAYOUT}")
    cases = [case for folder in sites for case in _cases_of(folder)]
    tables = [path for path in source.iterdir() if path.name.lower() == PATIENTS_FILE]
    return _with_patients(cases, tables[0]) if tables else cases


def _cases_of(folder: Path) -> list[Case]:
    images, masks = folder / "images", folder / "masks"
    for wanted in (images, masks):
        if not wanted.is_dir():
            raise DataError(
                f"{folder}: holds {contents(folder)} but no folder '{wanted.name}'; expected {LAYOUT}, "
                "and nothing else beside the sites"
            )
    return pair_files(
        unicodedata.normalize("NFC", folder.name), images, masks, mask_stems=lambda stem: (stem, f"{stem}_mask")
    )


def _with_patients(cases: Sequence[Case], table: Path) -> list[Case]:
    known: dict[tuple[str, str], str] = {}
    keys = _Keys(cases, table)
    for line, row in read_case_table(table, ("case", "patient"), "site"):
        key = keys.find(line, row.get("site"), row["case"])
        if known.setdefault(key, row["patient"]) != row["patient"]:
            raise DataError(f"{table}, line {line}: a second patient for case '{key[1]}' of site '{key[0]}'")
    return [replace(case, patient=known.get((case.site, case.name)) or None) for case in cases]


class _Keys:
    """Finds the (site, case) that a row of the table means."""

    def __init__(self, cases: Sequence[Case], table: Path) -> None:
        self.table = table
        self.sites: dict[str, list[str]] = {}
        for case in cases:
            self.sites.setdefault(case.name, []).append(case.site)

    def find(self, line: int, site: str | None, name: str) -> tuple[str, str]:
        if name not in self.sites:
            name = name.strip()
        if name not in self.sites and Path(name).suffix.lower() in IMAGE_SUFFIXES:
            name = Path(name).stem
        sites = [other for other in self.sites.get(name, []) if site is None or site.strip() == other]
        if len(sites) == 1:
            return sites[0], name
        where = f"{self.table}, line {line}: case '{name}'"
        if sites:
            raise DataError(f"{where} exists in the sites {', '.join(sites)}; add a column 'site'")
        raise DataError(f"{where}{f' of site {site!r}' if site else ''} is not among the images; correct or remove it")
