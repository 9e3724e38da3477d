from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fedgs
from fedgs.core import global_of
from fedgs.engine import Best, Federation, Schedule, State, run_rounds, sample_sites
from fedgs.errors import ConfigError
from fedgs.events import Event, RoundFinished, RoundStarted, SiteFinished
from fedgs.spool import Spool
from nets import site, tiny


class Memory:
    """A store that keeps everything."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.records: list[Mapping[str, Any]] = []
        self.improved: list[Sequence[str]] = []
        self.folder = Path(tempfile.mkdtemp())

    def spool(self) -> Spool:
        return Spool(self.folder, in_memory=1)

    def commit(self, state: State, record: Mapping[str, Any], improved: Sequence[str]) -> None:
        self.states.append(state)
        self.records.append(record)
        self.improved.append(improved)


def federation(means: Sequence[float | None] = (0.5,) * 9, small: Sequence[float | None] = (None,) * 9) -> Federation:
    def evaluate(state: State) -> Mapping[str, Any]:
        number = state.server.round
        return {"dice": {"mean": means[number - 1], "n": 1}, "dice_s": {"mean": small[number - 1], "n": 1}}

    make = {name: partial(lambda name, number: site(name, number=number, seed=number), name) for name in "ABC"}
    return Federation(tiny(), fedgs.fedgs(), make, evaluate)


def run(schedule: Schedule, federation: Federation, state: State | None = None) -> tuple[Memory, list[Event]]:
    store, events = Memory(), []
    run_rounds(federation, schedule, state or State(global_of(tiny())), store, events.append)
    return store, events


def test_a_record_has_what_rounds_jsonl_promises() -> None:
    store, events = run(Schedule(rounds=2), federation())
    record = store.records[1]
    assert record["round"] == 2
    assert set(record["sites"]) == {"A", "B", "C"}
    assert set(record["sites"]["A"]) == {
        "steps", "examples", "loss", "terms", "mean_eta", "norm_ratio", "cosine", "direction_norm", "seconds",
    }  # fmt: skip
    assert record["sites"]["A"]["steps"] == 5
    assert record["sites"]["A"]["mean_eta"] > 1
    assert record["sites"]["A"]["terms"]["ce"] == pytest.approx(record["sites"]["A"]["loss"])
    kinds = [type(event) for event in events]
    assert kinds == [RoundStarted, *[SiteFinished] * 3, RoundFinished] * 2


def test_going_on_equals_not_having_stopped() -> None:
    whole, _ = run(Schedule(rounds=4), federation())
    half, _ = run(Schedule(rounds=2), federation())
    rest, _ = run(Schedule(rounds=4), federation(), half.states[-1])
    assert len(rest.states) == 2
    for name, weight in whole.states[-1].server.weights.items():
        assert torch.equal(weight, rest.states[-1].server.weights[name])


def test_best_keeps_the_earlier_of_equal_rounds_and_ignores_what_is_missing() -> None:
    store, _ = run(Schedule(rounds=4), federation([0.2, 0.6, 0.6, None], [None, None, 0.1, 0.3]))
    assert store.improved == [["best"], ["best"], ["best_small"], ["best_small"]]
    assert store.states[-1].best == {"best": Best(2, 0.6), "best_small": Best(4, 0.3)}


def test_evaluation_follows_the_schedule_and_always_the_last_round() -> None:
    store, _ = run(Schedule(rounds=5, evaluate_every=2), federation())
    assert [record["validation"] is not None for record in store.records] == [False, True, False, True, True]


def test_a_fraction_of_the_sites_takes_part() -> None:
    schedule = Schedule(rounds=6, fraction_of_sites=0.5)
    store, _ = run(schedule, federation())
    drawn = [tuple(record["sites"]) for record in store.records]
    assert all(len(sites) == 2 for sites in drawn)
    assert len(set(drawn)) > 1
    assert drawn == [tuple(sample_sites(["C", "A", "B"], number, schedule)) for number in range(1, 7)]
    assert sample_sites(["A", "B"], 1, Schedule(rounds=1, fraction_of_sites=1e-9)) in (["A"], ["B"])


@pytest.mark.parametrize(
    "values", [{"rounds": 0}, {"rounds": 1, "evaluate_every": 0}, {"rounds": 1, "fraction_of_sites": 1.1}]
)
def test_a_schedule_checks_its_values(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**values)


def test_nan_is_never_best() -> None:
    store, _ = run(Schedule(rounds=2), federation([math.nan, 0.1]))
    assert store.states[-1].best["best"] == Best(2, 0.1)
