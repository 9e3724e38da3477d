"""Rounds: who takes part, what is scored, what is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch.nn import Module

from fedgs.core import Algorithm, Global, Site, Update, run_round
from fedgs.errors import ConfigError
from fedgs.events import Listener, RoundFinished, RoundStarted, SiteFinished
from fedgs.seeds import generator
from fedgs.spool import Spool
from fedgs.tensors import Tensors

__all__ = ["BEST", "Best", "Federation", "Schedule", "State", "Store", "run_rounds", "sample_sites"]

BEST = {"best": "dice", "best_small": "dice_s"}
"""Checkpoints that are kept beside the last one, each with the mean of the validation images that decides."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long a run goes on, and with whom.

    Attributes:
        rounds: Rounds in all, >= 1.
        seed: Seed of the run.
        fold: Fold of the split, part of every seed.
        fraction_of_sites: Share of the sites that take part in a round, in (0, 1], at least one site.
        evaluate_every: Validation images are scored after every so many rounds, and after the last.
    """

    rounds: int
    seed: int = 0
    fold: int = 0
    fraction_of_sites: float = 1.0
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.rounds < 1 or self.evaluate_every < 1:
            raise ConfigError(
                f"rounds and evaluate_every must be at least 1, got {self.rounds} and {self.evaluate_every}"
            )
        if not 0 < self.fraction_of_sites <= 1:
            raise ConfigError(f"fraction_of_sites must lie in (0, 1], got {self.fraction_of_sites}")

    def evaluates(self, number: int) -> bool:
        """Tells whether the validation images are scored after a round."""
        return number % self.evaluate_every == 0 or number == self.rounds


@dataclass(frozen=True, slots=True)
class Best:
    """The round with the highest validation mean so far; the earlier one where two are equal."""

    round: int
    mean: float


@dataclass(frozen=True, slots=True)
class State:
    """All that a run needs to go on after a round as if it had not stopped."""

    server: Global
    memories: Mapping[str, Tensors] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Federation:
    """What the rounds work on.

    Attributes:
        model: A live network that sites and evaluation use in turn.
        algorithm: The federated algorithm.
        sites: For each site by name, what makes its record for a round.
        evaluate: Scores the state after a round on the validation images, with the model at its disposal, and gives
            the summary of that part.
    """

    model: Module
    algorithm: Algorithm
    sites: Mapping[str, Callable[[int], Site]]
    evaluate: Callable[[State], Mapping[str, Any]]


class Store(Protocol):
    """Where finished rounds go, and the updates of the one under way."""

    def spool(self) -> Spool:
        """Gives what holds the updates of a round until they are aggregated."""

    def commit(self, state: State, record: Mapping[str, Any], improved: Sequence[str]) -> None:
        """Keeps the state after a round, its line of rounds.jsonl, and the checkpoints that it improved."""


def run_rounds(federation: Federation, schedule: Schedule, state: State, store: Store, emit: Listener) -> State:
    """Runs the rounds that are left, and commits each.

    Args:
        federation: Model, algorithm, sites and evaluation.
        schedule: How many rounds, and with whom.
        state: Where to start; `State.server.round` rounds are finished.
        store: Keeps every round.
        emit: Told what happens.

    Returns:
        The state after the last round.

    Raises:
        TrainingError: The loss of a site, or what the network gives in evaluation, is not finite; finished rounds
            stay in the store.
        AggregationError: Updates do not fit, or are not finite.
    """
    while state.server.round < schedule.rounds:
        number = state.server.round + 1
        started = time.monotonic()
        names = sample_sites(list(federation.sites), number, schedule)
        emit(RoundStarted(number, tuple(names)))
        server, memories, records = _train(federation, names, state, store, emit)
        trained = replace(state, server=server, memories=memories)
        validation = federation.evaluate(trained) if schedule.evaluates(number) else None
        record = {"round": number, "seconds": round(time.monotonic() - started, 3), "sites": records}
        record |= {"server": dict(server.metrics), "validation": validation}
        improved = {name: best for name in BEST if (best := _improved(state.best.get(name), name, number, validation))}
        state = replace(trained, best={**state.best, **improved})
        store.commit(state, record, list(improved))
        emit(RoundFinished(number, record))
    return state


def sample_sites(names: Sequence[str], number: int, schedule: Schedule) -> list[str]:
    """Draws the sites of a round, sorted by name; the same for every algorithm."""
    names = sorted(names)
    count = max(1, round(schedule.fraction_of_sites * len(names)))
    order = torch.randperm(len(names), generator=generator(schedule.seed, "sites", schedule.fold, number))
    return sorted(names[index] for index in order[:count].tolist())


def _train(
    federation: Federation, names: Sequence[str], state: State, store: Store, emit: Listener
) -> tuple[Global, dict[str, Tensors], dict[str, Any]]:
    records: dict[str, Any] = {}
    clock = time.monotonic()

    def hold(site: Site, update: Update) -> Update:
        nonlocal clock
        records[site.name] = _record(update, time.monotonic() - clock)
        emit(SiteFinished(site.round, site.name, records[site.name]))
        held = spool.hold(update)
        clock = time.monotonic()
        return held

    number = state.server.round + 1
    sites = (federation.sites[name](number) for name in names)
    with store.spool() as spool:
        server, memories = run_round(federation.algorithm, federation.model, state.server, sites, state.memories, hold)
    return replace(server, round=number), memories, records


def _record(update: Update, seconds: float) -> dict[str, Any]:
    terms = {name.removeprefix("loss/"): value for name, value in update.metrics.items() if name.startswith("loss/")}
    return {
        "steps": update.num_steps,
        "examples": update.num_examples,
        "loss": update.metrics.get("loss"),
        "terms": terms,
        "mean_eta": update.metrics.get("mean_eta", 1.0),
        **{name: update.metrics.get(name, 1.0) for name in ("norm_ratio", "cosine")},
        "direction_norm": update.metrics["direction_norm"],
        "seconds": round(seconds, 3),
        **{name: update.metrics[name] for name in ("style_of", "style_round") if name in update.metrics},
    }


def _improved(best: Best | None, name: str, number: int, validation: Mapping[str, Any] | None) -> Best | None:
    mean = math.nan if validation is None or (given := validation[BEST[name]]["mean"]) is None else float(given)
    return Best(number, mean) if mean > (best.mean if best else -math.inf) else None
