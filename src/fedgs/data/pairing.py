"""Images and masks of one site put together by file name; what every adapter of image files shares."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fedgs.data.case import Case
from fedgs.data.images import IMAGE_SUFFIXES
from fedgs.errors import DataError

__all__ = ["contents", "folders", "pair_files", "require_folder"]

_UNREADABLE_SUFFIXES = (".dcm", ".gif", ".heic", ".jp2", ".mha", ".mhd", ".nii", ".npy", ".npz", ".nrrd", ".tga")
_SHOWN = 5


def pair_files(
    site: str,
    images: Path,
    masks: Path,
    *,
    mask_stems: Callable[[str], Sequence[str]],
    patient_of: Callable[[str], str | None] | None = None,
) -> list[Case]:
    """Pairs the images of a site with its masks.

    Args:
        site: Name of the site.
        images: Folder of the image files.
        masks: Folder of the mask files.
        mask_stems: Stems that the mask of an image stem may have, the preferred one first.
        patient_of: Patient that an image stem tells, or None.

    Returns:
        One case per image, sorted by name.

    Raises:
        DataError: No image; an image without mask or the reverse; two files of one stem; a file that is no image.
    """
    image_files, mask_files = _by_stem(site, images), _by_stem(site, masks)
    if not image_files:
        raise DataError(f"site '{site}': no image in {images}; expected files *{', *'.join(IMAGE_SUFFIXES)}")
    found: dict[str, Path] = {}
    for preference in range(max(len(mask_stems(stem)) for stem in image_files)):
        for stem in sorted(image_files.keys() - found.keys()):
            candidates = mask_stems(stem)
            if preference < len(candidates) and candidates[preference] in mask_files:
                found[stem] = mask_files.pop(candidates[preference])
    _require_pairs(site, [image_files[stem] for stem in sorted(image_files.keys() - found.keys())], mask_files.values())
    return [
        Case(site, stem, image_files[stem], found[stem], patient_of(stem) if patient_of else None)
        for stem in sorted(image_files)
    ]


def require_folder(source: Path, layout: str) -> None:
    """Raises DataError unless the source is a folder with something in it."""
    if not source.exists():
        raise DataError(f"{source}: no such folder; expected {layout}")
    if not source.is_dir():
        raise DataError(f"{source}: is a file; expected a folder with {layout}")
    if not any(source.iterdir()):
        raise DataError(f"{source}: is empty; expected {layout}")


def folders(source: Path) -> list[Path]:
    """Folders directly in the source, sorted by name, without hidden ones and those of archive programs.

    Raises:
        DataError: A name has control characters or is not UTF-8.
    """
    found = sorted(
        entry for entry in source.iterdir() if entry.is_dir() and entry.name[0] != "." and entry.name != "__MACOSX"
    )
    for folder in found:
        _require_text(folder)
    return found


def contents(source: Path) -> str:
    """What a folder holds, in words short enough for an error message."""
    entries = sorted(source.iterdir())
    names = [f"'{entry.name}{'/' if entry.is_dir() else ''}'" for entry in entries[:_SHOWN]]
    return (", ".join(names) + (f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else "")) or "nothing"


def _by_stem(site: str, folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if path.is_dir() or suffix in _UNREADABLE_SUFFIXES:
            raise DataError(
                f"site '{site}': {path} is {'a folder' if path.is_dir() else 'of a format that fedgs does not read'}; "
                f"expected only files *{', *'.join(IMAGE_SUFFIXES)} in {folder}"
            )
        if suffix not in IMAGE_SUFFIXES:
            continue
        # The same name typed on macOS and on Linux may differ in how accents are encoded.
        stem = unicodedata.normalize("NFC", path.stem)
        _require_text(path)
        if stem in files:
            raise DataError(
                f"site '{site}': '{files[stem].name}' and '{path.name}' in {folder} have one name; "
                "expected one file per case, so rename or remove one"
            )
        files[stem] = path
    return files


def _require_text(path: Path) -> None:
    """Refuses names that no table can hold: control characters, and bytes that are not UTF-8."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path.name):
        raise DataError(f"{str(path)!r}: its name has control characters or is not UTF-8; rename it")


def _require_pairs(site: str, images: Iterable[Path], masks: Iterable[Path]) -> None:
    problems = [
        f"{len(files)} {what}: "
        + ", ".join(f"'{file.name}'" for file in files[:_SHOWN])
        + ", …" * (len(files) > _SHOWN)
        for what, files in (("images without mask", list(images)), ("masks without image", sorted(masks)))
        if files
    ]
    if problems:
        raise DataError(
            f"site '{site}': {'; '.join(problems)}. Expected a mask per image, named after it; "
            "a frame without lesion has a black mask"
        )
