"""Shows counts to people: a table, a picture of lesion sizes, and which lesions vanish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from fedgs.data.lesions import MASK_SIZE
from fedgs.errors import MissingExtraError
from fedgs.files import replacing, write_atomically
from fedgs.preflight.advice import expected
from fedgs.preflight.counts import Preflight, SiteCounts
from fedgs.tables import as_csv

__all__ = ["overview", "write_picture", "write_vanished"]

_BLUE, _ORANGE = "#0072b2", "#d55e00"


def overview(preflight: Preflight) -> Table:
    """Gives a row per site: what it has, and what FedGS will do there."""
    sites, _ = expected(preflight)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("site", overflow="fold")
    for name in (
        *("images", "no lesion", "small", "with a large one", "eta of a step", "weight", "with FedGS"),
        *(f"no pixel at {preflight.size} px", "smallest left", "copies", "near copies"),
    ):
        table.add_column(name, justify="right")
    for name, site in preflight.sites.items():
        each, at = sites[name], site.sizes[preflight.size]
        share = "" if site.small is None else f" ({site.small / site.images:.0%})"
        table.add_row(
            escape(name),
            f"{site.images:,}",
            _shown(site, "lesion_free"),
            _shown(site, "small") + share,
            _shown(site, "mixed"),
            f"{each.eta:.2f} ± {each.spread:.2f}",
            f"{each.weight:.1%}",
            f"{each.scaled_weight:.1%}",
            f"{_of(at.vanished, f'vanished@{preflight.size}', site)} of {_shown(site, 'lesions')}",
            "-" if at.smallest is None else f"{at.smallest} px",
            _shown(site, "duplicates"),
            _shown(site, "near_duplicates"),
        )
    return table


def _shown(site: SiteCounts, name: str) -> str:
    return _of(getattr(site, name), name, site)


def _of(count: int | None, name: str, site: SiteCounts) -> str:
    if count is not None:
        return f"{count:,}"
    return "all but 1 to 4" if name in site.almost_all else "1 to 4"


def write_vanished(preflight: Preflight, path: Path) -> Path:
    """Writes which lesions have no pixel at the training size, smallest first; it names cases, so it stays there."""
    rows = sorted(preflight.vanished, key=lambda lesion: (lesion.area, lesion.site, lesion.case))
    table = pd.DataFrame([(row.site, row.case, row.area) for row in rows], columns=["site", "case", "lesion_area"])
    write_atomically(path, as_csv(table))
    return path


def write_picture(preflight: Preflight, path: Path) -> Path:
    """Draws how large the lesions of every site are, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("report", "the picture of lesion sizes") from error
    sites = preflight.sites
    figure = Figure(figsize=(7, 0.9 + 1.05 * len(sites)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(len(sites), 1, sharex=True))
    limit = np.log2(preflight.rule.fraction * MASK_SIZE**2)
    pixel = 2 * np.log2(MASK_SIZE / preflight.size)
    for axis, (name, site) in zip(axes, sites.items(), strict=True):
        counts = [0 if count is None else count for count in site.areas]
        bins = np.arange(len(counts))
        axis.bar(
            bins, counts, width=0.92, align="edge", color=[_ORANGE if each + 1 <= limit else _BLUE for each in bins]
        )
        axis.axvline(limit, color="black", linewidth=1, linestyle="--")
        axis.axvspan(0, max(0.0, pixel), color="0.85", zorder=0)
        axis.set_ylabel(name.replace("$", r"\$"), rotation=0, ha="right", va="center")
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xticks(range(0, 19, 2), [f"{2**power:,}" for power in range(0, 19, 2)], rotation=30, ha="right")
    axes[-1].set_xlabel(
        f"lesion area, pixels of {MASK_SIZE} x {MASK_SIZE}\n"
        f"dashed: the largest small one; grey: less than a pixel at {preflight.size} px"
    )
    figure.suptitle("Lesions by area", fontsize=11)
    with replacing(path, durable=False) as part:
        figure.savefig(part, format="png", dpi=120)
    return path
