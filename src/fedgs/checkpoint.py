"""Tensors on disk: sealed safetensors files, written atomically, never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fedgs.files import read_sealed, write_sealed

__all__ = ["load_tensors", "save_tensors"]


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any], *, previous: Path | None = None
) -> str:
    """Writes named tensors and a JSON description atomically; equal content gives equal bytes.

    Args:
        path: File to write, by custom with the suffix ``.safetensors``.
        tensors: Tensors of any dtype, shape and device.
        description: What JSON can hold.
        previous: Where the file that stands there goes; it is overwritten if None.

    Returns:
        The checksum of the content, 64 hexadecimal digits.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file is then unchanged.
    """
    payload = {name: tensors[name].detach().contiguous().cpu() for name in sorted(tensors)}
    return write_sealed(
        path,
        lambda part, metadata: safetensors.torch.save_file(payload, part, metadata),
        description,
        previous=previous,
    )


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote, after checking every byte of it.

    Returns:
        The tensors by name and the description.

    Raises:
        CheckpointError: The file is missing, cut short or altered, or was not written by `save_tensors`.
    """
    content, description = read_sealed(path)
    return safetensors.torch.load(content), description
