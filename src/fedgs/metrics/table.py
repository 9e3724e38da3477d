"""From a row per image to means that are not biased: each stratum averages only the images that belong to it."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import pandas as pd

from fedgs.errors import DataError
from fedgs.tables import NULLABLE, read_csv

__all__ = [
    "DETAILS",
    "SCORE_COLUMNS",
    "STRATA",
    "Mean",
    "PartSummary",
    "read_scores",
    "require_sound",
    "summarise",
    "with_details",
    "without_empty_details",
]

_NEEDED = (
    "round",
    "part",
    "site",
    "case",
    "is_small",
    "is_tiny",
    "lesion_area",
    "dice",
    "tp",
    "fp",
    "fn",
    "pixels",
    "network",
)

DETAILS: dict[str, type] = {
    **{"is_mixed": bool, "size_quartile": int},
    **dict.fromkeys(("diagonal", "hd95", "assd", "surface_dice", "ece"), float),
    **dict.fromkeys(("lesions", "lesions_small", "predicted_lesions"), int),
    **dict.fromkeys(("found_10", "found_small_10", "false_small_10"), int),
    **dict.fromkeys(("found_50", "found_small_50", "false_small_50"), int),
}
"""Columns of scores.csv that may be empty, because a metric is undefined for an image or was not computed.

`is_mixed`: flagged small, but with a large lesion too. `size_quartile`: 0 without lesion, else 1 to 4, by the areas of
the lesions in the run's training images. `diagonal` of the image, `hd95` and `assd`: in pixels of the score size. The
others are counts of lesions, by IoU above 0.1 and 0.5.
"""

_OPTIONAL: dict[str, type] = DETAILS | {"group": str}

SCORE_COLUMNS = (*_NEEDED, *_OPTIONAL)
"""Columns of scores.csv: `lesion_area` in pixels of the 512 x 512 mask; tp, fp, fn and pixels at the score size.

`network` is empty, or, where sites share nothing, the site whose network was scored. `group` is equal for cases that
show one patient or almost the same image, see `fedgs.data.linked.group_names`, and empty where `DETAILS` were not
computed. Both may be absent: tables of earlier versions lack them.
"""

STRATA = ("dice", "dice_n", "dice_s", "dice_t", "dice_m", "dice_l", "lesion_free")
"""Dice of all images, with a lesion, small, tiny, mixed, large; and the share of lesion-free images with an alarm."""

_FLAGS = {"is_small": bool, "is_tiny": bool}
_TYPES = (
    dict.fromkeys(_NEEDED, int)
    | dict.fromkeys(("part", "site", "case", "network"), str)
    | _FLAGS
    | {"dice": float}
    | _OPTIONAL
)


class Mean(TypedDict):
    """A mean over images and how many they are; None where there is none."""

    mean: float | None
    n: int


class PartSummary(TypedDict):
    """Means of one part of the data, pooled over its images, and the same seven per site."""

    dice: Mean
    dice_n: Mean
    dice_s: Mean
    dice_t: Mean
    dice_m: Mean
    dice_l: Mean
    lesion_free: Mean
    sites: dict[str, dict[str, Mean]]


def summarise(scores: pd.DataFrame) -> PartSummary:
    """Averages the scores of one part in one round, pooled over images and per site.

    dice: all images; dice_n: with a lesion; dice_s: flagged small; dice_t: small as a whole; dice_m: flagged small, but
    with a large lesion too; dice_l: with a lesion and not small; lesion_free: share of lesion-free images in which the
    prediction has any pixel. An image that several networks were scored on counts once, with the mean over them.

    Args:
        scores: A row per case and network with `SCORE_COLUMNS`; `DETAILS`, `group` and further columns are ignored.

    Returns:
        JSON-ready means in [0, 1] with their counts; a stratum without images has mean None and n 0, never 0.0.

    Raises:
        DataError: A column is missing, a case appears twice, or a Dice lies outside [0, 1].
    """
    require_sound(scores)
    scores = _over_networks(scores)
    sites = {str(site): _means(rows) for site, rows in scores.groupby("site", sort=True)}
    pooled = _means(scores)
    return PartSummary(
        dice=pooled["dice"],
        dice_n=pooled["dice_n"],
        dice_s=pooled["dice_s"],
        dice_t=pooled["dice_t"],
        dice_m=pooled["dice_m"],
        dice_l=pooled["dice_l"],
        lesion_free=pooled["lesion_free"],
        sites=sites,
    )


def read_scores(path: Path) -> pd.DataFrame:
    """Reads scores.csv of a run with names as text (a site may be called ``007`` or ``NA``) and exact numbers.

    `DETAILS` and `group`, if the file lacks them since an earlier version wrote it, are there and empty.

    Raises:
        DataError: The file is missing or lacks another column.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table; expected scores.csv of a run, restore it from a copy or run again")
    table = read_csv(path, _TYPES, optional=_OPTIONAL)
    _check_columns(table, str(path))
    return with_details(table)


