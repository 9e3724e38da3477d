"""Tables of scores for a terminal; every mean stands with its number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedgs.files import read_json

__all__ = ["part_table", "scores_table"]

_PARTS = {
    "test_in": "In-test",
    "test_out": "Out-test",
    "validation": "Validation",
}
_STRATA = {"dice": "Dice all", "dice_s": "small", "dice_l": "large", "dice_t": "tiny", "dice_n": "with lesion"}
_CAPTION = "small (n/m): of the n images, m hold a large lesion too"


def scores_table(runs: Sequence[Path]) -> Table:
    """Gives the scores of finished runs after their last round, a row per part and run.

    Args:
        runs: Folders of finished runs.

    Returns:
        Means with counts: Dice of all images, of those flagged small, large, tiny (small as a whole) and with a lesion.
        Behind the number of those flagged small stands how many of them hold a large lesion too.
    """
    summaries = [read_json(run / "summary.json") for run in runs]
    parts = [summary[part] for summary in summaries for part in _PARTS]
    table = _table("Scores after the last round: mean (images)", parts)
    for part, title in _PARTS.items():
        rows = [(summary["algorithm"], summary[part]) for summary in summaries if summary[part]["dice"]["n"]]
        if rows:
            table.add_row(f"[bold]{title}[/]")
        for name, means in rows:
            table.add_row(Text(name), *_cells(means))
    return table


def part_table(title: str, part: Mapping[str, Any]) -> Table:
    """Gives the scores of one part, a row per site and one for all.

    Args:
        title: What stands above.
        part: A part's summary.
    """
    table = _table(f"{title}: mean (images)", [part])
    for site, means in part["sites"].items():
        table.add_row(Text(site), *_cells(means))
    table.add_section()
    table.add_row("all", *_cells(part))
    return table


def _table(title: str, parts: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        title=Text(title, style="italic"),
        title_justify="left",
        caption=_CAPTION if any("dice_m" in part for part in parts) else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", overflow="fold")
    for name in _STRATA.values():
        table.add_column(name, justify="right", no_wrap=True, overflow="fold")
    return table


def _cells(means: Mapping[str, Any]) -> list[str]:
    counts = {name: str(means[name]["n"]) for name in _STRATA}
    if "dice_m" in means:  # summaries of earlier versions lack it
        counts["dice_s"] += f"/{means['dice_m']['n']}"
    return [
        f"{means[name]['mean']:.3f} ({count})" if means[name]["mean"] is not None else "- (0)"
        for name, count in counts.items()
    ]
