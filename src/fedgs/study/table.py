"""What a study has so far: a row per run, and means over the cells of an arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from fedgs.files import write_atomically
from fedgs.study.folder import Result, StudyFolder
from fedgs.study.plan import OUTCOMES, Cell, Plan
from fedgs.tables import as_csv

__all__ = ["COLLAPSED_BELOW", "CONVERGED_BELOW", "cells_table", "gain", "is_converged", "overview", "write_table"]

CONVERGED_BELOW = 0.01
"""Gain in the baseline's validation Dice, of images with a lesion, from which on a run is not judged."""

COLLAPSED_BELOW = -0.05
"""The same for a fall that no scatter explains: training went wrong, and is not converged either."""

_FEWEST = 4

_MIXED = "dice_m"
"""Stratum of the images flagged small that hold a large lesion too; their number stands beside Dice-S."""

_PARTS = {"test_out": "out-test", "test_in": "in-test"}


def gain(curve: Mapping[int, float]) -> float | None:
    """How much a validation curve rose over the last quarter of its rounds, along the line that fits them best.

    Neighbouring rounds differ by chance more than a slow rise does, hence a line rather than two rounds: with 37 rounds
    in the quarter and 0.01 from round to round, its standard error is 0.006.

    Args:
        curve: Mean by round, of the rounds that were scored, from 1.

    Returns:
        The gain; None where the last quarter has fewer than 4 values, of which nothing can be said.

    >>> round(gain({number: 0.5 + 0.01 * max(0, number - 25) for number in range(1, 33)}), 6)
    0.07
    """
    last = max(curve, default=0)
    quarter = {number: value for number, value in curve.items() if number > last - last // 4}
    if len(quarter) < _FEWEST:
        return None
    slope = np.polyfit([*quarter], [*quarter.values()], deg=1)[0]
    return float(slope * (last // 4 - 1))


def is_converged(rise: float | None) -> bool | None:
    """Whether runs are judged whose baseline rose by this much, see `gain`; None where that is not known."""
    return None if rise is None else COLLAPSED_BELOW < rise < CONVERGED_BELOW


def cells_table(plan: Plan, folder: StudyFolder) -> pd.DataFrame:
    """Gives a row per cell of the plan, in its order.

    Args:
        plan: The plan.
        folder: What has been run of it.

    Returns:
        ``arm``, ``unseen_site`` (empty for none), ``fold``, ``seed``, ``start`` (trunk or scratch); ``state``
        (finished, failed, missing) and the ``reason`` of a failure; ``tuned``; ``gain``, see `gain`, of the validation
        Dice of the baseline beside it, over the rounds of the trunk and its own, and ``converged``, both empty where
        that is not known, for instance because that baseline is not finished; ``rounds``, ``minutes``; ``device`` and
        ``torch`` that it ran with; then, by part, means of `OUTCOMES` and of ``dice_m`` and, as ``…_images``, of how
        many.
    """
    cells = plan.cells()
    results = {cell: folder.result(cell) for cell in cells if folder.is_finished(cell)}
    compared = {cell: (cell.group, str(plan.config(cell).model)) for cell in cells}
    gains = {
        of: _gain_beside(plan, folder, cell, results) for of, cell in {compared[cell]: cell for cell in cells}.items()
    }
    return pd.DataFrame([_row(plan, folder, cell, results.get(cell), gains[compared[cell]]) for cell in cells])


def _row(plan: Plan, folder: StudyFolder, cell: Cell, result: Result | None, rise: float | None) -> dict[str, Any]:
    failure = folder.failure(cell)
    state = "finished" if result else "missing" if failure is None else "failed"
    row: dict[str, Any] = {
        "arm": cell.arm,
        "unseen_site": cell.unseen_site or "",
        "fold": cell.fold,
        "seed": cell.seed,
        "start": "scratch" if cell.trunk is None else "trunk",
        "state": state,
        "reason": (failure or "").strip().splitlines()[-1] if failure else "",
        "tuned": plan.search_of(cell) is not None,
        "gain": rise,
        "converged": "" if rise is None else str(is_converged(rise)),
        "rounds": result.summary["rounds"] if result else None,
        "minutes": round(result.summary["seconds"] / 60, 1) if result else None,
        **{name: result.told["machine"][name] if result else "" for name in ("device", "torch")},
    }
    for part in _PARTS:
        for outcome in (*OUTCOMES, _MIXED):
            mean = result.summary[part][outcome] if result else {"mean": None, "n": 0}
            row |= {f"{part}_{outcome}": mean["mean"], f"{part}_{outcome}_images": mean["n"]}
    return row


def _gain_beside(plan: Plan, folder: StudyFolder, cell: Cell, results: dict[Cell, Result]) -> float | None:
    """Of the baseline with a cell's network in its group; None where that is not finished, or its trunk is not."""
    model = plan.config(cell).model
    baseline = next(
        (
            result
            for other, result in results.items()
            if other.group == cell.group and plan.config(other).model == model and plan.is_baseline(other.arm)
        ),
        None,
    )
    if baseline is None or (cell.trunk and not folder.is_finished(cell.trunk)):
        return None
    before = folder.result(cell.trunk) if cell.trunk else None
    curve = before.validation("dice_n") if before else {}
    earlier = int(before.summary["rounds"]) if before else 0
    return gain(curve | {earlier + number: mean for number, mean in baseline.validation("dice_n").items()})


def write_table(plan: Plan, folder: StudyFolder) -> None:
    """Writes study.csv."""
    write_atomically(folder.path / "study.csv", as_csv(cells_table(plan, folder)), durable=False)


def overview(plan: Plan, cells: pd.DataFrame) -> Iterator[Table]:
    """Gives the tables that a terminal shows: what is finished, and means over the finished cells of every arm.

    Args:
        plan: The plan.
        cells: As `cells_table` gives them.
    """
    shown = list(dict.fromkeys((plan.primary.outcome, "dice_s", "dice_n")))
    title = f"{plan.name}: mean over finished cells (images of all cells), judged by {_title(shown[0])}"
    caption = "Dice-S (n/m): of the n images, m hold a large lesion too"
    head: dict[str, Any] = {
        "title": Text(title, style="italic"),
        "title_justify": "left",
        "caption": caption,
        "caption_justify": "left",
    }
    table = Table(**head, box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("arm", "start", "cells", "tuned", "converged"):
        table.add_column(name, overflow="fold")
    for part in _PARTS:
        for outcome in shown:
            table.add_column(f"{_PARTS[part]} {_title(outcome)}", justify="right", no_wrap=True)
    for (start, arm), rows in cells.groupby(["start", "arm"], sort=False):
        finished = rows[rows["state"] == "finished"]
        unlucky = (rows["state"] == "failed").sum()
        counted = f"{len(finished)} of {len(rows)}" + (f", {unlucky} failed" if unlucky else "")
        means = [_mean(finished, f"{part}_{outcome}") for part in _PARTS for outcome in shown]
        known = finished[finished["converged"] != ""]
        converged = f"{(known['converged'] == 'True').sum()} of {len(known)}" if len(known) else "not known"
        table.add_row(str(arm), str(start), counted, "yes" if rows["tuned"].all() else "no", converged, *means)
    yield table
    failed = cells[cells["state"] == "failed"]
    if len(failed):
        reasons = Table("failed cell", "why", box=box.SIMPLE_HEAD, show_edge=False)
        columns = ["arm", "unseen_site", "fold", "seed", "start", "reason"]
        for arm, site, fold, seed, start, reason in failed[columns].astype(str).to_numpy().tolist():
            reasons.add_row(f"{arm}, unseen site {site or 'none'}, fold {fold}, seed {seed}, from {start}", reason)
        yield reasons


def _title(outcome: str) -> str:
    return f"Dice-{outcome[-1].upper()}" if "_" in outcome else "Dice all"


def _mean(cells: pd.DataFrame, column: str) -> str:
    known = cells[cells[column].notna()]
    if not len(known):
        return "- (0)"
    images = int(known[column + "_images"].sum())
    mixed = f"/{int(known[column.replace('dice_s', _MIXED) + '_images'].sum())}" if column.endswith("dice_s") else ""
    return f"{known[column].mean():.3f} ({images}{mixed})"
