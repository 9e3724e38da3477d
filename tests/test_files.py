from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgs.checkpoint import load_tensors, save_tensors
from fedgs.errors import CheckpointError
from fedgs.files import write_atomically, write_json

TENSORS = {
    "weights/a": torch.arange(12.0).reshape(3, 4),
    "buffers/n": torch.tensor(3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "view": torch.arange(12.0).reshape(3, 4).T,
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    description = {"round": 3, "name": 'ü"\\', "nested": {"x": [1, 2]}}
    save_tensors(path, TENSORS, description)
    tensors, read = load_tensors(path)
    assert read == description
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    first = save_tensors(one, TENSORS, {"a": 1, "b": 2})
    second = save_tensors(other, dict(reversed(TENSORS.items())), {"b": 2, "a": 1})
    assert first == second
    assert one.read_bytes() == other.read_bytes()


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"round": 1})
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            load_tensors(path)
    for length in (0, 1, 7, 8, 9, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=str(path)):
            load_tensors(path)
    path.write_bytes(content)
    load_tensors(path)


def test_a_file_of_others_is_no_checkpoint(tmp_path: Path) -> None:
    import safetensors.numpy

    path = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a file of fedgs"):
        load_tensors(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_tensors(tmp_path / "absent")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_atomically(path, object())  # type: ignore[arg-type]
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
