"""What arms can be compared in: scores that every arm has for the same cases, whatever it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from fedgs.metrics.catalogue import METRICS, Column, Metric, require_possible
from fedgs.metrics.table import DETAILS, require_sound, with_details

__all__ = ["as_numbers", "MARGIN_OUTCOME", "OUTCOMES", "PRIMARY", "SHOWN", "Outcome"]

PRIMARY = "dice_t"
"""What the verdict is about unless a plan or a person says otherwise."""

SHOWN = (
    *("lesion_sensitivity_small_10", "false_lesions_10", "dice_t", "dice_s", "dice_l", "dice_n"),
    *("lesion_sensitivity_small_50", "surface_dice", "hd95_missed", "ece"),
)
"""What stands beside it; the first two, small lesions found and falsely marked ones, are secondary outcomes."""

MARGIN_OUTCOME = "dice_l"
"""What must not fall by more than the margin."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A score that arms are compared in.

    Attributes:
        name: Its key.
        title: Its name on a page.
        over: What it is averaged over, a noun in the plural.
        part: Numerator per image; nan where the image does not count.
        whole: Denominator per image, the same for all arms.
        higher_is_better: Which way is better.
        unit: As of `fedgs.metrics.catalogue.Metric`.
    """

    name: str
    title: str
    over: str
    part: Column
    whole: Column
    higher_is_better: bool = True
    unit: str = ""

    def of_cases(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Gives the score of every row that counts, and its weight in a mean over cases.

        Args:
            scores: What `as_numbers` gave.

        Returns:
            Columns ``value`` and ``weight``, float, with the index of the rows that count.
        """
        part, whole = self.part(scores).astype(float), self.whole(scores).astype(float)
        counts = part.notna() & (whole > 0)
        return pd.DataFrame({"value": part[counts] / whole[counts], "weight": whole[counts]})


def as_numbers(scores: pd.DataFrame) -> pd.DataFrame:
    """Gives rows of scores.csv with plain numbers, nan where there is none, ready for many outcomes.

    Raises:
        DataError: A column is missing, a case appears twice, or a score is impossible.
    """
    require_sound(scores)
    require_possible(with_details(scores))
    return scores.assign(**{name: scores[name].astype(float) for name in (*DETAILS, "tp", "fp", "fn", "pixels")})


def _dice(name: str, title: str, over: str, counts: Column) -> Outcome:
    return Outcome(name, title, over, lambda t: t["dice"].where(counts(t)), lambda t: counts(t).astype(float))


def _title(metric: Metric) -> str:
    """Scores of lesions have one name for each overlap that counts as found."""
    return f"{metric.title} ({metric.group.partition(', ')[2]})" if metric.group.startswith("Lesions") else metric.title


def _all() -> Mapping[str, Outcome]:
    strata = [
        _dice("dice_t", "Dice-T", "images whose lesions are small even together", lambda t: t["is_tiny"]),
        _dice("dice_s", "Dice-S", "images with a small lesion", lambda t: t["is_small"]),
        _dice("dice_l", "Dice-L", "images with large lesions", lambda t: (t["lesion_area"] > 0) & ~t["is_small"]),
        _dice("dice_n", "Dice-N", "images with a lesion", lambda t: t["lesion_area"] > 0),
        _dice("dice", "Dice", "images", lambda t: t["lesion_area"] >= 0),
    ]
    others = [
        Outcome(each.name, _title(each), each.over, each.part, each.whole, each.better == "higher", each.unit)
        for each in METRICS
        if each.paired
    ]
    return {outcome.name: outcome for outcome in (*strata, *others)}


OUTCOMES = _all()
"""By name."""
