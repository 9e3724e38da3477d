"""How often verdicts are right: studies drawn from a known truth, and judged like real ones.

    python docs/results/verdict_simulations.py

draws those of docs/results/verdict-simulations.md. Arm a scores case i of site k, in a run with seed s, with what is
common to all arms, which falls out of every difference, and

    effect_a + site_ak + seed_as + run_aks + patient_ai + noise_aiks

each but the effect drawn anew for every arm, and normal (patients: with heavier tails, Student's t with 4 degrees of
freedom). `seed` moves all hospitals alike, `run` each for itself. Of the cases, the share `missed` is one that no arm
scores anything in, so that there is no difference at all; the others then differ by as much more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedgs.verdict.intervals import Interval, Paired, estimate
from fedgs.verdict.judging import MARGIN, verdict_on
from fedgs.verdict.outcomes import OUTCOMES, PRIMARY

__all__ = ["Design", "Found", "Spread", "drawn", "simulate"]


@dataclass(frozen=True, slots=True)
class Design:
    """A study.

    Attributes:
        patients: With images that count, per site.
        seeds: Runs of each arm and left-out hospital.
        apart: Whether every hospital is left out of runs of its own; else all are tested in the same runs.
    """

    patients: Sequence[int]
    seeds: int = 2
    apart: bool = True


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviations of the difference of two arms, in units of the outcome; each arm brings 1/sqrt(2) of it.

    Attributes:
        site: Between hospitals.
        run: Between runs, each hospital for itself.
        seed: Between seeds, all hospitals alike.
        patient: Between patients, of the mean over their runs.
        noise: Of one patient between runs, beyond what moves all of them.
        missed: Share of patients in whom arms cannot differ, in [0, 1); the only one that is no deviation.
    """

    site: float = 0.0
    run: float = 0.0
    seed: float = 0.0
    patient: float = 0.12
    noise: float = 0.05
    missed: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """Shares of simulated studies.

    Attributes:
        these: In which the interval for these hospitals holds their mean difference.
        new: In which the interval for a new hospital holds the effect; nan where there is none.
        decides: In which the interval that decides holds the effect.
        helps: In which the verdict on any contrast is *helps*, were Dice of large lesions no matter.
        hurts: In which it is *hurts*.
        no_worse: In which the interval lies above what Dice of large lesions may lose.
        half_width: Median of the interval that decides.
    """

    these: float
    new: float
    decides: float
    helps: float
    hurts: float
    no_worse: float
    half_width: float


def drawn(
    design: Design, spread: Spread, effects: Sequence[float], rng: np.random.Generator
) -> list[tuple[Paired, float]]:
    """Draws a study.

    Args:
        design: What it has.
        spread: What differences vary by.
        effects: Of each arm against the last one, which is in the study as well.
        rng: What it is drawn by.

    Returns:
        For each contrast with that last arm what would be observed, and the mean difference of the hospitals.
    """
    sites, patients = len(design.patients), np.array(design.patients)
    site = np.repeat(np.arange(sites), patients)
    block = np.repeat(np.arange(sites if design.apart else 1), design.seeds)
    scored = (site[:, None] == block) | (not design.apart)
    seen = rng.random(len(site)) >= spread.missed
    arms = [_arm(design, spread, site, block, rng) for _ in range(len(effects) + 1)]
    share = patients / len(site) if design.apart else np.ones(1)
    names, weight = [f"{number}" for number in range(sites)], np.ones(len(site))
    found = []
    for effect, (level, moved, own) in zip(effects, arms, strict=False):
        common = effect + (level - arms[-1][0])[site, None] + moved - arms[-1][1]
        total = (common + (own - arms[-1][2]) * np.sqrt(1 - spread.missed)) * seen[:, None] / (1 - spread.missed)
        data = Paired(
            sites=names,
            site=site,
            weight=weight,
            total=np.where(scored, total, 0),
            block=block,
            blocks=[str(number) for number in range(int(block.max()) + 1)],
            share=share,
            runs_are_apart=design.apart,
            cases=len(site),
            cases_of=design.patients,
        )
        found.append((data, effect + float(np.average(level - arms[-1][0], weights=patients))))
    return found


Array = npt.NDArray[np.float64]


def _arm(
    design: Design, spread: Spread, site: npt.NDArray[np.intp], block: npt.NDArray[np.intp], rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """What an arm does to hospitals, (sites,), runs, (runs,), and cases, (cases, runs)."""
    of_arm = 1 / np.sqrt(2)
    blocks = len(block) // design.seeds
    level = rng.normal(0, spread.site * of_arm, len(design.patients))
    run = rng.normal(0, spread.run * of_arm, len(block))
    seed = np.tile(rng.normal(0, spread.seed * of_arm, design.seeds), blocks)
    patient = rng.standard_t(4, (len(site), 1)) * spread.patient * of_arm / np.sqrt(2)
    return level, run + seed, patient + rng.normal(0, spread.noise * of_arm, (len(site), len(block)))


def simulate(
    design: Design,
    spread: Spread,
    *,
    effect: float = 0.0,
    studies: int = 2000,
    level: float = 0.95,
    contrasts: int = 1,
    seed: int = 0,
) -> Found:
    """Draws studies and judges each.

    Args:
        design: What every study has.
        spread: What differences vary by.
        effect: The true mean difference over hospitals, in every contrast.
        studies: How many.
        level: Of the intervals.
        contrasts: How many arms are compared with the same other one.
        seed: Of everything drawn; verdicts draw by their own, as always.
    """
    rng = np.random.default_rng(seed)
    shares, widths = np.zeros(6), []
    for _ in range(studies):
        study = drawn(design, spread, [effect] * contrasts, rng)
        estimates = [estimate(data, level=level) for data, _ in study]
        first, verdicts = estimates[0], [verdict_on(each, OUTCOMES[PRIMARY]) for each in estimates]
        new = float("nan") if first.new is None else _holds(first.new, effect)
        decides = first.interval
        shares += [
            *(_holds(first.these, study[0][1]), new, _holds(decides, effect)),
            *("helps" in verdicts, "hurts" in verdicts, decides.low > -MARGIN),
        ]
        widths.append(decides.half_width)
    these, new, holds, helps, hurts, no_worse = (shares / studies).tolist()
    return Found(these, new, holds, helps, hurts, no_worse, float(np.median(widths)))


def _holds(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high
