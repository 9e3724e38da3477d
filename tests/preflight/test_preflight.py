"""Counts before training: right, exchangeable without names, merged to the same advice, and read with suspicion."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fedgs.data.index import build_index, open_data
from fedgs.data.lesions import SmallRule, resize_nearest
from fedgs.errors import ConfigError, DataError
from fedgs.preflight.advice import advise, expected
from fedgs.preflight.counts import Preflight, count
from fedgs.preflight.exchange import merge, read_counts, suppressed, write_counts
from fedgs.scaling import difficulty_of_area
from runs import fedgs, make_phantom


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 14)


@pytest.fixture(scope="module")
def counted(data: Path) -> Preflight:
    return count(open_data(data, size=32), size=64, batch_size=4)


def test_counts_are_those_of_loops_over_the_masks(data: Path, counted: Preflight) -> None:
    index = open_data(data, size=32)
    for name, site in counted.sites.items():
        rows = [row for row, owner in enumerate(index.table["site"]) if owner == name]
        areas, vanished, emptied, deltas = [], 0, 0, []
        for row in rows:
            mask, labels, deltas_of = index.mask(row), ndimage.label(index.mask(row), np.ones((3, 3)))[0], 0.0
            small = resize_nearest(mask, 64)
            if index.table["is_small"].iat[row]:
                deltas_of = difficulty_of_area(int(mask.sum()), 512**2, base=100)
            deltas.append(deltas_of)
            emptied += bool(mask.any() and not small.any())
            for number in range(1, labels.max() + 1):
                areas.append(int((labels == number).sum()))
                vanished += not resize_nearest(labels == number, 64).any()
        assert site.images == len(rows)
        assert site.lesions == len(areas) == sum(site.areas)  # type: ignore[arg-type]
        assert [site.areas[bin_] for bin_ in range(19)] == [
            sum(2**bin_ <= area < 2 ** (bin_ + 1) for area in areas) for bin_ in range(19)
        ]
        assert site.small_lesions == sum(area <= 512**2 / 150 for area in areas)
        assert (site.sizes[64].vanished, site.sizes[64].emptied) == (vanished, emptied)
        assert site.difficulty == pytest.approx(sum(deltas))
        assert site.difficulty_squares == pytest.approx(sum(delta**2 for delta in deltas))
    assert len(counted.vanished) == sum(site.sizes[64].vanished or 0 for site in counted.sites.values())


def test_what_is_expected_of_scales(counted: Preflight) -> None:
    sites, step = expected(counted)
    images = {name: site.images for name, site in counted.sites.items()}
    assert step == pytest.approx(sum(images[name] * sites[name].eta for name in sites) / sum(images.values()))
    assert sum(each.weight for each in sites.values()) == pytest.approx(1)
    assert sum(each.scaled_weight for each in sites.values()) == pytest.approx(1)
    for name, each in sites.items():
        assert each.eta == pytest.approx(1 + 2 * (counted.sites[name].difficulty or 0) / images[name])
        assert each.scaled_weight / each.weight == pytest.approx(each.eta / step)
    rng, site = np.random.default_rng(0), max(counted.sites.values(), key=lambda each: each.small or 0)
    small = site.small or 0
    assert small
    mean = (site.difficulty or 0) / small
    deltas = np.array([mean] * small + [0.0] * (site.images - small))
    flat = replace(counted, sites={"A": replace(site, difficulty_squares=float((deltas**2).sum()))})
    drawn = 1 + 2 * rng.choice(deltas, (20000, 4)).mean(axis=1)
    assert expected(flat)[0]["A"].spread == pytest.approx(drawn.std(), rel=0.03)


def test_counts_made_apart_merge_into_the_advice_of_one_run_over_all(data: Path, tmp_path: Path) -> None:
    whole = fedgs("preflight", str(data), "--out", str(tmp_path / "whole"), "--size", "64")
    files = []
    for site in ("Alder", "Birch", "Cedar"):
        apart = tmp_path / site / "frames"
        apart.mkdir(parents=True)
        (apart / site).symlink_to(data / site)
        build_index(apart, tmp_path / site / "index", size=32)
        fedgs("preflight", str(tmp_path / site / "index"), "--out", str(tmp_path / site / "out"), "--size", "64")
        files.append(str(tmp_path / site / "out" / "counts.json"))
    merged = fedgs("preflight", "merge", *files, "--out", str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "counts.json").read_text() == (tmp_path / "whole" / "counts.json").read_text()
    advice = [
        next(line for line in done.stdout.splitlines() if "FedGS is" in line or "Raise" in line)
        for done in (whole, merged)
    ]
    assert advice[0] == advice[1]
    assert (tmp_path / "merged" / "sizes.png").stat().st_size > 5000
    assert not (tmp_path / "merged" / "vanished.csv").exists()


def test_no_case_is_named_in_what_is_exchanged(data: Path, counted: Preflight, tmp_path: Path) -> None:
    write_counts(counted, tmp_path / "counts.json")
    text = (tmp_path / "counts.json").read_text()
    assert not [case for case in open_data(data, size=32).table["case"] if case in text]
    assert str(data) not in text
    assert read_counts(tmp_path / "counts.json") == replace(counted, vanished=())


def test_small_counts_are_left_out_on_request(counted: Preflight, tmp_path: Path) -> None:
    hidden = suppressed(counted)
    write_counts(hidden, tmp_path / "counts.json")
    content = json.loads((tmp_path / "counts.json").read_text())

    def whole_numbers(entry: Any, key: str = "") -> list[int]:
        if isinstance(entry, dict):
            return [number for name, value in entry.items() for number in whole_numbers(value, name)]
        if isinstance(entry, list):
            return [number for value in entry for number in whole_numbers(value, key)]
        return [entry] if isinstance(entry, int) and key not in ("smallest", "format", "batch_size", "size") else []

    assert not [number for number in whole_numbers(content["sites"]) if 0 < number < 5]
    assert read_counts(tmp_path / "counts.json") == hidden
    for site in content["sites"].values():
        assert site["areas"].count(None) != 1  # the sum would tell it
        assert (site["small"] is None) == (site["difficulty"] is None)
    assert advise(hidden).sentence


def made(small: int, images: int = 100, vanished: int = 0, **changes: Any) -> Any:
    """Counts of a site whose small lesions are of 500 pixels."""
    delta = difficulty_of_area(500, 512**2, base=100)
    lesions, areas = images, [0] * 19
    areas[8], areas[14] = small, images - small
    sizes = {128: (vanished, vanished, 3), 256: (vanished // 20, 0, 3), 512: (0, 0, 500)}
    content = {
        "images": images,
        "lesion_free": 0,
        "small": small,
        "tiny": small,
        "mixed": 0,
        "lesions": lesions,
        "small_lesions": small,
        "areas": areas,
        "difficulty": small * delta,
        "difficulty_squares": small * delta**2,
        "duplicates": 0,
        "near_duplicates": 0,
        "specks": 0,
        "implausible": 0,
        "sizes": {str(k): dict(zip(("vanished", "emptied", "smallest"), v, strict=True)) for k, v in sizes.items()},
    }
    return content | changes


def written(path: Path, **sites: Any) -> Path:
    rule = {"kind": "components", "fraction": 1 / 150, "base": 100.0}
    content = {"format": 1, "size": 128, "batch_size": 4, "small_rule": rule, "sites": sites}
    path.write_text(json.dumps(content))
    return path


def test_advice(tmp_path: Path) -> None:
    def of(**sites: Any) -> Any:
        return advise(read_counts(written(tmp_path / "counts.json", **sites)))

    worth = of(A=made(30), B=made(5))
    assert worth.verdict == "worthwhile"
    assert worth.sentence.startswith("FedGS is worthwhile: steps will count 3")
    nothing = of(A=made(0), B=made(1))
    assert nothing.verdict == "of no consequence"
    assert "Without small lesions: A; their steps count as before." in nothing.sentence
    larger = of(A=made(30, vanished=20), B=made(5))
    assert (larger.verdict, larger.larger) == ("raise the image size first", 256)
    assert "at 128 pixels 20 of 35 small lesions have no pixel left" in larger.sentence
    assert "256 pixels keep enough" in larger.sentence


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": -1}, "images must be a whole number of at least 1, got -1"),
        ({"small": -3}, "small must be a whole number of at least 0, got -3"),
        ({"small": 2.5}, "small must be a whole number"),
        ({"small": True}, "small must be a whole number"),
        ({"small": 101, "tiny": 0}, r"small \(of images\) is 101, of 100"),
        ({"tiny": 31}, r"tiny \(of small\) is 31, of 30"),
        ({"areas": [1] * 18}, "areas has 18 bins, not 19"),
        ({"areas": [1] * 19}, "areas add up to 19, not to its 100 lesions"),
        ({"difficulty": 31.0}, "difficulty is 31.0, of 30 small images"),
        ({"difficulty": 0.0}, "difficulty is 0.0, of 30 small images"),
        ({"difficulty": "many"}, "difficulty must be a number"),
        ({"difficulty_squares": 29.9}, "difficulty_squares"),
        ({"sizes": {}}, "sizes lacks 128"),
        ({"sizes": []}, r"sizes is \[\]"),
        ({"sizes": {"128": None}}, "128 pixels is no object of JSON but None"),
        ({"sizes": {"wide": {}}}, "sizes has 'wide', expected sides in pixels"),
        ({"areas": None}, "areas is None"),
        ({"almost_all": ["small"]}, "almost_all names 'small', which is not hidden"),
        ({"implausible": 70}, r"pixels of implausible images \(of all lesions\)"),
        (
            {"sizes": {"128": {"vanished": 0, "emptied": 0, "smallest": 512}}},
            "smallest lesion at 128 pixels has 512, of at most 511",
        ),
        (
            {"sizes": made(30)["sizes"] | {"512": {"vanished": 1, "emptied": 0, "smallest": 1}}},
            "1 lesions vanish at 512 pixels, at which they are counted",
        ),
        (
            {"sizes": {"128": {"vanished": 101, "emptied": 0, "smallest": 1}}},
            "vanished lesions at 128 pixels is 101, of 100",
        ),
        ({"lesion_free": 80}, r"small \(of images with lesions\) is 30, of 20"),
        ({"tiny": 20, "mixed": 20}, r"tiny and mixed \(of small\) is 40, of 30"),
        (
            {"lesions": 99, "areas": [0] * 8 + [30] + [0] * 5 + [69] + [0] * 4},
            r"images with lesions \(of lesions\) is 100",
        ),
        ({"small_lesions": 29}, r"small \(of small lesions\) is 30, of 29"),
        ({"small_lesions": 31}, r"small_lesions \(of areas that may be small\) is 31, of 30"),
        ({"difficulty_squares": 0.001}, "the least that difficulty_squares can be"),
        ({"duplicates": 1}, "duplicates is 1, but an image is none of itself"),
        ({"images": 10**400}, "images is more than 1,000,000,000"),
        ({"sizes": {"128": {"vanished": 0, "emptied": 9, "smallest": 3}}}, r"\(of lesions that vanish\) is 9, of 0"),
        ({"sizes": {"128": {"vanished": 0, "emptied": 0, "smallest": 0}}}, "the smallest lesion at 128 pixels has 0"),
        (
            {"sizes": {"128": {"vanished": 100, "emptied": 9, "smallest": 3}}},
            "100 of 100 lesions vanish, and the smallest",
        ),
        ({"sizes": {"128": {"vanished": 1}}}, "expected vanished, emptied and smallest"),
        ({"case": "A-0001"}, "unknown 'case'"),
    ],
)
def test_counts_that_cannot_be_are_refused_with_the_file_and_the_site(changes: Any, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "counts.json", Alder=made(30) | changes)
    with pytest.raises(DataError, match=rf"counts\.json: not what 'fedgs preflight' writes \(site 'Alder'.*{said}"):
        read_counts(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "x": 1}', "\x00", '{"format": NaN}'])
def test_what_is_no_counts_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(text)
    with pytest.raises(DataError, match="not what 'fedgs preflight' writes"):
        read_counts(tmp_path / "counts.json")
    with pytest.raises(DataError, match="No such file"):
        read_counts(tmp_path / "none.json")


def test_a_name_that_stands_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    text = written(tmp_path / "counts.json", A=made(30)).read_text()
    site = json.dumps(made(20))
    (tmp_path / "counts.json").write_text(text.replace('"sites": {', f'"sites": {{"A": {site}, '))
    with pytest.raises(DataError, match="'A' stands there twice"):
        read_counts(tmp_path / "counts.json")


def test_a_count_that_is_nearly_its_whole_is_hidden_and_taken_for_what_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "counts.json", A=made(57, images=60, vanished=57), B=made(3, images=60))
    plain = read_counts(path)
    hidden = suppressed(plain)
    site = hidden.sites["A"]
    assert (site.small, site.small_lesions, site.sizes[128].vanished, site.tiny) == (None, None, None, None)
    assert {"small", "small_lesions", "vanished@128", "tiny"} <= set(site.almost_all)
    assert not hidden.sites["B"].almost_all
    write_counts(hidden, path)
    assert read_counts(path) == hidden
    told, known = advise(hidden), advise(plain)
    assert told.verdict == known.verdict
    assert told.step == pytest.approx(known.step, rel=0.05)
    assert told.sites["A"].vanished == pytest.approx(known.sites["A"].vanished, abs=0.05)
    assert "Where counts are hidden, these numbers are approximate." in told.sentence
    assert "approximate" not in known.sentence
    shown = fedgs("preflight", "merge", str(path), "--out", str(tmp_path / "out")).stdout
    assert "all but 1 to 4" in " ".join(shown.split())


@pytest.mark.parametrize("small", range(56, 60))
def test_sums_do_not_tell_a_count_that_is_nearly_its_whole(small: int, tmp_path: Path) -> None:
    for difficulty, squares in ((50.0, 49.0), (50.0, 44.9), (50.0, 44.0), (55.9, 55.85), (56.5, 56.4)):
        if max(difficulty, difficulty**2 / squares) > small:
            continue
        sums = {"difficulty": difficulty, "difficulty_squares": squares}
        path = written(tmp_path / "counts.json", A=made(small, images=60, **sums))
        site = suppressed(read_counts(path)).sites["A"]
        bounds = [site.difficulty or 0.0]
        if site.difficulty and site.difficulty_squares:
            bounds.append(site.difficulty**2 / site.difficulty_squares)
        assert max(bounds) <= 56  # so that 56 to 59 all remain possible
        assert site.tiny is None


def test_sites_of_any_name_are_shown(tmp_path: Path) -> None:
    names = {"Klinik $\\frac$": made(30), "[red]A[/red]": made(3), "$": made(0)}
    done = fedgs("preflight", "merge", str(written(tmp_path / "a.json", **names)), "--out", str(tmp_path / "out"))
    assert "[red]A[/red]" in done.stdout
    assert (tmp_path / "out" / "sizes.png").stat().st_size > 5000
    for name in ("", " ", "A\nB", "A\u200b"):
        with pytest.raises(DataError, match="expected a name that can be printed"):
            read_counts(written(tmp_path / "a.json", **{name: made(30)}))


def test_a_file_that_is_not_there_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json: No such file or directory; name a file of counts"):
        read_counts(tmp_path / "a.json")


def test_no_sum_tells_what_was_left_out(tmp_path: Path) -> None:
    def hidden(**changes: Any) -> Any:
        return suppressed(read_counts(written(tmp_path / "counts.json", A=made(20, **changes)))).sites["A"]

    areas = [0] * 8 + [18, 2] + [0] * 4 + [79, 1] + [0] * 3
    found = hidden(areas=areas)
    assert found.small_lesions == 20
    assert [place for place, count in enumerate(found.areas) if count is None] == [8, 9, 14, 15]
    alone = hidden(areas=[0] * 8 + [20] + [0] * 5 + [79, 1] + [0] * 3)
    assert [place for place, count in enumerate(alone.areas) if count is None] == [14, 15]
    only = made(2, images=60, areas=[0] * 8 + [2] + [0] * 5 + [58] + [0] * 4)
    one = suppressed(read_counts(written(tmp_path / "counts.json", A=only))).sites["A"]
    assert (one.areas[8], one.areas[14], one.small_lesions, one.small, one.difficulty) == (None,) * 5
    rest = made(2, images=60, lesion_free=57, lesions=3, tiny=2, areas=[0] * 8 + [2] + [0] * 5 + [1] + [0] * 4)
    assert suppressed(read_counts(written(tmp_path / "counts.json", A=rest))).sites["A"].lesion_free is None


def test_two_sites_of_one_name_and_other_settings_do_not_merge(tmp_path: Path) -> None:
    one = written(tmp_path / "one.json", Alder=made(30))
    again = written(tmp_path / "again.json", Alder=made(20))
    with pytest.raises(ConfigError, match="there is a site 'Alder' already"):
        merge([(path, read_counts(path)) for path in (one, again)])
    other = replace(read_counts(written(tmp_path / "other.json", Birch=made(5))), batch_size=8)
    with pytest.raises(ConfigError, match="was counted with batch_size 8"):
        merge([(one, read_counts(one)), (tmp_path / "other.json", other)])


def test_lesions_that_vanish_are_listed_for_the_hospital_alone(tmp_path: Path) -> None:
    for site in ("A", "B"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / site / kind).mkdir(parents=True)
        for number in range(6):
            mask = np.zeros((512, 512), np.uint8)
            mask[1:3, 1:3] = 255 * (number == 0 and site == "A")
            mask[100:300, 100:300] = 255 * (number > 0 or site == "B")
            noise = np.random.default_rng([number, ord(site)]).integers(0, 255, (512, 512, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "data" / site / "images" / f"{number}.png")
            Image.fromarray(mask).save(tmp_path / "data" / site / "masks" / f"{number}.png")
    done = fedgs("preflight", str(tmp_path / "data"), "--size", "64", "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "vanished.csv").read_text() == "site,case,lesion_area\nA,0,4\n"
    assert "Raise the image size first: at 64 pixels 1 of 1 small lesions have no pixel left" in done.stdout
    assert "vanished.csv" in done.stdout
    assert math.isclose(SmallRule().fraction, 1 / 150)
