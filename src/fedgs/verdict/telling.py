"""What a comparison says: sentences for people, and comparison.json for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import fedgs
from fedgs.report.comparison import nearly_matched
from fedgs.verdict.contrasts import Contrast, other_causes
from fedgs.verdict.intervals import Interval
from fedgs.verdict.judging import EFFECT, ERROR, POWER, Comparison, Judged, Needed, verdict_of, verdict_on
from fedgs.verdict.observed import Observation
from fedgs.verdict.outcomes import Outcome
from fedgs.verdict.summaries import mixed_of

__all__ = ["as_json", "label_of", "name_of", "plainly", "remarks", "sentence", "shared_by", "signed"]

_FORMAT = 1
_NAMES = {
    "fedgs": "FedGS",
    "fedgs-gradient": "FedGS on gradients",
    "matched-site": "a matched step",
    "matched-global": "a step matched over all hospitals",
    "matched-gradient": "an update as long",
    "fedavg-published": "FedAvg as published",
    "fedavg": "FedAvg",
}
_SHARES = ("", "%")
MINUS = "\N{MINUS SIGN}"


def name_of(arm: str) -> str:
    """Names an arm as a sentence would."""
    return _NAMES.get(arm, arm)


def label_of(contrast: Contrast) -> str:
    """Names a contrast by its arms."""
    return f"{contrast.arm} {MINUS} {contrast.baseline}"


def sentence(comparison: Comparison, number: int = 0) -> str:
    """Says what a primary contrast came to, in one sentence.

    Args:
        comparison: The comparison.
        number: Of the contrast, among the primary ones.
    """
    judged, needed = comparison.primary[number], comparison.needed[number]
    sites = len(judged.data.sites)
    hospitals = "1 hospital" if sites == 1 else f"{sites} hospitals"
    turns = "once each" if len(judged.contrast.folds) == 1 else "in turn"
    where = f"On {hospitals} left out {'' if sites == 1 else turns}".rstrip()
    where = where if judged.part == "test_out" else f"On held-out images of {hospitals}"
    count = shared_by(judged)
    level = "95 % interval" + ("" if count == 1 else f", {100 * judged.level:.1f} % for each of {count} contrasts,")
    most, fewest = len(judged.contrast.seeds), judged.estimate.seeds
    seeds = f"{most} seed{'' if most == 1 else 's'}" if fewest == most else f"{fewest} to {most} seeds"
    return (
        f"{where}, {name_of(judged.contrast.arm)} changes {judged.outcome.title} by "
        f"{signed(judged.estimate.difference, judged.outcome)} against {name_of(judged.contrast.baseline)} "
        f"({level} {_span(judged.estimate.interval, judged.outcome)}; {seeds}, "
        f"{judged.data.cases} images): {judged.verdict}{_scope(comparison, judged)}; {_need(judged, needed)}."
    )


def shared_by(judged: Judged) -> int:
    """How many contrasts share the chance of error, whether or not all of them could be compared."""
    return round(ERROR / (1 - judged.level))


def plainly(comparison: Comparison, number: int = 0) -> str:
    """Says what a primary contrast came to, in words that need no statistics.

    Args:
        comparison: The comparison.
        number: Of the contrast, among the primary ones.
    """
    judged = comparison.primary[number]
    interval, title, over = judged.estimate.interval, judged.outcome.title, judged.outcome.over
    between = f"between {signed(interval.low, judged.outcome)} and {signed(interval.high, judged.outcome)}"
    ours, theirs = name_of(judged.contrast.arm), name_of(judged.contrast.baseline)
    if not judged.data.total.any():
        return f"{ours} and {theirs} did not differ in any of these {over}."
    if math.isnan(interval.low):
        return f"There are too few {over} to say how sure the change of {title} is."
    if judged.verdict == "undecided" and (seen := verdict_of(interval, judged.outcome)) != "undecided":
        way = "better" if seen == "helps" else "worse"
        why = (
            "one run per arm in so few hospitals cannot tell an algorithm from a run"
            if not judged.estimate.decides
            else "there is no image with large lesions only, which may have lost by it"
            if comparison.large[number] is None
            else f"large lesions may have lost more than {comparison.margin:g} by it"
        )
        return (
            f"On these {over}, {ours} does {way} than {theirs} (a change of {title} {between}), but that decides "
            f"nothing, since {why}."
        )
    if judged.verdict == "undecided":
        return (
            f"Whether {ours} does better or worse than {theirs} on {over} cannot be told from these runs: the true "
            f"change of {title} may lie anywhere {between}. That is not the same as no change."
        )
    better = "better" if judged.verdict == "helps" else "worse"
    return f"On {over}, {ours} does {better} than {theirs}: the true change of {title} most likely lies {between}."


def remarks(comparison: Comparison, number: int = 0) -> list[str]:
    """Says what a reader must know before taking a verdict for more than it is, a sentence each."""
    judged, observation = comparison.primary[number], comparison.observation
    contrast = judged.contrast
    told = _of_mechanism(contrast)
    if reasons := comparison.obstacles.get(contrast.name):
        told.append(
            f"{contrast.name} should not be compared, and was on request: the runs differ in {'; '.join(reasons)}."
        )
    if causes := other_causes(contrast):
        told.append(f"The difference cannot be attributed to scaling alone: so do {', '.join(causes)} differ.")
    told += [
        *_of_training(judged),
        *_of_margin(judged, comparison.large[number], comparison.margin),
        *_of_seeds(judged),
        *_of_scores(judged),
    ]
    if not comparison.declared:
        told.append("What decides was not declared before these runs.")
    if apart := [arm for arm in (contrast.arm, contrast.baseline) if arm in observation.untuned]:
        told.append(f"Not tuned: {', '.join(apart)}.")
    return told + _of_lost_runs(observation, contrast)


def _of_seeds(judged: Judged) -> list[str]:
    told = []
    if math.isnan(judged.estimate.components.run):
        told.append("One seed: the interval for these hospitals is over cases only and knows nothing of other runs.")
    elif judged.estimate.seeds == 1:
        told.append("Some hospitals have one seed only; their runs are taken to differ as those of the others do.")
    if not judged.estimate.decides:
        told.append("One seed and fewer than four hospitals decide nothing: another run may differ by as much.")
    return told


def _of_scores(judged: Judged) -> list[str]:
    told = []
    if math.isnan(judged.estimate.these.low):
        told.append("Every hospital has one patient with such images only, so that no interval can be given.")
    if not judged.data.total.any():
        told.append("All scores of the two are equal, as if they were one run.")
    elif judged.estimate.components.patient == 0:
        told.append("All patients of a hospital differ by the same amount; are these the scores of networks?")
    return told


def _of_lost_runs(observation: Observation, contrast: Contrast) -> list[str]:
    """Says which runs do not count, and why."""
    ours, theirs = ({(run.block, run.seed) for run in observation.of(arm)} for arm in (contrast.arm, contrast.baseline))
    both = {block for block, _ in ours & theirs}
    told = []
    if alone := sorted({block for block, _ in ours | theirs} - both):
        told.append(f"Not in it, since only one of the two arms has runs there: {'; '.join(alone)}.")
    if without := sorted(both - {run.block for run, _ in contrast.pairs}):
        told.append(f"Not in it, since no image there counts: {'; '.join(without)}.")
    if lost := len(observation.missing) + len(observation.failed):
        failed = f", {len(observation.failed)} of them failed" if observation.failed else ""
        told.append(f"{lost} cells of the plan are not there{failed}.")
    return told


def _of_mechanism(contrast: Contrast) -> list[str]:
    """Says that an arm is nearly a matched step, which no score can then contradict."""
    sites = [site for run, _ in contrast.pairs for each in run.rounds for site in each["sites"].values()]
    cosines = [float(site["cosine"]) for site in sites if site.get("cosine") is not None]
    if (found := nearly_matched(cosines)) is None:
        return []
    return [
        f"{name_of(contrast.arm)} is nearly a matched step in these runs: the cosine of the updates and those with "
        f"every eta 1 is {found[0]:.4f} on average, {found[1]:.4f} at the lowest. Little of any difference can come "
        "from which steps count more."
    ]


def _of_training(judged: Judged) -> list[str]:
    blocks = {
        known: sorted({run.block for pair in judged.contrast.pairs for run in pair if run.converged is known})
        for known in (False, None)
    }
    told = [f"Not converged: {'; '.join(blocks[False])}. A difference may be one of speed."] if blocks[False] else []
    return told + ([f"Whether training had converged is not known: {'; '.join(blocks[None])}."] if blocks[None] else [])


def _of_margin(judged: Judged, large: Judged | None, margin: float) -> list[str]:
    if large is None:
        return ["There is no image with large lesions only: whether these lose is not known, so nothing can help."]
    if judged.verdict == "undecided" and verdict_on(judged.estimate, judged.outcome) == "helps":
        low = signed(large.estimate.interval.low, large.outcome)
        return [
            f"A gain is not decided while Dice-L may have fallen by more than {margin:g}: its interval begins at {low}."
        ]
    return []


def _scope(comparison: Comparison, judged: Judged) -> str:
    """What must stand beside the word itself."""
    contrast = judged.contrast
    said = {
        "not converged": judged.converged is False,
        "of runs that should not be compared": contrast.name in comparison.obstacles,
        "not attributable to scaling alone": bool(other_causes(contrast)),
        "for these hospitals only": judged.estimate.new is None,
    }
    return "".join(f", {text}" for text, holds in said.items() if holds)


def _need(judged: Judged, needed: Needed) -> str:
    if judged.outcome.unit not in _SHARES:
        return "how large a study should be is told for shares alone"
    if math.isnan(judged.estimate.components.patient):
        return "how large a study should be cannot be told, as no hospital has two patients with such images"
    if not judged.data.total.any():
        return "how large a study should be cannot be told where nothing differs"
    told = [_elsewhere(needed), _here(judged, needed)]
    return f"to detect {EFFECT:g} with a chance of {100 * POWER:.0f} %, {'; '.join(filter(None, told))}"


def _elsewhere(needed: Needed) -> str:
    return (
        ""
        if needed.sites is None
        else f"about {needed.patients:,} patients with such images in {needed.sites} hospitals"
    )


def _here(judged: Judged, needed: Needed) -> str:
    """What it takes in the hospitals that there are; a claim about them alone where there are fewer than four."""
    sites = len(judged.data.sites)
    these = "this hospital" if sites == 1 else f"these {sites} hospitals"
    if needed.here is None:
        return f"no number of patients in {these} would suffice"
    alone = judged.estimate.new is None
    unknown = ", if runs with other seeds differed in nothing" if alone and judged.estimate.seeds == 1 else ""
    patients = "patient" if needed.here == 1 else "patients"
    told = f"about {needed.here:,} {patients} with such images {'in' if sites == 1 else 'in all of'} {these}"
    return f"{told}, for a verdict on {'it' if sites == 1 else 'them'} alone{unknown}" if alone else told


def signed(value: float, outcome: Outcome) -> str:
    """Writes a difference with its sign, in the unit of the outcome."""
    if math.isnan(value):
        return "?"
    shown = {"px": f"{value:+.1f} px", "%": f"{100 * value:+.2f} %", "per image": f"{value:+.2f} per image"}
    text = shown.get(outcome.unit, f"{value:+.3f}")
    is_nothing = not any(digit in text for digit in "123456789")
    return text[1:] if is_nothing else text.replace("-", MINUS)


def _span(interval: Interval, outcome: Outcome) -> str:
    return f"{signed(interval.low, outcome)} to {signed(interval.high, outcome)}"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Gives a comparison as JSON can hold it; the first primary contrast stands at the top as well."""
    first = comparison.primary[0]
    return {
        "format": _FORMAT,
        "fedgs": fedgs.__version__,
        **_told(first),
        "sentence": sentence(comparison),
        "remarks": remarks(comparison),
        "name": comparison.observation.name,
        "declared": comparison.declared,
        "margin": comparison.margin,
        "error": ERROR,
        "primary": [
            {
                **_told(judged),
                "sentence": sentence(comparison, number),
                "remarks": remarks(comparison, number),
                "dice_l": None if large is None else _told(large),
                "non_inferior": None if large is None else bool(large.estimate.interval.low > -comparison.margin),
                "needed": {"effect": EFFECT, "power": POWER, **_needed(comparison.needed[number])},
            }
            for number, (judged, large) in enumerate(zip(comparison.primary, comparison.large, strict=True))
        ],
        "further": [_told(judged) for judged in comparison.further],
        "itself": None if comparison.itself is None else _told(comparison.itself),
        "unlike": {name: list(reasons) for name, reasons in comparison.unlike.items()},
        "obstacles": {name: list(reasons) for name, reasons in comparison.obstacles.items()},
        "missing": list(comparison.observation.missing),
        "failed": dict(comparison.observation.failed),
        "runs": [
            {"arm": run.arm, "unseen_site": run.unseen_site, "fold": run.fold, "seed": run.seed}
            for run in comparison.observation.runs
        ],
    }


