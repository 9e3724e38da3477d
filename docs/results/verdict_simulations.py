"""Draws the studies of docs/results/verdict-simulations.md, and writes how often their verdicts were right.

    python docs/results/verdict_simulations.py             # all of them; about an hour on a core
    python docs/results/verdict_simulations.py --studies 100

What is done already is kept, so it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from fedgs.verdict.simulation import Design, Spread, simulate

HERE = Path(__file__).parent / "verdict-simulations"
PATIENTS = {2: (26, 8), 3: (26, 12, 8), 4: (26, 12, 8, 8), 5: (26, 12, 8, 8, 4), 6: (26, 12, 10, 8, 8, 4)}
"""Patients with tiny lesions per hospital; of five, those of PolypGen."""
SPREADS = (0.0, 0.03, 0.06)


def wanted() -> Iterator[tuple[str, Design, Spread, dict[str, Any]]]:
    """Kind, design, spread and what else is given of every simulation."""
    for sites, site, run in product(PATIENTS, SPREADS, SPREADS):
        yield "coverage", Design(PATIENTS[sites]), Spread(site=site, run=run), {}
    for sites, seed in product(PATIENTS, SPREADS[1:]):
        yield "coverage, seeds shared", Design(PATIENTS[sites]), Spread(seed=seed), {}
    for seeds, run in product((2, 3, 5), SPREADS):
        yield "coverage, one set of runs", Design(PATIENTS[5], seeds, apart=False), Spread(run=run), {}
    for seeds, run in product((1, 3), SPREADS):
        yield "coverage, other seeds", Design(PATIENTS[5], seeds), Spread(run=run), {}
    spread = observed()
    for seeds, level in product((1, 2), (0.95, 0.975)):
        yield "no effect", Design(PATIENTS[5], seeds), spread, {"level": level}
    for seeds, effect in product((1, 2, 5), (0.02, 0.05)):
        yield "power", Design(PATIENTS[5], seeds), spread, {"effect": effect, "level": 0.975}


def observed() -> Spread:
    """Standard deviations as the study on PolypGen shows them, where it is there."""
    path = Path(__file__).parent / "polypgen-study" / "comparison.json"
    told = json.loads(path.read_text())["variance"] if path.is_file() else {}
    deviations = {name: value**0.5 for name, value in told.items() if value is not None}
    return Spread(**deviations, noise=0.0) if deviations else Spread(site=0.02, run=0.02, patient=0.05, noise=0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    HERE.mkdir(exist_ok=True)
    for kind, design, spread, given in wanted():
        about = {"kind": kind, "studies": studies, **asdict(design), **asdict(spread), **given}
        name = "-".join(f"{value}" for value in about.values()).replace(" ", "").replace(",", "_")
        path = HERE / f"{name}.json"
        if not path.is_file():
            found = simulate(design, spread, studies=studies, **given)
            path.write_text(json.dumps({**about, "found": asdict(found)}, indent=2) + "\n")
            print(path.name, found, flush=True)


if __name__ == "__main__":
    main()
