"""Counts the near duplicates of PolypGen and what each split makes of them.

    python docs/results/near_duplicates.py DATA

Prints the tables of near-duplicates.md and draws its figure; the index goes where `FEDGS_CACHE` says.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fedgs.data.images import read_image
from fedgs.data.index import Index, open_data
from fedgs.data.linked import near_rows
from fedgs.data.near import hash_distance, near_hash, near_pairs
from fedgs.data.splits import FOLDS, published_split, split_cases

FIGURE = Path(__file__).parent / "near-duplicates" / "pairs.jpg"
DRAWN = 6
SEEN = {
    "EndoCV2021_00": "1028-1029 1028-1030 1029-1031 1030-1031 1121-1340 1160-1161 1281-1282 1322-1323 1383-1386 "
    "1395-1396 1428-1429",
    "C3_EndoCV2021_00": "26-27 82-83 379-380 484-485",
    "EndoCV2021_C5_50000": "025-026 070-071 070-072 071-072 081-083 082-083 150-151 166-168 251-252 253-254 268-269",
}
"""Pairs of frames of unknown patients that show one scene from a moved camera: found by eye, not by the hash."""
Frame = NDArray[np.uint8]


def encoded(frame: Frame, quality: int) -> Frame:
    """A frame as JPEG and back."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(frame: Frame, height: int, width: int) -> Frame:
    """A frame at another size."""
    return np.asarray(Image.fromarray(frame).resize((width, height)))


def levels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Frame], Frame]:
    """What changes the levels of a frame, 0 to 255."""
    return lambda frame: np.clip(change(frame.astype(np.float32)), 0, 255).astype(np.uint8)


def cut(share: float) -> Callable[[Frame], Frame]:
    """What cuts a share off each side of a frame."""

    def of(frame: Frame) -> Frame:
        rows, columns = (round(share * side) for side in frame.shape[:2])
        return frame[rows : frame.shape[0] - rows, columns : frame.shape[1] - columns]

    return of


