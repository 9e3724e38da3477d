"""Updates that wait for their aggregation: the first few in memory, the others on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from fedgs.core import Update
from fedgs.tensors import Tensors

__all__ = ["Spool"]


class Spool:
    """Keeps the memory of a round the same however many sites take part.

    A context manager: when it is left, the files are gone.

    Args:
        folder: Where the files go; made when it is needed, removed with all that it holds.
        in_memory: How many updates stay in memory.
    """

    def __init__(self, folder: Path, *, in_memory: int = 8) -> None:
        self._folder, self._in_memory, self._count = folder, in_memory, 0

    def __enter__(self) -> Spool:
        """Starts with an empty folder, also after a process that was killed."""
        shutil.rmtree(self._folder, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Removes the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def hold(self, update: Update) -> Update:
        """Gives the update itself, or one that reads each tensor from disk when it is asked for.

        Raises:
            OSError: The disk is full.
        """
        self._count += 1
        if self._count <= self._in_memory:
            return update
        self._folder.mkdir(exist_ok=True)
        return replace(
            update,
            direction=self._written("direction", update.direction),
            buffers=self._written("buffers", update.buffers),
            extra=self._written("extra", update.extra),
        )

    def _written(self, part: str, tensors: Tensors) -> Tensors:
        return _OnDisk(self._folder / f"{self._count}-{part}", tensors) if tensors else tensors


class _OnDisk(Mapping[str, Tensor]):
    """Named tensors, one behind the other in a file that nobody else reads; one is in memory while it is used."""

    def __init__(self, path: Path, tensors: Tensors) -> None:
        self._path = path
        self._places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        with path.open("wb") as file:
            for name, tensor in tensors.items():
                self._places[name] = file.tell(), tensor.dtype, tensor.shape
                file.write(_bytes_of(tensor.detach().cpu().contiguous()))

    def __getitem__(self, name: str) -> Tensor:
        offset, dtype, shape = self._places[name]
        tensor = torch.empty(shape, dtype=dtype)
        with self._path.open("rb") as file:
            file.seek(offset)
            file.readinto(_bytes_of(tensor))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
