"""The charts of a page about runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgs.report.drawing import DASHES, INK, SERIES, as_svg, plain, shortened, styled
from fedgs.report.records import Part, Round, Run

__all__ = ["eta_chart", "length_chart", "loss_chart", "score_chart"]

_HEAT = LinearSegmentedColormap.from_list("eta", ["#dfe9f3", "#8fbbe0", "#2f7fc1", "#0b3d75"], N=32)


def score_chart(runs: Mapping[str, Run], stratum: str) -> str | None:
    """Validation Dice per round, one line per run; None where no run has a value.

    Args:
        runs: Runs by label.
        stratum: One of `fedgs.metrics.table.STRATA`.
    """

    def value(round_: Round) -> float:
        part: Part | None = round_.validation
        mean = None if part is None else part.pooled[stratum].mean
        return math.nan if mean is None else mean

    return _lines(runs, value, limits=(0.0, 1.0))


def loss_chart(runs: Mapping[str, Run]) -> str | None:
    """Training loss per round, mean over sites by examples, with a thin line per site."""
    return _lines(
        runs,
        lambda round_: _mean_over_sites(round_, "loss", "examples"),
        per_site=lambda round_, site: round_.sites[site].loss if site in round_.sites else math.nan,
    )


def length_chart(runs: Mapping[str, Run]) -> str | None:
    """Length of the updates that sites sent, mean by steps, with a thin line per site."""
    return _lines(
        runs,
        lambda round_: _mean_over_sites(round_, "direction_norm", "steps"),
        per_site=lambda round_, site: round_.sites[site].direction_norm if site in round_.sites else math.nan,
    )


def eta_chart(run: Run, *, top: float) -> str | None:
    """Mean eta per site (rows) and round (columns) as a heat map, each row ending in its mean; None without rounds.

    Args:
        run: A run of any algorithm.
        top: The eta of the darkest colour, > 1, so that several maps can share a scale.
    """
    sites = sorted({site for round_ in run.history for site in round_.sites})
    if not sites:
        return None
    grid = np.array([[r.sites[s].mean_eta if s in r.sites else math.nan for r in run.history] for s in sites])
    with styled():
        figure = Figure(figsize=(4.6, 0.85 + 0.27 * len(sites)), layout="constrained")
        axes = figure.add_subplot()
        numbers = [round_.number for round_ in run.history]
        edges = np.append(np.array(numbers) - 0.5, numbers[-1] + 0.5)
        mesh = axes.pcolormesh(edges, np.arange(len(sites) + 1) - 0.5, grid, cmap=_HEAT, vmin=1.0, vmax=top)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_yticks(range(len(sites)), [plain(shortened(site)) for site in sites], color=INK)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        beside = axes.secondary_yaxis("right")
        beside.set_yticks(range(len(sites)), [f"{_mean(row):.2f}" for row in grid])
        beside.tick_params(length=0, labelcolor=INK)
        beside.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, location="top", aspect=40, fraction=0.06, pad=0.03)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        return as_svg(figure)


def _lines(
    runs: Mapping[str, Run],
    value: Callable[[Round], float],
    *,
    limits: tuple[float, float] | None = None,
    per_site: Callable[[Round, str], float] | None = None,
) -> str | None:
    with styled():
        figure = Figure(figsize=(4.6, 2.75 + 0.16 * max(0, len(runs) - 2)), layout="constrained")
        axes = figure.add_subplot()
        drawn = [_draw(axes, index, label, run, value, per_site) for index, (label, run) in enumerate(runs.items())]
        if not any(drawn):
            return None
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(0, max(round_.number for run in runs.values() for round_ in run.history) + 0.5)
        axes.set_ylim(*(limits or (0.0, None)))
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside upper left", ncols=2, handlelength=2.6)
        return as_svg(figure)


def _draw(
    axes: Axes,
    index: int,
    label: str,
    run: Run,
    value: Callable[[Round], float],
    per_site: Callable[[Round, str], float] | None,
) -> bool:
    colour, dash = SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]
    points = [(round_.number, value(round_)) for round_ in run.history]
    known = [(number, y) for number, y in points if math.isfinite(y)]
    if not known:
        return False
    if per_site is not None:
        for site in sorted({site for round_ in run.history for site in round_.sites}):
            axes.plot(*_columns([(r.number, per_site(r, site)) for r in run.history]), color=colour, lw=0.7, alpha=0.35)
    marker = "os^D"[index % 4] if len(known) <= 15 else None
    axes.plot(*_columns(known), color=colour, linestyle=dash, label=plain(label), marker=marker, markersize=3.5)
    return True


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mean_over_sites(round_: Round, what: str, weight: str) -> float:
    sites = round_.sites.values()
    total = sum(getattr(site, weight) for site in sites)
    return sum(getattr(site, what) * getattr(site, weight) for site in sites) / total if total else math.nan


def _mean(row: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    return float(np.nanmean(row))
