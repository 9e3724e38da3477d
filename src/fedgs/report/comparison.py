"""What several runs say side by side: names, differences, and the cases worth looking at; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedgs.report.records import Mean, Overlay, Part, Run

__all__ = [
    "Difference",
    "Exhibit",
    "algorithm_label",
    "differences",
    "exhibits",
    "federated",
    "labels",
    "nearly_matched",
    "unlike_settings",
]

_DISPLAY = {
    "fedgs": "FedGS",
    "fedavg": "FedAvg",
    "fedavg-published": "FedAvg (published)",
    "local": "Every hospital alone",
    "central": "All images pooled",
    "imported": "Published checkpoint",
}
_BASELINES = ("fedavg-published", "fedavg")
_NEARLY_MATCHED, _MATCHED = 0.99, 0.9999
"""Cosines from which on scales hardly turn a direction, and from which on they do not turn it at all."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Scores of one run minus those of its baseline, where both average the same number of images.

    Attributes:
        run: Index of the run.
        baseline: Index of the baseline.
        pooled: Per stratum the plain difference, in [-1, 1]; None where there is nothing to subtract.
    """

    run: int
    baseline: int
    pooled: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One case to look at, in all runs.

    Attributes:
        rank: ``worst``, ``median`` or ``best`` by the mean Dice over the runs.
        overlays: One per run, in the order of the runs.
    """

    rank: str
    overlays: Sequence[Overlay]


def algorithm_label(run: Run) -> str:
    """Names a run's algorithm as a reader would."""
    return _DISPLAY.get(run.algorithm, run.algorithm)


def federated(runs: Sequence[Run]) -> bool:
    """Whether hospitals trained one network together in all of the runs, without sharing images."""
    trained = [run for run in runs if run.history]
    return all(not run.crossed and len({site for each in run.history for site in each.sites}) > 1 for run in trained)


def labels(runs: Sequence[Run]) -> list[str]:
    """Names the runs as a reader would: by algorithm, and by whatever else tells runs of one algorithm apart.

    Returns:
        A label per run, all different.
    """
    plain = [algorithm_label(run) for run in runs]
    aspects = [name for name in ("model", "size", "unseen_site", "fold", "seed") if _varies(runs, name)]
    told = [
        " · ".join([label, *(_aspect(run, name) for name in aspects)]) for label, run in zip(plain, runs, strict=True)
    ]
    counts, seen = Counter(told), Counter[str]()
    for index, label in enumerate(told):
        if counts[label] > 1:
            seen[label] += 1
            told[index] = f"{label} · run {seen[label]}"
    return told


def unlike_settings(runs: Sequence[Run]) -> list[str]:
    """Names the settings, apart from algorithm and seed, in which runs differ, so that scores are not like for like."""
    aspects: dict[str, Sequence[object]] = {
        "data": [(run.source, run.adapter, sorted(run.sites)) for run in runs],
        "rule for small lesions": [run.small_rule for run in runs],
        "unseen hospital": [run.unseen_site for run in runs],
        "fold": [run.fold for run in runs],
        "split": [run.split for run in runs],
        "network": [run.model for run in runs],
        "image size": [run.size for run in runs],
        "number of rounds": [run.rounds for run in runs],
    }
    return [name for name, values in aspects.items() if any(value != values[0] for value in values)]


def differences(runs: Sequence[Run], part: str) -> list[Difference]:
    """Subtracts from each run the baseline run that shares its data, split, network, size, rounds and seed.

    Args:
        runs: Runs of any algorithms; the baseline is `fedavg-published`, else `fedavg`, else the first run's algorithm.
        part: Part of the split.
    """
    algorithms = [run.algorithm for run in runs]
    chosen = next((name for name in _BASELINES if name in algorithms), algorithms[0])
    found = []
    for index, run in enumerate(runs):
        for other, baseline in enumerate(runs):
            alike = run.seed == baseline.seed and not unlike_settings([run, baseline])
            if run.algorithm != chosen == baseline.algorithm and alike and part in run.parts and part in baseline.parts:
                found.append(Difference(index, other, _subtract(run.parts[part], baseline.parts[part])))
                break
    return found


def exhibits(runs: Sequence[Run], *, each: int = 2) -> list[Exhibit]:
    """Picks worst, median and best small-lesion cases, the same for every run.

    Args:
        runs: Runs with overlays; only cases that all of them kept can be shown.
        each: Cases per rank where there are enough, else fewer.

    Returns:
        Exhibits from worst to best; empty when the runs have no case in common.
    """
    by_key = [{overlay.key: overlay for overlay in run.overlays} for run in runs]
    common = set(by_key[0]).intersection(*by_key[1:])
    ranked = sorted(common, key=lambda key: (sum(found[key].dice for found in by_key) / len(runs), key))
    return [
        Exhibit(rank, [found[ranked[position]] for found in by_key])
        for rank, positions in _positions(len(ranked), each).items()
        for position in positions
    ]


def nearly_matched(cosines: Sequence[float]) -> tuple[float, float] | None:
    """Tells whether scales hardly turned the directions that hospitals sent.

    Args:
        cosines: Of the directions and those with every eta 1, of all hospitals and rounds.

    Returns:
        The mean and the lowest one; None where scales did turn them, or, as in a control that multiplies a whole
        direction, could not.
    """
    if not cosines or sum(cosines) / len(cosines) < _NEARLY_MATCHED or min(cosines) >= _MATCHED:
        return None
    return sum(cosines) / len(cosines), min(cosines)


def _positions(count: int, each: int) -> dict[str, range]:
    if count < 3:
        return {"worst": range(min(count, 1)), "best": range(1, count)}
    width = min(each, count // 3)
    middle = (count - width) // 2
    return {"worst": range(width), "median": range(middle, middle + width), "best": range(count - width, count)}


def _subtract(part: Part, baseline: Part) -> dict[str, float | None]:
    def minus(ours: Mean, theirs: Mean) -> float | None:
        if ours.mean is None or theirs.mean is None or ours.n != theirs.n:
            return None
        return ours.mean - theirs.mean

    both = [stratum for stratum in part.pooled if stratum in baseline.pooled]
    return {stratum: minus(part.pooled[stratum], baseline.pooled[stratum]) for stratum in both}


def _varies(runs: Sequence[Run], aspect: str) -> bool:
    return len({getattr(run, aspect) for run in runs}) > 1


def _aspect(run: Run, name: str) -> str:
    value = getattr(run, name)
    if name == "unseen_site":
        return f"without {value}" if value else "all hospitals"
    return {"model": f"{value}", "size": f"{value} px"}.get(name, f"{name} {value}")
