"""The scores beside Dice: what each is called, and how it is formed from the columns of scores.csv.

Every score is a sum over images divided by another one, so that a mean over images (a value where an image counts, over
1 where it counts) and a ratio that pools lesions (lesions found, over lesions) are one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from fedgs.errors import DataError
from fedgs.metrics.case import THRESHOLDS
from fedgs.metrics.table import DETAILS, Mean, require_sound, with_details

__all__ = ["METRICS", "Column", "Metric", "other_scores"]

Column = Callable[[pd.DataFrame], pd.Series]
"""A number per image from the columns of scores.csv."""


_PIXELS, _BOUNDARIES = "Pixels", "Boundaries"
_LESION, _MARKED = "images with a lesion", "images with a lesion in which anything is marked"


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of many images.

    Attributes:
        name: Its key in summary.json.
        group: What it belongs to on a page.
        title: Its name there.
        about: What it is, in words.
        over: What n counts, a noun in the plural.
        better: Which way is better.
        part: Numerator per image; nan where the image does not count.
        whole: Denominator per image.
        unit: "" for a share in [0, 1], "%" for one that is shown in percent, "px", or "per image".
        paired: Whether the denominator is the same whatever is predicted, so that two networks have the same cases.
    """

    name: str
    group: str
    title: str
    about: str
    over: str
    better: Literal["higher", "lower"]
    part: Column
    whole: Column
    unit: str = ""
    paired: bool = True

    def of_images(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Gives numerator and denominator per row, both 0 where the image does not count; for comparisons of runs."""
        part, whole = self.part(scores), self.whole(scores)
        counts = part.notna() & whole.notna()
        return pd.DataFrame({"part": part.where(counts, 0.0), "whole": whole.where(counts, 0.0)})


def other_scores(scores: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Forms the scores of `METRICS` over the images of one part in one round, pooled and per site.

    An image that several networks were scored on counts once, with the mean over them.

    Args:
        scores: A row per case and network with `fedgs.metrics.table.SCORE_COLUMNS`.

    Returns:
        ``pooled``: `Mean` by name; ``sites``: the same per site. A metric that no image has is left out.

    Raises:
        DataError: A column is missing, a case appears twice, or a value is impossible.
    """
    require_sound(scores)
    table = with_details(scores)
    require_possible(table)
    numbers = table.assign(**{name: table[name].astype(float) for name in (*DETAILS, "tp", "fp", "fn", "pixels")})
    places = [table["site"], table["case"]]
    sums = {metric.name: metric.of_images(numbers).groupby(places, sort=False).mean() for metric in METRICS}
    pooled = {name: mean for name, each in sums.items() if (mean := _mean(each))["n"]}
    sites = {
        str(site): {name: _mean(sums[name].loc[[site]]) for name in pooled} for site in sorted(table["site"].unique())
    }
    return {"pooled": dict(pooled), "sites": dict(sites)}


def _mean(sums: pd.DataFrame) -> Mean:
    part, whole = float(sums["part"].sum()), float(sums["whole"].sum())
    # What only some of the networks that scored an image have counts in part in the mean, but is there.
    return Mean(mean=part / whole if whole else None, n=int(np.ceil(sums["whole"].astype(float)).sum()))


def require_possible(table: pd.DataFrame) -> None:
    """Makes sure that no score lies where none can.

    Args:
        table: A row per case and network with all `fedgs.metrics.table.SCORE_COLUMNS`.

    Raises:
        DataError: One does, is infinite, more lesions were found than there are, or a flag contradicts the lesions; the
            message names it.
    """
    for name in DETAILS:
        limit = 1.0 if name in ("surface_dice", "ece") else 4 if name == "size_quartile" else float("inf")
        values = table[name].astype(float)
        _refuse(table, name, (values < 0) | (values > limit) | (values == float("inf")), f"0 to {limit:g}")
    for part, whole in _AT_MOST.items():
        _refuse(table, part, table[part].astype(float) > table[whole].astype(float), f"at most as many as {whole}")
    _refuse(table, "is_small", table["is_small"].astype(bool) & (table["lesion_area"] <= 0), "False without a lesion")
    _refuse(
        table,
        "is_tiny",
        table["is_tiny"].astype(bool) & ~table["is_small"].astype(bool),
        "False unless is_small",
    )


_AT_MOST = {
    "lesions_small": "lesions",
    **{f"found_{name}": "lesions" for name in ("10", "50")},
    **{f"found_small_{name}": f"found_{name}" for name in ("10", "50")},
    **{f"false_small_{name}": "predicted_lesions" for name in ("10", "50")},
}


def _refuse(table: pd.DataFrame, name: str, wrong: pd.Series, expected: str) -> None:
    if wrong.any():
        row = table[wrong].iloc[0]
        raise DataError(
            f"expected {name} of {expected}, but site {row['site']!r}, case {row['case']!r} has {row[name]}; "
            "restore scores.csv from a copy, or score again"
        )


def _with_lesion(value: Column) -> tuple[Column, Column]:
    return _where(value, lambda t: t["lesion_area"] > 0)


def _where(value: Column, counts: Column) -> tuple[Column, Column]:
    """Numerator and denominator of a mean over the images that count."""
    return (lambda t: value(t).where(counts(t)), lambda t: counts(t).astype(float))


def _column(name: str) -> Column:
    return lambda t: t[name]


def _or_diagonal(name: str) -> Column:
    return lambda t: t[name].fillna(t["diagonal"])


def _quotient(top: Column, bottom: Column) -> Column:
    return lambda t: top(t) / bottom(t).where(bottom(t) > 0)


def _of_pixels() -> Iterator[Metric]:
    tp, fp, fn = map(_column, ("tp", "fp", "fn"))
    about = "Intersection over union."
    value = _with_lesion(_quotient(tp, _sum(tp, fp, fn)))
    yield Metric("iou", _PIXELS, "IoU", about, _LESION, "higher", *value)
    about = "Share of the marked pixels that are lesion; undefined where nothing is marked."
    value = _with_lesion(_quotient(tp, _sum(tp, fp)))
    yield Metric("precision", _PIXELS, "Precision", about, _MARKED, "higher", *value, paired=False)
    about = "Share of the pixels of the lesions that are marked."
    value = _with_lesion(_quotient(tp, _sum(tp, fn)))
    yield Metric("recall", _PIXELS, "Recall", about, _LESION, "higher", *value)


def _of_boundaries() -> Iterator[Metric]:
    distances = {
        "hd95": ("HD95", "Hausdorff distance: how far boundaries are apart, the worst twentieth aside."),
        "assd": ("ASSD", "Average symmetric surface distance: how far boundaries are apart on average."),
    }
    for name, (title, what) in distances.items():
        about = f"{what} Only images in which anything is marked, which favours a network that marks little."
        value = _with_lesion(_column(name))
        yield Metric(name, _BOUNDARIES, f"{title}, found", about, _MARKED, "lower", *value, "px", paired=False)
        about = f"{what} The diagonal of the image where nothing is marked."
        value = _with_lesion(_or_diagonal(name))
        yield Metric(
            f"{name}_missed", _BOUNDARIES, f"{title}, missed = diagonal", about, _LESION, "lower", *value, "px"
        )
    about = "Share of both boundaries that lies within 3 pixels of 512 of the other one."
    value = _with_lesion(_column("surface_dice"))
    yield Metric("surface_dice", _BOUNDARIES, "Surface Dice", about, _LESION, "higher", *value)


def _of_lesions() -> Iterator[Metric]:
    for percent, above in THRESHOLDS.items():
        for small, which in (("_small", "small lesions"), ("_large", "larger lesions"), ("", "all lesions")):
            lesions, found, false = _lesion_columns(small, percent)
            marked, end, group = _sum(found, false), f"{small}_{percent}", f"Lesions, IoU above {above}"
            about = f"Share of {which} that are found, that is matched one to one with an IoU above {above}."
            ratio = found, lesions
            yield Metric(f"lesion_sensitivity{end}", group, f"Sensitivity, {which}", about, which, "higher", *ratio)
            about, over = f"Share of {which} that are marked and match one.", f"{which} that are marked"
            ratio = found, marked
            name, title = f"lesion_precision{end}", f"Precision, {which}"
            yield Metric(name, group, title, about, over, "higher", *ratio, paired=False)
            about, over = f"Harmonic mean of sensitivity and precision, {which}.", f"{which}, true and marked"
            ratio = _sum(found, found), _sum(lesions, marked)
            yield Metric(f"lesion_f1{end}", group, f"F1, {which}", about, over, "higher", *ratio, paired=False)
            about = f"Of {which} that are marked, those that match none, per image."
            value = _where(false, lambda t: t["lesions"].notna())
            title = f"Falsely marked, {which}"
            yield Metric(f"false_lesions{end}", group, title, about, "images", "lower", *value, "per image")


def _lesion_columns(small: str, name: int) -> tuple[Column, Column, Column]:
    """True, found and falsely marked lesions per image: all of them, the small ones, or those that are not small."""
    found = _column(f"found_{name}")
    every: tuple[Column, ...] = (_column("lesions"), found, lambda t: t["predicted_lesions"] - found(t))
    of_small = _column("lesions_small"), _column(f"found_small_{name}"), _column(f"false_small_{name}")
    lesions, hits, false = {"": every, "_small": of_small}.get(small) or map(_minus, every, of_small)
    return lesions, hits, false


def _minus(first: Column, second: Column) -> Column:
    return lambda t: first(t) - second(t)


def _sum(first: Column, *others: Column) -> Column:
    return lambda t: sum((other(t) for other in others), start=first(t))


def _of_strata() -> Iterator[Metric]:
    about = (
        "Expected calibration error within 16 pixels of 512 of prediction and lesion: how far probabilities are from "
        "the share of lesion that they promise."
    )
    yield Metric("ece", _PIXELS, "Calibration error", about, _LESION, "lower", *_with_lesion(_column("ece")))
    about = "Share of the image that is marked although there is no lesion."
    share = _quotient(_column("fp"), _column("pixels"))
    area = _where(share, lambda t: t["lesion_area"] == 0)
    yield Metric("false_area", _PIXELS, "False area", about, "lesion-free images", "lower", *area, "%")
    for number, which in enumerate(("smallest", "second", "third", "largest"), start=1):
        about = f"Dice of images in the {which} quarter by lesion area; the quarters are those of the training images."
        column = _where(_column("dice"), lambda t, number=number: t["size_quartile"] == number)  # type: ignore[misc]
        yield Metric(
            f"dice_q{number}",
            "Dice by lesion area",
            f"{which} quarter".capitalize(),
            about,
            "images",
            "higher",
            *column,
        )


METRICS = (*_of_pixels(), *_of_boundaries(), *_of_lesions(), *_of_strata())
"""All scores beside the Dice of `fedgs.metrics.table.STRATA`, in the order in which a page shows them."""
