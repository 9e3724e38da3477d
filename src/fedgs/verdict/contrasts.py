"""One arm less another: which runs belong together, whether they may be compared, and by how much they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from fedgs.errors import ConfigError, DataError, unknown_choice
from fedgs.study.plan import BASELINE
from fedgs.verdict.intervals import Paired, paired
from fedgs.verdict.observed import Observation, Observed, settings_apart
from fedgs.verdict.outcomes import Outcome

__all__ = ["Contrast", "against_itself", "contrasts_of", "differences", "obstacles", "other_causes", "paired_runs"]

_BUDGET = ("rounds", "local_epochs", "local_steps", "batch_size", "fraction_of_sites")
_NETWORK = ("model", "model_options", "size", "init_partial")
_SCORING = ("score_size", "split", "split_seed")
_EXPECTED = ("algorithm", "difficulty", "style_from", "share_style", "evaluate_every", "head", "normalised")
_BASELINES = ("matched-site", BASELINE, "fedavg")
_CONTROLS = (
    ("fedgs", "matched-site"),
    ("fedgs-gradient", "matched-site"),
    ("fedgs-gradient", "matched-gradient"),
    ("matched-site", "matched-global"),
    ("matched-global", BASELINE),
)
"""Contrasts that each change one thing, see docs/explanation/algorithms.md; the first two are primary by default."""

_CASE = ["block", "seed", "site", "case"]

SEEDS_SHIFTED = "with other seeds"


@dataclass(frozen=True, slots=True)
class Contrast:
    """One arm less another.

    Attributes:
        arm: Which is claimed to be better.
        baseline: Which it is compared with.
        pairs: A run of each, of one block and seed.
        ours: Scores of the arm in all of them, with ``block`` and ``seed``.
        theirs: The same of the baseline, whose runs go by the seed of the arm's.
    """

    arm: str
    baseline: str
    pairs: Sequence[tuple[Observed, Observed]]
    ours: pd.DataFrame = field(repr=False)
    theirs: pd.DataFrame = field(repr=False)

    @property
    def name(self) -> str:
        """Both arms."""
        return f"{self.arm} - {self.baseline}"

    @property
    def seeds(self) -> list[int]:
        """Seeds of the arm's runs."""
        return sorted({run.seed for run, _ in self.pairs})

    @property
    def folds(self) -> list[int]:
        """Folds of the runs."""
        return sorted({run.fold for run, _ in self.pairs})

    @property
    def unseen_sites(self) -> list[str]:
        """Hospitals that were left out."""
        return sorted({run.unseen_site for run, _ in self.pairs if run.unseen_site})


def contrasts_of(observation: Observation, baseline: str | None = None) -> tuple[list[Contrast], list[Contrast]]:
    """Gives the primary contrasts, and the others.

    The primary ones are those that were declared; or, where a baseline is named, every other arm less that; else FedGS
    less a matched step, for both ways to scale; else every arm less the baseline, so that with two arms there is one.

    Args:
        observation: The runs.
        baseline: An arm.

    Raises:
        ConfigError: There is no such arm, or only one, or no two arms have runs of one seed, fold and hospital.
    """
    arms = observation.arms
    if baseline is not None and baseline not in arms:
        raise unknown_choice("arm for --baseline", baseline, arms)
    if len(arms) < 2:
        other = "fedgs" if arms[0] == BASELINE else BASELINE
        raise ConfigError(f"there is one arm only, '{arms[0]}'; a comparison needs another one, such as {other}")
    other = baseline or next((name for name in _BASELINES if name in arms), arms[0])
    against_one = [(arm, other) for arm in arms if arm != other]
    declared = observation.primary.contrasts if observation.primary else _CONTROLS[:2]
    first = against_one if baseline else [pair for pair in declared if {*pair} <= {*arms}] or against_one
    further = [pair for pair in _CONTROLS if {*pair} <= {*arms}]
    further += [(arm, BASELINE) for arm in arms if BASELINE in arms and arm != BASELINE]
    named = {arm for pair in (*first, *further) for arm in pair}
    further += [(arm, other) for arm in arms if arm not in named]
    made = {pair: paired_runs(observation, *pair) for pair in dict.fromkeys([*first, *further])}
    primary = [made[pair] for pair in first if made[pair].pairs]
    if not primary:
        raise ConfigError(
            f"no run of '{first[0][0]}' has the left-out hospital, fold and seed of a run of '{first[0][1]}'; compare "
            "runs that share them"
        )
    return primary, [contrast for pair, contrast in made.items() if pair not in first and contrast.pairs]


def paired_runs(observation: Observation, arm: str, baseline: str) -> Contrast:
    """Gives the runs of two arms that share left-out hospital, fold and seed; there may be none."""
    others = {(run.block, run.seed): run for run in observation.of(baseline)}
    runs = observation.of(arm)
    return _contrast(arm, baseline, [(r, others[r.block, r.seed]) for r in runs if (r.block, r.seed) in others])


def _contrast(arm: str, baseline: str, pairs: Sequence[tuple[Observed, Observed]]) -> Contrast:
    sides = (
        pd.concat(
            [pair[side].scores.assign(block=pair[0].block, seed=pair[0].seed) for pair in pairs] or [pd.DataFrame()],
            ignore_index=True,
        )
        for side in (0, 1)
    )
    return Contrast(arm, baseline, pairs, *map(_with_groups, sides))


