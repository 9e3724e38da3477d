"""One sealed file per case: its frame at one size, its mask at 512, and what was measured when it was read.

Where a mask has several lesions, the file also holds which one is nearest to each pixel; a map of a few smooth regions,
that is compressed to about a hundredth.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from fedgs.data.case import Case
from fedgs.data.images import read_image, read_mask, resize_image
from fedgs.data.lesions import MASK_SIZE, clean, find_lesions, nearest_lesions, resize_nearest
from fedgs.data.near import near_hash
from fedgs.errors import CheckpointError, DataError
from fedgs.files import read_sealed, write_sealed

__all__ = [
    "Record",
    "cache_folder",
    "case_file",
    "fingerprint",
    "map_case",
    "read_record",
    "unpack_mask",
    "unpack_regions",
    "write_case",
]

_FORMAT = 4
_SUFFIX = ".safetensors"
_FASTEST = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is known of a case after it was read once; nothing here depends on the rule for small lesions.

    Attributes:
        site: Name of the site.
        case: Name of the case.
        image: Path of the image relative to the source, with forward slashes.
        mask: Path of the mask likewise.
        fingerprint: Bytes and time of change (ns) of the image, then of the mask.
        width: Pixels of the image as shown.
        height: Pixels of the image as shown.
        channels: 1 for grey, 3 for RGB.
        lesion_area: Pixels of all lesions in the 512 x 512 mask.
        lesion_count: Number of lesions there.
        smallest_lesion_area: Pixels of the smallest one, 0 without any.
        largest_lesion_area: Pixels of the largest one, 0 without any.
        specks: Components dropped because they are too small for a lesion.
        image_hash: Hash of the decoded image and its shape.
        mask_hash: Hash of the mask at its own size and of its shape.
        near_hash: What the image shows, by `fedgs.data.near.near_hash`; empty where that is next to nothing.
    """

    site: str
    case: str
    image: str
    mask: str
    fingerprint: tuple[int, int, int, int]
    width: int
    height: int
    channels: int
    lesion_area: int
    lesion_count: int
    smallest_lesion_area: int
    largest_lesion_area: int
    specks: int
    image_hash: str
    mask_hash: str
    near_hash: str


def case_file(folder: Path, size: int, site: str, case: str) -> Path:
    """Path of a case in the cache; hashed, so that any name works on any file system."""
    name = hashlib.blake2b(f"{site}\0{case}".encode(), digest_size=16).hexdigest()
    return folder / f"cache-{size}" / f"{name}{_SUFFIX}"


def fingerprint(case: Case) -> tuple[int, int, int, int]:
    """Bytes and time of change of both files, by which a change is noticed without reading them.

    Raises:
        DataError: One of them is not there.
    """
    try:
        image, mask = case.image.stat(), case.mask.stat()
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; is it a broken link or was it moved?") from error
    return image.st_size, image.st_mtime_ns, mask.st_size, mask.st_mtime_ns


def write_case(file: Path, case: Case, source: Path, size: int) -> Record:
    """Reads a case from its source, measures it and writes its cache file.

    Args:
        file: Where to write; its folder must exist.
        case: As an adapter found it.
        source: Folder that the paths in the record are relative to.
        size: Height and width of the frame in the cache, in pixels.

    Raises:
        DataError: Image or mask cannot be read or do not fit each other.
    """
    stamp = fingerprint(case)
    image = read_image(case.image)
    height, width, channels = image.shape
    mask = read_mask(case.mask, (height, width))
    square = resize_nearest(mask, MASK_SIZE)
    lesions = find_lesions(square)
    record = Record(
        site=case.site,
        case=case.name,
        image=case.image.relative_to(source).as_posix(),
        mask=case.mask.relative_to(source).as_posix(),
        fingerprint=stamp,
        width=width,
        height=height,
        channels=channels,
        lesion_area=lesions.total,
        lesion_count=lesions.count,
        smallest_lesion_area=lesions.smallest,
        largest_lesion_area=lesions.largest,
        specks=lesions.specks,
        image_hash=content_hash(image),
        mask_hash=content_hash(mask),
        near_hash=near_hash(image),
    )
    cleaned = clean(square) if lesions.specks else square
    tensors = {"frame": resize_image(image, size), "mask": np.packbits(cleaned)}
    if lesions.count > 1:
        tensors["regions"] = np.frombuffer(zlib.compress(nearest_lesions(cleaned).tobytes(), _FASTEST), np.uint8)
    description = {"format": _FORMAT, "record": dataclasses.asdict(record)}
    # Not durable: a power cut may tear this file; the seal tells, and it is made again.
    write_sealed(
        file,
        lambda part, metadata: safetensors.numpy.save_file(tensors, part, metadata),
        description,
        durable=False,
    )
    return record


def content_hash(array: NDArray[Any]) -> str:
    """Hash of an array's shape and elements, 32 hexadecimal digits."""
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def read_record(file: Path) -> Record | None:
    """Reads what is known of a case, after checking every byte of its file.

    Returns:
        None where the file is missing, damaged or of another format: then it has to be made again.
    """
    try:
        _, description = read_sealed(file)
    except (CheckpointError, ValueError, KeyError):
        return None
    if description.get("format") != _FORMAT:
        return None
    fields = dict(description["record"])
    return Record(**fields | {"fingerprint": tuple(fields["fingerprint"])})


def map_case(file: Path) -> dict[str, NDArray[np.uint8]]:
    """Maps a cache file into memory without checking it; a page is read from the disk when it is used.

    Returns:
        "frame": (size, size, C), uint8; "mask": (512 * 512 / 8,), uint8, packed bits; where there are two lesions or
        more "regions": (bytes,), uint8, compressed. All read-only.

    Raises:
        DataError: The file is missing.
    """
    try:
        with file.open("rb") as opened:
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; run 'fedgs index' again, which makes what is missing") from error
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__")
    arrays = np.frombuffer(content, np.uint8)[start:]
    return {name: arrays[slice(*entry["data_offsets"])].reshape(entry["shape"]) for name, entry in header.items()}


def unpack_mask(tensors: dict[str, NDArray[np.uint8]]) -> NDArray[np.bool_]:
    """Gives the mask of a mapped case, (512, 512), bool."""
    return np.unpackbits(tensors["mask"]).reshape(MASK_SIZE, MASK_SIZE).view(np.bool_)


def unpack_regions(tensors: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Gives the regions of a mapped case as `fedgs.data.lesions.nearest_lesions` made them, (512, 512), uint8."""
    if "regions" not in tensors:
        return np.ones((MASK_SIZE, MASK_SIZE), dtype=np.uint8)
    return np.frombuffer(zlib.decompress(tensors["regions"].data), np.uint8).reshape(MASK_SIZE, MASK_SIZE)


def cache_folder(source: Path) -> Path:
    """Gives the folder that `FEDGS_CACHE` names, else fedgs in the user's cache folder; made when missing.

    Raises:
        DataError: It lies in the source, or cannot be written.
    """
    named = os.environ.get("FEDGS_CACHE")
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedgs"
    folder = folder.resolve()
    if folder.is_relative_to(source.resolve()):
        raise DataError(f"{folder}: the cache lies in the source {source}; set FEDGS_CACHE to another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot hold the cache ({error.strerror}); set FEDGS_CACHE to another") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: cannot be written, so it cannot hold the cache; set FEDGS_CACHE to another folder")
    return folder
