"""One process at a time writes to a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedgs.errors import ConfigError
from fedgs.files import TEMPORARY_SUFFIX

__all__ = ["LOCK_FILE", "locked"]

LOCK_FILE = ".fedgs-lock"
"""File in a locked folder that tells who holds it; it is gone when the folder is free, unless its holder was killed."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder that is to be written to, so that no other process writes to it meanwhile.

    The lock is the operating system's: it ends with the process that holds it, however that ends, so that what a killed
    process leaves behind stops nobody.

    Args:
        folder: Made when missing, and removed again if nothing was written to it.

    Raises:
        ConfigError: Another process holds it, or it cannot be locked; this is known at once.
    """
    made = _make(folder)
    file = folder / LOCK_FILE
    # A lock that only lives by the existence of a file would outlive a killed process.
    lock = FileLock(file, blocking=False, fallback_to_soft=False)
    try:
        _take(lock, file)
        try:
            for left_by_a_killed_process in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
                left_by_a_killed_process.unlink()
            yield
        finally:
            # Removed while it is held: whoever opened it meanwhile finds out that it has no name any more.
            with suppress(OSError):
                file.unlink()
            lock.release()
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _take(lock: FileLock, file: Path) -> None:
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{file.parent}: another process writes to it{_holder(file)}; wait until it ends or stop it, "
            "or choose another folder"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{file.parent}: cannot be locked for writing ({error.strerror}); check its permissions, "
            "or choose a folder on another file system"
        ) from error
    with suppress(OSError):
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")


def _holder(file: Path) -> str:
    try:
        told = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        told = ""
    return f" ({told})" if told else ""


def _make(folder: Path) -> list[Path]:
    """Makes a folder and those that it lies in; gives the new ones, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); choose another folder with --out") from error
    return missing
