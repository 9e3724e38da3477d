"""Near duplicates: what a copy may have gone through, what is no copy, and that all of them are found."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedgs.data import find_cases, near, phantom
from fedgs.data.images import read_image
from fedgs.data.index import Index
from fedgs.data.linked import group_names, linked_rows, near_rows, shown_among
from fedgs.data.near import MOST_BITS, MOST_COARSE_BITS, hash_distance, near_groups, near_hash, near_pairs
from fedgs.data.splits import FOLDS, leaks, published_split, split_cases

Frame = NDArray[np.uint8]
BITS = 256


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    """Forty frames of each of three generated hospitals."""
    folder = tmp_path_factory.mktemp("near") / "phantom"
    phantom.generate(folder, cases_per_site=40, size=160)
    return [read_image(case.image) for case in find_cases(folder)]


def encoded(frame: Frame, quality: int = 50) -> Frame:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def scaled(frame: Frame, factor: float) -> Frame:
    height, width = frame.shape[:2]
    return np.asarray(Image.fromarray(frame).resize((round(width * factor), round(height * factor))))


def brightened(frame: Frame, factor: float) -> Frame:
    return np.clip(frame * factor, 0, 255).astype(np.uint8)


COPIES: dict[str, Callable[[Frame], Frame]] = {
    "encoded again": encoded,
    "encoded badly": lambda frame: encoded(frame, 20),
    "smaller": lambda frame: scaled(frame, 0.9),
    "half as large": lambda frame: scaled(frame, 0.5),
    "larger": lambda frame: scaled(frame, 3),
    "squeezed": lambda frame: np.asarray(Image.fromarray(frame).resize((200, 100))),
    "brighter": lambda frame: brightened(frame, 1.05),
    "darker": lambda frame: brightened(frame, 0.85),
    "grey": lambda frame: np.asarray(Image.fromarray(frame).convert("L"))[:, :, np.newaxis],
    "in a dark border": lambda frame: np.pad(frame, ((8, 8), (120, 4), (0, 0)), constant_values=6),
    "all of it": lambda frame: scaled(brightened(encoded(frame), 1.05), 0.9),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_a_near_duplicate_of_its_frame_and_of_no_other(frames: list[Frame], name: str) -> None:
    copies = [COPIES[name](frame) for frame in frames[::4]]
    hashes = [near_hash(image) for image in [*frames, *copies]]
    pairs = [(4 * copy, len(frames) + copy) for copy in range(len(copies))]
    assert near_pairs(hashes).tolist() == [list(pair) for pair in pairs]


def test_a_border_cut_off_changes_little(frames: list[Frame]) -> None:
    bordered = np.pad(frames[0], ((20, 20), (90, 30), (0, 0)), constant_values=3)
    assert hash_distance(near_hash(bordered), near_hash(bordered[15:-15, 60:-20])) < MOST_BITS / 4


def test_mirrored_copies_are_other_pictures(frames: list[Frame]) -> None:
    for frame in frames[::10]:
        turned = [frame, frame[:, ::-1], frame[::-1], frame[::-1, ::-1]]
        assert near_groups([near_hash(np.ascontiguousarray(image)) for image in turned]) == [None] * 4


def test_black_and_constant_frames_resemble_nothing() -> None:
    rng = np.random.default_rng(0)
    flat = [np.full((96, 128, 3), level, dtype=np.uint8) for level in (0, 1, 40, 255)]
    dark = [rng.integers(0, 9, (96, 128, 3), dtype=np.uint8) for _ in range(4)]
    dim = [np.clip(rng.normal(30, 4, (96, 128, 1)), 0, 255).astype(np.uint8) for _ in range(4)]
    hashes = [near_hash(frame) for frame in [*flat, *dark, *dim]]
    assert hashes == [""] * 12
    assert near_groups(hashes) == [None] * 12
    assert near_pairs(hashes).shape == (0, 2)


def test_frames_of_any_shape_have_a_hash() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 1), (1, 700, 3), (700, 1, 1), (8, 8, 3), (1080, 300, 1)):
        assert len(near_hash(rng.integers(0, 256, shape, dtype=np.uint8))) in (0, BITS // 4)
    assert len(near_hash(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8))) == BITS // 4


def test_a_frequency_that_is_absent_has_no_sign() -> None:
    columns = np.random.default_rng(1).integers(0, 256, 640, dtype=np.uint8)
    frame = np.broadcast_to(columns[np.newaxis, :, np.newaxis], (480, 640, 1))
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(near_hash(np.ascontiguousarray(frame))), np.uint8))
    coarse = bits[:64].reshape(8, 8)
    assert coarse[0].any()
    assert not coarse[1:].any()


def random_hashes(rng: np.random.Generator, count: int) -> list[str]:
    """Families of hashes whose distances lie about both thresholds, with some repeated and some empty ones."""
    bits = np.repeat(rng.integers(0, 2, (count // 5, BITS)), 5, axis=0)
    for row in bits:
        row[rng.choice(64, rng.integers(4, 8), replace=False)] ^= 1
        row[64 + rng.choice(BITS - 64, rng.integers(30, 50), replace=False)] ^= 1
    hashes = [row.tobytes().hex() for row in np.packbits(bits.astype(np.uint8), axis=1)]
    return [*hashes, *hashes[:4], hashes[0], "", ""]


def conditions(one: str, other: str) -> tuple[bool, bool]:
    """Whether the lowest frequencies are near enough, and whether all are."""
    if not one or not other:
        return False, False
    return hash_distance(one[:16], other[:16]) <= MOST_COARSE_BITS, hash_distance(one, other) <= MOST_BITS


@pytest.mark.parametrize(("count", "block"), [(100, near._CANDIDATES), (300, near._CANDIDATES), (300, 7)])
def test_pairs_and_groups_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch, count: int, block: int) -> None:
    monkeypatch.setattr(near, "_CANDIDATES", block)
    hashes = random_hashes(np.random.default_rng(block), count)
    found = {(a, b): conditions(hashes[a], hashes[b]) for a, b in combinations(range(len(hashes)), 2)}
    pairs = [pair for pair, met in found.items() if all(met)]
    for kind in ((True, True), (True, False), (False, True)):
        assert list(found.values()).count(kind) >= 10
    assert [tuple(pair) for pair in near_pairs(hashes).tolist()] == pairs
    lowest = list(range(len(hashes)))
    for _ in hashes:
        for a, b in pairs:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
    in_pair = {row for pair in pairs for row in pair}
    assert near_groups(hashes) == [lowest[row] if row in in_pair else None for row in range(len(hashes))]


def test_the_order_of_frames_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    hashes = random_hashes(rng, 200)
    order = rng.permutation(len(hashes))

    def groups(labels: list[int | None], names: list[int]) -> set[frozenset[int]]:
        kinds = {label for label in labels if label is not None}
        return {frozenset(n for n, own in zip(names, labels, strict=True) if own == kind) for kind in kinds}

    shuffled = near_groups([hashes[row] for row in order])
    assert groups(shuffled, order.tolist()) == groups(near_groups(hashes), list(range(len(hashes))))


def test_what_is_linked_is_what_a_walk_over_all_links_finds() -> None:
    rng = np.random.default_rng(5)
    count, looks = 120, [rng.bytes(32).hex() for _ in range(300)]
    table = pd.DataFrame(
        {
            "site": rng.choice(["A", "B"], count),
            "patient": [None if rng.random() < 0.7 else str(rng.integers(20)) for _ in range(count)],
            "case": [f"{number:03}" for number in range(count)],
            "image_hash": [f"{number}" for number in rng.integers(0, 400, count)],
            "near_hash": [
                looks[look][:-1] + detail for look, detail in zip(rng.integers(0, 300, count), "05af" * 30, strict=True)
            ],
        }
    )
    near = near_groups(table["near_hash"].tolist())

    def are_alike(a: int, b: int, with_patients: bool) -> bool:
        one, other = table.iloc[a], table.iloc[b]
        known = with_patients and pd.notna(one["patient"])
        return (
            (known and (one["site"], one["patient"]) == (other["site"], other["patient"]))
            or one["image_hash"] == other["image_hash"]
            or (near[a] is not None and near[a] == near[b])
        )

    def walk(start: int, with_patients: bool) -> set[int]:
        found, todo = {start}, [start]
        while todo:
            row = todo.pop()
            new = [b for b in range(count) if b not in found and are_alike(row, b, with_patients)]
            found.update(new)
            todo += new
        return found

    groups = {frozenset(walk(row, with_patients=True)) for row in range(count)}
    assert [set(rows) for rows in linked_rows(table)] == sorted(map(set, groups), key=min)
    assert 10 < len(groups) < count - 20
    names = group_names(table)
    assert {frozenset(row for row in range(count) if names[row] == name) for name in names} == groups
    assert all(
        names[row] == f"{table['site'][min(group)]}/{table['case'][min(group)]}" for group in groups for row in group
    )
    before, after = table.iloc[:60], table.iloc[60:]
    expected = [min(walk(row, with_patients=False)) < 60 for row in range(60, count)]
    assert shown_among(after, before).tolist() == expected
    assert 5 < sum(expected) < 55


def test_no_frames_and_one_frame_have_no_near_duplicates() -> None:
    assert near_groups([]) == []
    assert near_groups(["0f" * 32]) == [None]
    assert near_pairs([]).shape == (0, 2)


def test_the_near_duplicates_of_five_hospitals(real_index: Index) -> None:
    table = real_index.table
    assert (table["near_hash"] != "").all()
    pairs = near_pairs(table["near_hash"].tolist())
    equal = table["image_hash"].to_numpy()[pairs]
    assert (len(pairs), int((equal[:, 0] == equal[:, 1]).sum())) == (16, 3)
    groups = near_rows(table)
    assert sorted(map(len, groups)) == [*[2] * 10, 3]
    assert all(table["site"].iloc[rows].nunique() == 1 for rows in groups)
    assert all(table["patient"].iloc[rows].nunique(dropna=False) == 1 for rows in groups)
    assert table["site"].iloc[[rows[0] for rows in groups]].value_counts().to_dict() == {
        **{"C1": 3, "C2": 4, "C3": 1, "C4": 2, "C5": 1}
    }


def test_the_published_split_of_five_hospitals_parts_near_duplicates_and_ours_does_not(real_index: Index) -> None:
    table = real_index.table
    for fold in range(FOLDS):
        assert not any(leaks(table, split_cases(table, fold=fold)).near_duplicates.values())
    published = [leaks(table, published_split(table, fold=fold)).near_duplicates for fold in range(FOLDS)]
    assert [sum(found.values()) for found in published] == [3, 1, 0, 2, 0]


def test_a_video_that_stands_still_costs_no_square_of_memory() -> None:
    draw = np.random.default_rng(0)
    scene = draw.integers(0, 256, 32, dtype=np.uint8)
    hashes = []
    for _ in range(3000):
        frame = scene.copy()
        frame[draw.integers(8, 32, 4)] ^= np.uint8(1) << draw.integers(0, 8, 4, dtype=np.uint8)
        hashes.append(frame.tobytes().hex())
    tracemalloc.start()
    groups = near_groups(hashes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(groups) == {0}
    assert peak < 400 * 2**20
