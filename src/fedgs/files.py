"""Files that are wholly there or not there at all, and that know whether they are intact.

A sealed file is a safetensors file that carries its own description and a checksum of every byte. One file cannot
disagree with itself, so a crash leaves the old state or the new one, and damage is found whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgs.errors import CheckpointError

__all__ = ["BLANK_SEAL", "TEMPORARY_SUFFIX", "read_sealed", "seal", "write_atomically", "write_json"]

TEMPORARY_SUFFIX = ".fedgs-part"
BLANK_SEAL = "0" * 64
_SEAL_FIELD = b'"fedgs":"'


def write_atomically(path: Path, content: bytes | bytearray | memoryview | str, *, durable: bool = True) -> None:
    """Replaces a file in one step, so that a reader or a crash sees the old or the new content, never a part.

    Args:
        path: File to write; its folder must exist.
        content: Bytes, or text that is written as UTF-8.
        durable: Wait until the disk has it, so that it survives a power cut; a cache may do without.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file is then unchanged.
    """
    payload = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            file.write(payload)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an indented JSON object atomically; a number that is not finite is refused, since JSON has none."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def seal(content: bytearray) -> str:
    """Puts a checksum over all bytes of a safetensors file into the file itself.

    The metadata of the file must hold one entry ``"fedgs"`` whose value starts with `BLANK_SEAL`. Equal content gives
    an equal checksum.

    Returns:
        The checksum, 64 hexadecimal digits.
    """
    start = content.index(_SEAL_FIELD) + len(_SEAL_FIELD)
    checksum = hashlib.sha256(content).hexdigest()
    content[start : start + len(checksum)] = checksum.encode()
    return checksum


def read_sealed(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Reads a sealed safetensors file after checking every byte of it.

    Returns:
        The file's content and the JSON description that followed the seal.

    Raises:
        CheckpointError: The file is missing, cut short or altered, or was not sealed by fedgs.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected one written by fedgs")
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    start = content.find(_SEAL_FIELD, 0, header_end) + len(_SEAL_FIELD)
    if start < len(_SEAL_FIELD):
        raise CheckpointError(f"{path}: not a file of fedgs, or damaged at its beginning; restore it from a copy")
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK_SEAL.encode())
    digest.update(view[start + len(BLANK_SEAL) :])
    if digest.hexdigest().encode() != content[start : start + len(BLANK_SEAL)]:
        raise CheckpointError(f"{path}: its checksum does not match: cut short or altered; restore it from a copy")
    text: str = json.loads(content[8:header_end])["__metadata__"]["fedgs"]
    return content, json.loads(text[len(BLANK_SEAL) :])
