"""A thousand files cut short or altered in one bit: each is found out, and the state before it loads."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from fedgs.checkpoint import load_tensors
from fedgs.data.cache import read_entry
from fedgs.data.index import open_index
from fedgs.data.table import read_index
from fedgs.errors import CheckpointError, DataError
from fedgs.run_folder import RunFolder
from runs import FLAGS, fedgs, flags, make_phantom

DRAWS = 1000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    data = make_phantom(folder / "phantom", 8)
    fedgs("index", str(data), "--size", "32", "--out", str(folder / "index"))
    given = flags(**FLAGS | {"rounds": 2, "local_steps": 1})
    fedgs("train", "--data", str(folder / "index"), "--out", str(folder / "run"), *given)
    return folder / "run"


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content cut short anywhere, or with one bit of any byte turned over."""
    place = draw.randrange(len(content))
    if draw.random() < 0.5:
        return content[:place]
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["last", "best", "previous"])
def test_damaged_checkpoints_are_refused(name: str, run: Path, tmp_path: Path) -> None:
    content, path = (run / "checkpoints" / f"{name}.safetensors").read_bytes(), tmp_path / "damaged.safetensors"
    draw = random.Random(name)
    for _ in range(DRAWS // 10):
        path.write_bytes(damaged(content, draw))
        with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
            load_tensors(path)


def test_the_round_before_loads_whatever_happened_to_the_last(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder, draw = RunFolder(copy), random.Random(0)
    content = folder.checkpoint("last").read_bytes()
    for _ in range(DRAWS // 10):
        folder.checkpoint("last").write_bytes(damaged(content, draw))
        said: list[str] = []
        assert folder.restore(said.append).server.round == 1
        assert len(said) == 1
        assert "going on from the round before" in said[0]
        # Else the next round would put the damaged file in the place of the intact one, and a kill just then lose both.
        assert not folder.checkpoint("last").exists()


def test_damaged_index_files_are_refused(run: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    shutil.copytree(run.parent / "index", index)
    for name in ("index.json", "index.csv"):
        content, draw = (index / name).read_bytes(), random.Random(name)
        for _ in range(DRAWS // 5):
            (index / name).write_bytes(damaged(content, draw))
            with pytest.raises(DataError, match=r"fedgs index|update fedgs"):
                read_index(index)
        (index / name).write_bytes(content)
    assert len(open_index(index)) == 24


def test_damaged_frames_are_refused(run: Path, tmp_path: Path) -> None:
    files = sorted((run.parent / "index" / "cache-32").iterdir())
    path, draw = tmp_path / "frame.safetensors", random.Random(0)
    for number in range(DRAWS // 5):
        path.write_bytes(damaged(files[number % len(files)].read_bytes(), draw))
        assert read_entry(path) is None
    assert all(read_entry(file) for file in files)


def test_training_and_indexing_mend_a_damaged_frame(run: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    shutil.copytree(run.parent / "index", index)
    victim = sorted((index / "cache-32").iterdir())[3]
    content = victim.read_bytes()
    victim.write_bytes(damaged(content, random.Random(1)))
    refused = fedgs("train", "--data", str(index), "--out", str(tmp_path / "run"), *flags(**FLAGS), check=False)
    assert refused.returncode == 1
    assert "run 'fedgs index' again" in refused.stderr
    fedgs("index", str(run.parent / "phantom"), "--size", "32", "--out", str(index))
    assert victim.read_bytes() == content