def bordered(value: int) -> Callable[[Frame], Frame]:
    """What puts a border of a tenth of its width around a frame."""
    return lambda frame: np.pad(
        frame, ((frame.shape[1] // 10,) * 2, (frame.shape[1] // 10,) * 2, (0, 0)), constant_values=value
    )


COPIES: Mapping[str, Callable[[Frame], Frame]] = {
    "JPEG, quality 50": lambda frame: encoded(frame, 50),
    "JPEG, quality 20": lambda frame: encoded(frame, 20),
    "scaled by 0.9": lambda frame: resized(frame, round(0.9 * frame.shape[0]), round(0.9 * frame.shape[1])),
    "scaled by 0.5": lambda frame: resized(frame, frame.shape[0] // 2, frame.shape[1] // 2),
    "squeezed to 256 x 256": lambda frame: resized(frame, 256, 256),
    "levels times 1.05": levels(lambda frame: frame * 1.05),
    "levels times 0.85": levels(lambda frame: frame * 0.85),
    "in a dark border (level 6)": bordered(6),
    "levels plus 20": levels(lambda frame: frame + 20),
    "contrast times 0.9 about level 128": levels(lambda frame: 128 + 0.9 * (frame - 128)),
    "contrast times 1.1 about level 128": levels(lambda frame: 128 + 1.1 * (frame - 128)),
    "contrast times 0.7 about level 128": levels(lambda frame: 128 + 0.7 * (frame - 128)),
    "gamma 0.8": levels(lambda frame: 255 * (frame / 255) ** 0.8),
    "gamma 1.25": levels(lambda frame: 255 * (frame / 255) ** 1.25),
    "in a white border": bordered(255),
    "2 % cut off each side": cut(0.02),
    "5 % cut off each side": cut(0.05),
}
SPLITS: Mapping[str, Callable[[pd.DataFrame, int], pd.DataFrame]] = {
    "published": lambda table, fold: published_split(table, fold=fold),
    "patients and equal images": lambda table, fold: split_cases(table.assign(near_hash=""), fold=fold),
    "also near duplicates (default)": lambda table, fold: split_cases(table, fold=fold),
}


def main(data: Path) -> None:
    """Prints every table of the page."""
    index = open_data(data, adapter="polypgen", size=256)
    table = index.table
    pairs = near_pairs(table["near_hash"].tolist())
    print_all_pairs(table)
    print_counts(table)
    print_pairs(table, pairs)
    for name, split in SPLITS.items():
        splits = [split(table, fold) for fold in range(FOLDS)]
        print_twins_in_training(name, table, pairs, splits)
        print_twins_in_training(f"{name}, with pairs seen by eye", table, np.concatenate([pairs, seen(table)]), splits)
    print_copies(index)
    print_in_run(table, pairs)
    print_patients(table, pairs)
    draw(index, [pair for pair in pairs.tolist() if differs(table, pair)])


def differs(table: pd.DataFrame, pair: list[int]) -> bool:
    """Whether a pair is more than two copies of the same pixels."""
    return table["image_hash"].iloc[pair].nunique() > 1


def seen(table: pd.DataFrame) -> np.ndarray:
    """Rows of the pairs in `SEEN`."""
    row = {case: number for number, case in enumerate(table["case"])}
    pairs = [(prefix, *pair.split("-")) for prefix, listed in SEEN.items() for pair in listed.split()]
    return np.array([(row[prefix + one], row[prefix + other]) for prefix, one, other in pairs])


def print_in_run(table: pd.DataFrame, pairs: np.ndarray) -> None:
    """What the split of the runs in polypgen-128.md, made without near duplicates, has of them."""
    old, new = (split_cases(cases, unseen_site="C5") for cases in (table.assign(near_hash=""), table))
    print("\nC5 unseen, fold 0, seed 0: cases whose part changes", int((old["part"] != new["part"]).sum()))
    both = {"by hash": pairs, "and by eye": np.concatenate([pairs, seen(table)])}
    for name, known in both.items():
        for part in ("validation", "test_in", "test_out"):
            tested = old["part"] == part
            counts = [int((tested & has_twin(table, known, old, parts)).sum()) for parts in (["train"], ["validation"])]
            print(name, part, f"{counts[0]} of {int(tested.sum())} with a twin in training, {counts[1]} in validation")


def print_all_pairs(table: pd.DataFrame) -> None:
    """How many pairs of frames there are of each kind; nothing is hashed for it."""
    sites, known = table["site"].value_counts(), table.dropna(subset=["patient"])
    every, within = comb(len(table), 2), sum(comb(int(count), 2) for count in sites)
    both_known = sum(comb(int(count), 2) for count in known["site"].value_counts())
    one_patient = sum(comb(int(count), 2) for count in known.groupby(["site", "patient"]).size())
    print("pairs: all", every, "different hospitals", every - within)
    print("one hospital: different known patients", both_known - one_patient, "one known patient", one_patient, end=" ")
    print("a patient unknown", within - both_known)
    print("different patients or hospitals", every - within + both_known - one_patient)


def print_copies(index: Index) -> None:
    """Every frame against its own copy: in how many bits they differ, and how many copies are found."""
    print("\ncopy, bits of 255: median, 99 %, all; found")
    distances = {name: [] for name in COPIES}
    found = dict.fromkeys(COPIES, 0)
    for path in index.table["image"]:
        frame = read_image(index.source / path)
        own = near_hash(frame)
        for name, copy in COPIES.items():
            other = near_hash(copy(frame))
            distances[name].append(hash_distance(own, other) if other else 255)
            found[name] += len(near_pairs([own, other]))
    for name, bits in distances.items():
        shown = "  ".join(f"{value:.0f}" for value in np.quantile(bits, [0.5, 0.99, 1]))
        print(f"{name:40} {shown}  {found[name] / len(bits):.1%}")


def print_counts(table: pd.DataFrame) -> None:
    """Groups and images by site."""
    groups = near_rows(table)
    print("\nsite, near duplicates: groups, images")
    for site, rows in table.groupby("site"):
        own = [group for group in groups if set(group) <= set(rows.index)]
        print(site, len(own), sum(map(len, own)))
    print("between", sum(table["site"].iloc[group].nunique() > 1 for group in groups))
    print("largest group", max(map(len, groups)), "images; without a hash", int((table["near_hash"] == "").sum()))


def print_pairs(table: pd.DataFrame, pairs: np.ndarray) -> None:
    """Every pair with the bits in which it differs, all and of the lowest frequencies."""
    print("\nsite, pair, bits of 255, bits of 63, equal pixels")
    for pair in pairs.tolist():
        one, other = table["near_hash"].iloc[pair]
        names = " ".join(table["case"].iloc[pair])
        print(table["site"].iat[pair[0]], names, hash_distance(one, other), end=" ")
        print(hash_distance(one[:16], other[:16]), not differs(table, pair))


def has_twin(table: pd.DataFrame, pairs: np.ndarray, split: pd.DataFrame, parts: list[str]) -> pd.Series:
    """Whether a case has a near duplicate, or a copy, in one of the parts."""
    within = split["part"].isin(parts).to_numpy()
    found = np.zeros(len(table), dtype=bool)
    for one, other in pairs.tolist():
        found[one] |= within[other]
        found[other] |= within[one]
    return pd.Series(found, index=table.index)


def print_twins_in_training(name: str, table: pd.DataFrame, pairs: np.ndarray, splits: list[pd.DataFrame]) -> None:
    """Test images with a twin in training, by fold and site; all sites are seen, so each hospital is tested."""
    print(f"\n{name}: test images with a near twin in training (or validation), by fold")
    totals = pd.DataFrame(0, index=[*table["site"].unique(), "unknown patient"], columns=["tested", "train", "either"])
    for fold, split in enumerate(splits):
        tested = split["part"] == "test_in"
        train, either = (has_twin(table, pairs, split, parts) for parts in (["train"], ["train", "validation"]))
        line = []
        for site in totals.index:
            kind = table["patient"].isna() if site == "unknown patient" else table["site"] == site
            rows = tested & kind
            counts = [int(rows.sum()), int((rows & train).sum()), int((rows & either).sum())]
            totals.loc[site] += counts
            line.append(f"{site}: {counts[1]} ({counts[2]}) of {counts[0]}")
        print("fold", fold, "  ".join(line))
    print(totals.assign(share=(totals["train"] / totals["tested"]).map("{:.2%}".format)).to_string())


def print_patients(table: pd.DataFrame, pairs: np.ndarray) -> None:
    """Where patients are known: how many images share theirs with another, and how many have a near twin."""
    known = table[table["patient"].notna()]
    shared = known.duplicated(["site", "patient"], keep=False)
    twin = known.index.isin(np.unique(pairs))
    print("\nknown patients, images: all, with another image of the patient, with a near twin")
    for site in known["site"].unique():
        own = (known["site"] == site).to_numpy()
        print(site, int(own.sum()), int(shared[own].sum()), int(twin[own].sum()))
    unknown = table.index[table["patient"].isna()]
    print("unknown patients:", len(unknown), "images,", int(unknown.isin(np.unique(pairs)).sum()), "with a near twin")


def draw(index: Index, pairs: list[list[int]]) -> None:
    """Draws some pairs from the smallest to the largest distance."""
    hashes = index.table["near_hash"].tolist()
    ordered = sorted(pairs, key=lambda pair: hash_distance(hashes[pair[0]], hashes[pair[1]]))
    shown = [ordered[place] for place in np.linspace(0, len(ordered) - 1, DRAWN).round().astype(int)]
    width, height, line, gap = 150, 120, 18, 14
    sheet = Image.new("RGB", (3 * (2 * width + gap) - gap, 2 * (height + line)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, pair in enumerate(shown):
        left, top = number % 3 * (2 * width + gap), number // 3 * (height + line)
        for side, row in enumerate(pair):
            with Image.open(index.source / index.table["image"].iat[row]) as image:
                sheet.paste(image.convert("RGB").resize((width - 2, height)), (left + side * width, top))
        site = index.table["site"].iat[pair[0]]
        bits = hash_distance(hashes[pair[0]], hashes[pair[1]])
        pen.text((left, top + height + 1), f"{site}: {bits} of 255 bits differ", "black", font)
    FIGURE.parent.mkdir(exist_ok=True)
    sheet.save(FIGURE, quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
