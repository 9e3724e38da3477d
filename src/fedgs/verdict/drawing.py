"""The charts of a page about a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedgs.report.drawing import DASHES, GRID, INK, PAPER, QUIET, SERIES, as_svg, plain, shortened, styled
from fedgs.verdict.intervals import Interval

__all__ = ["Bar", "curve_chart", "forest", "heat_map", "mechanism_chart", "size_chart", "size_difference_chart"]

_WIDTH = 5.2
_DIVERGING = LinearSegmentedColormap.from_list("change", ["#a24a00", "#f0a860", "#f4f4f2", "#7ab0dd", "#0b4f91"], N=65)
_MARKERS = "os^Dv"
_MOST_DOTS = 1500
_SMALL = 1 / 150


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a forest plot: a difference and its intervals.

    Attributes:
        label: What differs.
        difference: The middle.
        these: For these hospitals; nan where it is not known.
        new: For a new hospital; None where that is not given.
        is_primary: Whether it decides.
    """

    label: str
    difference: float
    these: Interval
    new: Interval | None
    is_primary: bool


def forest(bars: Sequence[Bar], what: str, *, better: str, effect: float | None) -> str:
    """Differences with both intervals, a row each, the primary ones above a line.

    Args:
        bars: At least one.
        what: Name of the axis.
        better: Which way is better, ``"right"`` or ``"left"``.
        effect: Distance from 0 that matters; two thin lines stand there, if any.
    """
    with styled():
        figure = Figure(figsize=(_WIDTH, 0.95 + 0.52 * len(bars)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, lw=1.0)
        for edge in () if effect is None else (-effect, effect):
            axes.axvline(edge, color=QUIET, lw=0.8, linestyle=(0, (2, 2)))
        for row, bar in enumerate(bars):
            colour = SERIES[0] if bar.is_primary else QUIET
            _span(axes, row + 0.1, bar.these, colour, width=4.0)
            if bar.new is not None:
                _span(axes, row + 0.3, bar.new, colour, width=1.3)
            axes.plot([bar.difference], [row + 0.1], "o", color=colour, markersize=5.5, markeredgecolor=INK)
            axes.annotate(
                plain(bar.label),
                (0, row - 0.14),
                xycoords=("axes fraction", "data"),
                va="center",
                color=INK,
                fontweight="bold" if bar.is_primary else "normal",
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0},
            )
        count = sum(bar.is_primary for bar in bars)
        if count < len(bars):
            axes.axhline(count - 0.42, color=GRID, lw=1.0)
        axes.set_ylim(len(bars) - 0.45, -0.45)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        low, high = axes.get_xlim()
        reach = max(abs(low), abs(high), 1.2 * (effect or 0))
        axes.set_xlim(-reach, reach)
        ways = ("worse", "better") if better == "right" else ("better", "worse")
        axes.set_xlabel(f"{what}\n\N{LEFTWARDS ARROW} {ways[0]}      {ways[1]} \N{RIGHTWARDS ARROW}")
        axes.xaxis.set_major_locator(MaxNLocator(7, symmetric=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_signed_tick))
        axes.grid(visible=False, axis="y")
        return as_svg(figure)


def heat_map(rows: Mapping[str, Mapping[str, tuple[float, int]]], sites: Sequence[str]) -> str:
    """Differences per hospital, with the number of images below each; one scale of colours, white at 0.

    Args:
        rows: By label, difference and images by hospital.
        sites: The hospitals, as columns.
    """
    values = np.array([[rows[row].get(site, (math.nan, 0))[0] for site in sites] for row in rows])
    top = max(float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0, 0.01)
    with styled():
        figure = Figure(figsize=(max(_WIDTH, 1.75 + 0.62 * len(sites)), 0.7 + 0.5 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(
            np.arange(len(sites) + 1) - 0.5,
            np.arange(len(rows) + 1) - 0.5,
            values,
            cmap=_DIVERGING,
            norm=Normalize(-top, top),
            edgecolors="#ffffff",
            linewidth=1.5,
        )
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                count = [*rows.values()][row][sites[column]][1]
                ink = "#ffffff" if abs(value) > 0.62 * top else "#1c232b"
                text = f"{_signed(value)}\nn = {count}"
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(sites)), [plain(shortened(site)) for site in sites], color=INK)
        axes.set_yticks(range(len(rows)), [plain(label) for label in rows], color=INK)
        bar = figure.colorbar(mesh, ax=axes, location="bottom", aspect=45, fraction=0.06, pad=0.04)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.ax.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        bar.ax.xaxis.set_major_formatter(FuncFormatter(_signed_tick))
        return as_svg(figure)


