"""Fills the cache of an index: every case that is not there as it is now is read, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from fedgs.data.cache import Entry, case_file, fingerprint, read_entry, write_case
from fedgs.data.case import Case
from fedgs.errors import DataError

__all__ = ["CaseCache", "Progress"]

Progress = Callable[[int, int], None]
"""Called with the number of cases done and of all cases, from the calling thread."""

_ERRORS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class CaseCache:
    """The cache files of one source at one size.

    Attributes:
        source: Folder of images and masks.
        folder: Folder of the index.
        size: Height and width of the frames, in pixels.
    """

    source: Path
    folder: Path
    size: int

    def file(self, case: Case) -> Path:
        """Path of the cache file of a case."""
        return case_file(self.folder, self.size, case.site, case.name)

    def is_unchanged(self, entry: Entry, case: Case) -> bool:
        """Whether image and mask lie where the entry says, as large and as old, and are cut by the same rules."""
        paths = tuple(path.relative_to(self.source).as_posix() for path in (case.image, case.mask))
        rules = None if case.slices is None else asdict(case.slices) | {"window": list(case.slices.window)}
        return (
            (entry.image, entry.mask) == paths
            and (entry.volume and entry.volume.rules) == rules
            and entry.fingerprint == fingerprint(case)
        )

    def fill(
        self,
        cases: Sequence[Case],
        is_current: Callable[[Entry, Case], bool],
        workers: int | None,
        on_progress: Progress | None,
    ) -> list[Entry]:
        """Reads the cases whose file is missing, damaged or not current; a first few errors stop it.

        Args:
            cases: All that the cache shall hold.
            is_current: Whether the entry of an intact file is that of a case as it is now.
            workers: Threads; one per processor if None.
            on_progress: Told how many cases are done.

        Returns:
            The entries of all cases, in their order.

        Raises:
            DataError: Cases that cannot be used, by name; the others stay in the cache.
        """
        (self.folder / f"cache-{self.size}").mkdir(parents=True, exist_ok=True)

        def read(case: Case) -> Entry:
            entry = read_entry(self.file(case))
            if entry is not None and is_current(entry, case):
                return entry
            return write_case(self.file(case), case, self.source, self.size)

        return _map_in_threads(read, cases, workers or _processors(), on_progress)


def _map_in_threads(
    read: Callable[[Case], Entry], cases: Sequence[Case], workers: int, on_progress: Progress | None
) -> list[Entry]:
    """Pillow, numpy and hashlib work outside the interpreter lock, so threads suffice; a first few errors stop it."""
    results: dict[int, Entry] = {}
    errors: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(read, case): position for position, case in enumerate(cases)}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                position = futures.pop(future)
                try:
                    results[position] = future.result()
                except DataError as error:
                    errors[position] = str(error)
                if len(errors) == _ERRORS_SHOWN:
                    break
                if on_progress is not None:
                    on_progress(done, len(cases))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if errors:
        lines = "\n".join(errors[position] for position in sorted(errors))
        raise DataError(lines if len(errors) == 1 else f"{len(errors)} cases cannot be used:\n{lines}")
    return [results[position] for position in range(len(cases))]


def _processors() -> int:
    """Processors that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
