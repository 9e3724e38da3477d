from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgs.data import ADAPTERS, detect, find_cases
from fedgs.errors import ConfigError, DataError


def make(folder: Path, *files: str) -> Path:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_every_format_in_any_case_pairs(tmp_path: Path) -> None:
    suffixes = ("png", "PNG", "jpg", "Jpeg", "tif", "TIFF", "bmp", "webp")
    for number, suffix in enumerate(suffixes):
        make(tmp_path, f"A/images/{number}.{suffix}", f"A/masks/{number}{'_mask' * (number % 2)}.png")
    make(tmp_path, "A/images/.DS_Store", "A/images/notes.txt", "A/masks/Thumbs.db", ".hidden/x", "__MACOSX/x")
    cases = find_cases(tmp_path)
    assert detect(tmp_path) == "folder"
    assert [case.name for case in cases] == [str(number) for number in range(len(suffixes))]
    assert all(case.mask.stem in (case.name, f"{case.name}_mask") and case.patient is None for case in cases)


def test_an_image_may_be_called_like_a_mask(tmp_path: Path) -> None:
    make(tmp_path, "A/images/a.png", "A/images/a_mask.png", "A/masks/a.png", "A/masks/a_mask.png")
    assert [(case.name, case.mask.name) for case in find_cases(tmp_path)] == [("a", "a.png"), ("a_mask", "a_mask.png")]


@pytest.mark.parametrize("name", ["größe 1, <b>x & 'y'", "=1+1", "-a", "名前", "NA", "007", "a.b.c", "%41"])
def test_names_are_kept_as_they_are(tmp_path: Path, name: str) -> None:
    make(tmp_path, f"{name}/images/{name}.png", f"{name}/masks/{name}.png")
    (case,) = find_cases(tmp_path)
    assert (case.site, case.name) == (name, name)


def test_accents_pair_however_they_are_encoded(tmp_path: Path) -> None:
    name = "Größe"
    make(tmp_path, f"A/images/{unicodedata.normalize('NFD', name)}.png", f"A/masks/{name}.png")
    assert [case.name for case in find_cases(tmp_path)] == [name]


def test_two_sites_that_read_alike_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        site = unicodedata.normalize(form, "é")
        make(tmp_path, f"{site}/images/a.png", f"{site}/masks/a.png")
    with pytest.raises(DataError, match="are both case 'a' of 'é'; rename one"):
        find_cases(tmp_path)


