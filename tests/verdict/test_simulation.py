"""How often verdicts on studies with a known truth are right. The full version is docs/results/verdict_simulations.py.

Of n studies the number with a right interval is binomial. A share that must be p or better fails where that number
would be undercut with a chance of 1e-4 at p itself: below 0.886 for p = 0.92 and n = 1000. Where the truth is only just
good enough, an assertion fails once in 10,000 changes of what is drawn. All is drawn by a seed: what passes goes on
passing until something changes.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedgs.verdict.intervals import Components, estimate
from fedgs.verdict.judging import EFFECT, POWER, needed
from fedgs.verdict.simulation import Design, Spread, drawn, simulate

POLYPGEN = (26, 12, 8, 8, 4)
ONE_IN = 1e-4


def at_least(share: float, studies: int) -> float:
    """The least share of studies that may pass for this one or a higher one."""
    return float(stats.binom.ppf(ONE_IN, studies, share)) / studies


def at_most(share: float, studies: int) -> float:
    """The highest share of studies that may pass for this one or a lower one."""
    return float(stats.binom.isf(ONE_IN, studies, share)) / studies


@pytest.mark.parametrize(
    ("design", "spread"),
    [
        (Design((26, 8)), Spread()),
        (Design((26, 8)), Spread(run=0.06)),
        (Design(POLYPGEN), Spread(seed=0.06)),
        (Design(POLYPGEN), Spread(site=0.06, run=0.03)),
        (Design(POLYPGEN, seeds=1), Spread(site=0.03)),
        (Design(POLYPGEN, apart=False), Spread(run=0.06)),
        (Design(POLYPGEN, 5, apart=False), Spread(run=0.06)),
        (Design((5, 4), seeds=1), Spread(patient=0.2, noise=0.0)),
        (Design((2,) * 40, seeds=1), Spread(patient=0.0, noise=0.2)),
        (Design(POLYPGEN), Spread(run=0.02, missed=0.8)),
    ],
)
def test_the_interval_for_these_hospitals_holds_their_difference(design: Design, spread: Spread) -> None:
    assert simulate(design, spread, studies=1000).these >= at_least(0.92, 1000)


@pytest.mark.parametrize("sites", [4, 5, 6])
@pytest.mark.parametrize("spread", [Spread(), Spread(site=0.06), Spread(site=0.03, run=0.06)])
def test_the_interval_for_a_new_hospital_holds_the_effect(sites: int, spread: Spread) -> None:
    found = simulate(Design((26, 12, 10, 8, 8, 4)[:sites]), spread, effect=0.05, studies=1000)
    assert found.new >= at_least(0.92, 1000)
    assert found.decides >= found.new


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("given", [{"level": 0.95}, {"level": 0.975, "contrasts": 2}])
def test_arms_drawn_alike_are_seldom_told_apart(seeds: int, given: dict) -> None:
    spread = Spread(site=0.03, run=0.03)
    found = simulate(Design(POLYPGEN, seeds), spread, studies=1000, **given)
    assert found.helps <= at_most(0.025, 1000)
    assert found.hurts <= at_most(0.025, 1000)


@pytest.mark.parametrize("sites", [1, 2, 3])
def test_arms_drawn_alike_are_not_told_apart_by_one_run_in_few_hospitals(sites: int) -> None:
    found = simulate(Design(POLYPGEN[:sites], 1), Spread(run=0.03), studies=100)
    assert (found.helps, found.hurts) == (0, 0)


def test_a_large_effect_is_seen_and_has_its_sign() -> None:
    spread = Spread(site=0.01, run=0.01, patient=0.05, noise=0.02)
    gain, loss = (simulate(Design(POLYPGEN, 3), spread, effect=effect, studies=200) for effect in (0.1, -0.1))
    assert gain.helps > 0.95
    assert gain.hurts == 0
    assert loss.hurts > 0.95
    assert loss.helps == 0


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_a_study_as_large_as_is_told_sees_its_effect(seeds: int) -> None:
    """With a chance of 80 %; what is told takes differences for normal, so it may be off by a tenth."""
    spread = Spread(site=0.01, run=0.02, patient=0.05, noise=0.0)
    asked = drawn(Design((10,) * 5, seeds), spread, (0.0,), np.random.default_rng(0))[0][0]
    run, between = (0.02**2, 0.01**2) if seeds > 1 else (float("nan"), 0.01**2 + 0.02**2)
    told = needed(asked, Components(0.05**2, run, between), 0.95)
    assert told.sites is not None
    found = simulate(Design((10,) * told.sites, seeds), spread, effect=EFFECT, studies=500)
    assert found.helps == pytest.approx(POWER, abs=0.1)


def test_drawn_differences_vary_by_what_they_should() -> None:
    """Every cause alone, by its variance in the mean of a hospital; two contrasts share half of theirs."""
    design, rng = Design((10, 10), seeds=4), np.random.default_rng(0)
    for name, times in {"site": 1.0, "run": 1 / 4, "seed": 1 / 4, "patient": 1 / 10, "noise": 1 / 40}.items():
        alone = Spread(**({"patient": 0.0, "noise": 0.0} | {name: 0.1}))
        means = np.array(
            [[data.total[:10, :4].mean() for data, _ in drawn(design, alone, (0.0, 0.0), rng)] for _ in range(4000)]
        )
        assert means.std(axis=0) == pytest.approx([0.1 * times**0.5] * 2, rel=0.1)
        assert np.corrcoef(means.T)[0, 1] == pytest.approx(0.5, abs=0.1)


def test_seeds_move_hospitals_alike_and_runs_do_not() -> None:
    rng = np.random.default_rng(0)
    for spread, alike in ((Spread(seed=0.1, patient=0, noise=0), True), (Spread(run=0.1, patient=0, noise=0), False)):
        ((data, _),) = drawn(Design((1, 1)), spread, (0.0,), rng)
        assert np.allclose(data.total[0, :2], data.total[1, 2:]) is alike


def test_patients_in_whom_arms_cannot_differ_change_no_mean() -> None:
    rng = np.random.default_rng(0)
    spread = Spread(site=0.01, patient=0.05, noise=0.0, missed=0.8)
    totals = np.concatenate([drawn(Design((50,), 1), spread, (0.05,), rng)[0][0].total.ravel() for _ in range(500)])
    assert (totals == 0).mean() == pytest.approx(0.8, abs=0.02)
    assert totals.mean() == pytest.approx(0.05, abs=0.005)


def test_an_interval_of_a_study_is_the_same_whichever_was_judged_before() -> None:
    rng = np.random.default_rng(0)
    studies = [drawn(Design(POLYPGEN[:sites]), Spread(), (0.0,), rng)[0][0] for sites in (5, 4, 5)]
    first = [estimate(data).interval for data in studies]
    assert [estimate(data).interval for data in reversed(studies)] == first[::-1]
    assert first[0] != first[2]


@pytest.mark.slow
@pytest.mark.parametrize("draws", [0, 1])
def test_shares_do_not_hang_on_the_draws_that_verdicts_are_made_with(draws: int) -> None:
    """Each interval draws again by its own seed, always the same; another one covers as often."""
    rng, spread = np.random.default_rng(0), Spread(site=0.03, run=0.03)
    held = 0
    for _ in range(5000):
        ((data, mean),) = drawn(Design(POLYPGEN), spread, (0.0,), rng)
        these = estimate(data, seed=draws).these
        held += these.low <= mean <= these.high
    assert held / 5000 >= at_least(0.92, 5000)