def with_details(scores: pd.DataFrame) -> pd.DataFrame:
    """Gives the same rows with all `SCORE_COLUMNS` in their order; what may be absent and is, is empty."""
    kinds = {name: NULLABLE[kind] for name, kind in _OPTIONAL.items()}
    return scores.reindex(columns=list(SCORE_COLUMNS)).astype(kinds)


def without_empty_details(scores: pd.DataFrame) -> pd.DataFrame:
    """Leaves out columns that may be absent and that no row has; so a table of an earlier version is what it was."""
    return scores.drop(columns=[name for name in _OPTIONAL if name in scores and scores[name].isna().all()])


def _over_networks(scores: pd.DataFrame) -> pd.DataFrame:
    scores = with_details(scores).assign(alarm=(scores["fp"] > 0).astype(float))
    if not scores.duplicated(["site", "case"]).any():
        return scores
    kept = dict.fromkeys(("lesion_area", "is_small", "is_tiny", "is_mixed"), "first") | dict.fromkeys(
        ("dice", "alarm"), "mean"
    )
    merged: pd.DataFrame = scores.groupby(["site", "case"], sort=False, as_index=False).agg(kept)
    return merged


def _means(scores: pd.DataFrame) -> dict[str, Mean]:
    has_lesion = scores["lesion_area"] > 0
    small = scores["is_small"].astype(bool)
    tiny = scores["is_tiny"].astype(bool)
    mixed = scores["is_mixed"].fillna(value=False).astype(bool)
    dice = scores["dice"].astype(float)
    return {
        "dice": _mean(dice),
        "dice_n": _mean(dice[has_lesion]),
        "dice_s": _mean(dice[small]),
        "dice_t": _mean(dice[tiny]),
        "dice_m": _mean(dice[mixed]),
        "dice_l": _mean(dice[has_lesion & ~small]),
        "lesion_free": _mean(scores["alarm"][~has_lesion]),
    }


def _mean(values: pd.Series[float]) -> Mean:
    return Mean(mean=float(values.mean()) if len(values) else None, n=len(values))


def require_sound(scores: pd.DataFrame) -> None:
    """Makes sure that scores can be averaged.

    Raises:
        DataError: A column is missing, a case appears twice, or a Dice lies outside [0, 1].
    """
    _check_columns(scores, "scores")
    repeated = scores[scores.duplicated(["site", "case", "network"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise DataError(
            f"expected one row per case and network, but {_place(first)} appears more than once; "
            "select one part and one round first"
        )
    wrong = scores[~scores["dice"].between(0.0, 1.0)]
    if len(wrong):
        first = wrong.iloc[0]
        raise DataError(
            f"expected Dice in [0, 1], but {_place(first)} has {first['dice']}; restore scores.csv from a copy"
        )


def _place(row: pd.Series) -> str:
    return f"site {row['site']!r}, case {row['case']!r}"


def _check_columns(scores: pd.DataFrame, where: str) -> None:
    missing = [column for column in _NEEDED if column not in scores.columns]
    if missing:
        raise DataError(f"{where}: scores lack the columns {', '.join(missing)}; expected {', '.join(_NEEDED)}")
