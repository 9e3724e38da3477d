"""What counts say about FedGS: how much longer steps will be, for whom, and whether that is worth a try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedgs.preflight.counts import Preflight, SiteCounts

__all__ = ["Advice", "Expected", "advise", "expected"]

NO_CONSEQUENCE = 0.02
"""Server steps that are longer by less than this, with hospitals that weigh the same within it, change nothing."""

TOO_MANY_VANISH = 0.1
"""Share of the small lesions that may vanish at the training size."""

HIDDEN = 2.5
"""What a suppressed count, or the rest of its whole, is taken for; it is 1 to 4."""

Verdict = Literal["worthwhile", "of no consequence", "raise the image size first"]


@dataclass(frozen=True, slots=True)
class Expected:
    """What FedGS will do at a site; of un-augmented masks.

    Attributes:
        eta: Mean scale of a step, in [1, 3).
        spread: Standard deviation of the scale of a batch.
        weight: Share of the server's step without scales: by steps, that is by images.
        scaled_weight: The same with scales.
        vanished: Share of its small lesions that have no pixel at the training size, at most 1.
    """

    eta: float
    spread: float
    weight: float
    scaled_weight: float
    vanished: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do.

    Attributes:
        verdict: In three words or so.
        sentence: With the numbers behind it.
        sites: By name.
        step: How much longer the server's step will be, as a factor, at least 1.
        larger: The smallest training size at which few enough lesions vanish; None where none of those looked at does.
    """

    verdict: Verdict
    sentence: str
    sites: Mapping[str, Expected]
    step: float
    larger: int | None


def expected(preflight: Preflight) -> tuple[dict[str, Expected], float]:
    """Computes what FedGS will do at every site, and the factor of the server's step.

    eta_k = 1 + 2 * mean difficulty of the images of site k, 0 for those not flagged small; a batch of B varies by
    2 * SD / sqrt(B). The server's step is longer by the mean of eta_k, weighted by steps.
    """
    etas = {name: 1 + 2 * _difficulty(site) / site.images for name, site in preflight.sites.items()}
    images = {name: site.images for name, site in preflight.sites.items()}
    whole, scaled = sum(images.values()), sum(images[name] * eta for name, eta in etas.items())
    sites = {}
    for name, site in preflight.sites.items():
        mean = _difficulty(site) / site.images
        square = (site.difficulty_squares if site.difficulty_squares is not None else _difficulty(site)) / site.images
        sites[name] = Expected(
            eta=etas[name],
            spread=2 * math.sqrt(max(0.0, square - mean**2) / preflight.batch_size),
            weight=images[name] / whole,
            scaled_weight=images[name] * etas[name] / scaled,
            vanished=_share_vanished(site, preflight.size),
        )
    return sites, scaled / whole


def advise(preflight: Preflight) -> Advice:
    """Says whether FedGS is worth a try on these hospitals.

    Args:
        preflight: Counts of one site or several, made in one place or merged.
    """
    sites, step = expected(preflight)
    larger = _larger(preflight)
    small = sum(map(_small_lesions, preflight.sites.values()))
    vanished = sum(_vanished(site, preflight.size) for site in preflight.sites.values())
    shift = max((abs(each.scaled_weight / each.weight - 1) for each in sites.values()), default=0.0)
    if small and vanished > TOO_MANY_VANISH * small:
        verdict: Verdict = "raise the image size first"
        at_larger = (
            "none of the sizes looked at keeps enough of them" if larger is None else f"{larger} pixels keep enough"
        )
        because = (
            f"at {preflight.size} pixels {min(vanished, small):.0f} of {small:.0f} small lesions have no pixel left, "
            f"so nothing can be learnt from them; {at_larger}. Steps will count {100 * (step - 1):.0f} % more "
            "on average"
        )
    elif step - 1 < NO_CONSEQUENCE and shift < NO_CONSEQUENCE:
        verdict = "of no consequence"
        because = (
            f"steps will count {100 * (step - 1):.1f} % more, and no hospital's weight changes by more than "
            f"{100 * shift:.1f} %"
        )
    else:
        verdict = "worthwhile"
        because = f"steps will count {100 * (step - 1):.0f} % more on average, {_range(sites)}"
    without = [name for name, site in preflight.sites.items() if site.small == 0]
    beside = f" Without small lesions: {', '.join(without)}; their steps count as before." if without else ""
    what = "Raise the image size first" if verdict == "raise the image size first" else f"FedGS is {verdict}"
    hidden = " Where counts are hidden, these numbers are approximate." if _hides(preflight) else ""
    return Advice(verdict, f"{what}: {because}.{beside}{hidden}", sites, step, larger)


def _range(sites: Mapping[str, Expected]) -> str:
    by_eta = sorted(sites, key=lambda name: sites[name].eta)
    low, high = by_eta[0], by_eta[-1]
    if len(sites) == 1:
        return f"by a factor of {sites[low].eta:.2f}"
    return f"from {sites[low].eta:.2f} ({low}) to {sites[high].eta:.2f} ({high})"


def _larger(preflight: Preflight) -> int | None:
    sides: Sequence[int] = sorted(set.intersection(*(set(site.sizes) for site in preflight.sites.values())))
    small = sum(map(_small_lesions, preflight.sites.values()))
    for side in sides:
        gone = sum(_vanished(site, side) for site in preflight.sites.values())
        if side >= preflight.size and gone <= TOO_MANY_VANISH * small:
            return side
    return None


def _share_vanished(site: SiteCounts, side: int) -> float:
    small = _small_lesions(site)
    return min(1.0, _vanished(site, side) / small) if small else 0.0


def _hides(preflight: Preflight) -> bool:
    return any(
        None in (site.small, site.small_lesions, site.sizes[preflight.size].vanished)
        for site in preflight.sites.values()
    )


def _difficulty(site: SiteCounts) -> float:
    if site.difficulty is not None:
        return site.difficulty
    return site.images - HIDDEN if "small" in site.almost_all else HIDDEN


def _small_lesions(site: SiteCounts) -> float:
    return _known(site.small_lesions, site.lesions if "small_lesions" in site.almost_all else None)


def _vanished(site: SiteCounts, side: int) -> float:
    return _known(site.sizes[side].vanished, site.lesions if f"vanished@{side}" in site.almost_all else None)


def _known(count: int | None, almost: int | None) -> float:
    if count is not None:
        return float(count)
    return HIDDEN if almost is None else almost - HIDDEN
