"""CT of the liver: the LiTS release, and the same volumes as the Medical Segmentation Decathlon gives them.

Source: Bilic et al., The Liver Tumor Segmentation Benchmark (LiTS), Medical Image Analysis 84:102680 (2023), doi
10.1016/j.media.2022.102680; Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128 (2022).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedgs.data.case import Case
from fedgs.data.case_table import read_case_table
from fedgs.data.nifti import stem_of
from fedgs.data.pairing import contents, require_folder
from fedgs.data.volumes import SliceRules
from fedgs.errors import DataError

__all__ = ["LAYOUT", "SITES_FILE", "TUMOUR", "find_cases", "looks_like"]

LAYOUT = (
    "the LiTS layout: volume-N.nii.gz with segmentation-N.nii.gz, "
    "or imagesTr/liver_N.nii.gz with labelsTr/liver_N.nii.gz"
)

SITES_FILE = "sites.csv"
"""Optional table in the source with the columns case and site, and patient where that is known."""

TUMOUR = 2
"""Label of a tumour; 1 is the liver."""

_LAST_OF_CENTRE = (29, 59, 89, 119, 130)
_SHOWN = 5
_IMAGE = re.compile(r"(?:volume-|liver_)(\d+)\.nii(?:\.gz)?")
_MASK = re.compile(r"(?:segmentation-|liver_)(\d+)\.nii(?:\.gz)?")


def looks_like(source: Path) -> bool:
    """Whether volumes of the liver lie in the folder, or in folders of it."""
    return any(_IMAGE.fullmatch(path.name) for path in _images(source))


def find_cases(source: Path, sites: Path | None = None) -> list[Case]:
    """Finds the volumes, each with its map of labels of the same number.

    Args:
        source: Folder of the release; volumes may lie in folders of their own, such as those of its two batches.
        sites: Table that says which hospital a case is of; the one in the source if None. Where there is none, five
            "centres" go by the number of a volume, as published: up to 29, 59, 89, 119 and 130.

    Raises:
        DataError: Another layout, a volume without labels or the reverse, two of one number, or a table that does not
            fit.
    """
    require_folder(source, LAYOUT)
    images, masks = _by_number(_images(source), _IMAGE), _by_number(_masks(source), _MASK)
    if not images:
        raise DataError(f"{source}: holds {contents(source)}; expected {LAYOUT}")
    if odd := sorted(images.keys() ^ masks.keys()):
        one = odd[0]
        what = f"'{images[one].name}' has no labels" if one in images else f"'{masks[one].name}' has no image"
        raise DataError(f"{source}: {what} ({len(odd)} such in all); expected {LAYOUT}")
    rules = SliceRules(label=TUMOUR)
    cases = [
        Case("", stem_of(images[number]), images[number], masks[number], slices=rules) for number in sorted(images)
    ]
    table = sites or next((path for path in source.iterdir() if path.name.lower() == SITES_FILE), None)
    return _with_sites(cases, table) if table else [replace(case, site=_centre(case)) for case in cases]


def _images(source: Path) -> list[Path]:
    decathlon = source / "imagesTr"
    return [*source.rglob("volume-*.nii*"), *(decathlon.glob("liver_*.nii*") if decathlon.is_dir() else ())]


def _masks(source: Path) -> list[Path]:
    decathlon = source / "labelsTr"
    return [*source.rglob("segmentation-*.nii*"), *(decathlon.glob("liver_*.nii*") if decathlon.is_dir() else ())]


def _by_number(paths: list[Path], pattern: re.Pattern[str]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(paths):
        if match := pattern.fullmatch(path.name):
            number = int(match[1])
            if number in found:
                raise DataError(
                    f"{found[number]} and {path} have one number; expected one file per volume, so remove one"
                )
            found[number] = path
    return found


def _centre(case: Case) -> str:
    number = _number(case)
    place = bisect_left(_LAST_OF_CENTRE, number)
    if place == len(_LAST_OF_CENTRE):
        raise DataError(
            f"{case.image}: volumes beyond {_LAST_OF_CENTRE[-1]} have no centre in the publication; say which hospital "
            f"each is of in a table {SITES_FILE} with the columns case and site"
        )
    return f"centre-{place + 1}"


def _number(case: Case) -> int:
    return int(re.findall(r"\d+", case.name)[-1])


def _with_sites(cases: list[Case], table: Path) -> list[Case]:
    rows = _rows_by_case(cases, table)
    lacking = [case.name for case in cases if case.name not in rows]
    if lacking:
        shown = ", ".join(lacking[:_SHOWN]) + (", …" if len(lacking) > _SHOWN else "")
        raise DataError(f"{table}: has no line for {len(lacking)} of {len(cases)} volumes: {shown}; add them")
    found = [(case, rows[case.name]) for case in cases]
    return [replace(case, site=row["site"], patient=row.get("patient") or None) for case, row in found]


def _rows_by_case(cases: list[Case], table: Path) -> Mapping[str, Mapping[str, str]]:
    known = {name: case.name for case in cases for name in (case.name, str(_number(case)))}
    found: dict[str, Mapping[str, str]] = {}
    for line, row in read_case_table(table, ("case", "site"), "patient"):
        name = known.get(stem_of(Path(row["case"].strip())))
        where = f"{table}, line {line}: case '{row['case']}'"
        if name is None:
            raise DataError(f"{where} is not among the volumes; correct or remove it")
        if not row["site"]:
            raise DataError(f"{where} has no site; name one")
        if name in found and found[name] != row:
            raise DataError(f"{where} has a second line, which says otherwise; remove one")
        found[name] = row
    return found
