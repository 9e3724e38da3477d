"""Finished runs with scores that are made up, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedgs.metrics.table import with_details
from fedgs.study.plan import Primary
from fedgs.verdict.observed import Observation, Observed
from fedgs.verdict.outcomes import as_numbers

SITES = {"C1": 30, "C2": 24, "C3": 36, "C4": 30, "C5": 48}
"""Images, of which a third is tiny and a third is large."""

SETTINGS = {"model": "unet", "size": 128, "rounds": 30, "lr": 1e-3, "batch_size": 4, "objective": "dice_batch"}
PRIMARY = Primary("dice_t", (("fedgs", "matched-site"), ("fedgs-gradient", "matched-site")), 0.01)


def scores(site: str, count: int, part: str, level: float, seed: Sequence[int], large: float = 0.0) -> pd.DataFrame:
    """Dice of the images of a hospital; tiny ones lie at `level`, and large ones are moved by `large`."""
    rng = np.random.default_rng(list(seed))
    number = np.arange(count)
    tiny, free = number % 3 == 0, number % 3 == 1
    dice = np.where(tiny, level + rng.normal(0, 0.03, count), 0.7 + large + rng.normal(0, 0.002, count))
    dice = np.clip(np.where(free, 1.0, dice), 0, 1)
    table = pd.DataFrame(
        {
            "round": 30,
            "part": part,
            "site": site,
            "case": [f"{site}-{each:03}" for each in number],
            "is_small": tiny,
            "is_tiny": tiny,
            "lesion_area": np.where(free, 0, np.where(tiny, 300, 20000)),
            "dice": dice,
            "tp": 10,
            "fp": np.where(free, 0, 5),
            "fn": 5,
            "pixels": 512 * 512,
            "network": "",
        }
    )
    details = {
        "is_mixed": False,
        "diagonal": 724.0,
        "hd95": np.where(free, np.nan, 90 * (1 - dice)),
        "assd": np.where(free, np.nan, 20 * (1 - dice)),
        "surface_dice": np.where(free, np.nan, dice),
        "ece": np.where(free, np.nan, 0.2),
        "lesions": (~free).astype(int),
        "lesions_small": tiny.astype(int),
        "predicted_lesions": (~free).astype(int),
        "found_10": (dice > 0.2).astype(int) * ~free,
        "found_small_10": (dice > 0.2).astype(int) * tiny,
        "false_small_10": 0,
        "found_50": (dice > 0.5).astype(int) * ~free,
        "found_small_50": (dice > 0.5).astype(int) * tiny,
        "false_small_50": 0,
    }
    return with_details(table.assign(**details))


def observed(
    arm: str, unseen: str | None = "C5", seed: int = 0, *, gain: float = 0.0, large: float = 0.0, **changes: Any
) -> Observed:
    """A run of an arm whose Dice of tiny images is higher by `gain`."""
    place = list(SITES).index(unseen) if unseen else 9
    sites = [unseen] if unseen else list(SITES)
    part = "test_out" if unseen else "test_in"
    tables = [
        scores(site, SITES[site], part, 0.3 + gain, (seed, place, number, len(arm)), large)
        for number, site in enumerate(sites)
    ]
    found = {
        "arm": arm,
        "unseen_site": unseen,
        "fold": 0,
        "seed": seed,
        "settings": {**SETTINGS, "algorithm": arm},
        "data": f"without {unseen}",
        "start": None,
        "scores": as_numbers(pd.concat(tables, ignore_index=True)),
        "rounds": [],
        "machine": {"torch": "2.13.0", "device": "cpu"},
        "path": Path(f"{arm}-{unseen}-{seed}"),
        "converged": True,
    }
    return Observed(**found | changes)  # type: ignore[arg-type]


def study(
    gains: Mapping[str, float], seeds: Sequence[int] = (0, 1), sites: Sequence[str] = tuple(SITES), **options: Any
) -> Observation:
    """Each hospital left out once, with some seeds, for each arm."""
    primary = options.pop("primary", PRIMARY)
    runs = [
        observed(arm, site, seed, gain=gain, **options)
        for seed in seeds
        for site in sites
        for arm, gain in gains.items()
    ]
    return Observation("A study", runs, primary)