def _told(judged: Judged) -> dict[str, Any]:
    found, data = judged.estimate, judged.data
    mixed = {"n_mixed": mixed_of((run for run, _ in judged.contrast.pairs), judged.part)}
    return {
        "verdict": judged.verdict,
        "converged": judged.converged,
        "difference": found.difference,
        "interval": _pair(found.interval),
        "n_cases": data.cases,
        **(mixed if judged.outcome.name == "dice_s" else {}),
        "n_sites": len(data.sites),
        "seeds": judged.contrast.seeds,
        "folds": judged.contrast.folds,
        "contrast": [judged.contrast.arm, judged.contrast.baseline],
        "metric": judged.outcome.name,
        "part": judged.part,
        "level": judged.level,
        "these_hospitals": _pair(found.these),
        "new_hospital": None if found.new is None else _pair(found.new),
        "n_patients": len(data.weight),
        "sites": {
            site: {"difference": float(value), "n_cases": cases}
            for site, value, cases in zip(data.sites, found.site_differences, data.cases_of, strict=True)
        },
        "variance": {name: _number(getattr(found.components, name)) for name in ("patient", "run", "site")},
    }


def _needed(needed: Needed) -> Mapping[str, int | None]:
    return {"sites": needed.sites, "patients": needed.patients, "patients_here": needed.here}


def _pair(interval: Interval) -> list[float | None]:
    return [_number(interval.low), _number(interval.high)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
