"""From differences to verdicts: helps, hurts or undecided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from fedgs.errors import DataError, unknown_choice
from fedgs.verdict.contrasts import Contrast, against_itself, contrasts_of, differences, settled
from fedgs.verdict.intervals import FEWEST_SITES, Components, Estimate, Interval, Paired, estimate
from fedgs.verdict.observed import Observation
from fedgs.verdict.outcomes import MARGIN_OUTCOME, OUTCOMES, PRIMARY, SHOWN, Outcome

__all__ = ["EFFECT", "ERROR", "PARTS", "POWER", "Comparison", "Judged", "Needed", "compare", "needed", "verdict_of"]

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

Verdict = Literal["helps", "hurts", "undecided"]


@dataclass(frozen=True, slots=True)
class Needed:
    """What a study would need to see `EFFECT`.

    Attributes:
        sites: Hospitals, each with as many patients as those of this study on average; None where 1,000 do not suffice,
            or one hospital tells nothing of how others differ.
        patients: In all of them.
        here: Patients in all hospitals of this study together; None where no number of them would suffice. Of fewer
            than four hospitals it is for a verdict on these alone, and with one seed as if runs differed in nothing.
    """

    sites: int | None
    patients: int | None
    here: int | None


@dataclass(frozen=True, slots=True)
class Judged:
    """A contrast in one outcome.

    Attributes:
        contrast: Which arms, and their runs.
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
        obstacles: Why contrasts should not be compared, where that was asked for anyway.
        declared: Whether the primary outcome was fixed before the runs.
    """

    observation: Observation
    primary: Sequence[Judged]
    large: Sequence[Judged | None]
    margin: float
    further: Sequence[Judged]
    itself: Judged | None
    needed: Sequence[Needed]
    obstacles: Mapping[str, Sequence[str]]
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
    obstacles = settled([*primary, *others], anyway)
    name = metric or (observation.primary.outcome if observation.primary else PRIMARY)
    if name not in OUTCOMES:
        raise unknown_choice("metric", name, OUTCOMES)
    out = any(run.unseen_site for each in primary for run, _ in each.pairs)
    part, margin = ("test_out" if out else "test_in"), observation.primary.margin if observation.primary else MARGIN
    level, itself = 1 - ERROR / len(primary), against_itself(observation)
    large = [_judged(contrast, OUTCOMES[MARGIN_OUTCOME], part, level) for contrast in primary]
    decided = [
        _with_margin(_judged(contrast, OUTCOMES[name], part, level), beside, margin)
        for contrast, beside in zip(primary, large, strict=True)
    ]
    found = [judged for judged in decided if judged is not None]
    if len(found) < len(decided):
        raise DataError(
            f"no {PARTS[part]} image counts in {OUTCOMES[name].title}, which is over {OUTCOMES[name].over}; compare "
            f"arms by another --metric, one of: {', '.join(OUTCOMES)}"
        )
    return Comparison(
        observation=observation,
        primary=found,
        large=large,
        margin=margin,
        further=_further(
            [*primary, *others], {(each.contrast.arm, each.contrast.baseline) for each in found}, name, part, watch
        ),
        itself=_judged(itself, OUTCOMES[name], part, level) if itself else None,
        needed=[needed(judged.data, judged.estimate.components, level) for judged in found],
        obstacles=obstacles,
        declared=observation.primary is not None and name == observation.primary.outcome,
    )


def verdict_of(interval: Interval, outcome: Outcome) -> Verdict:
    """Says what an interval says that excludes 0; undecided otherwise, and where there is none."""
    sign = 1 if outcome.higher_is_better else -1
    if sign * interval.low > 0 and sign * interval.high > 0:
        return "helps"
    return "hurts" if sign * interval.low < 0 and sign * interval.high < 0 else "undecided"


def needed(data: Paired, components: Components, level: float) -> Needed:
    """Computes how large a study would have to be to see `EFFECT` with a chance of `POWER`.

    Args:
        data: What this study has.
        components: Variances of a hospital's difference.
        level: Of the interval that should exclude 0.
    """
    sites, patients = len(data.sites), len(data.weight) / len(data.sites)
    seeds = int(np.bincount(data.block).min())
    run = 0.0 if math.isnan(components.run) else components.run / seeds
    of_site = 0.0 if math.isnan(components.site) else components.site
    shared, own = (0.0, of_site + run) if data.runs_are_apart else (run, of_site)

    def suffices(count: int, of_patients: float) -> bool:
        reach = float(stats.t.ppf(0.5 + level / 2, count - 1) + stats.norm.ppf(POWER))
        return reach**2 * ((own + of_patients) / count + shared) <= EFFECT**2

    many = next((m for m in range(FEWEST_SITES, _MOST_SITES + 1) if suffices(m, components.patient / patients)), None)
    if math.isnan(components.patient) or math.isnan(components.site):
        many = None
    fixed = sites < FEWEST_SITES
    quantile = stats.norm.ppf(0.5 + level / 2) if fixed else stats.t.ppf(0.5 + level / 2, sites - 1)
    left = (
        (EFFECT / float(quantile + stats.norm.ppf(POWER))) ** 2 - shared - (own - (of_site if fixed else 0.0)) / sites
    )
    here = max(sites, math.ceil(components.patient / left)) if left > 0 and components.patient >= 0 else None
    return Needed(many, None if many is None else math.ceil(many * patients), here)


def _judged(contrast: Contrast, outcome: Outcome, part: str, level: float) -> Judged | None:
    data = differences(contrast, outcome, part)
    if data is None:
        return None
    found = estimate(data, level=level)
    return Judged(contrast, outcome, part, level, data, found, verdict_of(found.interval, outcome))


def _with_margin(judged: Judged | None, large: Judged | None, margin: float) -> Judged | None:
    """A gain counts for nothing where large lesions may have lost more than the margin."""
    if judged is None or judged.verdict != "helps" or large is None or large.estimate.interval.low > -margin:
        return judged
    return replace(judged, verdict="undecided")


def _further(
    contrasts: Sequence[Contrast],
    primary: set[tuple[str, str]],
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
        if (of, name) != (part, outcome) or (contrast.arm, contrast.baseline) not in primary
    ]
    found = []
    for number, (contrast, each, of) in enumerate(wanted):
        watch(number, len(wanted))
        found.append(_judged(contrast, each, of, 1 - ERROR / len(wanted)))
    watch(len(wanted), len(wanted))
    return [judged for judged in found if judged is not None]
