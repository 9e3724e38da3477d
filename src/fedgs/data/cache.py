"""One sealed file per case: its images at one size, their masks at 512, and what was measured when it was read.

A case is an image file or a volume; of a volume the file holds the slices that are used. Where a mask has several
lesions, it also holds which one is nearest to each pixel; a map of a few smooth regions, that is compressed to about a
hundredth.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from fedgs.data.case import Case
from fedgs.data.images import read_image, read_mask, resize_image
from fedgs.data.lesions import MASK_SIZE, clean, find_lesions, nearest_lesions, resize_nearest
from fedgs.data.near import near_hash
from fedgs.data.volumes import Volume, diameters_mm, read_volume
from fedgs.errors import CheckpointError, DataError
from fedgs.files import read_sealed, write_sealed

__all__ = [
    "Entry",
    "Record",
    "VolumeFacts",
    "cache_folder",
    "case_file",
    "content_hash",
    "fingerprint",
    "map_case",
    "read_entry",
    "unpack_mask",
    "unpack_regions",
    "write_case",
]

_FORMAT = 5
_SUFFIX = ".safetensors"
_FASTEST = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is known of an image after it was read once; nothing here depends on the rule for small lesions.

    Attributes:
        site: Name of the site.
        case: Name of the image.
        image: Path of the image file or volume relative to the source, with forward slashes.
        mask: Path of the mask likewise.
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
        near_hash: What the image shows, by `fedgs.data.near.near_hash`; empty where that is next to nothing, and for
            slices, of which those of one volume stay together anyway.
        volume: Name of the volume that it is a slice of; empty for an image.
        slice: Number of the slice, from 0; 0 for an image.
        diameter_mm: Of the largest lesion of the volume that the slice shows a part of; 0 for an image.
    """

    site: str
    case: str
    image: str
    mask: str
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
    volume: str = ""
    slice: int = 0
    diameter_mm: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What is known of a volume.

    Attributes:
        slices: Their number.
        with_target: Slices that show any of the target.
        rows: Pixels of a slice.
        columns: Pixels of a slice.
        spacing_mm: Of slices, rows and columns.
        target_ml: Volume of the target.
        rules: How it became images, as `fedgs.data.volumes.SliceRules`.
    """

    slices: int
    with_target: int
    rows: int
    columns: int
    spacing_mm: tuple[float, float, float]
    target_ml: float
    rules: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What a cache file tells of a case.

    Attributes:
        image: Path of the image file or volume relative to the source.
        mask: Path of the mask likewise.
        fingerprint: Bytes and time of change (ns) of the image, then of the mask.
        records: Of its images: one, or the slices of a volume that are used, in order.
        volume: Of a volume, else None.
    """

    image: str
    mask: str
    fingerprint: tuple[int, int, int, int]
    records: tuple[Record, ...]
    volume: VolumeFacts | None = None


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


def write_case(file: Path, case: Case, source: Path, size: int) -> Entry:
    """Reads a case from its source, measures it and writes its cache file.

    Args:
        file: Where to write; its folder must exist.
        case: As an adapter found it.
        source: Folder that the paths in the record are relative to.
        size: Height and width of the frames in the cache, in pixels.

    Raises:
        DataError: Image or mask cannot be read or do not fit each other.
    """
    stamp = fingerprint(case)
    names = case.image.relative_to(source).as_posix(), case.mask.relative_to(source).as_posix()
    if case.slices is None:
        facts, pictures = None, iter([_picture_of(case, names)])
    else:
        facts, pictures = _volume_of(case, names)
    kept = [_kept(picture, size) for picture in pictures]
    entry = Entry(*names, stamp, tuple(each.record for each in kept), facts)
    # Not durable: a power cut may tear this file; the seal tells, and it is made again.
    write_sealed(
        file,
        lambda part, metadata: safetensors.numpy.save_file(_tensors(kept), part, metadata),
        {"format": _FORMAT, "entry": dataclasses.asdict(entry) | {"records": len(kept)}},
        durable=False,
    )
    return entry


class _Picture(NamedTuple):
    """An image with its mask, as it is shown, and what is known of it before it is measured."""

    about: Mapping[str, Any]
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


class _Kept(NamedTuple):
    record: Record
    frame: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    regions: bytes


def _picture_of(case: Case, names: tuple[str, str]) -> _Picture:
    image = read_image(case.image)
    about = {"site": case.site, "case": case.name, "image": names[0], "mask": names[1]}
    about |= {"image_hash": content_hash(image), "near_hash": near_hash(image)}
    return _Picture(about, image, read_mask(case.mask, (image.shape[0], image.shape[1])))


def _volume_of(case: Case, names: tuple[str, str]) -> tuple[VolumeFacts, Iterator[_Picture]]:
    if case.slices is None:
        raise TypeError(f"{case.image} is no volume")
    volume = read_volume(case.image, case.mask, case.slices)
    slices, rows, columns = volume.target.shape
    facts = VolumeFacts(
        slices=slices,
        with_target=int(volume.target.any(axis=(1, 2)).sum()),
        rows=rows,
        columns=columns,
        spacing_mm=volume.spacing,
        target_ml=float(np.count_nonzero(volume.target) * np.prod(volume.spacing) / 1000),
        rules=dataclasses.asdict(case.slices),
    )
    return facts, _slices_of(volume, case, names)