def test_links_are_followed(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "A/images/a.png", "A/masks/a.png")
    source = tmp_path / "source"
    (source / "B" / "images").mkdir(parents=True)
    (source / "A").symlink_to(tmp_path / "elsewhere" / "A")
    (source / "B" / "images" / "b.png").symlink_to(tmp_path / "elsewhere" / "A" / "images" / "a.png")
    (source / "B" / "masks").symlink_to(tmp_path / "elsewhere" / "A" / "images")
    with pytest.raises(DataError, match=r"site 'B': 1 images without mask: 'b.png'; 1 masks without image: 'a.png'"):
        find_cases(source)
    (source / "B" / "images" / "b.png").rename(source / "B" / "images" / "a.png")
    assert [(case.site, case.name) for case in find_cases(source)] == [("A", "a"), ("B", "a")]


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda source: source.rmdir(), "no such folder; expected the folder layout"),
    "empty": (lambda source: None, "is empty; expected the folder layout"),
    "a file": (lambda source: (source.rmdir(), source.touch()), "is a file; expected a folder"),
    "loose images": (lambda source: make(source, "a.png", "b.png"), r"holds 'a.png', 'b.png'; expected a folder per"),
    "no site": (lambda source: make(source, "images/a.png", "masks/a.png"), r"holds 'images/', 'masks/'; expected"),
    "no masks": (lambda source: make(source, "A/images/a.png"), r"A: holds 'images/' but no folder 'masks'"),
    "other folder": (
        lambda source: make(source, "A/images/a.png", "A/masks/a.png", "B/Images/b.png"),
        r"B: holds 'Images/' but no folder 'images'",
    ),
    "no image": (lambda source: make(source, "A/images/x.txt", "A/masks/a.png"), "site 'A': no image in"),
    "subfolder": (lambda source: make(source, "A/images/p1/a.png", "A/masks/a.png"), "p1 is a folder; expected only"),
    "dicom": (lambda source: make(source, "A/images/a.dcm", "A/masks/a.png"), "a.dcm is of a format that fedgs does"),
    "image alone": (
        lambda source: make(source, "A/images/a.png", "A/images/b.png", "A/masks/a.png"),
        "site 'A': 1 images without mask: 'b.png'. Expected a mask per image",
    ),
    "mask alone": (
        lambda source: make(source, "A/images/a.png", "A/masks/a.png", "A/masks/a_mask.png"),
        "1 masks without image: 'a_mask.png'",
    ),
    "many alone": (
        lambda source: make(source, *(f"A/images/{n}.png" for n in range(9)), "A/masks/x.png"),
        "9 images without mask: '0.png', '1.png', '2.png', '3.png', '4.png', …",
    ),
    "one name twice": (
        lambda source: make(source, "A/images/a.png", "A/images/a.jpg", "A/masks/a.png"),
        "site 'A': 'a.jpg' and 'a.png' in .* have one name",
    ),
    "control character": (
        lambda source: make(source, "A/images/a\nb.png", "A/masks/a\nb.png"),
        "control characters",
    ),
    "site not utf-8": (
        lambda source: make(source, "A\udcff/images/a.png", "A\udcff/masks/a.png"),
        "not UTF-8",
    ),
    "not utf-8": (
        lambda source: make(source, "A/images/a\udcff.png", "A/masks/a\udcff.png"),
        "not UTF-8",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_layout_is_shown_with_the_one_expected(tmp_path: Path, case: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    spoil, message = WRONG[case]
    spoil(source)
    with pytest.raises(DataError, match=message):
        find_cases(source, "folder")


def test_a_layout_of_no_adapter_shows_all_of_them(tmp_path: Path) -> None:
    make(tmp_path, "x/y.txt", "z.csv")
    with pytest.raises(DataError, match=r"(?s)holds 'x/', 'z.csv'; expected one of.*folder layout.*PolypGen layout"):
        find_cases(tmp_path)


def test_an_unknown_adapter_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'polypgen'") as error:
        find_cases(tmp_path, "polypgenn")
    assert all(name in str(error.value) for name in ADAPTERS)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_patients_come_from_the_table(tmp_path: Path, separator: str, encoding: str) -> None:
    make(tmp_path, *(f"{site}/{kind}/{name}.png" for site in "AB" for kind in ("images", "masks") for name in "xy"))
    rows = ["Site,case,Patient,age", "A,x,P 1,7", "A,y.png,P 1,", "B,x,Zoë,3", "B,y,,"]
    (tmp_path / "patients.csv").write_text("\r\n".join(rows).replace(",", separator), encoding=encoding)
    patients = {(case.site, case.name): case.patient for case in find_cases(tmp_path)}
    assert patients == {("A", "x"): "P 1", ("A", "y"): "P 1", ("B", "x"): "Zoë", ("B", "y"): None}


def test_the_table_needs_no_site_where_names_are_unique(tmp_path: Path) -> None:
    make(tmp_path, "A/images/x.png", "A/masks/x.png", "B/images/y.png", "B/masks/y.png")
    (tmp_path / "patients.csv").write_text('case,patient\n"y",7\n')
    assert [case.patient for case in find_cases(tmp_path)] == [None, "7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns"),
        ("name,patient\nx,1\n", "expected case and patient"),
        ("case,patient\nx,1\n", "line 2: case 'x' exists in the sites A, B; add a column 'site'"),
        ("site,case,patient\nC,x,1\n", "line 2: case 'x' of site 'C' is not among the images"),
        ("site,case,patient\nA,x,1\nA,z,1\n", "line 3: case 'z' of site 'A' is not among"),
        ("site,case,patient\nA,x,1\nA,x,2\n", "line 3: a second patient for case 'x' of site 'A'"),
        ("site,case,patient\nA,x\n", "line 2: expected 3 columns"),
        ("site,case,patient\nA,x,1,2\n", "line 2: expected 3 columns"),
        (b"site,case,patient\nA,x,\xff\n", "is not UTF-8"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    make(tmp_path, *(f"{site}/{kind}/x.png" for site in "AB" for kind in ("images", "masks")))
    (tmp_path / "patients.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path)
