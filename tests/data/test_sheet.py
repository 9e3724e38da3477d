from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fedgs.data import sheet
from fedgs.data.index import Index, build_index
from fedgs.data.sheet import SHEET_FILE, write_sheet

WriteCase = Callable[..., tuple[Path, Path]]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on the sheet."""
    written: list[str] = []
    original = ImageDraw.ImageDraw.text

    def spy(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *arguments: object) -> None:
        written.append(text)
        original(draw, place, text, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return written


def twins(source: Path, write_case: WriteCase, site: str, name: str, count: int, grey: bool = False) -> None:
    """Cases name, name2, name3, … that show the same picture, each darker than the one before."""
    first, _ = write_case(source, site, name, grey=grey)
    for number in range(2, count + 1):
        path, _ = write_case(source, site, f"{name}{number}", grey=grey)
        Image.fromarray((np.asarray(Image.open(first)) * (1 - number / 50)).astype(np.uint8)).save(path)


def indexed(source: Path, tmp_path: Path) -> Index:
    return build_index(source, tmp_path / "index", size=32)


def test_a_row_per_group_with_captions(tmp_path: Path, write_case: WriteCase, texts: list[str]) -> None:
    source = tmp_path / "source"
    twins(source, write_case, "A", "one", 3)
    twins(source, write_case, "A", "two", 2, grey=True)
    path, _ = write_case(source, "B", "far")
    Image.fromarray((np.asarray(Image.open(source / "A" / "images" / "two.png")) * 0.9).astype(np.uint8)).save(path)
    path = write_sheet(indexed(source, tmp_path))
    assert path == tmp_path.resolve() / "index" / SHEET_FILE
    assert texts[0] == "Near duplicates: 2 groups, 6 images"
    assert texts[1::2] == ["A / two", "A / two2", "B / far", "A / one", "A / one2", "A / one3"]
    assert texts[2] == texts[8] == "3 frames"
    assert all(note.endswith("of 255 bits differ") for note in texts[4:7:2])
    with Image.open(path) as image:
        image.load()
        assert image.width > 3 * sheet._WIDTH
        # The frame in its own proportions, 64 x 48, fills its cell, and is that of the cache.
        assert image.crop((30, 60, 200, 180)).convert("L").getextrema() != (232, 232)


def test_what_is_too_much_is_counted(
    tmp_path: Path, write_case: WriteCase, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "_MOST_GROUPS", 2)
    for name in ("a", "b", "c", "d"):
        twins(tmp_path / "source", write_case, "A", name, 9 if name == "a" else 2)
    path = write_sheet(indexed(tmp_path / "source", tmp_path))
    assert path is not None
    assert texts[-1] == "and 2 more"
    assert sum(text.startswith("A / ") for text in texts) == sheet._MOST_FRAMES + 2
    assert any(text.endswith("bits differ; 3 frames more") for text in texts)


def test_names_of_every_kind_can_be_written(tmp_path: Path, write_case: WriteCase, texts: list[str]) -> None:
    for name in ("größe <b>", "名前", "x" * 150 + "ende", "a\u200bb", "\u202eרtl"):
        twins(tmp_path / "source", write_case, "St. Göran", name, 2)
    assert write_sheet(indexed(tmp_path / "source", tmp_path))
    names = [text for text in texts if text.startswith("St. Goran / ")]
    assert len(names) == 10
    assert all(name.isascii() and name.isprintable() and len(name) < 60 for name in names)
    assert "St. Goran / gro?e <b>" in names
    assert any(name.endswith("ende") and "..." in name for name in names)


def test_nothing_is_drawn_without_near_duplicates_and_an_old_sheet_goes(
    source: Path, tmp_path: Path, write_case: WriteCase
) -> None:
    twins(source, write_case, "north", "a", 2)
    path = write_sheet(indexed(source, tmp_path))
    assert path is not None
    before = path.read_bytes()
    assert write_sheet(indexed(source, tmp_path)) == path
    assert path.read_bytes() == before
    for kind in ("images", "masks"):
        (source / "north" / kind / "a2.png").unlink()
    assert write_sheet(indexed(source, tmp_path)) is None
    assert not path.exists()
