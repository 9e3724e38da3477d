from __future__ import annotations

from pathlib import Path

import pytest

from fedgs.data import detect, find_cases
from fedgs.data.polypgen import patient_of
from fedgs.errors import DataError


def touch(source: Path, site: str, image: str, mask: str | None) -> None:
    for kind, name in (("images", image), ("masks", mask)):
        folder = source / f"data_{site}" / f"{kind}_{site}"
        folder.mkdir(parents=True, exist_ok=True)
        if name is not None:
            (folder / name).touch()


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("31_endocv2021_positive_1318", "31"),
        ("7_EndoCV2021_negative_3", "7"),
        ("14_endocv2021_positive_1435 2", "14"),
        ("177OLCV1_100H0038", "177OLCV1"),
        ("253OLCV1_100S0005", "253OLCV1"),
        ("100H0050", None),
        ("100S0001", None),
        ("EndoCV2021_001000", None),
        ("EndoCV2021_C5_50000003", None),
        ("C3_EndoCV2021_001", None),
        ("31", None),
    ],
)
def test_patients_are_read_from_the_pattern_of_the_name(stem: str, patient: str | None) -> None:
    assert patient_of(stem) == patient


def test_any_sites_and_irregular_names(tmp_path: Path) -> None:
    touch(tmp_path, "C3", "C3_EndoCV2021_00489_.jpg", "C3_EndoCV2021_00489_mask.jpg")
    touch(tmp_path, "C3", "C3_EndoCV2021_00489.jpg", "C3_EndoCV2021_00489__mask.jpg")
    touch(tmp_path, "C6", "EndoCV2021_C6_1.JPG", "EndoCV2021_C6_1_mask.jpg")
    touch(tmp_path, "Elsewhere", "177OLCV1_100H0038.png", "177OLCV1_100H0038_mask.png")
    (tmp_path / "readme.txt").touch()
    (tmp_path / "sequences").mkdir()
    (tmp_path / "data_C3" / "bbox_C3").mkdir()
    cases = find_cases(tmp_path)
    assert detect(tmp_path) == "polypgen"
    assert [(case.site, case.name, case.mask.name, case.patient) for case in cases] == [
        # The mask with the exact name goes to the image that asks for it first.
        ("C3", "C3_EndoCV2021_00489", "C3_EndoCV2021_00489_mask.jpg", None),
        ("C3", "C3_EndoCV2021_00489_", "C3_EndoCV2021_00489__mask.jpg", None),
        ("C6", "EndoCV2021_C6_1", "EndoCV2021_C6_1_mask.jpg", None),
        ("Elsewhere", "177OLCV1_100H0038", "177OLCV1_100H0038_mask.png", "177OLCV1"),
    ]


def test_the_incomplete_site_is_named(tmp_path: Path) -> None:
    (tmp_path / "data_C1" / "images_C1").mkdir(parents=True)
    with pytest.raises(DataError, match=r"data_C1: holds 'images_C1/' but no folder 'masks_C1'; expected the PolypGen"):
        find_cases(tmp_path, "polypgen")
    (tmp_path / "data_C1" / "masks_C1").mkdir()
    with pytest.raises(DataError, match="site 'C1': no image in"):
        find_cases(tmp_path, "polypgen")


def test_the_release_pairs_completely(shared: Path) -> None:
    cases = find_cases(shared / "data" / "polypgen")
    assert len(cases) == 1449
    known = {site: {case.patient for case in cases if case.site == site and case.patient} for site in ("C1", "C4")}
    assert len(known["C4"]) == 31
    assert all(patient.isdigit() for patient in known["C4"])
    assert sum(case.patient is None for case in cases if case.site == "C1") == 3
    assert not [case for case in cases if case.site in ("C2", "C3", "C5") and case.patient]
