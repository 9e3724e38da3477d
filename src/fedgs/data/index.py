"""The index: every case read once, with its flags, hashes and a cache that training reads from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedgs.data import detect, find_cases
from fedgs.data.cache import (
    Entry,
    cache_folder,
    case_file,
    content_hash,
    map_case,
    read_entry,
    unpack_mask,
    unpack_regions,
)
from fedgs.data.case import Case
from fedgs.data.case_cache import CaseCache, Progress
from fedgs.data.images import read_mask, with_channels
from fedgs.data.lesions import SMALL_RULES, SmallRule, components_under
from fedgs.data.table import (
    DamagedIndexError,
    Settings,
    flagged,
    is_index,
    make_table,
    make_volumes,
    read_index,
    read_settings,
    write_index,
)
from fedgs.data.volumes import SliceRules
from fedgs.errors import ConfigError, DataError
from fedgs.files import TEMPORARY_SUFFIX

__all__ = ["Index", "Progress", "SmallRule", "build_index", "open_data", "open_index"]

_SMALLEST_SIZE, _LARGEST_SIZE = 8, 4096
_PARTIAL_FOR_S = 3600
_INDEX_AGAIN = "run 'fedgs index' again"


class _Row(NamedTuple):
    """Where the cache has an image: the case whose file it is in, its place there, and what the table says of it."""

    site: str
    case: str
    file: str
    position: int
    image_hash: str
    mask_hash: str


@final
@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Images of several sites, ready to train on; a case is an image, or a slice of a volume.

    Attributes:
        folder: Folder of the index.
        source: Folder that the cases come from; it may be gone.
        adapter: Name of the adapter that found them.
        size: Height and width of the frames, in pixels.
        small_rule: The rule behind the columns `is_small`, `is_tiny` and `is_mixed`.
        table: A row per case, sorted by (site, case), numbered from 0; columns as in `fedgs.data.table.COLUMNS`.
        channels: Channels of every frame: 1 where all images are grey, else 3.
        slices: How volumes became images; None where the source holds images.
        volumes: A row per volume, columns as in `fedgs.data.table.OF_VOLUMES`; None where the source holds images.
        gives_regions: Whether training batches carry the regions of the lesions; see `with_regions`.
    """

    folder: Path
    source: Path
    adapter: str
    size: int
    small_rule: SmallRule
    table: pd.DataFrame
    channels: int
    slices: SliceRules | None
    volumes: pd.DataFrame | None
    _rows: tuple[_Row, ...] = field(repr=False)
    _files: Mapping[tuple[str, str], Sequence[int]] = field(repr=False)
    _checked: bytearray = field(repr=False)
    gives_regions: bool = False

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._rows)

    def frame(self, row: int) -> NDArray[np.uint8]:
        """Gives a frame at the size of the index.

        Args:
            row: Row of the table.

        Returns:
            (size, size, channels), uint8, a copy; a grey image in an index with colour has three equal channels.

        Raises:
            DataError: The cache file is missing, damaged or of another image.
        """
        frame = self._tensors(row)["frame"][self._rows[row].position]
        return with_channels(frame, self.channels) if frame.shape[2] < self.channels else frame.copy()

    def mask(self, row: int) -> NDArray[np.bool_]:
        """Gives the mask that flags, areas and scores refer to, without specks.

        Args:
            row: Row of the table.

        Returns:
            (512, 512), bool.

        Raises:
            DataError: The cache file is missing, damaged or of another image.
        """
        return unpack_mask(self._tensors(row), self._rows[row].position)

    def regions(self, row: int) -> NDArray[np.uint8]:
        """Tells for every pixel of a mask which of its lesions is nearest; ``regions * mask`` are the lesions.

        Args:
            row: Row of the table.

        Returns:
            (512, 512), uint8, as `fedgs.data.lesions.nearest_lesions`: from 1, and 1 everywhere where there is one
            lesion or none.

        Raises:
            DataError: The cache file is missing, damaged or of another image.
        """
        return unpack_regions(self._tensors(row), self._rows[row].position)

    def native_mask(self, row: int) -> NDArray[np.bool_]:
        """Gives the mask at the image's own size, read from the source, without specks.

        What `mask` shows at 512 x 512 decides: a component is kept where any of its pixels is a lesion there, so that
        this mask is empty just when that one is.

        Args:
            row: Row of the table.

        Returns:
            (height, width), bool.

        Raises:
            DataError: The source is gone or has changed since it was indexed.
        """
        if self.slices is not None:
            raise ConfigError("slices are scored at 512; at their own size, volumes are scored as a whole")
        about = self._rows[row]
        path = self.source / str(self.table["mask"].iat[row])
        mask = read_mask(path)
        if content_hash(mask) != about.mask_hash:
            raise DataError(f"{path}: has changed since '{about.case}' ({about.site}) was indexed; {_INDEX_AGAIN}")
        return components_under(mask, self.mask(row))

    def require_source(self) -> None:
        """Makes sure that masks can be read at their own size, and volumes as wholes.

        Raises:
            DataError: The source is gone, or a file in it.
        """
        needed = (
            self.table["mask"] if self.volumes is None else pd.concat([self.volumes["image"], self.volumes["mask"]])
        )
        missing = [path for path in needed if not (self.source / path).is_file()]
        if missing and self.volumes is None:
            raise DataError(
                f"{self.source}: lacks {len(missing)} masks, such as '{missing[0]}', that native scores need; "
                "bring them back, or score at 512"
            )
        if missing:
            raise DataError(
                f"{self.source}: lacks {len(missing)} files of volumes, such as '{missing[0]}', which are scored as "
                "wholes at the end; bring them back"
            )

    def in_colour(self) -> Index:
        """Gives the same index with three channels: grey frames have three equal ones."""
        return replace(self, channels=3)

    def with_regions(self) -> Index:
        """Gives the same index, from which training batches also get the regions of the lesions.

        For objectives that count by lesion; reading and turning them takes a little time, so other runs go without.
        """
        return replace(self, gives_regions=True)

    def with_rule(self, rule: SmallRule) -> Index:
        """Gives the same index with flags by another rule; nothing is read again or written."""
        return replace(self, small_rule=rule, table=flagged(self.table, rule))

    def _tensors(self, row: int) -> dict[str, NDArray[np.uint8]]:
        about = self._rows[row]
        file = case_file(self.folder, self.size, about.site, about.file)
        if not self._checked[row]:
            self._check(file, about)
        return map_case(file)

    def _check(self, file: Path, about: _Row) -> None:
        """Reads every byte of a file, which holds for all images in it."""
        entry = read_entry(file)
        if entry is None:
            raise DataError(f"{file}: the cache of '{about.file}' ({about.site}) is missing or damaged; {_INDEX_AGAIN}")
        found = {record.case: (record.image_hash, record.mask_hash) for record in entry.records}
        of_file = self._files[about.site, about.file]
        if any(
            found.get(each.case) != (each.image_hash, each.mask_hash) for each in map(self._rows.__getitem__, of_file)
        ):
            raise DataError(
                f"{file}: '{about.file}' ({about.site}) has changed since this index was opened; open it again"
            )
        for row in of_file:
            self._checked[row] = 1