def curve_chart(table: pd.DataFrame, arms: Sequence[str]) -> str | None:
    """Validation means by round, a line per arm and a band over its seeds; None where there is nothing to draw.

    Args:
        table: Rows of one block of `fedgs.verdict.summaries.curves`.
        arms: In the order of their colours.
    """
    if not len(table):
        return None
    with styled():
        figure, axes = _axes(len(arms))
        for number, arm in enumerate(arms):
            rows = table[table["arm"] == arm].sort_values("round")
            if len(rows):
                colour = SERIES[number % len(SERIES)]
                x = rows["round"].to_numpy(dtype=float)
                low, high = rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
                axes.plot(x, rows["mean"].to_numpy(dtype=float), **_line(number), label=plain(arm))
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return _finished(figure, axes)


def size_chart(bins: pd.DataFrame, arms: Sequence[str]) -> str:
    """Mean Dice by size of the lesions, a line per arm.

    Args:
        bins: As `fedgs.verdict.summaries.sizes` gives them.
        arms: In the order of their colours.
    """
    with styled():
        figure, axes = _axes(len(arms))
        for number, arm in enumerate(arms):
            marker = _MARKERS[number % len(_MARKERS)]
            axes.plot(
                100 * bins["share"].to_numpy(dtype=float),
                bins[arm].to_numpy(dtype=float),
                **_line(number),
                marker=marker,
                markersize=3.5,
                label=plain(arm),
            )
        axes.set_ylim(0, 1)
        axes.set_ylabel("mean Dice")
        _of_sizes(axes)
        return _finished(figure, axes)


def size_difference_chart(cases: pd.DataFrame, arm: str, baseline: str) -> str:
    """Differences of single images by size of the lesions.

    Args:
        cases: As `fedgs.verdict.summaries.sizes` gives them; of more than 1,500, evenly over the sizes.
        arm: Which is claimed to be better.
        baseline: Which it is compared with.
    """
    ordered = cases.sort_values("share")
    shown = ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_DOTS)).round().astype(int))]
    with styled():
        figure, axes = _axes(1)
        axes.axhline(0, color=INK, lw=0.9)
        change = (shown[arm] - shown[baseline]).to_numpy(dtype=float)
        axes.scatter(100 * shown["share"].to_numpy(dtype=float), change, s=9, color=SERIES[0], alpha=0.55, lw=0)
        axes.set_ylabel("change of Dice")
        axes.yaxis.set_major_formatter(FuncFormatter(_signed_tick))
        _of_sizes(axes)
        return as_svg(figure)


def mechanism_chart(table: pd.DataFrame, arms: Sequence[str], sites: Sequence[str], column: str, name: str) -> str:
    """One column of the mechanism, a row of dots per arm, a marker per hospital.

    Args:
        table: As `fedgs.verdict.summaries.mechanism` gives it.
        arms: As rows, from the top.
        sites: In the order of their colours.
        column: Which one.
        name: Of the axis.
    """
    with styled():
        figure = Figure(figsize=(_WIDTH, 1.05 + 0.3 * len(arms) + 0.16 * (len(sites) > 4)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(1, color=INK, lw=0.9)
        for number, site in enumerate(sites):
            rows = table[table["site"] == site].set_index("arm")[column].reindex(list(arms))
            shift = 0.3 * (number - (len(sites) - 1) / 2) / max(len(sites), 1)
            axes.plot(
                rows.to_numpy(dtype=float),
                np.arange(len(arms)) + shift,
                _MARKERS[number % len(_MARKERS)],
                color=SERIES[number % len(SERIES)],
                markersize=5,
                label=plain(shortened(site)),
            )
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_yticks(range(len(arms)), [plain(shortened(arm)) for arm in arms], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="x", useOffset=False)
        figure.legend(loc="outside upper left", ncols=min(len(sites), 5), handletextpad=0.1, columnspacing=1.0)
        return as_svg(figure)


def _axes(lines: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 2.75 + 0.16 * max(0, lines - 2)), layout="constrained")
    return figure, figure.add_subplot()


def _finished(figure: Figure, axes: Axes) -> str:
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper left", ncols=2, handlelength=2.6)
    return as_svg(figure)


def _line(number: int) -> dict[str, Any]:
    return {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)]}


def _of_sizes(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.axvline(100 * _SMALL, color=QUIET, lw=0.8, linestyle=(0, (2, 2)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("% of the image that lesions cover (broken line: 1/150)")


def _span(axes: Axes, y: float, interval: Interval, colour: str, *, width: float) -> None:
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        axes.plot([interval.low, interval.high], [y, y], color=colour, lw=width, solid_capstyle="butt")


def _signed(value: float) -> str:
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _signed_tick(value: float, _: object) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:+g}".replace("-", "\N{MINUS SIGN}")
