"""Means per stratum against plain loops; nothing is ever averaged over images that lack the property."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgs.errors import DataError
from fedgs.metrics.table import (
    DETAILS,
    SCORE_COLUMNS,
    STRATA,
    read_scores,
    summarise,
    with_details,
    without_empty_details,
)
from fedgs.tables import as_csv

NEEDED = [name for name in SCORE_COLUMNS if name not in (*DETAILS, "group")]

kinds = st.sampled_from(["free", "tiny", "small", "mixed", "large"])
rows = st.lists(
    st.tuples(st.sampled_from(["C1", "C2", "007"]), kinds, st.floats(0, 1), st.integers(0, 3)), min_size=0, max_size=25
)


def table(entries) -> pd.DataFrame:
    """Score rows from (site, kind, dice, fp)."""
    area = {"free": 0, "tiny": 40, "small": 9000, "mixed": 20040, "large": 20000}
    return pd.DataFrame(
        [
            {
                "round": 1,
                "part": "test_in",
                "site": site,
                "case": f"case-{number}",
                "is_small": kind in ("tiny", "small", "mixed"),
                "is_tiny": kind == "tiny",
                "is_mixed": kind == "mixed",
                "lesion_area": area[kind],
                "dice": dice,
                "tp": 1,
                "fp": fp,
                "fn": 1,
                "network": "",
                "pixels": 512 * 512,
            }
            for number, (site, kind, dice, fp) in enumerate(entries)
        ],
        columns=[*NEEDED, "is_mixed"],
    )


def means_by_loop(entries) -> dict[str, tuple[float | None, int]]:
    members = {
        "dice": [dice for _, _, dice, _ in entries],
        "dice_n": [dice for _, kind, dice, _ in entries if kind != "free"],
        "dice_s": [dice for _, kind, dice, _ in entries if kind in ("tiny", "small", "mixed")],
        "dice_t": [dice for _, kind, dice, _ in entries if kind == "tiny"],
        "dice_m": [dice for _, kind, dice, _ in entries if kind == "mixed"],
        "dice_l": [dice for _, kind, dice, _ in entries if kind == "large"],
        "lesion_free": [float(fp > 0) for _, kind, _, fp in entries if kind == "free"],
    }
    return {name: (math.fsum(v) / len(v) if v else None, len(v)) for name, v in members.items()}


def assert_same(ours, expected):
    for stratum in STRATA:
        mean, n = expected[stratum]
        assert ours[stratum]["n"] == n
        assert ours[stratum]["mean"] == (None if mean is None else pytest.approx(mean, abs=1e-12))


@given(rows)
@settings(max_examples=80)
def test_every_stratum_equals_a_loop_over_its_images(entries):
    summary = summarise(table(entries))
    assert_same(summary, means_by_loop(entries))
    assert list(summary["sites"]) == sorted({site for site, *_ in entries})
    for site, means in summary["sites"].items():
        assert_same(means, means_by_loop([entry for entry in entries if entry[0] == site]))


@given(rows, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_rows_does_not_matter(entries, random):
    scores = table(entries)
    order = list(scores.index)
    random.shuffle(order)
    first, second = summarise(scores), summarise(scores.loc[order])
    assert list(first["sites"]) == list(second["sites"])
    assert_same(second, {name: (first[name]["mean"], first[name]["n"]) for name in STRATA})


@given(rows)
@settings(max_examples=40)
def test_strata_add_up(entries):
    s = summarise(table(entries))
    assert s["dice_s"]["n"] + s["dice_l"]["n"] == s["dice_n"]["n"]
    assert s["dice_n"]["n"] + s["lesion_free"]["n"] == s["dice"]["n"]
    assert s["dice_t"]["n"] + s["dice_m"]["n"] <= s["dice_s"]["n"]
    assert all(sum(site[name]["n"] for site in s["sites"].values()) == s[name]["n"] for name in STRATA)


def test_a_part_without_images_has_no_means_and_json_takes_it():
    summary = summarise(table([]))
    assert all(summary[name] == {"mean": None, "n": 0} for name in STRATA)
    assert summary["sites"] == {}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_hospitals_without_small_lesions_do_not_pull_the_small_mean_down():
    summary = summarise(table([("C1", "small", 0.8, 0), ("C2", "large", 0.9, 0), ("C2", "free", 1.0, 0)]))
    assert summary["dice_s"] == {"mean": 0.8, "n": 1}
    assert summary["sites"]["C2"]["dice_s"] == {"mean": None, "n": 0}


def test_numbers_are_plain_python():
    summary = summarise(table([("C1", "small", 0.8, 0)]))
    assert type(summary["dice"]["mean"]) is float
    assert type(summary["dice"]["n"]) is int


@pytest.mark.parametrize("column", NEEDED)
def test_a_missing_column_is_named(column):
    with pytest.raises(DataError, match=f"lack the columns {column};"):
        summarise(table([("C1", "tiny", 0.5, 0)]).drop(columns=column))


def test_two_rounds_at_once_are_refused():
    scores = table([("C1", "tiny", 0.5, 0)])
    with pytest.raises(DataError, match="'case-0' appears more than once; select one part and one round"):
        summarise(pd.concat([scores, scores.assign(round=2)]))


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1, np.inf])
def test_a_dice_that_cannot_be_is_refused(value):
    with pytest.raises(DataError, match=r"expected Dice in \[0, 1\], but site 'C1', case 'case-0' has"):
        summarise(table([("C1", "tiny", value, 0)]))


def test_reading_gives_back_what_was_written(tmp_path):
    scores = table([("007", "tiny", 1 / 3, 0), ("C2", "free", 0.1 + 0.2, 2)])
    scores["case"] = ["NA", "0012"]
    scores.to_csv(tmp_path / "scores.csv", index=False)
    again = read_scores(tmp_path / "scores.csv")
    pd.testing.assert_frame_equal(again[scores.columns], scores, check_dtype=False)
    assert list(again.columns) == list(SCORE_COLUMNS)
    assert again[[name for name in DETAILS if name not in scores]].isna().all(axis=None)
    assert as_csv(without_empty_details(again)) == as_csv(scores[list(without_empty_details(again).columns)])
    assert summarise(again) == summarise(scores)
    assert list(summarise(again)["sites"]) == ["007", "C2"]


def test_reading_says_what_is_wrong(tmp_path):
    path = tmp_path / "scores.csv"
    with pytest.raises(DataError, match=r"scores\.csv: no such table"):
        read_scores(path)
    path.write_text("")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_scores(path)
    path.write_text("site,case\nC1,a\n")
    with pytest.raises(DataError, match="lack the columns round, part"):
        read_scores(path)
    table([("C1", "tiny", 0.5, 0)]).assign(is_small="perhaps").to_csv(path, index=False)
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_scores(path)


def test_details_keep_their_type_and_every_digit_and_may_be_empty(tmp_path):
    scores = with_details(table([("C1", "tiny", 0.5, 0), ("C1", "free", 1.0, 0)]))
    scores["hd95"], scores["lesions"] = [1 / 3, np.nan], pd.array([3, None], dtype="Int64")
    scores["group"] = pd.array(["C1/=1", None], dtype="string")
    path = tmp_path / "scores.csv"
    path.write_text(as_csv(scores))
    again = read_scores(path)
    pd.testing.assert_frame_equal(again, scores, check_dtype=False)
    assert as_csv(again) == path.read_text()
    assert ",3," in path.read_text()
    path.write_text(path.read_text().replace(",3,", ",3.5,"))
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_scores(path)


def test_constant_scores_have_that_mean():
    summary = summarise(table([("C1", "tiny", 0.25, 0)] * 7))
    assert summary["dice_t"] == {"mean": 0.25, "n": 7}
