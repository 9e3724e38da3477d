"""Updates that wait for their aggregation: the first few in memory, the others on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO

import torch
from torch import Tensor

from fedgs.core import Update
from fedgs.files import named
from fedgs.tensors import Tensors

__all__ = ["Spool"]


class Spool:
    """Keeps the memory of a round the same however many sites take part.

    A context manager: when it is left, what it held is gone. The file on disk has no name, so that the system drops it
    even where the process is killed.

    Args:
        folder: Where the file goes; it must exist.
        in_memory: How many updates stay in memory.
    """

    def __init__(self, folder: Path, *, in_memory: int = 8) -> None:
        self._folder, self._in_memory, self._count = folder, in_memory, 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Spool:
        """Opens nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Gives the space on disk back."""
        if self._file is not None:
            self._file.close()

    def hold(self, update: Update) -> Update:
        """Gives the update itself, or one that reads each tensor from disk when it is asked for.

        Raises:
            OSError: The disk is full.
        """
        self._count += 1
        if self._count <= self._in_memory:
            return update
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed when the spool is left
        with named(self._folder):
            return replace(
                update,
                direction=_OnDisk(self._file, update.direction),
                buffers=_OnDisk(self._file, update.buffers),
                extra=_OnDisk(self._file, update.extra),
            )


class _OnDisk(Mapping[str, Tensor]):
    """Named tensors at the end of a file; one is in memory while it is used."""

    def __init__(self, file: IO[bytes], tensors: Tensors) -> None:
        self._file = file
        self._places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        position = file.seek(0, 2)
        for name, tensor in tensors.items():
            self._places[name] = position, tensor.dtype, tensor.shape
            position += file.write(_bytes_of(tensor.detach().cpu().contiguous()))
        file.flush()

    def __getitem__(self, name: str) -> Tensor:
        position, dtype, shape = self._places[name]
        tensor = torch.empty(shape, dtype=dtype)
        self._file.seek(position)
        self._file.readinto(_bytes_of(tensor))  # type: ignore[attr-defined]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
