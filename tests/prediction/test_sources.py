"""Which inputs there are and where their masks go is decided before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedgs import PredictOptions
from fedgs.errors import ConfigError, DataError
from fedgs.prediction.kind import Source
from fedgs.prediction.sources import find_inputs


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def places(paths: list[Path], out: Path, **options: bool) -> dict[str, str]:
    found: list[Source] = list(find_inputs(paths, out, PredictOptions(**options)).sources)
    return {source.name: source.mask.as_posix() for source in found}


def test_masks_keep_folder_and_stem(tmp_path: Path) -> None:
    folder = touched(tmp_path / "in", "a.JPG", "b/c.tiff", "b/d.e.webp", "notes.txt", ".hidden.png", ".git/x.png")
    assert places([folder], tmp_path / "out") == {
        "a.JPG": "a.png",
        "b/c.tiff": "b/c.png",
        "b/d.e.webp": "b/d.e.png",
    }
    assert [path.name for path in find_inputs([folder], tmp_path / "out", PredictOptions()).passed_over] == [
        "notes.txt"
    ]
    assert places([folder / "b" / "c.tiff"], tmp_path / "out") == {"c.tiff": "c.png"}
    assert places([folder / "b", folder / "a.JPG"], tmp_path / "out") == {
        "a.JPG": "a.png",
        "c.tiff": "c.png",
        "d.e.webp": "d.e.png",
    }


def test_an_input_that_is_named_twice_is_predicted_once(tmp_path: Path) -> None:
    folder = touched(tmp_path / "in", "a.png", "b/c.png")
    assert places([folder, folder / "a.png", folder], tmp_path / "out") == {"a.png": "a.png", "b/c.png": "b/c.png"}
    with pytest.raises(ConfigError, match=r"is given twice, as 'b/c.png' and 'c.png'; give it once"):
        find_inputs([folder, folder / "b" / "c.png"], tmp_path / "out", PredictOptions())


def test_links_are_followed_once(tmp_path: Path) -> None:
    elsewhere, folder = touched(tmp_path / "elsewhere", "x.png"), touched(tmp_path / "in", "a.png")
    (folder / "there").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    (elsewhere / "back").symlink_to(folder)
    assert places([folder], tmp_path / "out") == {"a.png": "a.png", "there/x.png": "there/x.png"}


def test_two_inputs_of_one_place_are_refused(tmp_path: Path) -> None:
    out, one = tmp_path / "out", touched(tmp_path / "one", "a.png", "x.png")
    with pytest.raises(ConfigError, match=r"a.jpg and .*a.png would both be written to a.png in --out; rename one"):
        find_inputs([touched(tmp_path / "two", "a.png", "a.jpg")], out, PredictOptions())
    with pytest.raises(ConfigError, match=r"one/x.png and .*three/x.png would both be written to x.png"):
        find_inputs([one, touched(tmp_path / "three", "x.png")], out, PredictOptions())


def test_a_mask_and_a_folder_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = touched(tmp_path / "in", "a.jpg", "a.png/b.png")
    with pytest.raises(ConfigError, match=r"b.png: would be written into a.png, which is the file of .*a.jpg; rename"):
        find_inputs([folder], tmp_path / "out", PredictOptions())


def test_a_folder_named_like_one_of_ours_is_refused_only_where_they_meet(tmp_path: Path) -> None:
    folder = touched(tmp_path / "in", "a.png", "overlays/a.png")
    assert len(places([folder], tmp_path / "out")) == 2
    assert len(places([folder], tmp_path / "out", probabilities=True)) == 2
    with pytest.raises(ConfigError, match=r"would both be written to overlays/a.png"):
        find_inputs([folder], tmp_path / "out", PredictOptions(overlay=True))


@pytest.mark.parametrize(
    ("given", "out", "says"),
    [
        ("in", "in/out", "lies inside the input"),
        ("in", "in", "lies inside the input"),
        ("in/deep", "in", "holds the input"),
        ("in/a.png", "in", "holds the input"),
    ],
)
def test_input_and_output_are_apart(given: str, out: str, says: str, tmp_path: Path) -> None:
    touched(tmp_path / "in", "a.png", "deep/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for place in (tmp_path / out, tmp_path / out.replace("in", "link", 1)):
        with pytest.raises(ConfigError, match=f"{says}.*choose another --out"):
            find_inputs([tmp_path / given], place, PredictOptions())


def test_an_output_folder_beside_a_file_is_not_beside_its_mask(tmp_path: Path) -> None:
    touched(tmp_path, "a.png")
    assert places([tmp_path / "a.png"], tmp_path / "out") == {"a.png": "a.png"}


def test_what_cannot_be_an_input_is_refused(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", touched(tmp_path / "in", "notes.txt")
    for path, says in (
        (folder, r"holds only other files, such as 'notes.txt'; expected images \(.bmp"),
        (folder / "notes.txt", r"notes.txt: is of a kind that fedgs does not read; expected images"),
        (tmp_path / "no", r"no: no such file or folder; give images"),
    ):
        with pytest.raises(DataError, match=says):
            find_inputs([path], out, PredictOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file; expected images"):
        find_inputs([tmp_path / "empty"], out, PredictOptions())
    with pytest.raises(ConfigError, match="no input; give files or folders"):
        find_inputs([], out, PredictOptions())


def test_a_name_that_no_table_can_hold_is_refused(tmp_path: Path) -> None:
    folder = touched(tmp_path / "in", "a.png")
    (folder / "a.png").rename(folder / os.fsdecode(b"\xff.png"))
    with pytest.raises(DataError, match=r"udcff.png' in it is no UTF-8 and can stand in no table; rename it"):
        find_inputs([folder], tmp_path / "out", PredictOptions())
