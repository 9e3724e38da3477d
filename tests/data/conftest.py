"""Small sources of images that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgs.data.index import Index, build_index

WriteCase = Callable[..., tuple[Path, Path]]


@pytest.fixture
def write_case() -> WriteCase:
    """Writes one case in the folder layout: noise as image, a square of `side` pixels as mask."""

    def write(
        source: Path, site: str, name: str, *, side: int = 20, size: tuple[int, int] = (64, 48), grey: bool = False
    ) -> tuple[Path, Path]:
        width, height = size
        rng = np.random.default_rng(list(f"{site}/{name}".encode()))
        image = rng.integers(0, 256, (height, width) if grey else (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[:side, :side] = 255
        paths = source / site / "images" / f"{name}.png", source / site / "masks" / f"{name}.png"
        for path, pixels in zip(paths, (image, mask), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return paths

    return write


@pytest.fixture
def source(tmp_path: Path, write_case: WriteCase) -> Path:
    """Two sites of three cases; one case has an empty mask, one a small lesion."""
    folder = tmp_path / "source"
    for site in ("north", "south"):
        for name, side in (("a", 20), ("b", 3), ("c", 0)):
            write_case(folder, site, name, side=side)
    return folder


@pytest.fixture(scope="session")
def real_index(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The real frames of five hospitals, indexed."""
    return build_index(shared / "data" / "polypgen", tmp_path_factory.mktemp("real") / "index", size=32)


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    """Time of change and content of every file under a folder."""

    def take(folder: Path) -> dict[str, tuple[int, bytes]]:
        files: Iterable[Path] = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    return take