def build_index(
    source: Path,
    out: Path,
    *,
    adapter: str | None = None,
    size: int = 256,
    small_rule: SmallRule | None = None,
    slices: Mapping[str, Any] | None = None,
    sites: Path | None = None,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> Index:
    """Reads every case of a source once; what an earlier run has read and what did not change is kept.

    Args:
        source: Folder of images and masks; nothing is written to it.
        out: Folder of the index; absent, empty, or an index of the same source.
        adapter: Name of the adapter; None chooses it by the layout.
        size: Height and width of the cached frames, in pixels.
        small_rule: Which cases are small; the published rule of PolypGen, or for volumes that of LiTS, if None.
        slices: How volumes become images: values of `SliceRules`, for what is not as the adapter says.
        sites: Table of the hospitals of volumes, see `fedgs.data.find_cases`.
        workers: Threads; one per processor if None. Each reads a volume at a time, which takes the memory of two.
        on_progress: Told how many cases are done.

    Returns:
        The index, opened.

    Raises:
        ConfigError: An unknown adapter or an impossible size.
        DataError: The source's layout or files; every readable case stays in the cache, so that indexing goes on.
    """
    source, out = source.resolve(), out.resolve()
    _require_size(size)
    # The phantom makes its own source; every other adapter needs one to be there.
    name = adapter or detect(source)
    _require_place(out, source)
    cases = _with_rules(find_cases(source, name, sites), slices, name)
    rule = small_rule or SMALL_RULES["total" if cases[0].slices else "components"]
    settings = Settings(str(source), name, size, rule, cases[0].slices)
    out.mkdir(parents=True, exist_ok=True)
    if not is_index(out):
        write_index(out, settings, None)
    cache = CaseCache(source, out, size)
    entries = cache.fill(cases, cache.is_unchanged, workers, on_progress)
    table = make_table(entries, cases, rule)
    if table.empty:
        raise _none_used(source, cases)
    write_index(out, settings, table, make_volumes(entries, cases))
    _remove_leftovers(out, cases)
    return open_index(out, size=size, small_rule=rule)


def open_index(
    folder: Path, *, size: int | None = None, small_rule: SmallRule | None = None, on_progress: Progress | None = None
) -> Index:
    """Opens an index.

    Args:
        folder: Folder that `build_index` wrote.
        size: Height and width of the frames; another than that of the index is cached too, from the source.
        small_rule: Flags by this rule instead of the index's own.
        on_progress: Told how many cases are done, where another size has to be cached.

    Raises:
        DataError: No index, an unfinished, altered or newer one, or another size of a source that is gone or changed.
    """
    folder = folder.resolve()
    settings, table, volumes = read_index(folder)
    source, size = Path(settings.source), size or settings.size
    if size != settings.size:
        _require_size(size)
        _cache_size(CaseCache(source, folder, size), table, settings.slices, on_progress)
    rows = _rows(table)
    index = Index(
        folder=folder,
        source=source,
        adapter=settings.adapter,
        size=size,
        small_rule=settings.small_rule,
        table=table,
        channels=int(table["channels"].max()),
        slices=settings.slices,
        volumes=volumes,
        _rows=rows,
        _files=_files(rows),
        _checked=bytearray(len(rows)),
    )
    return index if small_rule is None else index.with_rule(small_rule)


def open_data(
    path: Path,
    *,
    adapter: str | None = None,
    size: int = 256,
    small_rule: SmallRule | None = None,
    on_progress: Progress | None = None,
) -> Index:
    """Opens an index, or a source, which is indexed into the folder that `FEDGS_CACHE` names.

    Args:
        path: Folder of an index or of images and masks.
        adapter: Name of the adapter; None chooses it by the layout.
        size: Height and width of the frames, in pixels.
        small_rule: Which cases are small; None for the index's own rule, or the published one of PolypGen for a source.
        on_progress: Told how many cases are done.

    Raises:
        ConfigError: An unknown adapter, or another than the index was made with.
        DataError: As `build_index` and `open_index`.
    """
    if not is_index(path):
        _require_size(size)
        name = adapter or detect(path)
        out = cache_folder(path) / "indexes" / _key(path.resolve(), name, small_rule or SmallRule())
        return build_index(path, out, adapter=name, size=size, small_rule=small_rule, on_progress=on_progress)
    index = open_index(path, size=size, small_rule=small_rule, on_progress=on_progress)
    if adapter not in (None, index.adapter):
        raise ConfigError(f"{path}: its cases come from the adapter '{index.adapter}', not '{adapter}'; leave that out")
    return index


def _rows(table: pd.DataFrame) -> tuple[_Row, ...]:
    files = table["volume"] if "volume" in table else table["case"]
    places = table.groupby(["site", files]).cumcount()
    columns = (table["site"], table["case"], files, places, table["image_hash"], table["mask_hash"])
    return tuple(_Row(*values) for values in zip(*(column.tolist() for column in columns), strict=True))


def _files(rows: Sequence[_Row]) -> dict[tuple[str, str], list[int]]:
    """Rows of the images in each file."""
    found: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault((row.site, row.file), []).append(number)
    return found


def _with_rules(cases: list[Case], slices: Mapping[str, Any] | None, adapter: str) -> list[Case]:
    if not slices:
        return cases
    if cases[0].slices is None:
        raise ConfigError(f"the adapter '{adapter}' reads images; {', '.join(slices)} is for volumes, so leave it out")
    rules = replace(cases[0].slices, **slices)
    return [replace(case, slices=rules) for case in cases]


def _none_used(source: Path, cases: Sequence[Case]) -> DataError:
    rules = cases[0].slices
    label = f"label {rules.label}" if rules else "the target"
    return DataError(
        f"{source}: none of its {len(cases)} volumes has a slice with enough of {label}; name the label of the target, "
        "or use all slices"
    )


def _cache_size(cache: CaseCache, table: pd.DataFrame, slices: SliceRules | None, on_progress: Progress | None) -> None:
    """Makes the cache of another size; the frames must be those that the table tells of."""
    paths = dict(zip(zip(table["image"], table["mask"], strict=True), _rows(table), strict=True))
    cases = [
        Case(row.site, row.file, cache.source / image, cache.source / mask, slices=slices)
        for (image, mask), row in paths.items()
    ]
    hashes = {(row.site, row.case): (row.image_hash, row.mask_hash) for row in _rows(table)}

    def is_current(entry: Entry, _: Case) -> bool:
        return all((each.image_hash, each.mask_hash) == hashes.get((each.site, each.case)) for each in entry.records)

    if not cache.source.is_dir() and not all(cache.file(case).is_file() for case in cases):
        raise DataError(
            f"{cache.folder}: holds no frames at size {cache.size}, and their source {cache.source} is gone; "
            f"bring it back, or use the size that the index was made with ({read_settings(cache.folder).size})"
        )
    for entry, case in zip(cache.fill(cases, is_current, None, on_progress), cases, strict=True):
        if not is_current(entry, case):
            raise DataError(f"{case.image}: image or mask has changed since it was indexed; {_INDEX_AGAIN}")


def _require_size(size: int) -> None:
    if not _SMALLEST_SIZE <= size <= _LARGEST_SIZE:
        raise ConfigError(f"size {size}: expected {_SMALLEST_SIZE} to {_LARGEST_SIZE} pixels, for instance 256")


def _require_place(out: Path, source: Path) -> None:
    """An index may go where nothing is, or where an index of this source is."""
    if out == source or source in out.parents:
        raise DataError(f"{out}: lies in the source {source}, to which nothing is written; choose another folder")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; expected a folder for the index")
    if not out.is_dir() or all(entry.name.endswith(TEMPORARY_SUFFIX) for entry in out.iterdir()):
        return
    if not is_index(out):
        raise DataError(f"{out}: holds other files and no index; choose a new or empty folder for the index")
    try:
        other = Path(read_settings(out).source)
    except DamagedIndexError:
        return
    if other != source and other.exists():
        raise DataError(f"{out}: is the index of {other}; choose another folder for the index of {source}")


def _remove_leftovers(out: Path, cases: Sequence[Case]) -> None:
    """Removes the cache of cases that are gone, at every size, and what a killed process left half-written."""
    names = {case_file(out, 0, case.site, case.name).name for case in cases}
    for file in (*out.glob("cache-*/*"), *out.glob(f".*{TEMPORARY_SUFFIX}")):
        is_partial = file.name.endswith(TEMPORARY_SUFFIX)
        with suppress(FileNotFoundError):  # another process may have finished what it wrote
            if file.name not in names and not (is_partial and time.time() - file.stat().st_mtime < _PARTIAL_FOR_S):
                file.unlink()


def _key(source: Path, adapter: str, rule: SmallRule) -> str:
    return hashlib.blake2b(repr((str(source), adapter, rule)).encode(), digest_size=8).hexdigest()
