"""What a round costs beyond training: 10 million parameters, 5 sites, a checkpoint after every round."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import fedgs
from benchmarks.measure import Row, announce
from fedgs.config import configure
from fedgs.core import Site, global_of
from fedgs.data.case import Batch
from fedgs.engine import Federation, Schedule, State, run_rounds
from fedgs.run_folder import RunFolder
from fedgs.scaled_update import ScaledUpdate

SITES, STEPS = 5, 2


def run(*, quick: bool) -> Iterator[Row]:
    """Alternates a round of the engine with the same training steps alone."""
    yield _measured("engine per round beyond training", 6 if quick else 20, improving=False, goal=150.0)
    yield _measured("the same, best and best_small renewed too", 4 if quick else 10, improving=True, goal=None)


def _measured(what: str, rounds: int, *, improving: bool, goal: float | None) -> Row:
    announce(f"{rounds} rounds of {SITES} sites")
    model = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(10)))
    sites = {f"C{number}": partial(site_of, f"C{number}") for number in range(1, SITES + 1)}

    def evaluate(state: State) -> dict[str, dict[str, float]]:
        mean = {"mean": state.server.round / 1000 if improving else 0.0, "n": 1}
        return {"dice": mean, "dice_s": mean}

    federation = Federation(model, fedgs.fedgs(), sites, evaluate)
    state, engine, alone = State(global_of(model)), [], []
    with tempfile.TemporaryDirectory() as folder:
        store = begun(Path(folder))
        for number in range(1, rounds + 2):
            started = time.perf_counter()
            state = run_rounds(federation, Schedule(number), state, store, lambda event: None)
            between = time.perf_counter()
            _train_alone(model, [make(number) for make in sites.values()])
            if number > 1:
                engine.append(between - started)
                alone.append(time.perf_counter() - between)
    beyond = statistics.median(a - b for a, b in zip(engine, alone, strict=True)) * 1e3
    note = f"5 sites, {STEPS} steps each; training alone {statistics.median(alone) * 1e3:.0f} ms"
    met = None if goal is None else beyond <= goal
    return Row(what, beyond, None, "ms", f"<= {goal:g} ms" if goal else "", met, note)


def begun(path: Path) -> RunFolder:
    """Makes the folder of a run that has settings but no cases; checkpoints are signed with both."""
    store = RunFolder(path)
    store.create(configure(data="none"), {"data": "none"}, pd.DataFrame({"site": [], "case": [], "part": []}))
    return store


def site_of(name: str, number: int) -> Site:
    """A site that takes `STEPS` steps on ones, in round `number`."""
    masks, flags = torch.zeros(4, 8, 8, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    batch = Batch(torch.ones(4, 1000), masks, flags)

    def objective(output: Tensor, _: Batch) -> dict[str, Tensor]:
        return {"square": output.square().mean()}

    return Site(name, number, [batch] * STEPS, 4, objective, partial(torch.optim.AdamW, fused=True))


def _train_alone(model: nn.Module, sites: list[Site]) -> None:
    for site in sites:
        optimizer = site.optimizer(model.parameters())
        scaled = ScaledUpdate(model, optimizer)
        for batch in site.batches:
            optimizer.zero_grad()
            loss = sum(site.objective(model(batch.images), batch).values())
            loss.item()
            loss.backward()
            scaled.step(1.0)
        scaled.finish(site.num_examples)
