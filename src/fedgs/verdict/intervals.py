"""How sure one can be of a difference between two arms: intervals for few hospitals, few runs and few small lesions.

Two questions, two intervals. *These hospitals*: what would come out with other patients of them and with other seeds?
*A new hospital*: what would come out with other hospitals? Everything is a function of paired differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from fedgs.errors import DataError

__all__ = ["Components", "Estimate", "Interval", "Paired", "estimate", "freedom_of_runs", "paired"]

FEWEST_SITES = 4
"""Hospitals below which nothing is said about a new one."""

DRAWS = 2000

_SEEDS_SPENT = 0.35
"""Degrees of freedom of the variance of runs are at most the seeds less this. If a seed moved all blocks alike, they
would be the seeds less 1, whatever the number of blocks; if not, more. The value is what simulations ask for."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true difference may lie; nan where that cannot be told."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of its length."""
        return (self.high - self.low) / 2

    def joined(self, other: Interval | None) -> Interval:
        """Gives the least interval that holds both."""
        return self if other is None else Interval(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences between two arms, in the units of the outcome.

    A *block* is the runs that differ in their seed alone: those of one left-out hospital and fold.

    Attributes:
        sites: (sites,): their names.
        site: (groups,): position of the site of each group of cases.
        weight: (groups,): what the cases of a group weigh, such as their number.
        total: (groups, runs): sum over the cases of a group of weight times difference, as far as that run scored
            them, divided by the number of blocks that did; a mean over the runs of every block, added up, is the mean.
        block: (runs,): block of each run.
        blocks: Their names, by number.
        cases: Their number.
        cases_of: (sites,): the same per site.
    """

    sites: Sequence[str]
    site: npt.NDArray[np.intp]
    weight: Array
    total: Array
    block: npt.NDArray[np.intp]
    blocks: Sequence[str]
    share: Array
    runs_are_apart: bool
    cases: int
    cases_of: Sequence[int]


