"""Generated CT: what lies where does not depend on how the scan is oriented."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fedgs.data.phantom_ct import LIVER, TUMOUR, Grid, draw_ct, draw_grid, draw_patient, generator
from fedgs.data.phantom_volumes import SITES_FILE, generate_ct
from fedgs.errors import ConfigError, DataError
from runs import fedgs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ct") / "phantom"
    generate_ct(made, sites=2, volumes=5, size=48, seed=3)
    return made


def sites_of(folder: Path) -> dict[str, str]:
    with (folder / SITES_FILE).open(newline="") as file:
        return {row["case"]: row["site"] for row in csv.DictReader(file)}


def load(folder: Path, number: int) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    return nibabel.load(folder / f"volume-{number}.nii.gz"), nibabel.load(folder / f"segmentation-{number}.nii.gz")


def centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of a mask in mm (RAS)."""
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def test_image_and_mask_fit_and_hold_what_they_should(folder: Path) -> None:
    assert set(sites_of(folder)) == {f"volume-{number}" for number in range(10)}
    for number in range(10):
        image, mask = load(folder, number)
        hu, labels = np.asarray(image.dataobj), np.asarray(mask.dataobj)
        assert image.shape == mask.shape
        assert (image.affine == mask.affine).all()
        assert (image.get_data_dtype(), mask.get_data_dtype()) == (np.int16, np.uint8)
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
        assert image.get_qform() == pytest.approx(image.affine, abs=1e-3)
        assert set(np.unique(labels)) <= {0, LIVER, TUMOUR}
        assert hu[labels == LIVER].mean() > 80
        assert hu.min() >= -1024
        assert (labels == TUMOUR).any() == (number % 5 != 4)
        if (labels == TUMOUR).sum() > 50:
            assert hu[labels == TUMOUR].mean() < hu[labels == LIVER].mean() - 15


def test_the_liver_is_on_the_right_whatever_the_orientation(folder: Path) -> None:
    codes = set()
    for number in range(10):
        _, mask = load(folder, number)
        right, _, up = centre(np.asarray(mask.dataobj) > 0, mask.affine)
        assert 30 < right < 90
        assert abs(up) < 30
        codes.add(nibabel.aff2axcodes(mask.affine))
    assert len(codes) > 4


def test_the_same_patient_on_two_grids_is_the_same_patient() -> None:
    patient = draw_patient((12, 25), 2, 5.0, 0.0, generator(0, "patient"))
    plain = Grid((96, 96, 68), np.array([[-4.0, 0, 0, 190], [0, 4, 0, -190], [0, 0, 2.5, -84], [0, 0, 0, 1]]))
    other = draw_grid(128, 2.0, generator(1, "grid"))
    volumes = []
    for grid in (plain, other):
        _, mask = draw_ct(patient, grid, generator(2))
        voxel = abs(np.linalg.det(grid.affine[:3, :3]))
        volumes.append([(mask == label).sum() * voxel / 1000 for label in (LIVER, TUMOUR)])
        volumes[-1] += [*centre(mask == TUMOUR, grid.affine)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03, abs=1.5)


def test_tumours_differ_in_size_by_site(folder: Path) -> None:
    of_site: dict[str, list[float]] = {}
    for case, site in sites_of(folder).items():
        _, mask = load(folder, int(case.removeprefix("volume-")))
        voxel = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        of_site.setdefault(site, []).append(float((np.asarray(mask.dataobj) == TUMOUR).sum() * voxel))
    assert np.median(of_site["CT1"]) > 5 * np.median(of_site["CT2"])


def test_equal_seeds_give_equal_bytes_and_others_do_not(folder: Path, tmp_path: Path) -> None:
    fedgs("phantom", "ct", "--out", str(tmp_path / "a"), "--sites", "2", "--size", "48", "--seed", "3")
    generate_ct(tmp_path / "b", sites=2, volumes=5, size=48, seed=4)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "a").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert (folder / "volume-0.nii.gz").read_bytes() != (tmp_path / "b" / "volume-0.nii.gz").read_bytes()


def test_what_cannot_be_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 site"):
        generate_ct(tmp_path / "out", sites=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(DataError, match="not empty"):
        generate_ct(tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_frames_are_those_of_the_phantom(tmp_path: Path) -> None:
    fedgs("phantom", "frames", "--out", str(tmp_path / "out"), "--cases", "2", "--size", "32")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("Alder", "Birch", "Cedar", "patients.csv", "phantom.json")
    ]
