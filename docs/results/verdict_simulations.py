"""Draws the studies of docs/results/verdict-simulations.md, and writes how often their verdicts were right.

    python docs/results/verdict_simulations.py              # ten minutes on a core
    python docs/results/verdict_simulations.py --studies 100 --out elsewhere

A table of the page has a file of its own, with a line per design. What stands there already is kept, so that this can
be stopped and started again, and only what has changed is drawn anew, such as the spread of the study on PolypGen.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from fedgs.verdict.simulation import Design, Spread, simulate

HERE = Path(__file__).parent
COMPARISON = HERE / "polypgen-study" / "comparison.json"
PATIENTS = {
    **{1: (26,), 2: (26, 8), 3: (26, 12, 8), 4: (26, 12, 8, 8), 5: (26, 12, 8, 8, 4)},
    6: (26, 12, 10, 8, 8, 4),
}
"""Patients with images of Dice-T per hospital; of five, those of PolypGen."""
SPREADS = (0.0, 0.03, 0.06)
SMALL = Spread(site=0.01, run=0.02, patient=0.05, noise=0.02)
LARGE = Spread(site=0.03, run=0.03)
UNLIKE = Spread(site=0.06, run=0.01, patient=0.05, noise=0.02)
"""Hospitals differ by much more than all else."""
OF_LARGE_LESIONS = Spread(site=0.003, run=0.005, patient=0.03, noise=0.01)
TWO = {"level": 0.975, "contrasts": 2}
Wanted = tuple[str, Design, Spread, Mapping[str, Any]]


def wanted() -> Iterator[Wanted]:
    """Table, design, spread and what else is given of every simulation."""
    yield from _coverage()
    observed = spread_of("dice_t")
    for spread, sites, seeds in product((SMALL, LARGE, UNLIKE, *observed), PATIENTS, (1, 2)):
        for given in ({}, TWO):
            yield "no-effect", Design(PATIENTS[sites], seeds), spread, given
    spreads = (SMALL, LARGE, *observed)
    for spread, seeds, effect in product(spreads, (1, 2, 3, 5), (0.02, 0.05)):
        yield "power", Design(PATIENTS[5], seeds), spread, {"effect": effect, "level": 0.975}
    for spread, sites, seeds, patients, effect in product(spreads, (5, 10, 20), (2, 5), (10, 40), (0.02, 0.05)):
        yield "plans", Design((patients,) * sites, seeds), spread, {"effect": effect}
    for spread, seeds in product((OF_LARGE_LESIONS, *spread_of("dice_l")), (1, 2, 3, 5)):
        yield "large-lesions", Design((200,) * 5, seeds), spread, {"level": 0.975}


def _coverage() -> Iterator[Wanted]:
    several = [sites for sites in PATIENTS if sites > 1]
    for sites, site, run in product(several, SPREADS, SPREADS):
        yield "coverage", Design(PATIENTS[sites]), Spread(site=site, run=run), {}
    for sites, site, seed in product(several, SPREADS, SPREADS[1:]):
        yield "shared-seeds", Design(PATIENTS[sites]), Spread(site=site, seed=seed), {}
    for seeds, run in product((2, 3, 5), SPREADS):
        yield "one-set-of-runs", Design(PATIENTS[5], seeds, apart=False), Spread(run=run), {}
    for seeds, site, run in product((1, 3, 5), SPREADS, SPREADS):
        yield "seeds", Design(PATIENTS[5], seeds), Spread(site=site, run=run), {}
    for sites, effect in product(several, (0.0, 0.02, 0.05)):
        yield (
            "missed",
            Design(PATIENTS[sites]),
            Spread(site=0.01, run=0.01, patient=0.05, missed=0.8),
            {"effect": effect},
        )


def spread_of(outcome: str) -> list[Spread]:
    """Deviations as the first contrast of the study on PolypGen shows them; none before there is a comparison.

    While no hospital has two seeds of these arms, runs are taken to differ as the baseline does from itself.
    """
    if not COMPARISON.is_file():
        return []
    comparison = json.loads(COMPARISON.read_text())
    first, itself = comparison["primary"][0], comparison["itself"]
    told = first if outcome == first["metric"] else first[outcome]
    found = {name: math.sqrt(value or 0.0) for name, value in told["variance"].items()}
    if told["variance"]["run"] is None and itself and outcome == itself["metric"]:
        found["run"] = math.sqrt(mean(site["difference"] ** 2 for site in itself["sites"].values()))
    return [Spread(**{name: round(value, 4) for name, value in found.items()}, noise=0.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "verdict-simulations")
    parser.add_argument("--only", help="one table, so that several processes can draw one each")
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    tables: dict[str, list[dict[str, Any]]] = {}
    for table, design, spread, given in wanted():
        if options.only not in (None, table):
            continue
        about = {"studies": options.studies, **asdict(design), **asdict(spread), **given}
        tables.setdefault(table, []).append(json.loads(json.dumps(about)))
        path = options.out / f"{table}.jsonl"
        known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        if not any(_without_found(each) == tables[table][-1] for each in known):
            found = asdict(simulate(design, spread, studies=options.studies, **given))
            known.append(tables[table][-1] | {"found": {name: _number(value) for name, value in found.items()}})
            _write(path, known)
            print(table, known[-1], flush=True)
    for table, asked in tables.items():  # what was drawn for an earlier spread goes
        path = options.out / f"{table}.jsonl"
        known = [json.loads(line) for line in path.read_text().splitlines()]
        _write(
            path, sorted((k for k in known if _without_found(k) in asked), key=lambda k: asked.index(_without_found(k)))
        )


def _without_found(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "found"}


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    part = path.with_suffix(".part")
    part.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    part.replace(path)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


if __name__ == "__main__":
    main()