@dataclass(frozen=True, slots=True)
class Components:
    """Variances of the difference of one hospital, by what they come from.

    Attributes:
        patient: Between the groups of cases of a hospital, of their means; with n groups it adds ``patient / n``.
        run: Between runs that differ in their seed; with S seeds it adds ``run / S``. nan where no block has two.
        site: Between hospitals, beyond what patients and runs explain. nan with one hospital.
    """

    patient: float
    run: float
    site: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean difference and how sure it is.

    Attributes:
        difference: Over all cases, each first averaged over its runs.
        these: Interval for these hospitals.
        new: Interval for the mean over hospitals like these; None for fewer than four.
        site_differences: (sites,): the same per site.
        components: What it varies by.
        seeds: Fewest seeds of a block.
    """

    difference: float
    these: Interval
    new: Interval | None
    site_differences: Array
    components: Components
    seeds: int

    @property
    def interval(self) -> Interval:
        """The least interval that holds both; it decides, so that a verdict holds for these hospitals and for others.

        For fewer than four hospitals it is that of these hospitals alone.
        """
        return self.these.joined(self.new)

    @property
    def decides(self) -> bool:
        """Whether anything of it tells how runs differ; else arms that do not differ are told apart by their runs."""
        return not math.isnan(self.components.run) or self.new is not None


def paired(table: pd.DataFrame) -> Paired:
    """Arranges differences of cases.

    Args:
        table: A row per case and run: ``site``, ``case``, ``group`` (cases that are not independent share it),
            ``block``, ``seed``, ``difference`` and ``weight`` (> 0, equal in all runs of a case).

    Raises:
        DataError: A run of a block lacks a case that another one of it has.
    """
    _require_complete(table)
    runs = sorted(set(zip(table["block"], table["seed"], strict=True)))
    blocks, sites = sorted({block for block, _ in runs}), sorted(set(table["site"]))
    cases = table.drop_duplicates(["site", "case"])
    scored_in = table.groupby(["site", "case"])["block"].transform("nunique")
    groups = cases.groupby(["site", "group"], sort=True)["weight"].sum()
    sums = table.assign(total=table["weight"] * table["difference"] / scored_in).pivot_table(
        index=["site", "group"], columns=["block", "seed"], values="total", aggfunc="sum", fill_value=0.0
    )
    shares = (
        table["weight"] / scored_in / table.groupby(["block", "site", "case"])["seed"].transform("nunique")
    ).groupby(table["block"])
    return Paired(
        sites=sites,
        site=np.array([sites.index(site) for site, _ in groups.index], dtype=np.intp),
        weight=groups.to_numpy(dtype=float),
        total=sums.reindex(index=groups.index, columns=pd.MultiIndex.from_tuples(runs)).to_numpy(dtype=float),
        block=np.array([blocks.index(block) for block, _ in runs], dtype=np.intp),
        blocks=blocks,
        share=shares.sum().reindex(blocks).to_numpy(dtype=float) / groups.sum(),
        runs_are_apart=bool((table.groupby("block")["site"].nunique() == 1).all()),
        cases=len(cases),
        cases_of=[int((cases["site"] == site).sum()) for site in sites],
    )


def _require_complete(rows: pd.DataFrame) -> None:
    seeds = rows.groupby("block")["seed"].nunique()
    scored = rows.groupby(["block", "site", "case"])["seed"].nunique().reset_index()
    lacking = scored[scored["seed"] != scored["block"].map(seeds)]
    if len(lacking):
        first = lacking.iloc[0]
        raise DataError(
            f"case '{first['case']}' ({first['site']}) was not scored with every seed of {first['block']}; compare "
            "runs that scored the same cases"
        )


def estimate(data: Paired, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Estimates the mean difference.

    *These hospitals.* Groups of cases within every site, and runs within every block, are drawn again with replacement,
    independently of each other (crossed); deviations of n things drawn are lengthened by sqrt(n / (n - 1)), since the
    few that there are lie closer to their own mean than to the truth. The quantiles of these draws are then moved away
    from the difference until half their distance is

        sqrt(t_P^2 V_P + t_R^2 V_R)

    with V_P and V_R the variances that come from cases and from runs, and the quantiles of Student's t with the degrees
    of freedom of each: normal ones would be too short where few runs tell how much runs differ. V_R is pooled over
    blocks, or, where that is larger, what seeds change in all blocks together; as that can be seen badly by a few
    seeds, its degrees of freedom are hardly more than these.

    *A new hospital.* A t interval on the means of the sites, each counting the same.

    Args:
        data: The differences.
        level: Of the intervals.
        seed: Of the draws.

    Raises:
        DataError: There is no case.
    """
    if not data.cases:
        raise DataError("there is no case to compare arms on")
    means = data.total @ (1 / np.bincount(data.block))[data.block]
    site_means = np.bincount(data.site, means) / np.bincount(data.site, data.weight)
    of_cases, of_runs = _variance_of_cases(data, means, site_means), _variance_of_runs(data)
    difference = float(means.sum() / data.weight.sum())
    return Estimate(
        difference=difference,
        these=_around(difference, _draws(data, seed), math.hypot(of_cases.reach(level), of_runs.reach(level)), level),
        new=_t_interval(site_means, level) if len(data.sites) >= FEWEST_SITES else None,
        site_differences=site_means,
        components=_components(data, site_means, of_cases.single, of_runs.single),
        seeds=int(np.bincount(data.block).min()),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the variance of the difference, its degrees of freedom, and what one group or run alone would bring."""

    variance: float
    freedom: float
    single: float

    def reach(self, level: float) -> float:
        """Half-width of the interval if there were nothing else."""
        return float(stats.t.ppf(0.5 + level / 2, self.freedom)) * math.sqrt(self.variance) if self.variance else 0.0


def _variance_of_cases(data: Paired, means: Array, site_means: Array) -> _Part:
    weight, groups = np.bincount(data.site, data.weight), np.bincount(data.site)
    squares = np.bincount(data.site, (means - site_means[data.site] * data.weight) ** 2)
    free = (groups - 1).astype(float)
    if not free.any():
        return _Part(math.nan, 1.0, math.nan)
    of_mean = squares * groups / np.maximum(free, 1) / weight**2
    single = float(np.average(of_mean * groups, weights=free))
    # A site with one group tells nothing of how its patients differ; they are taken to differ as elsewhere.
    parts = np.where(free > 0, of_mean, single / groups) * (weight / weight.sum()) ** 2
    total = float(parts.sum())
    freedom = total**2 / float((parts**2 / np.where(free > 0, free, free.sum())).sum()) if total else 1.0
    return _Part(total, freedom, single)


def _variance_of_runs(data: Paired) -> _Part:
    seeds = np.bincount(data.block)
    several = np.flatnonzero(seeds > 1)
    if not len(several):  # nothing is known of it, and nothing is added
        return _Part(0.0, 1.0, math.nan)
    of_run, share = data.total.sum(axis=0) / data.weight.sum(), data.share[several]
    blocks = [of_run[data.block == block] for block in several]
    single = float(np.average([runs.var(ddof=1) for runs in blocks] / share**2, weights=share))
    variance = float((data.share**2 / seeds).sum()) * single  # blocks of one seed are taken to vary as others
    if (seeds == seeds[0]).all():
        variance = max(variance, float(np.sum(blocks, axis=0).var(ddof=1)) / int(seeds[0]))
    return _Part(variance, freedom_of_runs(share / share.sum(), seeds[several]), single)


def freedom_of_runs(share: Array, seeds: npt.NDArray[np.intp]) -> float:
    """Degrees of freedom of the variance of runs.

    Args:
        share: (blocks,): of the cases.
        seeds: (blocks,): two or more in each.
    """
    return min(float(1 / (share**2 / (seeds - 1)).sum()), int(seeds.min()) - _SEEDS_SPENT)


def _components(data: Paired, site_means: Array, patient: float, run: float) -> Components:
    if len(data.sites) < 2:
        return Components(patient, run, math.nan)
    groups, seeds = np.bincount(data.site), np.bincount(data.block)
    explained = float((patient / groups).mean())
    if data.runs_are_apart and not math.isnan(run):
        explained += float((run / seeds).mean()) * len(data.sites) / len(seeds)  # a hospital may have several folds
    return Components(patient, run, max(0.0, float(site_means.var(ddof=1)) - explained))


def _t_interval(site_means: Array, level: float) -> Interval:
    mean, count = float(site_means.mean()), len(site_means)
    reach = float(stats.t.ppf(0.5 + level / 2, count - 1)) * float(site_means.std(ddof=1)) / math.sqrt(count)
    return Interval(mean - reach, mean + reach)


def _draws(data: Paired, seed: int) -> Array:
    """Differences of studies drawn from this one, see `estimate`."""
    runs, of_sites = _weights(tuple(np.bincount(data.block)), tuple(np.bincount(data.site)), seed)
    found = np.zeros(DRAWS)
    for site, drawn in enumerate(of_sites):
        rows = data.site == site
        total, weight = data.total[rows], data.weight[rows]
        mean = runs @ total.sum(axis=0) / weight.sum()
        found += ((drawn @ total) * runs).sum(axis=1) - mean * (drawn @ weight - weight.sum())
    return np.asarray(found / data.weight.sum(), dtype=np.float64)


@lru_cache(maxsize=1)  # thousands of simulated studies of one design differ in their differences alone
def _weights(seeds: Sequence[int], groups: Sequence[int], seed: int) -> tuple[Array, Sequence[Array]]:
    """What runs, (draws, runs), and the groups of every site, (draws, groups), count in each draw."""
    rng = np.random.default_rng(seed)
    runs = np.hstack([_lengthened(rng, int(count)) / count for count in seeds])
    return runs, [_lengthened(rng, int(count)) for count in groups]


def _lengthened(rng: np.random.Generator, count: int) -> Array:
    """How often each of some things is drawn, (draws, things), deviations from once lengthened."""
    times = rng.multinomial(count, np.full(count, 1 / count), DRAWS)
    return np.asarray(1 + (times - 1) * math.sqrt(count / max(count - 1, 1)), dtype=np.float64)


def _around(difference: float, drawn: Array, reach: float, level: float) -> Interval:
    """Gives the quantiles of draws, as far from each other as they should be."""
    tail = max((1 - level) / 2, 50 / DRAWS)  # farther out there are too few draws for the shape
    low, high = (float(end) for end in np.quantile(drawn, (tail, 1 - tail)) - difference)
    longer = 2 * reach / (high - low) if high > low else 1.0
    return Interval(difference + longer * low, difference + longer * high)