def _slices_of(volume: Volume, case: Case, names: tuple[str, str]) -> Iterator[_Picture]:
    whole, diameters = volume.content_hash(), diameters_mm(volume.target, volume.spacing)
    for number in volume.used():
        about = {
            "site": case.site,
            "case": f"{case.name}_{number:04d}",
            "image": names[0],
            "mask": names[1],
            "image_hash": content_hash(np.frombuffer(f"{whole} {number}".encode(), np.uint8)),
            "near_hash": "",
            "volume": case.name,
            "slice": number,
            "diameter_mm": round(float(diameters[number]), 2),
        }
        yield _Picture(about, volume.frame(number), np.ascontiguousarray(volume.target[number]))


def _kept(picture: _Picture, size: int) -> _Kept:
    """Measures an image, and makes what the cache holds of it."""
    height, width, channels = picture.image.shape
    square = resize_nearest(picture.mask, MASK_SIZE)
    lesions = find_lesions(square)
    record = Record(
        width=width,
        height=height,
        channels=channels,
        lesion_area=lesions.total,
        lesion_count=lesions.count,
        smallest_lesion_area=lesions.smallest,
        largest_lesion_area=lesions.largest,
        specks=lesions.specks,
        mask_hash=content_hash(picture.mask),
        **picture.about,
    )
    cleaned = clean(square) if lesions.specks else square
    regions = zlib.compress(nearest_lesions(cleaned).tobytes(), _FASTEST) if lesions.count > 1 else b""
    return _Kept(record, resize_image(picture.image, size), np.packbits(cleaned), regions)


def _tensors(kept: Sequence[_Kept]) -> dict[str, NDArray[np.uint8]]:
    if not kept:
        return {"records": np.frombuffer(b"[]", np.uint8)}
    records = json.dumps([dataclasses.asdict(each.record) for each in kept], ensure_ascii=False).encode()
    tensors = {
        "frame": np.stack([each.frame for each in kept]),
        "mask": np.stack([each.mask for each in kept]),
        "records": np.frombuffer(records, np.uint8),
    }
    if any(each.regions for each in kept):
        ends = np.cumsum([len(each.regions) for each in kept], dtype="<i8")
        tensors["regions"] = np.frombuffer(b"".join(each.regions for each in kept), np.uint8)
        tensors["region_ends"] = ends.view(np.uint8).reshape(len(kept), 8)
    return tensors


def content_hash(array: NDArray[Any]) -> str:
    """Hash of an array's shape and elements, 32 hexadecimal digits."""
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def read_entry(file: Path) -> Entry | None:
    """Reads what is known of a case, after checking every byte of its file.

    Returns:
        None where the file is missing, damaged or of another format: then it has to be made again.
    """
    try:
        content, description = read_sealed(file)
    except (CheckpointError, ValueError, KeyError):
        return None
    if description.get("format") != _FORMAT:
        return None
    fields = dict(description["entry"])
    records = [Record(**record) for record in json.loads(_arrays(content)["records"].tobytes())]
    facts = fields["volume"]
    return Entry(
        image=fields["image"],
        mask=fields["mask"],
        fingerprint=tuple(fields["fingerprint"]),
        records=tuple(records),
        volume=facts and VolumeFacts(**facts | {"spacing_mm": tuple(facts["spacing_mm"])}),
    )


def map_case(file: Path) -> dict[str, NDArray[np.uint8]]:
    """Maps a cache file into memory without checking it; a page is read from the disk when it is used.

    Returns:
        "frame": (images, size, size, C), uint8; "mask": (images, 512 * 512 / 8), uint8, packed bits; where any image
        has two lesions or more "regions": (bytes,), uint8, one compressed map after the other, and "region_ends". All
        read-only.

    Raises:
        DataError: The file is missing.
    """
    try:
        with file.open("rb") as opened:
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; run 'fedgs index' again, which makes what is missing") from error
    return _arrays(content)


def _arrays(content: bytes | mmap.mmap) -> dict[str, NDArray[np.uint8]]:
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__")
    arrays = np.frombuffer(content, np.uint8)[start:]
    return {name: arrays[slice(*entry["data_offsets"])].reshape(entry["shape"]) for name, entry in header.items()}


def unpack_mask(tensors: dict[str, NDArray[np.uint8]], position: int) -> NDArray[np.bool_]:
    """Gives a mask of a mapped case, (512, 512), bool."""
    return np.unpackbits(tensors["mask"][position]).reshape(MASK_SIZE, MASK_SIZE).view(np.bool_)


def unpack_regions(tensors: dict[str, NDArray[np.uint8]], position: int) -> NDArray[np.uint8]:
    """Gives regions of a mapped case as `fedgs.data.lesions.nearest_lesions` made them, (512, 512), uint8."""
    ends = [0, *tensors["region_ends"].view("<i8").ravel().tolist()] if "regions" in tensors else [0] * (position + 2)
    start, end = ends[position], ends[position + 1]
    if start == end:
        return np.ones((MASK_SIZE, MASK_SIZE), dtype=np.uint8)
    found = zlib.decompress(tensors["regions"][start:end].data)
    return np.frombuffer(found, np.uint8).reshape(MASK_SIZE, MASK_SIZE)


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
