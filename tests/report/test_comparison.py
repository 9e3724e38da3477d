"""Side by side: labels differ, differences subtract like from like, exhibits are the same cases in all runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgs.metrics.table import STRATA
from fedgs.report.comparison import differences, exhibits, labels, unlike_settings
from fedgs.report.reading import read_run
from fedgs.report.records import Mean, Overlay, Part


@pytest.fixture(scope="module")
def runs(pair):
    return [read_run(folder) for folder in pair]


def test_labels_say_what_differs_and_no_more(runs):
    baseline, scaled = runs
    assert labels(runs) == ["FedAvg (published)", "FedGS"]
    assert labels([scaled, replace(scaled, seed=1)]) == ["FedGS · seed 0", "FedGS · seed 1"]
    assert labels([scaled, replace(scaled, size=256, unseen_site="C1")]) == [
        "FedGS · 128 px · without C5",
        "FedGS · 256 px · without C1",
    ]
    assert labels([replace(scaled, algorithm="fedgs-gradient")]) == ["fedgs-gradient"]
    assert labels([scaled, replace(scaled, unseen_site=None)])[1] == "FedGS · all hospitals"
    same = labels([baseline, scaled, scaled, scaled])
    assert len(set(same)) == 4
    assert same[1:] == ["FedGS · run 1", "FedGS · run 2", "FedGS · run 3"]


def test_settings_that_differ_are_named(runs):
    baseline, scaled = runs
    assert unlike_settings(runs) == []
    assert unlike_settings([baseline, replace(scaled, seed=5)]) == []
    assert unlike_settings([baseline, replace(scaled, size=256, rounds=3)]) == ["image size", "number of rounds"]
    assert unlike_settings([baseline, replace(scaled, split="other", fold=1)]) == ["fold", "split"]


def test_a_difference_is_run_minus_baseline(runs):
    (found,) = differences(runs, "test_out")
    assert (found.run, found.baseline) == (1, 0)
    for stratum in STRATA:
        ours, theirs = (run.parts["test_out"].pooled[stratum].mean for run in (runs[1], runs[0]))
        assert found.pooled[stratum] == (None if ours is None else ours - theirs)
    (swapped,) = differences(runs[::-1], "test_out")
    assert (swapped.run, swapped.baseline) == (0, 1)
    assert swapped.pooled == found.pooled


def test_only_like_is_subtracted_from_like(runs):
    baseline, scaled = runs
    assert differences([scaled], "test_in") == []
    assert differences([baseline, replace(scaled, seed=1)], "test_in") == []
    assert differences([baseline, replace(scaled, split="other")], "test_in") == []
    assert differences(runs, "external") == []
    seeds = [replace(run, seed=seed) for run in runs for seed in (0, 1)]
    assert [(d.run, d.baseline) for d in differences(seeds, "test_in")] == [(2, 0), (3, 1)]


def test_means_over_different_images_are_not_subtracted(runs):
    baseline, scaled = runs
    part = scaled.parts["test_in"]
    other = Part({**part.pooled, "dice_s": Mean(0.5, part.pooled["dice_s"].n + 1)}, part.sites)
    (found,) = differences([baseline, replace(scaled, parts={"test_in": other})], "test_in")
    assert found.pooled["dice_s"] is None
    assert found.pooled["dice"] is not None


def overlay(case: int, dice: float) -> Overlay:
    return Overlay("test_in", "C1", f"{case:03d}", 50, dice, *([None] * 3))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=24), st.integers(1, 4))
def test_exhibits_are_distinct_ordered_and_shared(runs, scores, each):
    first = replace(runs[0], overlays=[overlay(case, a) for case, (a, _) in enumerate(scores)])
    second = replace(runs[1], overlays=[overlay(case, b) for case, (_, b) in enumerate(scores)][::-1])
    shown = exhibits([first, second], each=each)
    assert all(a.key == b.key for a, b in (exhibit.overlays for exhibit in shown))
    means = [(exhibit.overlays[0].dice + exhibit.overlays[1].dice) / 2 for exhibit in shown]
    assert means == sorted(means)
    assert len({exhibit.overlays[0].key for exhibit in shown}) == len(shown) == min(len(scores), len(shown))
    if scores:
        every = sorted((a + b) / 2 for a, b in scores)
        assert means[0] == every[0]
        assert means[-1] == every[-1]
        if len(scores) >= 3:
            ranks = [exhibit.rank for exhibit in shown]
            assert ranks.count("worst") == ranks.count("median") == ranks.count("best") == min(each, len(scores) // 3)


def test_the_median_is_the_middle(runs):
    run = replace(runs[0], overlays=[overlay(case, case / 10) for case in range(9)])
    assert [(e.rank, e.overlays[0].case) for e in exhibits([run], each=1)] == [
        ("worst", "000"),
        ("median", "004"),
        ("best", "008"),
    ]


def test_runs_without_a_common_case_show_nothing(runs):
    other = replace(runs[1], overlays=[overlay(1, 0.5)])
    assert exhibits([runs[0], other]) == []
    assert exhibits([replace(runs[0], overlays=())]) == []
