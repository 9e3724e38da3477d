"""Intervals against formulas and loops, their laws, and how often they hold what they should."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedgs.errors import DataError
from fedgs.verdict.intervals import estimate, paired

SITES = {"A": 9, "B": 4, "C": 12, "D": 7, "E": 15}


def table(seed: int = 0, seeds: int = 2, sites: dict[str, int] | None = None, **spread: float) -> pd.DataFrame:
    """Each site a block of its own, as where every hospital is left out once."""
    rng = np.random.default_rng(seed)
    of = {"site": 0.02, "run": 0.02, "patient": 0.1, "noise": 0.03} | spread
    rows = []
    for site, count in (sites or SITES).items():
        level, runs = rng.normal(0, of["site"]), rng.normal(0, of["run"], seeds)
        patients = rng.normal(0, of["patient"], count)
        rows += [
            {
                "site": site,
                "case": f"{case}",
                "group": f"{site}/{case // 2}",
                "block": f"without {site}",
                "seed": run,
                "difference": level + runs[run] + patients[case] + rng.normal(0, of["noise"]),
                "weight": 1.0 + case % 3,
            }
            for case, run in product(range(count), range(seeds))
        ]
    return pd.DataFrame(rows)


def test_the_difference_is_the_mean_over_cases_each_first_averaged_over_its_runs() -> None:
    rows = table(seeds=3)
    of_case = rows.groupby(["site", "case"]).agg({"difference": "mean", "weight": "first"})
    found = estimate(paired(rows))
    assert found.difference == pytest.approx(np.average(of_case["difference"], weights=of_case["weight"]))
    for site, value in zip(sorted(SITES), found.site_differences, strict=True):
        of_site = of_case.loc[site]
        assert value == pytest.approx(np.average(of_site["difference"], weights=of_site["weight"]))


def test_a_case_counts_once_however_many_folds_and_hospitals_left_out_it_is_scored_in() -> None:
    rows = pd.concat([table().assign(block=block) for block in ("fold 0", "fold 1", "fold 2")])
    some = rows[(rows["block"] == "fold 0") | (rows["site"] == "A")]
    once, several = estimate(paired(table())), estimate(paired(some))
    assert several.difference == pytest.approx(once.difference)
    assert paired(some).cases == sum(SITES.values())
    assert paired(some).share.sum() == pytest.approx(1)
    assert not paired(some).runs_are_apart


def test_with_one_seed_and_cases_of_weight_1_it_is_the_stratified_t_interval() -> None:
    rows = table(seeds=1).assign(weight=1.0)
    rows["group"] = rows["site"] + rows["case"]
    found = estimate(paired(rows), level=0.9)
    parts = {site: (len(of) / len(rows)) ** 2 * of["difference"].var() / len(of) for site, of in rows.groupby("site")}
    variance = sum(parts.values())
    freedom = variance**2 / sum(part**2 / (SITES[site] - 1) for site, part in parts.items())
    assert found.these.half_width == pytest.approx(stats.t.ppf(0.95, freedom) * math.sqrt(variance))
    assert found.seeds == 1
    assert math.isnan(found.components.run)


def test_a_new_hospital_has_the_t_interval_of_the_means_of_sites() -> None:
    found = estimate(paired(table()), level=0.95)
    expected = stats.ttest_1samp(found.site_differences, 0).confidence_interval(0.95)
    assert (found.new.low, found.new.high) == pytest.approx((expected.low, expected.high))  # type: ignore[union-attr]
    assert found.interval.low == min(found.these.low, expected.low)
    assert found.interval.high == max(found.these.high, expected.high)
    few = estimate(paired(table(sites={"A": 9, "B": 4, "C": 12})))
    assert few.new is None
    assert few.interval == few.these


def test_runs_alone_vary_by_the_pooled_variance_over_hospitals() -> None:
    rows = table(patient=0, noise=0, site=0).assign(weight=1.0)
    share = {site: count / sum(SITES.values()) for site, count in SITES.items()}
    of_runs = rows.groupby(["site", "seed"])["difference"].mean().unstack()
    pooled = sum(share[site] * of_runs.loc[site].var() for site in share)
    variance = max(
        sum(s**2 for s in share.values()) / 2 * pooled, (of_runs.mul(pd.Series(share), axis=0)).sum().var() / 2
    )
    found = estimate(paired(rows))
    assert found.components.run == pytest.approx(pooled)
    assert found.these.half_width == pytest.approx(stats.t.ppf(0.975, 2 - 0.35) * math.sqrt(variance), rel=1e-6)


spreads = st.fixed_dictionaries({name: st.floats(0.001, 0.2) for name in ("site", "run", "patient", "noise")})


@given(spreads, st.integers(0, 99), st.integers(1, 3), st.floats(-0.3, 0.3), st.floats(0.1, 3))
@settings(max_examples=15)
def test_laws(spread: dict[str, float], seed: int, seeds: int, shift: float, factor: float) -> None:
    rows = table(seed, seeds, **spread)
    found = estimate(paired(rows))
    assert found.these.low < found.difference < found.these.high
    mixed = rows.sample(frac=1, random_state=seed)
    assert same(estimate(paired(mixed)), found)
    moved = estimate(paired(rows.assign(difference=factor * rows["difference"] + shift)))
    assert moved.difference == pytest.approx(factor * found.difference + shift)
    assert moved.these.low == pytest.approx(factor * found.these.low + shift)
    assert moved.interval.high == pytest.approx(factor * found.interval.high + shift)
    narrower = estimate(paired(rows), level=0.8)
    assert narrower.these.half_width < found.these.half_width


def same(one: Any, other: Any) -> bool:
    ends = [(each.difference, each.these.low, each.these.high, each.interval.low) for each in (one, other)]
    return ends[0] == pytest.approx(ends[1], abs=1e-12)


def test_arms_that_do_not_differ_have_an_interval_without_width() -> None:
    found = estimate(paired(table().assign(difference=0.0)))
    assert (found.difference, found.interval.low, found.interval.high) == (0, 0, 0)


def test_hospitals_with_one_patient_each_give_no_interval() -> None:
    rows = table()
    found = estimate(paired(rows.assign(group=rows["site"])))
    assert math.isnan(found.these.low)
    assert found.difference == pytest.approx(estimate(paired(rows)).difference)


def test_a_hospital_with_one_patient_is_taken_to_vary_as_others() -> None:
    rows = table()
    some = rows.assign(group=rows["group"].where(rows["site"] != "B", "B"))
    assert 0 < estimate(paired(some)).these.half_width < 2 * estimate(paired(rows)).these.half_width


def test_a_case_that_a_run_did_not_score_is_refused() -> None:
    with pytest.raises(DataError, match=r"case '0' \(A\) was not scored with every seed of without A"):
        paired(table().iloc[1:])


def test_patients_whose_images_are_alike_count_as_one() -> None:
    rows = table(noise=0.0)
    twice = pd.concat([rows, rows.assign(case=rows["case"] + "-again")])
    apart = twice.assign(group=twice["site"] + twice["case"])
    width = estimate(paired(rows)).these.half_width
    assert estimate(paired(twice)).these.half_width == pytest.approx(width, rel=1e-9)
    assert estimate(paired(apart)).these.half_width < width
