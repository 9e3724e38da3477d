"""How often verdicts are right: studies drawn from a known truth, and judged like real ones.

    python -m fedgs.verdict.simulation --out DIR

draws the tables of docs/explanation/verdict.md anew. A case of site k in a run with seed s differs between two arms by

    effect + site_k + seed_s + run_ks + patient_i + noise_is

each but the effect normal (patients: with heavier tails, Student's t with 4 degrees of freedom) with a standard
deviation of its own. `seed` moves all hospitals alike, `run` each for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedgs.verdict.intervals import Paired, estimate

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
    """Standard deviations, in units of the outcome."""

    site: float = 0.0
    run: float = 0.0
    seed: float = 0.0
    patient: float = 0.12
    noise: float = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """Shares of simulated studies.

    Attributes:
        these: In which the interval for these hospitals holds their mean difference.
        new: In which the interval for a new hospital holds the effect; nan where there is none.
        helps: Whose interval lies above 0.
        hurts: Whose interval lies below 0.
        half_width: Median of the interval that decides.
    """

    these: float
    new: float
    helps: float
    hurts: float
    half_width: float


def drawn(design: Design, spread: Spread, effect: float, rng: np.random.Generator) -> tuple[Paired, float]:
    """Draws a study.

    Returns:
        What it would observe, and the mean difference of its hospitals.
    """
    sites, seeds = len(design.patients), design.seeds
    site = np.repeat(np.arange(sites), design.patients)
    level = effect + rng.normal(0, spread.site, sites)[site]
    patient = rng.standard_t(4, len(site)) * spread.patient / np.sqrt(2)
    blocks = sites if design.apart else 1
    block = np.repeat(np.arange(blocks), seeds)
    run = rng.normal(0, spread.run, len(block)) + np.tile(rng.normal(0, spread.seed, seeds), blocks)
    noise = rng.normal(0, spread.noise, (len(site), len(block)))
    scored = (site[:, None] == block) | (not design.apart)
    total = np.where(scored, (level + patient)[:, None] + run + noise, 0.0)
    weight = np.ones(len(site))
    share = np.array(design.patients) / len(site) if design.apart else np.ones(1)
    names = [f"{number}" for number in range(sites)]
    data = Paired(names, site, weight, total, block, share, design.apart, len(site), list(design.patients))
    return data, float(level.mean())


def simulate(
    design: Design, spread: Spread, *, effect: float = 0.0, studies: int = 2000, level: float = 0.95, seed: int = 0
) -> Found:
    """Draws studies and judges each.

    Args:
        design: What every study has.
        spread: What differences vary by.
        effect: The true mean difference over hospitals.
        studies: How many.
        level: Of the intervals.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    counts, widths = np.zeros(4), []
    for number in range(studies):
        data, mean = drawn(design, spread, effect, rng)
        found = estimate(data, level=level, seed=number)
        decides = found.interval
        new = found.new is not None and found.new.low <= effect <= found.new.high
        counts += [found.these.low <= mean <= found.these.high, new, decides.low > 0, decides.high < 0]
        widths.append(decides.half_width)
    these, new_share, helps, hurts = (counts / studies).tolist()
    return Found(these, new_share if found.new else float("nan"), helps, hurts, float(np.median(widths)))
