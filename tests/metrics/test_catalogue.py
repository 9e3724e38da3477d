"""Scores beside Dice against plain loops over images; each counts only the images that it is about."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgs.errors import DataError
from fedgs.evaluation import CALIBRATION_BAND, SURFACE_TOLERANCE
from fedgs.metrics.case import detailed_scores
from fedgs.metrics.catalogue import METRICS, other_scores
from fedgs.metrics.functional import confusion, dice
from fedgs.metrics.sizes import quartile_of, size_quartiles
from fedgs.metrics.table import DETAILS, with_details
from metrics.pairs import DEGENERATE, EMPTY, images

DIAGONAL = math.hypot(*EMPTY.shape)


def row(number, prediction, truth, site="C1", **changes):
    counts = confusion(prediction, truth)
    about = {"round": 1, "part": "test_in", "site": site, "case": f"case-{number}", "network": ""}
    details = detailed_scores(prediction, truth, np.where(prediction, 0.9, 0.2), small=1 / 16, tolerance=1.0, band=2)
    area = int(truth.sum())
    return (
        about
        | counts._asdict()
        | {"dice": dice(counts), "pixels": truth.size, "lesion_area": area, "is_small": False, "is_tiny": False}
        | {"size_quartile": quartile_of(area, (10.0, 60.0, 80.0))}
        | details
        | changes
    )


def table(rows):
    return with_details(pd.DataFrame(rows))


ODD = [row(number, *pair, "C2" if number % 3 else "C1") for number, pair in enumerate(DEGENERATE.values())]


def mean(values):
    values = list(values)
    return (math.fsum(values) / len(values) if values else None), len(values)


def ratio(top, bottom):
    return (top / bottom if bottom else None), bottom


def by_loops(rows):
    sick = [each for each in rows if each["lesion_area"] > 0]
    marked = [each for each in sick if each["tp"] + each["fp"] > 0]
    free = [each for each in rows if each["lesion_area"] == 0]
    expected = {
        "iou": mean(each["tp"] / (each["tp"] + each["fp"] + each["fn"]) for each in sick),
        "precision": mean(each["tp"] / (each["tp"] + each["fp"]) for each in marked),
        "recall": mean(each["tp"] / (each["tp"] + each["fn"]) for each in sick),
        "surface_dice": mean(each["surface_dice"] for each in sick),
        "ece": mean(each["ece"] for each in sick),
        "false_area": mean(each["fp"] / each["pixels"] for each in free),
    }
    for name in ("hd95", "assd"):
        expected[name] = mean(each[name] for each in marked)
        expected[f"{name}_missed"] = mean(each[name] if each in marked else each["diagonal"] for each in sick)
    for number in (1, 2, 3, 4):
        expected[f"dice_q{number}"] = mean(each["dice"] for each in rows if each["size_quartile"] == number)
    for percent in (10, 50):
        found, true = (sum(each[name] for each in rows) for name in (f"found_{percent}", "lesions"))
        false = sum(each["predicted_lesions"] - each[f"found_{percent}"] for each in rows)
        small = [sum(each[n] for each in rows) for n in (f"found_small_{percent}", "lesions_small")]
        false_small = sum(each[f"false_small_{percent}"] for each in rows)
        for end, hits, lesions, wrong in (
            (f"_{percent}", found, true, false),
            (f"_small_{percent}", *small, false_small),
            (f"_large_{percent}", found - small[0], true - small[1], false - false_small),
        ):
            expected[f"lesion_sensitivity{end}"] = ratio(hits, lesions)
            expected[f"lesion_precision{end}"] = ratio(hits, hits + wrong)
            expected[f"lesion_f1{end}"] = ratio(2 * hits, lesions + hits + wrong)
            expected[f"false_lesions{end}"] = ratio(wrong, len(rows))
    return expected


def assert_same(found, expected, known):
    for name in known:
        value, n = expected[name]
        assert found[name]["n"] == n, name
        assert found[name]["mean"] == (None if value is None else pytest.approx(value)), name


def check(rows):
    expected, found = by_loops(rows), other_scores(table(rows))
    assert set(found["pooled"]) == {name for name, (_, n) in expected.items() if n}
    assert_same(found["pooled"], expected, found["pooled"])
    for site, means in found["sites"].items():
        assert_same(means, by_loops([each for each in rows if each["site"] == site]), found["pooled"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_odd_cases_equal_loops():
    check(ODD)


@given(st.lists(st.tuples(images, st.sampled_from(["C1", "007"])), min_size=1, max_size=8))
@settings(max_examples=40)
def test_random_cases_equal_loops(drawn):
    check([row(number, *pair, site) for number, (pair, site) in enumerate(drawn)])


def test_every_metric_is_there_for_the_odd_cases_and_says_what_it_is():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert set(other_scores(table(ODD))["pooled"]) == set(names)
    for metric in METRICS:
        assert metric.about.endswith(".")
        assert metric.better in ("higher", "lower")
        assert metric.unit in ("", "%", "px", "per image")


def test_numerators_and_denominators_of_images_add_up_to_the_score():
    scores = table(ODD)
    for metric in METRICS:
        sums = metric.of_images(scores.assign(**{name: scores[name].astype(float) for name in DETAILS})).sum()
        stored = other_scores(scores)["pooled"][metric.name]
        assert sums["part"] / sums["whole"] == pytest.approx(stored["mean"])


def test_a_miss_has_no_distance_and_the_diagonal_beside_it():
    empty, lesion = DEGENERATE["prediction empty"]
    found = other_scores(table([row(0, empty, lesion), row(1, lesion, lesion)]))["pooled"]
    assert found["hd95"] == {"mean": 0.0, "n": 1}
    assert found["hd95_missed"] == {"mean": pytest.approx(DIAGONAL / 2), "n": 2}
    assert found["surface_dice"] == {"mean": 0.5, "n": 2}


def test_an_image_that_several_networks_marked_counts_once():
    empty, lesion = DEGENERATE["prediction empty"]
    both = [row(0, empty, lesion, network="A"), row(0, lesion, lesion, network="B")]
    found = other_scores(table(both))["pooled"]
    assert found["iou"] == {"mean": 0.5, "n": 1}
    assert found["lesion_sensitivity_50"] == {"mean": 0.5, "n": 1}
    assert found["hd95_missed"]["mean"] == pytest.approx(DIAGONAL / 2)


def test_what_one_of_several_networks_marked_has_a_mean_and_a_count():
    seen, missed = DEGENERATE["one pixel in a lesion"], (EMPTY, DEGENERATE["one pixel in a lesion"][1])
    rows = [row(0, *seen, network="A"), *(row(0, *missed, network=name) for name in "BCD")]
    found = other_scores(table(rows))
    for means in (found["pooled"], found["sites"]["C1"]):
        assert means["hd95"] == {"mean": rows[0]["hd95"], "n": 1}
        assert means["precision"]["n"] == 1
        assert means["hd95_missed"]["n"] == 1


def test_the_tolerances_in_words_are_those_that_are_scored_with():
    about = {metric.name: metric.about for metric in METRICS}
    assert f"within {SURFACE_TOLERANCE:g} pixels of 512 of" in about["surface_dice"]
    assert f"within {CALIBRATION_BAND} pixels of 512 of" in about["ece"]


def test_a_table_without_details_has_what_follows_from_its_pixels():
    old = pd.DataFrame(ODD).drop(columns=[*DETAILS], errors="ignore")
    assert set(other_scores(old)["pooled"]) == {"iou", "precision", "recall", "false_area"}
    assert other_scores(old.iloc[:0]) == {"pooled": {}, "sites": {}}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("hd95", -1.0), ("hd95", math.inf), ("assd", -0.1), ("ece", 1.5), ("surface_dice", 2.0)),
        *(("lesions", -1), ("size_quartile", 5), ("dice", math.nan)),
    ],
)
def test_a_score_that_cannot_be_is_refused_with_its_place(column, value):
    with pytest.raises(DataError, match=rf"(?i)expect.*{column}.* site 'C1', case 'case-3' has"):
        other_scores(table([*ODD[:3], ODD[3] | {"site": "C1", column: value}, *ODD[4:]]))


def test_constant_scores_are_averaged_like_others():
    same = [row(number, *DEGENERATE["equal"]) for number in range(5)]
    found = other_scores(table(same))["pooled"]
    assert found["iou"] == {"mean": 1.0, "n": 5}
    assert found["hd95"] == {"mean": 0.0, "n": 5}


@given(st.lists(st.integers(0, 1000), max_size=40))
def test_quartiles_divide_the_training_images_evenly(areas):
    thresholds, sick = size_quartiles(areas), sorted(area for area in areas if area)
    if not sick:
        assert thresholds is None
        return
    assert thresholds == pytest.approx(np.quantile(sick, (0.25, 0.5, 0.75)))
    groups = [quartile_of(area, thresholds) for area in sick]
    assert groups == sorted(groups)
    assert set(groups) <= {1, 2, 3, 4}
    if len(set(sick)) == len(sick):
        assert max(groups.count(k) for k in (1, 2, 3, 4)) - min(groups.count(k) for k in (1, 2, 3, 4)) <= 1
    assert quartile_of(0, thresholds) == 0
    assert quartile_of(5, None) is None
