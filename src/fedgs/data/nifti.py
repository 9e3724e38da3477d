"""NIfTI volumes read with care: what is not one plain, finite, oriented volume is refused by name."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgs.errors import DataError, MissingExtraError

__all__ = ["SUFFIXES", "Scan", "Space", "read_labels", "read_scan", "read_space", "stem_of"]

SUFFIXES = (".nii", ".nii.gz")

_DEFLATED_AT_MOST = 1100
"""A byte of a compressed file gives at most 1,032 bytes."""

_PIECE = 2**21
_LEAST_VOLUME = 1e-6
_AS_NEAR = 1e-2


@dataclass(frozen=True, slots=True)
class Space:
    """Where the voxels of a volume are in the patient.

    Attributes:
        shape: Voxels along the three axes of the array.
        affine: From voxels to mm to the right, to the front and to the head (RAS), (4, 4), float64.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along the three axes, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def differs(self, other: Space) -> float:
        """How far apart two spaces of one shape put the farthest corner, as a share of the smallest spacing."""
        corners = np.array(np.meshgrid(*((0, count - 1) for count in self.shape), [1])).reshape(4, -1)
        apart = np.linalg.norm(((self.affine - other.affine) @ corners)[:3], axis=0)
        return float(apart.max() / min(self.spacing))


@dataclass(frozen=True, slots=True)
class Scan:
    """A volume.

    Attributes:
        space: Where its voxels are.
        voxels: As stored; a value is ``slope * voxel + intercept``.
        slope: See there.
        intercept: See there.
    """

    space: Space
    voxels: NDArray[Any]
    slope: float
    intercept: float


def stem_of(path: Path) -> str:
    """Name of a file without the suffix of NIfTI.

    >>> stem_of(Path("a/volume-3.nii.gz")), stem_of(Path("b.1.nii"))
    ('volume-3', 'b.1')
    """
    return path.name.removesuffix(".gz").removesuffix(".nii")


def read_scan(path: Path) -> Scan:
    """Reads an image.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.

    Raises:
        DataError: It is no single volume of real numbers, has no place in the patient, holds voxels that are no number,
            or is damaged or cut off; the message says which.
        MissingExtraError: nibabel is not installed.
    """
    image, space = _opened(path)
    slope, intercept = (float(value) for value in _scaling(image))
    voxels = _voxels(path, image)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        count = int((~np.isfinite(voxels)).sum())
        raise DataError(
            f"{path}: {count:,} voxels are infinite or no number; set them to a value such as air (-1024 HU), or leave "
            "the volume out"
        )
    return Scan(space, voxels.reshape(space.shape), slope, intercept)


def read_space(path: Path) -> Space:
    """Reads where the voxels of a volume are, and nothing else.

    Raises:
        DataError: As for `read_scan`, as far as the header tells.
        MissingExtraError: nibabel is not installed.
    """
    return _opened(path)[1]


def read_labels(path: Path, of: Path, space: Space) -> NDArray[np.uint8]:
    """Reads a map of labels that belongs to an image.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        of: The image, for messages.
        space: Where the image's voxels are.

    Returns:
        The labels, of the image's shape.

    Raises:
        DataError: As for `read_scan`; or shape or affine are not those of the image, or labels are no whole numbers
            from 0 to 255.
    """
    scan = read_scan(path)
    if scan.space.shape != space.shape:
        raise DataError(f"{path}: has {_by(scan.space.shape)} voxels, its image {of.name} {_by(space.shape)}")
    if (apart := space.differs(scan.space)) > _AS_NEAR:
        raise DataError(
            f"{path}: lies elsewhere than its image {of.name}, by up to {apart:.2g} voxels, as their affines differ; "
            "take the mask that was drawn on this image, or copy the image's affine if the voxels do correspond"
        )
    values = scan.voxels if (scan.slope, scan.intercept) == (1, 0) else scan.voxels * scan.slope + scan.intercept
    if values.dtype == np.uint8:
        return np.asarray(values)
    found = np.asarray(values).round().astype(np.int64) if values.dtype.kind == "f" else values
    if (found != values).any() or found.min() < 0 or found.max() > np.iinfo(np.uint8).max:
        odd = values[(found != values) | (found < 0) | (found > 255)]
        raise DataError(
            f"{path}: expected labels, whole numbers from 0 to 255, found {odd[0]:g}; is it an image or a map of "
            "probabilities, or was it resampled as one?"
        )
    return found.astype(np.uint8)


