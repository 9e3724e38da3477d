from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fedgs.data.index import build_index, open_index
from fedgs.data.lesions import SMALL_RULES
from fedgs.data.summary import summarise

WriteCase = Callable[..., tuple[Path, Path]]


def test_counts_per_site(source: Path, tmp_path: Path) -> None:
    (source / "patients.csv").write_text("site,case,patient\nnorth,a,1\nnorth,b,1\n")
    summary = summarise(build_index(source, tmp_path / "index", size=32))
    north, south = summary.sites
    assert (north.site, north.cases, north.patients, north.cases_with_patient) == ("north", 3, 1, 2)
    assert (north.lesions, north.small_cases, north.tiny_cases, north.empty_masks) == (2, 1, 1, 1)
    assert (south.patients, south.sizes, summary.cases_without_patient) == (0, ((64, 48, 3),), 4)
    assert summary.duplicates_within == summary.duplicates_between == ()


def test_duplicates_within_and_between_sites(source: Path, tmp_path: Path) -> None:
    for target in ("north/images/b.png", "south/images/c.png"):
        shutil.copy(source / "north" / "images" / "a.png", source / target)
    shutil.copy(source / "south" / "images" / "a.png", source / "south" / "images" / "b.png")
    summary = summarise(build_index(source, tmp_path / "index", size=32))
    assert summary.duplicates_within == ((("south", "a"), ("south", "b")),)
    assert summary.duplicates_between == ((("north", "a"), ("north", "b"), ("south", "c")),)
    assert "Equal images between sites: 1 groups, 3 images" in summary.as_text()


def test_near_duplicates_within_and_between_sites(source: Path, tmp_path: Path) -> None:
    def darken(one: str, other: str) -> None:
        image = np.asarray(Image.open(source / one))
        Image.fromarray((image * 0.9).astype(np.uint8)).save(source / other)

    darken("north/images/a.png", "north/images/b.png")
    shutil.copy(source / "north" / "images" / "a.png", source / "south" / "images" / "c.png")
    darken("south/images/a.png", "south/images/b.png")
    summary = summarise(build_index(source, tmp_path / "index", size=32))
    assert summary.near_within == ((("south", "a"), ("south", "b")),)
    assert summary.near_between == ((("north", "a"), ("north", "b"), ("south", "c")),)
    assert "Near duplicates within sites: 1 groups, 2 images\n  south/a, south/b" in summary.as_text()
    assert "Near duplicates between sites: 1 groups, 3 images" in summary.as_text()
    shutil.copy(source / "south" / "images" / "a.png", source / "south" / "images" / "b.png")
    equal = summarise(build_index(source, tmp_path / "index", size=32))
    assert (equal.near_within, equal.duplicates_within) == ((), ((("south", "a"), ("south", "b")),))
    assert "Near duplicates within sites: none" in equal.as_text()


def test_oddities_are_told(tmp_path: Path, write_case: WriteCase) -> None:
    source = tmp_path / "source"
    write_case(source, "A", "full", side=64)
    write_case(source, "A", "wide", size=(96, 48))
    write_case(source, "A", "same", size=(96, 48))
    write_case(source, "B", "grey", side=0, grey=True)
    mask = np.zeros((600, 600), dtype=np.uint8)
    mask[5, 5] = 255
    Image.fromarray(mask).save(write_case(source, "C", "speck", size=(600, 600))[1])
    oddities = "\n".join(summarise(build_index(source, tmp_path / "index", size=32)).oddities)
    assert "A: 2 image sizes; 2 of 3 images are 96 x 48" in oddities
    assert "A: lesions cover over 80% of the image in 1 case (full); inverted?" in oddities
    assert "B: no mask holds a lesion" in oddities
    assert "C: specks of under 4 pixels in 1 case (speck)" in oddities
    assert "grey and colour mixed: 1 case (grey) of 5 are grey" in oddities
    assert "one mask for 2 different images: A/same, A/wide" in oddities


def test_many_near_duplicates_at_one_site_are_odd(tmp_path: Path, write_case: WriteCase) -> None:
    source, drawn = tmp_path / "source", np.random.default_rng(0)
    panel = np.kron(drawn.integers(0, 255, (8, 8)), np.ones((8, 8))).astype(np.uint8)
    for number in range(20):
        write_case(source, "A", f"a{number}", size=(64, 64))
        image, _ = write_case(source, "B", f"b{number}", size=(64, 64))
        if number < 6:
            Image.fromarray(panel // 2 + np.uint8(number)).save(image)
    told = [
        oddity for oddity in summarise(build_index(source, tmp_path / "index", size=32)).oddities if "near" in oddity
    ]
    assert len(told) == 1
    assert told[0].startswith("B: 6 of 20 images are near duplicates of each other")


def test_the_text_is_a_table_of_at_most_100_columns(source: Path, tmp_path: Path) -> None:
    index = build_index(source, tmp_path / "index", size=32)
    text = summarise(index).as_text()
    lines = text.splitlines()
    assert lines[0].split() == [
        *("site", "cases", "patients", "unknown", "lesions", "small", "small", "as", "a", "whole", "empty", "masks"),
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["north", "south", "all"]
    assert lines[3].split()[1:] == ["6", "0", "6", "4", "2", "33.3%", "2", "2"]
    assert max(map(len, lines)) <= 100
    assert "1/150 of the image" in text
    assert "Patients are unknown for 6 cases" in text
    total = summarise(open_index(index.folder, small_rule=SMALL_RULES["total"])).as_text()
    assert "its lesions together cover at most 1/1000 of the image" in total


def test_known_patients_need_no_warning(source: Path, tmp_path: Path) -> None:
    rows = [f"{site},{case},{case}" for site in ("north", "south") for case in "abc"]
    (source / "patients.csv").write_text("\n".join(["site,case,patient", *rows]))
    assert "unknown for" not in summarise(build_index(source, tmp_path / "index", size=32)).as_text()
