"""What a page shows beside verdicts: means by arm, mechanism, curves and lesion sizes, as plain tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedgs.verdict.observed import Observation, Observed
from fedgs.verdict.outcomes import OUTCOMES, Outcome

__all__ = [
    "STRATA",
    "LikeForLike",
    "case_means",
    "curves",
    "groups_of_arms",
    "mean_of",
    "mechanism",
    "mixed_of",
    "scores_by_arm",
    "sizes",
]

STRATA = ("dice", "dice_n", "dice_s", "dice_t", "dice_l")
_MECHANISM = {"mean_eta": "eta", "norm_ratio": "ratio", "cosine": "cosine"}
_CASE, _RUN = ["site", "case"], ["block", "seed"]
_FEWEST_IN_A_BIN, _MOST_BINS = 8, 10


@dataclass(frozen=True, slots=True)
class LikeForLike:
    """Arms that stand side by side, since they are seen in runs of the same hospitals, folds and seeds.

    Attributes:
        blocks: What the runs share but for their seed, in order.
        seeds: In these runs.
        arms: The runs of every arm.
    """

    blocks: Sequence[str]
    seeds: Sequence[int]
    arms: Mapping[str, Sequence[Observed]]


def groups_of_arms(observation: Observation, first: Sequence[str]) -> list[LikeForLike]:
    """Puts arms together that have runs of the same hospitals, folds and seeds.

    Args:
        observation: The runs.
        first: Arms that set the measure: the runs that all of these share are compared. Other arms that have all of
            them stand beside these; arms that have some stand in a group of their own, with the first ones seen in just
            these.
    """
    shared = set.intersection(*(_grid(observation, arm) for arm in first))
    covered: dict[frozenset[tuple[str, int]], list[str]] = {frozenset(shared): list(first)}
    for arm in observation.arms:
        if arm not in first and (common := frozenset(_grid(observation, arm) & shared)):
            covered.setdefault(common, list(first)).append(arm)
    return [
        LikeForLike(
            sorted({block for block, _ in grid}),
            sorted({seed for _, seed in grid}),
            {arm: [run for run in observation.of(arm) if (run.block, run.seed) in grid] for arm in arms},
        )
        for grid, arms in covered.items()
        if grid
    ]


def _grid(observation: Observation, arm: str) -> set[tuple[str, int]]:
    return {(run.block, run.seed) for run in observation.of(arm)}


def case_means(runs: Iterable[Observed], outcome: Outcome, part: str) -> pd.DataFrame:
    """Averages every case over the networks that marked it, then over seeds, then over folds and left-out hospitals.

    Args:
        runs: Of one arm.
        outcome: The score.
        part: ``test_out`` or ``test_in``.

    Returns:
        A row per case: ``site``, ``case``, ``value``, ``weight`` and ``lesion_area``.
    """
    values = ["value", "weight", "lesion_area"]
    tables = [pd.DataFrame(columns=[*_CASE, *_RUN, *values])]
    for run in runs:
        rows = run.scores[run.scores["part"] == part]
        found = outcome.of_cases(rows).join(rows[[*_CASE, "lesion_area"]])
        tables.append(found.assign(block=run.block, seed=run.seed))
    means = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    for keys in ([*_CASE, *_RUN], [*_CASE, "block"], _CASE):
        means = means.groupby(keys, as_index=False)[values].mean()
    return means


def mean_of(runs: Iterable[Observed], outcome: Outcome, part: str, site: str | None = None) -> tuple[float | None, int]:
    """Gives the mean over cases of `case_means`, and how many cases that are.

    Args:
        runs: Of one arm.
        outcome: The score.
        part: ``test_out`` or ``test_in``.
        site: A hospital; None for all.
    """
    cases = case_means(runs, outcome, part)
    cases = cases if site is None else cases[cases["site"] == site]
    weight = float(cases["weight"].sum())
    return (float((cases["value"] * cases["weight"]).sum()) / weight if weight else None), len(cases)


def mixed_of(runs: Iterable[Observed], part: str) -> int | None:
    """Counts the images of Dice-S that hold a large lesion, too; None where tables, of earlier versions, do not tell.

    Args:
        runs: Of one arm.
        part: ``test_out`` or ``test_in``.
    """
    rows = pd.concat([run.scores[(run.scores["part"] == part) & run.scores["is_small"]] for run in runs])
    if rows["is_mixed"].isna().any():
        return None
    return len(rows[rows["is_mixed"] > 0].drop_duplicates(_CASE))


def scores_by_arm(groups: Sequence[LikeForLike], parts: Sequence[str], outcomes: Sequence[str]) -> pd.DataFrame:
    """Gives a row per group, arm, part and outcome.

    Returns:
        ``group`` (number), ``arm``, ``runs``, ``part``, ``outcome``, ``mean`` (nan for none) and ``n_cases``.
    """
    rows = [
        (number, arm, len(runs), part, name, *mean_of(runs, OUTCOMES[name], part))
        for number, group in enumerate(groups)
        for arm, runs in group.arms.items()
        for part in parts
        for name in outcomes
    ]
    table = pd.DataFrame(rows, columns=["group", "arm", "runs", "part", "outcome", "mean", "n_cases"])
    return table.astype({"mean": float})


def mechanism(runs: Sequence[Observed]) -> pd.DataFrame:
    """Gives what scaling did to the updates, over all rounds.

    Args:
        runs: Of several arms.

    Returns:
        A row per arm and hospital: ``arm``, ``site``, ``eta`` and ``ratio`` (length of the update by that with every
        eta 1), means; ``cosine`` between the two, mean, and ``lowest`` of all rounds. nan where nothing is known.
    """
    rows = [
        (run.arm, site, *(told.get(name) for name in _MECHANISM))
        for run in runs
        for each in run.rounds
        for site, told in each["sites"].items()
    ]
    table = pd.DataFrame(rows, columns=["arm", "site", *_MECHANISM.values()])
    table = table.astype(dict.fromkeys(_MECHANISM.values(), float))
    grouped = table.groupby(["arm", "site"], sort=False)
    means = grouped.mean().assign(lowest=grouped["cosine"].min()).reset_index()
    order = {arm: place for place, arm in enumerate(dict.fromkeys(run.arm for run in runs))}
    return means.sort_values(["arm", "site"], key=lambda column: column.map(order) if column.name == "arm" else column)


def curves(runs: Sequence[Observed], outcome: str) -> pd.DataFrame:
    """Gives validation means by round.

    Args:
        runs: Of several arms.
        outcome: One of `fedgs.metrics.table.STRATA`.

    Returns:
        ``block``, ``arm``, ``round``, ``mean`` over seeds, ``low``, ``high`` and ``seeds``.
    """
    rows = [
        (run.block, run.arm, int(each["round"]), float(mean))
        for run in runs
        for each in run.rounds
        if each.get("validation") is not None
        and (mean := each["validation"].get(outcome, {"mean": None})["mean"]) is not None
    ]
    table = pd.DataFrame(rows, columns=["block", "arm", "round", "value"])
    grouped = table.groupby(["block", "arm", "round"], sort=False)["value"]
    return grouped.agg(mean="mean", low="min", high="max", seeds="count").reset_index()


def sizes(group: LikeForLike, part: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gives Dice by size of the lesions.

    Args:
        group: Arms seen in the same runs.
        part: Part of the split.

    Returns:
        A row per case with a lesion, ``site``, ``case``, ``share`` of the image that its lesions cover, and a column
        per arm; and the means of the arms in bins that hold equally many cases, ``share`` being the median of each and
        ``n`` its cases.
    """
    tables = [
        case_means(runs, OUTCOMES["dice_n"], part).set_index(["site", "case", "lesion_area"])["value"].rename(arm)
        for arm, runs in group.arms.items()
    ]
    cases = pd.concat(tables, axis=1).reset_index()
    cases.insert(2, "share", cases.pop("lesion_area") / 512**2)
    bins = max(1, min(_MOST_BINS, len(cases) // _FEWEST_IN_A_BIN))
    ranks = (cases["share"].rank(method="first").to_numpy() - 1) * bins // max(len(cases), 1)
    grouped = cases.groupby(ranks.astype(np.intp))
    means = grouped[list(group.arms)].mean().assign(share=grouped["share"].median(), n=grouped.size())
    return cases, means.reset_index(drop=True)
