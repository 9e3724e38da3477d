"""From differences to verdicts: helps, hurts or undecided."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from fedgs.errors import DataError, unknown_choice
from fedgs.verdict.contrasts import Contrast, against_itself, contrasts_of, differences, settled
from fedgs.verdict.contrasts import obstacles as obstacles_of
from fedgs.verdict.intervals import FEWEST_SITES, Components, Estimate, Interval, Paired, estimate, freedom_of_runs
from fedgs.verdict.observed import Observation
from fedgs.verdict.outcomes import MARGIN_OUTCOME, OUTCOMES, PRIMARY, SHOWN, Outcome

__all__ = [
    "EFFECT",
    "ERROR",
    "PARTS",
    "POWER",
    "Comparison",
    "Judged",
    "Needed",
    "compare",
    "needed",
    "verdict_of",
    "verdict_on",
]

ERROR = 0.05
"""Chance of error that the primary contrasts share, and, apart from them, all others."""

MARGIN = 0.01
"""How much Dice of large lesions may fall, where no plan says otherwise."""

EFFECT = 0.02
"""Difference that a study should be able to see, with a chance of `POWER`."""

POWER = 0.8

PARTS = {"test_out": "out-test", "test_in": "in-test"}
"""Names of the parts that are compared."""

_MOST_SITES = 1000

_MOST_PATIENTS = 1_000_000

Verdict = Literal["helps", "hurts", "undecided"]


@dataclass(frozen=True, slots=True)
class Needed:
    """What a study would need to see `EFFECT`.

    Attributes:
        sites: Hospitals, each with as many patients as those of this study on average; None where 1,000 do not suffice,
            or one hospital tells nothing of how others differ.
        patients: In all of them.
        here: Patients in all hospitals of this study together; None where a million would not suffice. Of fewer
            than four hospitals it is for a verdict on these alone, and with one seed as if runs differed in nothing.
    """

    sites: int | None
    patients: int | None
    here: int | None


@dataclass(frozen=True, slots=True)
class Judged:
    """A contrast in one outcome.

    Attributes:
        contrast: Which arms, and their runs, as far as they scored an image that counts.
        outcome: The score.
        part: ``test_out`` or ``test_in``.
        level: Of the intervals.
        data: The differences.
        estimate: What they come to.
        verdict: By the interval that holds for these hospitals and, where there are enough, for others.
    """

    contrast: Contrast
    outcome: Outcome
    part: str
    level: float
    data: Paired
    estimate: Estimate
    verdict: Verdict

    @property
    def converged(self) -> bool | None:
        """Whether all its runs had converged; None where that is not known of one, and none is known not to have."""
        known = [run.converged for pair in self.contrast.pairs for run in pair]
        return False if False in known else None if None in known else True


@dataclass(frozen=True, slots=True)
class Comparison:
    """All verdicts about some runs.

    Attributes:
        observation: The runs.
        primary: The primary contrasts in the primary outcome; the first one is the verdict.
        large: The same contrasts in Dice of large lesions; None where there is no such image.
        margin: How much that may fall.
        further: Everything else, with simultaneous intervals.
        itself: The baseline less itself with other seeds, in the primary outcome; None where there are no such runs.
        needed: What a study would need, for each primary contrast.
        obstacles: Why primary contrasts should not be compared, where that was asked for anyway.
        unlike: Why further ones were not.
        declared: Whether primary outcome and contrasts were fixed before the runs.
    """

    observation: Observation
    primary: Sequence[Judged]
    large: Sequence[Judged | None]
    margin: float
    further: Sequence[Judged]
    itself: Judged | None
    needed: Sequence[Needed]
    obstacles: Mapping[str, Sequence[str]]
    unlike: Mapping[str, Sequence[str]]
    declared: bool


def compare(
    observation: Observation,
    *,
    baseline: str | None = None,
    metric: str | None = None,
    anyway: bool = False,
    watch: Callable[[int, int], None] = lambda done, of: None,
) -> Comparison:
    """Compares arms.

    Args:
        observation: The runs.
        baseline: Arm that all others are compared with.
        metric: Primary outcome, one of `OUTCOMES`; that of the plan if left out, else Dice of small images.
        anyway: Compare also what should not be.
        watch: Told how many of all comparisons are done.

    Raises:
        ConfigError: There is nothing to compare, or the runs should not be compared.
        DataError: Runs did not score the same cases, or no case counts in the primary outcome.
    """
    primary, others = contrasts_of(observation, baseline)
    if baseline and observation.primary:  # the arms of a study may have networks of their own
        alike = [each for each in primary if not obstacles_of(each)]
        others = [*others, *(each for each in primary if alike and each not in alike)]
        primary = alike or primary
    obstacles = settled(primary, anyway)
    unlike = settled(others, anyway=True)
    others = [each for each in others if each.name not in unlike]
    name = metric or (observation.primary.outcome if observation.primary else PRIMARY)
    if name not in OUTCOMES:
        raise unknown_choice("metric", name, OUTCOMES)
    out = any(run.unseen_site for each in primary for run, _ in each.pairs)
    part, margin = ("test_out" if out else "test_in"), observation.primary.margin if observation.primary else MARGIN
    count = len(primary) if baseline or not observation.primary else len(observation.primary.contrasts)
    level, itself = 1 - ERROR / max(count, len(primary)), against_itself(observation)
    large = [_judged(contrast, OUTCOMES[MARGIN_OUTCOME], part, level) for contrast in primary]
    decided = [
        _with_margin(_judged(contrast, OUTCOMES[name], part, level), beside, margin)
        for contrast, beside in zip(primary, large, strict=True)
    ]
    found = [judged for judged in decided if judged is not None]
    if len(found) < len(decided):
        raise DataError(
            f"no {PARTS[part]} image counts in {OUTCOMES[name].title}, which is over {OUTCOMES[name].over}; compare "
            f"arms by another --metric, one of: {', '.join(other for other in OUTCOMES if other != name)}"
        )
    return Comparison(
        observation=observation,
        primary=found,
        large=large,
        margin=margin,
        further=_further([*primary, *others], {each.contrast.name for each in found}, name, part, watch),
        itself=_judged(itself, OUTCOMES[name], part, level) if itself else None,
        needed=[needed(judged.data, judged.estimate.components, level) for judged in found],
        obstacles=obstacles,
        unlike=unlike,
        declared=observation.primary is not None
        and name == observation.primary.outcome
        and _are_declared(observation, primary),
    )


def _are_declared(observation: Observation, primary: Sequence[Contrast]) -> bool:
    declared = observation.primary.contrasts if observation.primary else ()
    return all((each.arm, each.baseline) in declared for each in primary)


def verdict_of(interval: Interval, outcome: Outcome) -> Verdict:
    """Says what an interval says that excludes 0; undecided otherwise, and where there is none."""
    sign = 1 if outcome.higher_is_better else -1
    if sign * interval.low > 0 and sign * interval.high > 0:
        return "helps"
    return "hurts" if sign * interval.low < 0 and sign * interval.high < 0 else "undecided"


def verdict_on(found: Estimate, outcome: Outcome) -> Verdict:
    """Says what the interval that decides says; undecided where one seed and fewer than four hospitals are too few."""
    return verdict_of(found.interval, outcome) if found.decides else "undecided"


def needed(data: Paired, components: Components, level: float, effect: float = EFFECT) -> Needed:
    """Computes how large a study would have to be to see an effect with a chance of `POWER`.

    Both intervals must exclude 0, that for these hospitals and, of four or more, that for a new one. They are taken to
    be as long as the variances make them on average, and differences to be normal.

    Args:
        data: What this study has.
        components: Variances of a hospital's difference.
        level: Of the interval that should exclude 0.
        effect: True difference.
    """
    sites, each = len(data.sites), len(data.weight) / len(data.sites)
    if math.isnan(components.patient):
        return Needed(None, None, None)

    def shows(count: int, patients: float) -> bool:
        return _shown(data, components, level, count, patients, effect)

    many = None
    if not math.isnan(components.site):
        many = next((count for count in range(FEWEST_SITES, _MOST_SITES + 1) if shows(count, each)), None)
    here = bisect_left(range(_MOST_PATIENTS), True, lo=sites, key=lambda count: shows(sites, count / sites))
    return Needed(
        sites=many,
        patients=None if many is None else math.ceil(many * each),
        here=here if here < _MOST_PATIENTS else None,
    )


def _shown(data: Paired, components: Components, level: float, sites: int, patients: float, effect: float) -> bool:
    """Whether so many hospitals, with so many patients each, would show an effect with a chance of `POWER`."""
    seeds = 1 if math.isnan(components.run) else int(np.bincount(data.block).max())
    every = int(data.block.max()) + 1
    blocks = max(1, round(sites * every / len(data.sites))) if data.runs_are_apart else every
    of_patients = components.patient / patients / sites
    of_runs, freedom = 0.0, 1.0
    if seeds > 1:
        of_runs = components.run / seeds / blocks
        freedom = freedom_of_runs(np.full(blocks, 1 / blocks), np.full(blocks, seeds))

    def reach(variance: float, freedom: float) -> float:
        return float(special.stdtrit(max(freedom, 1.0), 0.5 + level / 2)) * math.sqrt(variance)

    half = (seeds - 1) / 2  # of two estimates of what runs add the larger one counts, on average max(1, chi2 / freedom)
    larger = float(special.gammainc(half, half) + special.gammaincc(half + 1, half)) if blocks > 1 and half else 1.0
    longer = math.hypot(reach(of_patients, sites * (patients - 1)), reach(larger * of_runs, freedom))
    of_sites = 0.0
    if sites >= FEWEST_SITES:
        of_sites = components.site / sites
        apart = of_runs if data.runs_are_apart else 0.0  # what a run does to all hospitals is not between them
        longer = max(longer, reach(of_patients + apart + of_sites, sites - 1))
    return longer + float(special.ndtri(POWER)) * math.sqrt(of_patients + of_runs + of_sites) <= effect


def _judged(contrast: Contrast, outcome: Outcome, part: str, level: float) -> Judged | None:
    data = differences(contrast, outcome, part)
    if data is None:
        return None
    found = estimate(data, level=level)
    counted = replace(contrast, pairs=[pair for pair in contrast.pairs if pair[0].block in data.blocks])
    return Judged(counted, outcome, part, level, data, found, verdict_on(found, outcome))


def _with_margin(judged: Judged | None, large: Judged | None, margin: float) -> Judged | None:
    """A gain counts for nothing where large lesions may have lost more than the margin, or nothing is known of them."""
    if judged is None or judged.verdict != "helps" or (large and large.estimate.interval.low > -margin):
        return judged
    return replace(judged, verdict="undecided")


def _further(
    contrasts: Sequence[Contrast],
    primary: set[str],
    outcome: str,
    part: str,
    watch: Callable[[int, int], None],
) -> list[Judged]:
    """All contrasts in all outcomes shown, less what is primary, at a level that holds for all of them together."""
    outcomes = list(dict.fromkeys([outcome, *SHOWN]))
    wanted = [
        (contrast, OUTCOMES[name], of)
        for of in dict.fromkeys([part, "test_in"])
        for contrast in contrasts
        for name in outcomes
        if (of, name) != (part, outcome) or contrast.name not in primary
    ]
    found = []
    for number, (contrast, each, of) in enumerate(wanted):
        watch(number, len(wanted))
        found.append(_judged(contrast, each, of, 1 - ERROR / len(wanted)))
    watch(len(wanted), len(wanted))
    return [judged for judged in found if judged is not None]
