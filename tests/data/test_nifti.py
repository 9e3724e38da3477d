"""NIfTI volumes: read as stored, and refused by name where they are not one plain volume."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedgs.data.nifti import read_labels, read_scan
from fedgs.errors import DataError

AFFINE = np.array([[-0.7, 0, 0, 90], [0, 0.7, 0, -80], [0, 0, 2.5, 10], [0, 0, 0, 1.0]])


PIXDIM, SROW_X = 76, 280
"""Where these fields begin in the header."""


def write(
    path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE, code: int = 1, at: int = 0, values: Any = ()
) -> Path:
    """Writes a volume, and then numbers into its header that nibabel itself would not write."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=code)
    image.set_qform(affine if code else None, code=code)
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    content[at : at + 4 * len(values)] = np.array(values, "<f4").tobytes()
    if values:
        path.write_bytes(content)
    return path


def ramp(shape: tuple[int, ...] = (6, 5, 4), dtype: Any = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_scale_and_place_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, ramp())
    content = bytearray(gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes())
    content[112:120] = np.array([2.0, -1024.0], "<f4").tobytes()  # scl_slope and scl_inter
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    scan = read_scan(path)
    assert (scan.voxels == ramp()).all()
    assert (scan.slope, scan.intercept) == (2.0, -1024.0)
    assert scan.space.affine == pytest.approx(AFFINE)
    assert scan.space.spacing == pytest.approx((0.7, 0.7, 2.5))
    assert (scan.voxels * scan.slope + scan.intercept == nibabel.load(path).get_fdata()).all()


def test_a_last_axis_of_one_is_none(tmp_path: Path) -> None:
    assert read_scan(write(tmp_path / "a.nii", ramp((6, 5, 4, 1)))).voxels.shape == (6, 5, 4)


def coloured(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("voxels", "options", "said"),
    [
        (ramp((4, 4, 4, 3)), {}, "has the shape 4 x 4 x 4 x 3; expected one volume"),
        (ramp((4, 4)), {}, "expected one volume"),
        (coloured((4, 4, 4)), {}, "such as colours"),
        (ramp(dtype=np.complex64), {}, "expected one real number"),
        (np.where(ramp(dtype=np.float32) == 7, np.nan, 1).astype(np.float32), {}, "1 voxels are infinite or no number"),
        (np.where(ramp(dtype=np.float32) < 3, np.inf, 1).astype(np.float32), {}, "3 voxels are infinite or no number"),
        (ramp(), {"code": 0}, "does not say where its voxels are"),
        (ramp(), {"at": SROW_X, "values": [0, 0, 0, 0]}, "singular affine"),
        (ramp(), {"at": SROW_X, "values": [np.nan, 0, 0, 0]}, "singular affine"),
        (ramp(), {"at": PIXDIM, "values": [1, 0.7, 0.7, 0]}, "voxels of 0.7 x 0.7 x 0 mm"),
        (ramp(), {"at": PIXDIM, "values": [1, 0.7, -0.7, 2]}, "voxels of 0.7 x -0.7 x 2 mm"),
    ],
)
def test_what_is_not_one_plain_volume_is_refused(voxels: Any, options: dict, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", voxels, **options)
    with pytest.raises(DataError, match=rf"a\.nii: .*{re.escape(said)}"):
        read_scan(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_that_is_cut_off_or_lies_about_its_size_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40), dtype=np.int16))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut off|ends too early|cannot be read"):
        read_scan(path)
    header = bytearray(gzip.decompress(whole) if name.endswith("gz") else whole)[:1000]
    header[42:48] = np.array([4000, 4000, 2000], "<i2").tobytes()
    path.write_bytes(gzip.compress(header) if name.endswith("gz") else header)
    with pytest.raises(DataError, match="its header tells of 64,000,000,"):
        read_scan(path)


@pytest.mark.parametrize("content", [b"", b"no NIfTI", b"\x1f\x8b" + bytes(50)])
def test_what_is_no_nifti_is_refused(content: bytes, tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as NIfTI"):
            read_scan(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_labels_of_any_type_are_whole_numbers(dtype: Any, tmp_path: Path) -> None:
    image = read_scan(write(tmp_path / "volume-1.nii", ramp()))
    labels = read_labels(write(tmp_path / "a.nii", ramp(dtype=dtype) % 3), tmp_path / "volume-1.nii", image.space)
    assert labels.dtype == np.uint8
    assert (labels == ramp() % 3).all()


@pytest.mark.parametrize(
    ("voxels", "affine", "said"),
    [
        (ramp((6, 5, 3)), AFFINE, "has 6 x 5 x 3 voxels, its image volume-1.nii 6 x 5 x 4"),
        (ramp(), AFFINE * np.array([[-1], [1], [1], [1]]), "lies elsewhere than its image volume-1.nii"),
        (ramp(dtype=np.float32) / 2, AFFINE, "expected labels, whole numbers from 0 to 255, found 0.5"),
        (ramp() - 5, AFFINE, "found -5"),
        (ramp(dtype=np.int16) + 200, AFFINE, "found 256"),
    ],
)
def test_labels_that_do_not_belong_to_the_image_are_refused(
    voxels: np.ndarray, affine: np.ndarray, said: str, tmp_path: Path
) -> None:
    image = read_scan(write(tmp_path / "volume-1.nii", ramp()))
    path = write(tmp_path / "segmentation-1.nii", voxels, affine)
    with pytest.raises(DataError, match=re.escape(said)):
        read_labels(path, tmp_path / "volume-1.nii", image.space)


def test_affines_may_differ_by_rounding(tmp_path: Path) -> None:
    image = read_scan(write(tmp_path / "volume-1.nii", ramp()))
    near = write(tmp_path / "a.nii", ramp(), AFFINE + 1e-4)
    assert read_labels(near, tmp_path / "volume-1.nii", image.space).shape == (6, 5, 4)
