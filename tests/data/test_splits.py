"""Splits: what never straddles, what is tested once, where small lesions stand, and the published split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgs.data.splits import FOLDS, Leaks, leaks, published_split, read_split, split_cases, unknown_patients
from fedgs.errors import ConfigError, DataError

Row = tuple[str, str, str | None, bool, int, str]


def make_table(rows: Sequence[Row]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["site", "case", "patient", "is_small", "lesion_area", "image_hash"])
    table["image"] = "images/" + table["case"] + ".jpg"
    table["near_hash"] = [near_hash_of(image) for image in table["image_hash"]]
    return table.sort_values(["site", "case"], ignore_index=True)


def near_hash_of(image: str) -> str:
    """A hash that is near those of the images with the same name before the ~, and of no others."""
    look, _, detail = image.partition("~")
    digits = hashlib.sha256(look.encode()).hexdigest()
    return digits[:-4] + hashlib.sha256(detail.encode()).hexdigest()[:4] if detail else digits


@st.composite
def tables(draw: st.DrawFn, shared_images: bool = True) -> pd.DataFrame:
    """Some sites with patients of any size, unknown patients and (also between sites) duplicates and near ones."""
    rows = []
    for site in "ABC"[: draw(st.integers(1, 3))]:
        patients = draw(st.integers(1, 12))
        for number in range(draw(st.integers(1, 25))):
            patient = draw(st.one_of(st.none(), st.integers(0, patients)))
            small = draw(st.integers(0, 5)) == 0
            area = 100 if small else draw(st.sampled_from([0, 9000]))
            name = f"{number}_{patient}"
            image = f"twin{draw(st.integers(0, 9))}" if draw(st.integers(0, 19)) == 0 else f"{site}{name}"
            image = f"near{draw(st.integers(0, 9))}~{image}" if draw(st.integers(0, 9)) == 0 else image
            if not shared_images:
                image = site + image
            rows.append((site, name, None if patient is None else str(patient), small, area, image))
    return make_table(rows)


def uniform_table(sites: dict[str, int], small_every: int = 10, free_every: int = 7) -> pd.DataFrame:
    rows = []
    for site, size in sites.items():
        for i in range(size):
            small = i % small_every == 0
            area = 50 if small else (0 if i % free_every == 1 else 9000)
            rows.append((site, f"case{i:04d}", None, small, area, f"{site}{i}"))
    return make_table(rows)


def group_of_case(table: pd.DataFrame) -> list[int]:
    """Reference: connected groups by repeated merging of whole labels."""
    label = list(range(len(table)))
    changed = True
    while changed:
        changed = False
        looks = table.image_hash.str.split("~").str[0]
        for keys in (
            list(zip(table.site, table.patient, strict=True)),
            list(zip(table.image_hash, strict=True)),
            list(zip(looks, strict=True)),
        ):
            lowest: dict[tuple[object, ...], int] = {}
            for row, key in enumerate(keys):
                if not pd.isna(key[-1]):
                    lowest[key] = min(label[row], lowest.get(key, label[row]))
            for row, key in enumerate(keys):
                if not pd.isna(key[-1]) and lowest[key] < label[row]:
                    label[row], changed = lowest[key], True
    return label


def small_groups(table: pd.DataFrame, site: str) -> int:
    labels = pd.Series(group_of_case(table))
    return labels[(table.site == site) & table.is_small].nunique()


@settings(max_examples=25)
@given(table=tables(), fold=st.integers(0, 4), leave_out=st.booleans(), seed=st.integers(0, 3))
def test_no_group_straddles_and_nothing_of_the_unseen_site_is_trained_on(
    table: pd.DataFrame, fold: int, leave_out: bool, seed: int
) -> None:
    unseen = "A" if leave_out and table.site.nunique() > 1 else None
    split = split_cases(table, fold=fold, unseen_site=unseen, seed=seed)
    assert split[["site", "case"]].equals(table[["site", "case"]])
    assert list(split.columns) == ["site", "case", "patient", "part"]
    groups = split.assign(group=group_of_case(table))
    for _, group in groups.groupby("group"):
        if (group.site == unseen).any():
            assert (group.part[group.site == unseen] == "test_out").all()
            assert (group.part[group.site != unseen] == "excluded").all()
        else:
            assert group.part.nunique() == 1
            assert group.part.iloc[0] in ("train", "validation", "test_in")
    assert not leaks(table, split)


@settings(max_examples=25)
@given(table=tables(), leave_out=st.booleans(), seed=st.integers(0, 3))
def test_each_seen_case_is_tested_exactly_once_over_the_folds(table: pd.DataFrame, leave_out: bool, seed: int) -> None:
    unseen = "A" if leave_out and table.site.nunique() > 1 else None
    splits = [split_cases(table, fold=fold, unseen_site=unseen, seed=seed) for fold in range(FOLDS)]
    tested = np.sum([split.part == "test_in" for split in splits], axis=0)
    aside = splits[0].part.isin(["test_out", "excluded"])
    assert (tested[~aside] == 1).all()
    assert (tested[aside] == 0).all()
    for split in splits:
        assert split.part.isin(["test_out", "excluded"]).equals(aside)


@settings(max_examples=25)
@given(table=tables(), order=st.randoms(use_true_random=False), fold=st.integers(0, 4))
def test_the_order_of_rows_does_not_matter(table: pd.DataFrame, order: random.Random, fold: int) -> None:
    rows = list(range(len(table)))
    order.shuffle(rows)
    shuffled = table.iloc[rows]  # With an index that is out of order, too.
    pd.testing.assert_frame_equal(split_cases(shuffled, fold=fold), split_cases(table, fold=fold))


@settings(max_examples=40)
@given(table=tables(shared_images=False), seed=st.integers(0, 3))
def test_small_lesions_stand_in_every_part_where_they_can(table: pd.DataFrame, seed: int) -> None:
    splits = [split_cases(table, fold=fold, seed=seed) for fold in range(FOLDS)]
    for site in table.site.unique():
        groups = small_groups(table, site)
        with_small = [set(split.part[(split.site == site) & table.is_small]) for split in splits]
        assert sum("test_in" in parts for parts in with_small) == min(groups, FOLDS)
        assert sum("train" in parts for parts in with_small) == (FOLDS if groups > 1 else 4 * groups)
        assert sum("validation" in parts for parts in with_small) == {0: 0, 1: 0, 2: 3}.get(groups, FOLDS)


@settings(max_examples=40)
@given(table=tables(shared_images=False), fold=st.integers(0, 4))
def test_training_and_validation_exist_where_groups_suffice(table: pd.DataFrame, fold: int) -> None:
    split = split_cases(table, fold=fold).assign(group=group_of_case(table))
    for _, site in split.groupby("site"):
        left = site[site.part != "test_in"].group.nunique()
        assert (site.part == "train").any() == (left >= 1)
        assert (site.part == "validation").any() == (left >= 2)


@pytest.mark.parametrize("size", [20, 57, 208, 457])
def test_unlinked_cases_are_balanced_to_a_case(size: int) -> None:
    table = uniform_table({"A": size})
    splits = [split_cases(table, fold=fold) for fold in range(FOLDS)]
    for kind in (table.case != "", table.is_small, table.lesion_area == 0):
        tested = [int((split.part[kind] == "test_in").sum()) for split in splits]
        assert max(tested) - min(tested) <= 1
    for split in splits:
        assert abs((split.part == "validation").sum() - 0.1 * size) <= 2
        free = split.part[table.lesion_area == 0]
        assert abs((free == "validation").sum() - 0.1 * len(free)) <= 1


def test_patients_keep_the_sizes_near_their_shares() -> None:
    sizes = [19, 16, 13, 13, 12, 10, 9, 9, 9, *[8] * 4, *[7] * 3, *[6] * 3, *[5] * 5, *[4] * 6, 3, 2]
    rows = [
        ("A", f"{patient}-{i}", str(patient), i == 0 and patient % 2 == 0, 0 if patient == 3 else 99, f"{patient}-{i}")
        for patient, size in enumerate(sizes)
        for i in range(size)
    ]
    table = make_table(rows)
    for fold in range(FOLDS):
        shares = split_cases(table, fold=fold).part.value_counts(normalize=True)
        assert shares["train"] == pytest.approx(0.7, abs=0.06)
        assert shares["validation"] == pytest.approx(0.1, abs=0.04)
        assert shares["test_in"] == pytest.approx(0.2, abs=0.04)


def test_seeds_differ_and_a_site_does_not_depend_on_others() -> None:
    table = uniform_table({"A": 60, "B": 45})
    assert not split_cases(table, seed=0).equals(split_cases(table, seed=1))
    alone = split_cases(table[table.site == "A"])
    together = split_cases(table)
    beside_unseen = split_cases(table, unseen_site="B")
    assert alone.part.tolist() == together.part[:60].tolist() == beside_unseen.part[:60].tolist()


def test_one_patient_is_a_whole_site() -> None:
    table = make_table([("A", f"c{i}", "p", i < 3, 100, str(i)) for i in range(30)])
    parts = [set(split_cases(table, fold=fold).part) for fold in range(FOLDS)]
    assert sorted(parts, key=str) == [{"test_in"}, *[{"train"}] * 4]


def test_case_linked_to_the_unseen_site_through_others_is_excluded() -> None:
    rows: list[Row] = [("A", f"a{i}", None, False, 9, f"a{i}") for i in range(10)]
    rows += [("A", "chain0", "p", False, 9, "x0"), ("A", "chain1", "p", False, 9, "x1")]
    rows += [
        ("B", "twin", None, False, 9, "x1"),
        ("C", "far", None, False, 9, "x0"),
        ("C", "free", None, False, 9, "x2"),
    ]
    split = split_cases(make_table(rows), unseen_site="B").set_index(["site", "case"]).part
    assert split["A", "chain0"] == split["A", "chain1"] == split["C", "far"] == "excluded"
    assert split["B", "twin"] == "test_out"
    assert split["C", "free"] in ("train", "test_in")
    assert (split["A"][:10] != "excluded").all()


def test_validation_of_one_site_leaves_training_of_another_its_small_lesions() -> None:
    rows: list[Row] = [(site, f"plain{i:02d}", None, False, 9000, f"{site}{i}") for site in "AB" for i in range(40)]
    rows += [("A", f"big{i}", "big", True, 9, f"big{i}") for i in range(15)]
    rows += [("A", "twin", None, True, 9, "twin"), ("B", "twin", None, True, 9, "twin")]
    table = make_table(rows)
    for seed in range(5):
        parts = [
            split_cases(table, fold=fold, seed=seed).set_index(["site", "case"]).part["B", "twin"] for fold in range(5)
        ]
        assert sorted(parts) == ["test_in", *["train"] * 4]


def test_small_lesions_spread_also_where_a_large_group_reaches_in_from_another_site() -> None:
    rows: list[Row] = [("A", f"bulk{i:02d}", "bulk", False, 9000, f"bulk{i}") for i in range(30)]
    rows += [("B", f"bulk{i}", "bulk", True, 9, f"bulk{i}") for i in range(6)]
    rows += [("A", f"small{i}", None, True, 9, f"small{i}") for i in range(5)]
    rows += [("A", f"plain{i:02d}", None, False, 9000, f"plain{i}") for i in range(15)]
    table = make_table(rows)
    for fold in range(FOLDS):
        split = split_cases(table, fold=fold)
        assert split.part[(table.site == "A") & table.is_small].value_counts()["test_in"] == 1


def test_a_site_that_repeats_another_still_has_every_part() -> None:
    table = make_table([(site, f"c{i:02d}", None, i < 6, 9, f"image{i}") for site in "AB" for i in range(40)])
    for fold in range(FOLDS):
        split = split_cases(table, fold=fold)
        for _, site in split.groupby("site"):
            assert site.part.value_counts().to_dict() == {"train": 28, "test_in": 8, "validation": 4}
        assert set(split.part[table.is_small]) == {"train", "validation", "test_in"}


def test_equal_patient_numbers_of_two_sites_are_two_patients() -> None:
    table = make_table([(site, f"c{i}", str(i), False, 9, f"{site}{i}") for site in "AB" for i in range(25)])
    assert (split_cases(table, unseen_site="B").part != "excluded").all()


def test_wrong_arguments_are_named() -> None:
    table = uniform_table({"C1": 20, "C2": 20})
    with pytest.raises(ConfigError, match=r"unknown site 'c1'; did you mean 'C1'\? .* C1, C2"):
        split_cases(table, unseen_site="c1")
    for fold in (-1, 5, True):
        with pytest.raises(ConfigError, match="from 0 to 4"):
            split_cases(table, fold=fold)
        with pytest.raises(ConfigError, match="from 0 to 4"):
            published_split(table, fold=fold)
    with pytest.raises(ConfigError, match="only site"):
        split_cases(table[table.site == "C1"], unseen_site="C1")


def published_reference(names: list[str], fold: int) -> dict[str, str]:
    """What KFold(5) and train_test_split(test_size=0.5, random_state=0) of scikit-learn are documented to do."""
    names = sorted(names)
    sizes = [len(names) // 5 + (1 if i < len(names) % 5 else 0) for i in range(5)]
    start = sum(sizes[:fold])
    held_out = names[start : start + sizes[fold]]
    tests = int(np.ceil(0.5 * len(held_out)))
    order = np.random.RandomState(0).permutation(len(held_out))
    parts = dict.fromkeys(names, "train")
    parts.update({held_out[i]: "test_in" for i in order[:tests]})
    parts.update({held_out[i]: "validation" for i in order[tests:]})
    return parts


@pytest.mark.parametrize("fold", range(FOLDS))
@pytest.mark.parametrize("size", [10, 33, 208])
def test_published_split_is_the_references(size: int, fold: int) -> None:
    table = uniform_table({"A": size, "B": 12})
    split = published_split(table.sample(frac=1, random_state=3), fold=fold, unseen_site="B")
    expected = published_reference([f"case{i:04d}.jpg" for i in range(size)], fold)
    found = split[split.site == "A"]
    assert dict(zip(found.case + ".jpg", found.part, strict=True)) == expected
    assert (split.part[split.site == "B"] == "test_out").all()
    assert split[["site", "case"]].equals(table[["site", "case"]])


def test_published_split_sorts_whole_file_names() -> None:
    table = uniform_table({"A": 10})
    table["case"] = [f"x{i}" for i in range(8)] + ["a", "a-b"]  # As files, "a-b.jpg" < "a.jpg".
    table["image"] = "some/folder/" + table["case"] + ".jpg"
    split = published_split(table, fold=0).set_index("case").part
    expected = published_reference([f"{case}.jpg" for case in table.case], 0)
    assert {f"{case}.jpg": part for case, part in split.items()} == expected


def test_published_split_of_a_tiny_site_says_what_it_needs() -> None:
    with pytest.raises(DataError, match=r"site 'A'.*at least 10 cases.*found 9"):
        published_split(uniform_table({"A": 9}), fold=0)


def test_leaks_are_counted_per_site() -> None:
    table = make_table(
        [
            ("A", "a0", "p", False, 9, "0"),
            ("A", "a1", "p", False, 9, "1"),
            ("A", "a2", "q", False, 9, "2"),
            ("A", "a3", None, False, 9, "3"),
            ("B", "b0", "p", False, 9, "3"),
            ("B", "b1", "p", False, 9, "4"),
            ("B", "b2", "r", False, 9, "5"),
        ]
    )
    split = table[["site", "case"]].assign(
        part=["train", "test_in", "train", "train", "test_out", "test_out", "excluded"]
    )
    assert leaks(table, split) == Leaks(
        patients={"A": 1, "B": 0},
        known_patients={"A": 2, "B": 2},
        duplicates={"A": 1, "B": 1},
        near_duplicates={"A": 0, "B": 0},
    )
    split["part"] = "train"
    assert not leaks(table, split)
    assert unknown_patients(table) == {"A": 1, "B": 0}


def test_near_duplicates_that_stand_in_several_parts_are_counted_per_site() -> None:
    images = {
        "A": ["one~a", "one~b", "two~a", "two~b", "two~b", "copy", "copy"],
        "B": ["two~c", "three~a", "three~b", "four~a", "four~b"],
    }
    table = make_table(
        [(site, f"c{i}", None, False, 9, image) for site, names in images.items() for i, image in enumerate(names)]
    )
    parts = {
        "A": ["train", "test_in", "train", "train", "train", "train", "test_in"],
        "B": ["test_out", "train", "train", "validation", "excluded"],
    }
    split = table[["site", "case"]].assign(part=[*parts["A"], *parts["B"]])
    found = leaks(table, split)
    assert found.near_duplicates == {"A": 2, "B": 1}
    assert found.duplicates == {"A": 1, "B": 0}
    assert found
    split.loc[split.case == "c1", "part"] = "train"
    split.loc[split.site == "B", "part"] = "train"
    assert leaks(table, split).near_duplicates == {"A": 0, "B": 0}


def test_near_duplicates_of_the_unseen_site_are_excluded() -> None:
    rows: list[Row] = [("A", f"a{i}", None, False, 9, f"a{i}") for i in range(10)]
    rows += [("A", "near", "p", False, 9, "look~1"), ("A", "same patient", "p", False, 9, "x")]
    rows += [("B", "b", None, False, 9, "look~2")]
    split = split_cases(make_table(rows), unseen_site="B").set_index(["site", "case"]).part
    assert split["A", "near"] == split["A", "same patient"] == "excluded"
    assert (split["A"][:10] != "excluded").all()


def real_table(shared: Path) -> pd.DataFrame:
    rows = []
    for images in sorted((shared / "data" / "polypgen").glob("data_*/images_*")):
        site = images.name.removeprefix("images_")
        for path in images.iterdir():
            head = path.stem.split("_")[0]
            patient = head if site == "C4" or "OLCV1" in head else None
            rows.append((site, path.stem, patient, False, 9, f"{site}/{path.stem}"))
    return make_table(rows)


def test_published_split_mixes_the_patients_of_the_real_c4_and_ours_does_not(shared: Path) -> None:
    table = real_table(shared)
    mixed = [leaks(table, published_split(table, fold=fold)) for fold in range(FOLDS)]
    assert {found.known_patients["C4"] for found in mixed} == {31}
    assert [found.patients["C4"] for found in mixed] == [4, 7, 5, 8, 9]
    assert all(not leaks(table, split_cases(table, fold=fold)) for fold in range(FOLDS))
    assert unknown_patients(table)["C5"] == 208


def test_stored_split_comes_back(tmp_path: Path) -> None:
    table = uniform_table({"A": 20, "NA": 15})
    table.loc[3, "patient"] = "007"
    split = split_cases(table, unseen_site="NA")
    split.sample(frac=1, random_state=0).to_csv(tmp_path / "split.csv", index=False)
    pd.testing.assert_frame_equal(read_split(tmp_path / "split.csv", table), split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"site,case\nA,a\n", "lacks the column 'part'"),
        (b"site,case,part\nA,a,test\nA,b,train\n", "unknown part 'test'"),
        (b"site,case,part\nA,a,train\n", r"lacks: A/b \(1 of 2"),
        (b"site,case,part\nA,a,train\nA,b,train\nA,c,train\n", "not in the data: A/c"),
        (b"site,case,part\nA,a,train\nA,b,train\nA,b,train\n", "twice: A/b"),
    ],
)
def test_foreign_or_broken_split_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    table = make_table([("A", "a", None, False, 9, "0"), ("A", "b", None, False, 9, "1")])
    path = tmp_path / "split.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_split(path, table)
    assert str(path) in str(raised.value)
