"""Files that are wholly there or not there at all, and that know whether they are intact.

A sealed file is a safetensors file that carries its own description and a checksum of every byte. One file cannot
disagree with itself, so a crash leaves the old state or the new one, and damage is found whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedgs.errors import CheckpointError

__all__ = [
    "TEMPORARY_SUFFIX",
    "append",
    "copy_atomically",
    "json_text",
    "named",
    "read_sealed",
    "replacing",
    "write_atomically",
    "write_json",
    "write_sealed",
]

TEMPORARY_SUFFIX = ".fedgs-part"
_BLANK_SEAL = "0" * 64
_SEAL_FIELD = b'"fedgs":"'


@contextmanager
def replacing(path: Path, *, durable: bool = True, previous: Path | None = None) -> Iterator[Path]:
    """Gives a path to write to; when the block ends well, what was written there replaces the file in one step.

    A reader or a crash sees the old or the new content, never a part of it.

    Args:
        path: File to replace; its folder must exist.
        durable: Wait until the disk has it, so that it survives a power cut; a cache may do without.
        previous: Where the old file, if there is one, goes just before the new one takes its place.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file is then unchanged.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with named(path):
            yield temporary
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            if previous is not None and path.is_file():
                path.replace(previous)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is told
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | bytearray | memoryview | str, *, durable: bool = True) -> None:
    """Replaces a file by some content, see `replacing`; text is written as UTF-8."""
    with replacing(path, durable=durable) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def copy_atomically(source: Path, path: Path, *, previous: Path | None = None) -> None:
    """Replaces a file by a copy of another one, see `replacing`."""
    with replacing(path, previous=previous) as part:
        shutil.copyfile(source, part)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Gives an error of the system that names no file, or one that nobody knows, the name of a file."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).endswith(TEMPORARY_SUFFIX):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def append(path: Path, text: str, *, durable: bool = True) -> None:
    """Adds text to a file, which is made when missing; a crash may leave its beginning alone."""
    with named(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def json_text(content: Mapping[str, Any]) -> str:
    """Gives an indented JSON object; a number that is not finite is refused, since JSON has none."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Writes a JSON object as `json_text` gives it, atomically."""
    write_atomically(path, json_text(content), durable=durable)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Gives what JSON can hold with a checksum over it as its last entry."""
    plain = {name: value for name, value in content.items() if name != "checksum"}
    return plain | {"checksum": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def require_intact(path: Path, content: Mapping[str, Any]) -> None:
    """Compares what was read with its checksum.

    Raises:
        CheckpointError: It was altered, or has none.
    """
    if sealed(content)["checksum"] != content.get("checksum"):
        raise CheckpointError(f"{path}: its checksum does not match: it was altered; restore it from a copy")


def read_json(path: Path) -> Mapping[str, Any]:
    """Reads a sealed JSON object.

    Raises:
        CheckpointError: It is missing, no JSON object, or was altered.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it from a copy, or train again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; restore it from a copy, or train again")
    require_intact(path, content)
    return content


def write_sealed(
    path: Path,
    save: Callable[[Path, dict[str, str]], None],
    description: Mapping[str, Any],
    *,
    durable: bool = True,
    previous: Path | None = None,
) -> str:
    """Writes a sealed safetensors file atomically; equal content gives equal bytes.

    Args:
        path: File to write.
        save: Writes the tensors with some metadata as a safetensors file to a path.
        description: What JSON can hold.
        durable: As for `replacing`.
        previous: As for `replacing`.

    Returns:
        The checksum of the content, 64 hexadecimal digits.
    """
    # One metadata entry only: safetensors writes several in an order that changes from process to process.
    metadata = {"fedgs": _BLANK_SEAL + json.dumps(description, sort_keys=True, allow_nan=False)}
    with replacing(path, durable=durable, previous=previous) as part:
        part.touch()
        mode = part.stat().st_mode
        try:
            save(part, metadata)
        except SafetensorError as error:  # a full disk, of which only the text tells
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error)) from error
        part.chmod(mode)  # safetensors makes files that nobody else may read
        return _seal(part)


def _seal(path: Path) -> str:
    """Puts a checksum over all bytes of the file, with a blank seal, in the place of that seal."""
    with path.open("rb+") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        header = file.read(8 + int.from_bytes(file.read(8), "little"))
        file.seek(8 + header.index(_SEAL_FIELD) + len(_SEAL_FIELD))
        file.write(checksum.encode())
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
    digest.update(_BLANK_SEAL.encode())
    digest.update(view[start + len(_BLANK_SEAL) :])
    if digest.hexdigest().encode() != content[start : start + len(_BLANK_SEAL)]:
        raise CheckpointError(f"{path}: its checksum does not match: cut short or altered; restore it from a copy")
    text: str = json.loads(content[8:header_end])["__metadata__"]["fedgs"]
    return content, json.loads(text[len(_BLANK_SEAL) :])