def _with_groups(scores: pd.DataFrame) -> pd.DataFrame:
    """Gives a case one group in all runs, and one of its own where nothing is known of it."""
    if not len(scores):
        return scores
    known = scores.groupby(["site", "case"])["group"].transform("first")
    return scores.assign(group=known.fillna(scores["site"].astype(str) + "/" + scores["case"].astype(str)))


def against_itself(observation: Observation) -> Contrast | None:
    """Gives the baseline less itself with other seeds, where it has seeds that no other arm has; what chance does."""
    others = {(run.block, run.seed) for run in observation.runs if run.arm != BASELINE}
    own: dict[str, list[Observed]] = {}
    for run in observation.of(BASELINE):
        own.setdefault(run.block, []).append(run)
    pairs: list[tuple[Observed, Observed]] = []
    for runs in own.values():
        shared = sorted((run for run in runs if (run.block, run.seed) in others), key=lambda run: run.seed)
        extra = sorted((run for run in runs if (run.block, run.seed) not in others), key=lambda run: run.seed)
        pairs += zip(shared, extra, strict=False)
    return _contrast(BASELINE, f"{BASELINE} {SEEDS_SHIFTED}", pairs) if pairs else None


def obstacles(contrast: Contrast) -> list[str]:
    """Says why the runs of a contrast cannot be compared: other data or splits, networks, budgets, or starts."""
    found: dict[str, None] = {}
    for run, other in contrast.pairs:
        apart = settings_apart([run, other])
        for name in (*_BUDGET, *_NETWORK, *_SCORING):
            if name in apart:
                found[f"{name}: {apart[name][0]!r} for {contrast.arm}, {apart[name][1]!r} for {contrast.baseline}"] = (
                    None
                )
        if run.data != other.data:
            found["images, masks, flags or split"] = None
        if run.start != other.start and run.seed == other.seed:
            found["the weights they started from"] = None
    return list(found)


def other_causes(contrast: Contrast) -> list[str]:
    """Names what two arms do not share beside their algorithms, so that a difference has several causes."""
    found: dict[str, None] = {}
    for run, other in contrast.pairs:
        for name in settings_apart([run, other]):
            if name not in (*_BUDGET, *_NETWORK, *_SCORING, *_EXPECTED):
                found[name] = None
        plain = [base_of(str(each.settings["algorithm"])) == "fedavg" for each in (run, other)]
        if plain[0] != plain[1]:
            found["weights of hospitals (by examples or by steps)"] = found["weight decay (counted or not)"] = None
        for name in ("torch", "device"):
            if run.machine.get(name) != other.machine.get(name):
                found[f"{name} ({run.machine.get(name)} and {other.machine.get(name)})"] = None
    return list(found)


def base_of(algorithm: str) -> str:
    """Names the part of an algorithm's name that says how steps count."""
    from fedgs.algorithms import ALGORITHMS

    return next((part for part in algorithm.split("+") if part in ALGORITHMS), "fedavg")


def differences(contrast: Contrast, outcome: Outcome, part: str) -> Paired | None:
    """Gives the differences case by case; None where no case counts.

    Args:
        contrast: The contrast.
        outcome: The score.
        part: ``test_out`` or ``test_in``.

    Raises:
        DataError: Two runs did not score the same cases.
    """
    sides = [side[side["part"] == part] for side in (contrast.ours, contrast.theirs)]
    if not any(map(len, sides)):
        return None
    ours, theirs = (_of_cases(side, outcome) for side in sides)
    if not ours.index.equals(theirs.index) or not (ours["weight"] == theirs["weight"]).all():
        raise DataError(
            f"runs of {contrast.arm} and of {contrast.baseline} did not score the same images in {part}; compare "
            "runs of one split"
        )
    if not len(ours):
        return None
    return paired(ours.assign(difference=ours["value"] - theirs["value"]).reset_index())


def _of_cases(scores: pd.DataFrame, outcome: Outcome) -> pd.DataFrame:
    """Value, weight and group of each case in each run; the mean over the networks where several marked it."""
    found = outcome.of_cases(scores).join(scores[[*_CASE, "group"]])
    if found.duplicated(_CASE).any():
        found = found.groupby(_CASE).agg({"value": "mean", "weight": "mean", "group": "first"}).reset_index()
    return found.set_index(_CASE).sort_index()


def settled(contrasts: Sequence[Contrast], anyway: bool) -> Mapping[str, list[str]]:
    """Gives what stands in the way of each contrast.

    Raises:
        ConfigError: Something does, and it is not to be compared anyway.
    """
    found = {each.name: obstacles(each) for each in contrasts}
    found = {name: reasons for name, reasons in found.items() if reasons}
    if found and not anyway:
        name, reasons = next(iter(found.items()))
        raise ConfigError(
            f"{name}: these runs cannot be compared, they differ in {'; '.join(reasons)}. Compare runs that differ in "
            "the algorithm alone, or add --anyway, which marks the report"
        )
    return found
