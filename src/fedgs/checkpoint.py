"""Tensors on disk: sealed safetensors files, written atomically, never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fedgs.files import BLANK_SEAL, read_sealed, seal, write_atomically

__all__ = ["load_tensors", "save_tensors"]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """Writes named tensors and a JSON description atomically; equal content gives equal bytes.

    Args:
        path: File to write, by custom with the suffix ``.safetensors``.
        tensors: Tensors of any dtype, shape and device.
        description: What JSON can hold.

    Returns:
        The checksum of the content, 64 hexadecimal digits.
    """
    payload = {name: tensors[name].detach().contiguous().cpu() for name in sorted(tensors)}
    # One metadata entry only: safetensors writes several in an order that changes from process to process.
    metadata = {"fedgs": BLANK_SEAL + json.dumps(description, sort_keys=True, allow_nan=False)}
    content = bytearray(safetensors.torch.save(payload, metadata=metadata))
    checksum = seal(content)
    write_atomically(path, content)
    return checksum


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote, after checking every byte of it.

    Returns:
        The tensors by name and the description.

    Raises:
        CheckpointError: The file is missing, cut short or altered, or was not written by `save_tensors`.
    """
    content, description = read_sealed(path)
    return safetensors.torch.load(content), description
