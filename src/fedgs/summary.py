"""What summary.json says of the data and of the scores."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from fedgs.data.index import Index
from fedgs.data.splits import leaks, unknown_patients
from fedgs.metrics.catalogue import other_scores
from fedgs.metrics.sizes import size_quartiles
from fedgs.metrics.table import summarise
from fedgs.metrics.volumes import DIAMETERS_MM

__all__ = [
    "ADAPTED",
    "ADDED",
    "CROSS",
    "EXTERNAL",
    "TESTS",
    "describe_data",
    "means_of_part",
    "means_of_round",
    "means_of_volumes",
    "training_quartiles",
]

TESTS = ("test_in", "test_out")
"""The parts that nothing is selected on."""

CROSS = "cross"
"""Held-out images of a site, scored by the networks of all others, where sites share nothing."""

EXTERNAL = "external"
"""Images of hospitals that a finished run never knew."""

ADAPTED = "adapted"
"""The same after the statistics of batch normalisation were re-estimated from each hospital's own unlabelled images.

It saw the images that it is scored on, so it must not be compared with any other part.
"""

ADDED = (EXTERNAL, ADAPTED)
"""The parts that are added to a finished run, which therefore are not the run's own scores."""


def describe_data(index: Index, split: pd.DataFrame) -> dict[str, Any]:
    """Counts the cases of each site by what matters, and what the split leaks.

    Args:
        index: The data.
        split: Their parts, row by row.
    """
    table = index.table.assign(part=split["part"])
    rule, found = index.small_rule, leaks(index.table, split)
    sites = {
        str(site): {
            "cases": len(cases),
            "patients_known": int(cases["patient"].notna().sum()),
            "lesion_free": int((cases["lesion_area"] == 0).sum()),
            "small": int(cases["is_small"].sum()),
            "tiny": int(cases["is_tiny"].sum()),
            **{part: int((cases["part"] == part).sum()) for part in ("train", "validation", *TESTS)},
        }
        for site, cases in table.groupby("site")
    }
    return {
        "source": index.source.name,
        **({} if index.slices is None else {"slices": asdict(index.slices)}),
        "adapter": index.adapter,
        "channels": index.channels,
        "small_rule": {"kind": rule.kind, "fraction": rule.fraction, "base": rule.base},
        "size_quartiles": training_quartiles(index, split),
        "sites": sites,
        "patients_unknown": sum(unknown_patients(index.table).values()),
        "leaks": {
            "patients": sum(found.patients.values()),
            "duplicates": sum(found.duplicates.values()),
            "near_duplicates": sum(found.near_duplicates.values()),
        },
    }


def training_quartiles(index: Index, split: pd.DataFrame) -> list[float] | None:
    """Gives the areas that divide the lesions of the training images of all sites; None where there is none.

    Args:
        index: The data.
        split: Their parts, row by row.
    """
    found = size_quartiles(index.table.loc[split["part"] == "train", "lesion_area"])
    return None if found is None else list(found)


def means_of_part(scores: pd.DataFrame) -> dict[str, Any]:
    """Gives the summary of one part in one round, and under ``other`` the scores beside Dice.

    Args:
        scores: Rows of scores.csv, of that part and round.
    """
    return {**summarise(scores), "other": other_scores(scores)}


def means_of_volumes(volumes: pd.DataFrame) -> dict[str, Any]:
    """Gives what volumes come to as wholes, by part.

    Args:
        volumes: Rows of volumes.csv, of one round.

    Returns:
        For each part: numbers of volumes, and of those with and without target; mean Dice of those with it; median HD95
        in mm and mean surface Dice where both masks hold something; the share of slices without target that have a
        false prediction, and of volumes without it; and by stratum of diameters how many lesions there are, the share
        of them found and of the predicted ones that are not false (IoU above 0.1). None where there is nothing.
    """
    return {part: _of_volumes(volumes[volumes["part"] == part]) for part in TESTS}


def _of_volumes(rows: pd.DataFrame) -> dict[str, Any]:
    has_target = rows["true_ml"] > 0
    without = rows[~has_target]
    strata = {
        stratum: {
            "lesions": int(rows[f"lesions_{stratum}"].sum()),
            "sensitivity": _share(rows[f"found_10_{stratum}"], rows[f"lesions_{stratum}"]),
            "precision": _share(
                rows[f"predicted_{stratum}"] - rows[f"false_10_{stratum}"], rows[f"predicted_{stratum}"]
            ),
        }
        for stratum in DIAMETERS_MM
    }
    return {
        "volumes": len(rows),
        "with_target": int(has_target.sum()),
        "without_target": len(without),
        "dice": _or_none(rows.loc[has_target, "dice"].mean()),
        "hd95_mm": _or_none(rows["hd95_mm"].median()),
        "surface_dice": _or_none(rows.loc[has_target, "surface_dice"].mean()),
        "false_slices": _share(rows["false_slices"], rows["free_slices"]),
        "false_volumes": _share((without["predicted_ml"] > 0).astype(int), pd.Series(1, index=without.index)),
        "lesions": strata,
    }


def _share(of: pd.Series, whole: pd.Series) -> float | None:
    return float(of.sum() / whole.sum()) if whole.sum() else None


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def means_of_round(scores: pd.DataFrame, number: int) -> dict[str, Any]:
    """Gives the round, the summary of each part in it, and, by network, the means of each site, if there are several.

    Args:
        scores: Rows of scores.csv.
        number: The round.
    """
    rows = scores[scores["round"] == number]
    parts = {part: means_of_part(rows[rows["part"] == part]) for part in ("validation", *TESTS)}
    tested = rows[rows["part"].isin((*TESTS, CROSS)) & (rows["network"] != "")]
    crossed = {str(network): summarise(own)["sites"] for network, own in tested.groupby("network", sort=True)}
    return {"round": number, **parts, **({CROSS: crossed} if crossed else {})}
