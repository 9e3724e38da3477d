from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedgs.data import cache, table
from fedgs.data.index import Index, build_index, open_data, open_index
from fedgs.data.lesions import SMALL_RULES, SmallRule, nearest_lesions
from fedgs.data.near import near_hash
from fedgs.data.table import COLUMNS
from fedgs.errors import ConfigError, DataError
from fedgs.files import TEMPORARY_SUFFIX

SOURCE_CODE = str(Path(cache.__file__).parents[2])
Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]
WriteCase = Callable[..., tuple[Path, Path]]


@pytest.fixture
def read_cases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The cases that were read from the source since the test began."""
    read: list[tuple[str, str]] = []

    def spy(path: Path) -> Any:
        read.append((path.parent.parent.name, path.stem))
        return original(path)

    original = cache.read_image
    monkeypatch.setattr(cache, "read_image", spy)
    return read


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cached(folder: Path, site: str, case: str, size: int = 32) -> Path:
    return cache.case_file(folder.resolve(), size, site, case)


def test_a_row_per_case_with_what_the_mask_tells(source: Path, tmp_path: Path) -> None:
    index = build_index(source, tmp_path / "index", size=32)
    table = index.table
    assert tuple(table.columns) == COLUMNS
    assert list(zip(table["site"], table["case"], strict=True)) == [(s, c) for s in ("north", "south") for c in "abc"]
    assert table.index.tolist() == list(range(6))
    assert table["patient"].isna().all()
    assert set(table["width"]) == {64}
    assert set(table["height"]) == {48}
    # 20 and 3 pixels of 64 columns and 48 rows on the grid of 512.
    areas = {"a": 160 * 214, "b": 24 * 32, "c": 0}
    assert table["lesion_area"].tolist() == [areas[case] for case in table["case"]]
    assert table["smallest_lesion_area"].tolist() == table["lesion_area"].tolist()
    assert table["largest_lesion_area"].tolist() == table["lesion_area"].tolist()
    assert not table["is_mixed"].any()
    assert table["lesion_count"].tolist() == [1, 1, 0] * 2
    assert table["is_small"].tolist() == table["is_tiny"].tolist() == [False, True, False] * 2
    assert table["image"].tolist() == [f"{s}/images/{c}.png" for s in ("north", "south") for c in "abc"]
    assert table["image_hash"].nunique() == 6
    assert table["mask_hash"].nunique() == 3
    assert (index.adapter, index.size, index.channels, index.source) == ("folder", 32, 3, source.resolve())


def test_frames_and_masks_are_those_of_the_source(source: Path, tmp_path: Path) -> None:
    index = build_index(source, tmp_path / "index", size=32)
    for row in range(len(index)):
        image = Image.open(source / index.table["image"][row])
        np.testing.assert_array_equal(index.frame(row), np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)))
        native = np.asarray(Image.open(source / index.table["mask"][row])) > 0
        np.testing.assert_array_equal(index.native_mask(row), native)
        rows, columns = np.arange(512) * 48 // 512, np.arange(512) * 64 // 512
        np.testing.assert_array_equal(index.mask(row), native[rows][:, columns])
        assert index.mask(row).dtype == np.bool_
    index.frame(0)[:] = 0
    index.mask(0)[:] = False
    assert index.frame(0).any()
    assert index.mask(0).any()


def test_opening_gives_what_building_gave(source: Path, tmp_path: Path) -> None:
    (source / "patients.csv").write_text("site,case,patient\nnorth,a,007\nsouth,b,NA\n")
    rule = SmallRule("total", 1 / 3, 50)
    built = build_index(source, tmp_path / "index", size=32, small_rule=rule)
    opened = open_index(tmp_path / "index")
    pd.testing.assert_frame_equal(built.table, opened.table)
    assert (opened.small_rule, opened.size, opened.source) == (rule, 32, source.resolve())
    known = {(s, c): p for s, c, p in zip(*(opened.table[k] for k in ("site", "case", "patient")), strict=True) if p}
    assert {key: patient for key, patient in known.items() if isinstance(patient, str)} == {
        ("north", "a"): "007",
        ("south", "b"): "NA",
    }
    assert opened.table["patient"].isna().sum() == 4
    copy = pickle.loads(pickle.dumps(opened))  # data loaders hand an index to other processes
    np.testing.assert_array_equal(copy.frame(1), opened.frame(1))


def test_nothing_is_written_beside_the_source(source: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    before = snapshot(source)
    build_index(source, tmp_path / "index", size=32)
    open_data(source, size=32)
    assert snapshot(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "source"]
    assert Path(os.environ["FEDGS_CACHE"]).is_dir()


def test_names_of_every_kind_survive(tmp_path: Path, write_case: WriteCase) -> None:
    names = ["größe 1, <b>x & 'y' \"z\"", "=1+1", "NA", "007", "名前", "a;b", "-", "x" * 200]
    for name in names:
        write_case(tmp_path / "source", "St. Göran, <i>1", name)
    index = open_index(build_index(tmp_path / "source", tmp_path / "i d x", size=32).folder)
    assert sorted(index.table["case"]) == sorted(names)
    assert set(index.table["site"]) == {"St. Göran, <i>1"}
    for row in range(len(index)):
        assert index.frame(row).shape == (32, 32, 3)
        assert index.native_mask(row).any()


def test_links_work_for_source_and_index(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "out").symlink_to(tmp_path / "real")
    index = build_index(tmp_path / "link", tmp_path / "out", size=32)
    assert index.source == source.resolve()
    assert (tmp_path / "real" / "index.csv").is_file()
    assert len(build_index(source, tmp_path / "real", size=32)) == 6


def test_grey_images_stay_grey_and_join_colour_ones(tmp_path: Path, write_case: WriteCase) -> None:
    write_case(tmp_path / "source", "A", "grey", grey=True)
    grey = build_index(tmp_path / "source", tmp_path / "index", size=32)
    assert grey.channels == 1
    assert grey.frame(0).shape == (32, 32, 1)
    write_case(tmp_path / "source", "A", "colour")
    mixed = build_index(tmp_path / "source", tmp_path / "index", size=32)
    assert (mixed.channels, mixed.table["channels"].tolist()) == (3, [3, 1])
    np.testing.assert_array_equal(mixed.frame(1), np.repeat(grey.frame(0), 3, axis=2))


def test_specks_are_no_lesions_at_any_size(tmp_path: Path, write_case: WriteCase) -> None:
    for name in ("lesion", "none"):
        _, path = write_case(tmp_path / "source", "A", name, side=0, size=(1024, 1024))
        mask = np.zeros((1024, 1024), dtype=np.uint8)
        mask[100:102, 100:102] = mask[200, 200:205] = 255
        if name == "lesion":
            mask[300:340, 300:340] = 255
        Image.fromarray(mask).save(path)
    index = build_index(tmp_path / "source", tmp_path / "index", size=32)
    assert index.table["lesion_count"].tolist() == [1, 0]
    assert index.table["lesion_area"].tolist() == [400, 0]
    assert index.table["specks"].tolist() == [2, 2]
    assert [int(index.mask(row).sum()) for row in (0, 1)] == [400, 0]
    assert [int(index.native_mask(row).sum()) for row in (0, 1)] == [1600, 0]


def test_regions_are_kept_where_there_are_several_lesions(tmp_path: Path, write_case: WriteCase) -> None:
    for name, corners in (("none", []), ("one", [300]), ("two", [300, 20]), ("with-specks", [300, 20, 200])):
        _, path = write_case(tmp_path / "source", "A", name, side=0, size=(512, 512))
        mask = np.zeros((512, 512), dtype=np.uint8)
        for corner in corners:
            mask[corner : corner + 20, corner : corner + 30] = 255
        if name == "with-specks":
            mask[100, ::2] = 255
        Image.fromarray(mask).save(path)
    index = build_index(tmp_path / "source", tmp_path / "index", size=32)
    assert index.table["lesion_count"].tolist() == [0, 1, 2, 3]
    for row, most in enumerate((1, 1, 2, 3)):
        regions = index.regions(row)
        assert (regions.shape, regions.dtype, regions.max(), regions.min()) == ((512, 512), np.uint8, most, 1)
        np.testing.assert_array_equal(regions, nearest_lesions(index.mask(row)))
    files = [cache.case_file(index.folder, 32, "A", name) for name in index.table["case"]]
    assert ["regions" in cache.map_case(file) for file in files] == [False, False, True, True]
    sizes = [file.stat().st_size for file in files]
    assert sizes[3] - sizes[1] < 512 * 512 / 20
    assert (index.gives_regions, index.with_regions().gives_regions) == (False, True)


def test_progress_counts_every_case_once(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_index(source, tmp_path / "index", size=32, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_an_unchanged_source_is_not_read_again(
    source: Path, tmp_path: Path, snapshot: Snapshot, read_cases: list[tuple[str, str]]
) -> None:
    build_index(source, tmp_path / "index", size=32)
    before = snapshot(tmp_path / "index")
    read_cases.clear()
    build_index(source, tmp_path / "index", size=32)
    assert read_cases == []
    assert snapshot(tmp_path / "index") == before


def test_only_what_changed_is_read_again(
    source: Path, tmp_path: Path, write_case: WriteCase, read_cases: list[tuple[str, str]]
) -> None:
    old = build_index(source, tmp_path / "index", size=32)
    read_cases.clear()
    write_case(source, "north", "b", side=30)
    write_case(source, "south", "d")
    for kind in ("images", "masks"):
        (source / "north" / kind / "c.png").unlink()
    os.utime(source / "south" / "masks" / "a.png")
    new = build_index(source, tmp_path / "index", size=32)
    assert sorted(read_cases) == [("north", "b"), ("south", "a"), ("south", "d")]
    assert [*zip(new.table["site"], new.table["case"], strict=True)] == [
        *(("north", case) for case in "ab"),
        *(("south", case) for case in "abcd"),
    ]
    assert not new.table["is_small"][1]
    assert len(list((tmp_path / "index" / "cache-32").iterdir())) == 6
    with pytest.raises(DataError, match="has changed since this index was opened"):
        old.mask(1)


def test_a_new_rule_reads_nothing(source: Path, tmp_path: Path, read_cases: list[tuple[str, str]]) -> None:
    first = build_index(source, tmp_path / "index", size=32)
    read_cases.clear()
    rule = SmallRule("total", 0.2)
    second = build_index(source, tmp_path / "index", size=32, small_rule=rule)
    assert read_cases == []
    assert first.table["is_small"].tolist() == [False, True, False] * 2
    assert second.table["is_small"].tolist() == [True, True, False] * 2
    pd.testing.assert_frame_equal(first.with_rule(rule).table, second.table)
    pd.testing.assert_frame_equal(open_index(tmp_path / "index", small_rule=SmallRule()).table, first.table)
    assert first.with_rule(rule).small_rule == rule


def test_a_failing_case_is_named_and_the_rest_is_kept(
    source: Path, tmp_path: Path, write_case: WriteCase, read_cases: list[tuple[str, str]]
) -> None:
    for case in "ac":
        path = source / "south" / "images" / f"{case}.png"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"(?s)2 cases cannot be used:.*south/images/a.png: cut.*south/images/c.png"):
        build_index(source, tmp_path / "index", size=32)
    with pytest.raises(DataError, match="indexing was not finished; run 'fedgs index' again"):
        open_index(tmp_path / "index")
    for case, side in (("a", 20), ("c", 0)):
        write_case(source, "south", case, side=side)
    read_cases.clear()
    assert len(build_index(source, tmp_path / "index", size=32)) == 6
    assert sorted(read_cases) == [("south", "a"), ("south", "c")]


def test_an_interrupted_indexing_goes_on(source: Path, tmp_path: Path, read_cases: list[tuple[str, str]]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(source, tmp_path / "index", size=32, workers=1, on_progress=interrupt)
    done = len(read_cases)
    assert 3 <= done < 6
    assert len(build_index(source, tmp_path / "index", size=32)) == 6
    assert len(read_cases) == 6


def test_a_killed_indexing_goes_on_to_the_same_index(
    tmp_path: Path, write_case: WriteCase, read_cases: list[tuple[str, str]]
) -> None:
    for number in range(80):
        write_case(tmp_path / "source", "A", f"{number:02d}", size=(256, 192))
    expected = build_index(tmp_path / "source", tmp_path / "whole", size=32)
    program = "import sys, pathlib, fedgs; fedgs.build_index(*map(pathlib.Path, sys.argv[1:]), size=32)"
    folders = str(tmp_path / "source"), str(tmp_path / "killed")
    process = subprocess.Popen([sys.executable, "-c", program, *folders], env=os.environ | {"PYTHONPATH": SOURCE_CODE})
    while process.poll() is None and len(list((tmp_path / "killed").glob("cache-32/*.safetensors"))) < 10:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    read_cases.clear()
    resumed = build_index(tmp_path / "source", tmp_path / "killed", size=32)
    assert 0 < len(read_cases) <= 70
    pd.testing.assert_frame_equal(resumed.table, expected.table)
    for name in ("index.csv", "index.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_failed_rebuild_leaves_the_old_index_usable(source: Path, tmp_path: Path) -> None:
    before = build_index(source, tmp_path / "index", size=32)
    (source / "south" / "masks" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        build_index(source, tmp_path / "index", size=32)
    after = open_index(tmp_path / "index")
    pd.testing.assert_frame_equal(after.table, before.table)
    assert [after.mask(row).any() for row in range(6)] == [True, True, False] * 2


def test_damaged_or_missing_cache_files_are_noticed_and_made_again(
    source: Path, tmp_path: Path, read_cases: list[tuple[str, str]]
) -> None:
    folder = build_index(source, tmp_path / "index", size=32).folder
    damage(cached(folder, "north", "a"))
    cached(folder, "south", "b").write_bytes(cached(folder, "south", "b").read_bytes()[:-10])
    cached(folder, "south", "c").unlink()
    shutil.copy(cached(folder, "north", "c"), cached(folder, "north", "b"))
    index = open_index(folder)
    for row, message in ((0, "damaged"), (1, "has changed"), (4, "damaged"), (5, "missing")):
        with pytest.raises(DataError, match=message):
            index.frame(row)
    assert index.frame(2).any()
    read_cases.clear()
    again = build_index(source, folder, size=32)
    assert sorted(read_cases) == [("north", "a"), ("north", "b"), ("south", "b"), ("south", "c")]
    assert all(again.frame(row).any() for row in range(6))


def test_what_a_killed_process_left_half_written_goes_in_time(source: Path, tmp_path: Path) -> None:
    folder = build_index(source, tmp_path / "index", size=32).folder
    for name, age_s in (("old", 7200), ("new", 0)):
        part = folder / "cache-32" / f".{name}{TEMPORARY_SUFFIX}"
        part.touch()
        os.utime(part, (part.stat().st_mtime - age_s,) * 2)
    build_index(source, folder, size=32)
    left = [path.name for path in (folder / "cache-32").iterdir() if path.name.endswith(TEMPORARY_SUFFIX)]
    assert left == [f".new{TEMPORARY_SUFFIX}"]


def test_a_source_path_that_is_not_utf_8_works(source: Path, tmp_path: Path) -> None:
    source.rename(tmp_path / "s\udcff")
    index = build_index(tmp_path / "s\udcff", tmp_path / "index", size=32)
    assert open_index(index.folder).source == (tmp_path / "s\udcff").resolve()


def test_every_flipped_byte_of_the_index_is_noticed(source: Path, tmp_path: Path) -> None:
    folder = build_index(source, tmp_path / "index", size=32).folder
    rng = np.random.default_rng(0)
    for file in (folder / "index.json", folder / "index.csv"):
        intact = file.read_bytes()
        for place in {0, len(intact) - 1, *rng.integers(0, len(intact), size=60).tolist()}:
            damaged = bytearray(intact)
            damaged[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            with pytest.raises(DataError):
                open_index(folder)
        file.write_bytes(intact[:-1])
        with pytest.raises(DataError):
            open_index(folder)
        assert len(build_index(source, folder, size=32)) == 6
        assert file.read_bytes() == intact


def test_flips_and_cuts_of_a_cache_file_are_noticed(source: Path, tmp_path: Path) -> None:
    folder = build_index(source, tmp_path / "index", size=32).folder
    file = cached(folder, "north", "a")
    intact = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(intact), size=100).tolist():
        damaged = bytearray(intact)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged if place % 2 else intact[:place])
        with pytest.raises(DataError, match="missing or damaged"):
            open_index(folder).frame(0)


def test_another_size_is_cached_from_the_source(
    source: Path, tmp_path: Path, read_cases: list[tuple[str, str]], snapshot: Snapshot
) -> None:
    folder = build_index(source, tmp_path / "index", size=32).folder
    read_cases.clear()
    larger = open_index(folder, size=48)
    assert larger.frame(0).shape == (48, 48, 3)
    assert len(read_cases) == 6
    read_cases.clear()
    assert open_index(folder).frame(0).shape == (32, 32, 3)
    assert open_index(folder, size=48).size == 48
    assert read_cases == []
    shutil.rmtree(source)
    assert open_index(folder, size=48).frame(0).shape == (48, 48, 3)
    before = snapshot(folder)
    with pytest.raises(DataError, match=r"no frames at size 40, and their source .* is gone"):
        open_index(folder, size=40)
    with pytest.raises(DataError, match="no such file"):
        open_index(folder).native_mask(0)
    assert snapshot(folder).items() >= before.items()


def test_another_size_of_a_changed_source_is_refused(source: Path, tmp_path: Path, write_case: WriteCase) -> None:
    folder = build_index(source, tmp_path / "index", size=32).folder
    write_case(source, "north", "a", side=31)
    with pytest.raises(DataError, match="has changed since it was indexed"):
        open_index(folder, size=48)
    with pytest.raises(DataError, match="has changed since 'a'"):
        open_index(folder).native_mask(0)
    assert open_index(folder).mask(0).any()


def test_open_data_takes_a_source_or_an_index(source: Path, tmp_path: Path, read_cases: list[tuple[str, str]]) -> None:
    indexed = build_index(source, tmp_path / "index", size=32)
    read_cases.clear()
    opened = open_data(source, size=32)
    assert Path(os.environ["FEDGS_CACHE"]).resolve() in opened.folder.parents
    assert len(read_cases) == 6
    pd.testing.assert_frame_equal(opened.table, indexed.table)
    pd.testing.assert_frame_equal(open_data(indexed.folder, size=32).table, indexed.table)
    open_data(source, size=32, adapter="folder")
    assert len(read_cases) == 6
    other = open_data(source, size=32, small_rule=SMALL_RULES["total"])
    assert other.folder != opened.folder
    assert other.small_rule.kind == "total"
    assert open_data(opened.folder, size=32, small_rule=SMALL_RULES["total"]).small_rule.kind == "total"
    with pytest.raises(ConfigError, match="come from the adapter 'folder', not 'polypgen'"):
        open_data(opened.folder, adapter="polypgen", size=32)


def test_without_fedgs_cache_the_cache_folder_of_the_user_is_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDGS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (tmp_path / "xdg" / "fedgs") in open_data(source, size=32).folder.parents
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDGS_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set FEDGS_CACHE"):
        open_data(source, size=32)


def test_a_phantom_is_made_and_indexed_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedgs.data import phantom

    original = phantom.generate
    monkeypatch.setattr(phantom, "generate", lambda folder: original(folder, cases_per_site=2, size=32))
    index = open_data(tmp_path / "phantom", adapter="phantom", size=32)
    assert len(index) == 2 * len(phantom.SITES)
    assert open_data(tmp_path / "phantom", size=32).adapter == "phantom"


@pytest.mark.parametrize("size", [0, -1, 7, 4097])
def test_impossible_sizes_are_refused_before_anything_is_written(source: Path, tmp_path: Path, size: int) -> None:
    for attempt in (lambda: build_index(source, tmp_path / "index", size=size), lambda: open_data(source, size=size)):
        with pytest.raises(ConfigError, match="size"):
            attempt()
    assert not (tmp_path / "index").exists()


def test_the_index_keeps_out_of_other_folders(source: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("two years")
    (tmp_path / "other").mkdir()
    shutil.copytree(source, tmp_path / "other" / "source")
    build_index(tmp_path / "other" / "source", tmp_path / "taken", size=32)
    before = snapshot(tmp_path)
    for out, message in (
        (source, "lies in the source"),
        (source / "index", "lies in the source"),
        (tmp_path / "work", "holds other files and no index"),
        (tmp_path / "work" / "thesis.txt", "is a file"),
        (tmp_path / "taken", r"is the index of .*other/source; choose another folder"),
    ):
        with pytest.raises(DataError, match=message):
            build_index(source, out, size=32)
    assert snapshot(tmp_path) == before


def test_a_moved_source_keeps_its_index(source: Path, tmp_path: Path, read_cases: list[tuple[str, str]]) -> None:
    build_index(source, tmp_path / "index", size=32)
    read_cases.clear()
    source.rename(tmp_path / "moved")
    assert build_index(tmp_path / "moved", tmp_path / "index", size=32).source == (tmp_path / "moved").resolve()
    assert read_cases == []


def test_an_index_of_a_newer_version_is_refused(source: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    folder = build_index(source, tmp_path / "index", size=32).folder
    settings = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(settings | {"format": 99}))
    before = snapshot(folder)
    for attempt in (
        lambda: open_index(folder),
        lambda: build_index(source, folder, size=32),
        lambda: open_data(folder),
    ):
        with pytest.raises(DataError, match="format 99, this version of fedgs reads 4; update fedgs"):
            attempt()
    assert snapshot(folder) == before


def test_an_index_of_an_older_version_is_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_cases: list[tuple[str, str]]
) -> None:
    with monkeypatch.context() as patch:
        for module in (cache, table):
            patch.setattr(module, "_FORMAT", 2)
        folder = build_index(source, tmp_path / "index", size=32).folder
    for attempt in (lambda: open_index(folder), lambda: open_data(folder)):
        with pytest.raises(DataError, match=r"older version .*format 2, this one reads 4.*'fedgs index' again on /"):
            attempt()
    with pytest.raises(DataError, match="is the index of"):
        build_index(shutil.copytree(source, tmp_path / "other"), folder, size=32)
    read_cases.clear()
    again = build_index(source, folder, size=32)
    assert len(read_cases) == 6
    assert again.frame(0).any()
    pd.testing.assert_frame_equal(open_index(folder).table, again.table)


def test_the_hash_of_what_a_frame_shows_is_kept(source: Path, tmp_path: Path) -> None:
    index = build_index(source, tmp_path / "index", size=32)
    images = [cache.read_image(source / image) for image in index.table["image"]]
    assert index.table["near_hash"].tolist() == [near_hash(image) for image in images]
    flat = source / "north" / "images" / "a.png"
    Image.new("RGB", (64, 48)).save(flat)
    build_index(source, tmp_path / "index", size=32)
    assert open_index(tmp_path / "index").table["near_hash"][0] == ""


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no index"):
        open_index(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_data(tmp_path / "nowhere")


def test_a_mask_of_another_size_is_named(source: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(source / "north" / "masks" / "a.png")
    with pytest.raises(DataError, match=r"north/masks/a.png: the mask has 10 x 10 pixels"):
        build_index(source, tmp_path / "index", size=32)


def test_a_systematic_error_stops_early_and_shows_a_few(tmp_path: Path, write_case: WriteCase) -> None:
    for number in range(30):
        _, mask = write_case(tmp_path / "source", "A", f"{number:02d}")
        mask.write_bytes(b"")
    with pytest.raises(DataError) as error:
        build_index(tmp_path / "source", tmp_path / "index", size=32, workers=1)
    assert str(error.value).count("is empty") == 10


def test_the_real_frames_agree_with_their_description(real_index: Index) -> None:
    table = real_index.table.assign(is_empty=real_index.table["lesion_area"] == 0).groupby("site")
    assert table.size().to_dict() == {"C1": 256, "C2": 301, "C3": 457, "C4": 227, "C5": 208}
    assert table["is_empty"].sum().to_dict() == {"C1": 5, "C2": 32, "C3": 1, "C4": 81, "C5": 2}
    assert table["is_tiny"].sum().to_dict() == {"C1": 9, "C2": 4, "C3": 12, "C4": 16, "C5": 26}
    assert table["is_mixed"].sum().to_dict() == {"C1": 6, "C2": 11, "C3": 22, "C4": 0, "C5": 16}
    described = {"C1": 5.9, "C2": 5.3, "C3": 7.7, "C4": 7.0, "C5": 20.2}
    for site, percent in (100 * table["is_small"].mean()).items():
        assert percent == pytest.approx(described[str(site)], abs=0.1)