def _opened(path: Path) -> tuple[Any, Space]:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.imageglobals import LoggingOutputSuppressor
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise MissingExtraError("volumes", "reading NIfTI") from error
    try:
        with LoggingOutputSuppressor():  # it tells of a header that it mends, which is refused below
            image = nibabel.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({error}); is it damaged or not NIfTI?") from error
    if not isinstance(image, nibabel.Nifti1Pair):
        raise DataError(f"{path}: is {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    header, shape = _as_written(path, image), tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or 0 in shape:
        raise DataError(f"{path}: has the shape {_by(shape)}; expected one volume of three dimensions, not a series")
    kind = header.get_data_dtype()
    if kind.kind not in "iuf":
        raise DataError(f"{path}: holds {kind} per voxel, such as colours; expected one real number")
    _require_bytes(path, int(np.prod(shape, dtype=np.int64)) * kind.itemsize + int(header["vox_offset"]))
    return image, Space(shape, _affine(path, header))


def _as_written(path: Path, image: Any) -> Any:
    from nibabel.openers import ImageOpener

    with ImageOpener(path) as file:
        return type(image.header).from_fileobj(file, check=False)


def _affine(path: Path, header: Any) -> NDArray[np.float64]:
    steps = header["pixdim"][1:4].astype(float)
    if not np.isfinite(steps).all() or (steps <= 0).any():
        raise DataError(f"{path}: has voxels of {_by(steps)} mm; expected distances above 0, so correct its header")
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise DataError(
            f"{path}: does not say where its voxels are in the patient (sform and qform are unset); write its affine, "
            "or convert it from DICOM again"
        )
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < _LEAST_VOLUME:
        raise DataError(f"{path}: has a singular affine, which puts all voxels into a plane; correct its header")
    return affine


def _require_bytes(path: Path, needed: int) -> None:
    there = path.stat().st_size
    is_compressed = path.suffix.lower() == ".gz"
    if needed > there * (_DEFLATED_AT_MOST if is_compressed else 1):
        raise DataError(
            f"{path}: its header tells of {needed:,} bytes, the file has {there:,}; it is cut off or damaged, so get "
            "it again"
        )


def _scaling(image: Any) -> tuple[float, float]:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    return (1.0, 0.0) if slope in (None, 0) or not np.isfinite(slope) else (slope, intercept or 0.0)


def _voxels(path: Path, image: Any) -> NDArray[Any]:
    try:
        found = image.dataobj
        is_compressed = path.suffix.lower() == ".gz"
        return np.asarray(_decompressed(path, found) if is_compressed else found.get_unscaled())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read to its end ({error}); it is cut off or damaged, so get it again"
        ) from error


def _decompressed(path: Path, found: Any) -> NDArray[Any]:
    """Reads voxels piece by piece; at once, nibabel takes the memory of two volumes."""
    from nibabel.openers import ImageOpener

    voxels = np.empty(int(np.prod(found.shape, dtype=np.int64)) * found.dtype.itemsize, np.uint8)
    with ImageOpener(path) as file:
        file.seek(found.offset)
        for start in range(0, voxels.size, _PIECE):
            piece = file.read(min(_PIECE, voxels.size - start))
            voxels[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
            if len(piece) < min(_PIECE, voxels.size - start):
                raise EOFError(f"{start + len(piece):,} of {voxels.size:,} bytes are there")
        file.read(1)  # only at the end of the stream its checksum is looked at
    return np.asarray(voxels.view(found.dtype).reshape(found.shape, order="F"))


def _by(numbers: Any) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
