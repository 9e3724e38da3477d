"""How long a study is going to take, from a few measured steps."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from fedgs import experiment
from fedgs.assembly import split_of, steps_of
from fedgs.config import RunConfig, configure
from fedgs.data.index import Index
from fedgs.errors import FedgsError
from fedgs.events import Event, RunStarted, Scoring, StepTaken
from fedgs.study.plan import Cell, Plan, Run, Trial

__all__ = ["Cost", "estimate"]

_STEPS_PER_SITE = 4
_IMAGES = 6


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured of one way to train.

    Attributes:
        step_s: Seconds of an optimizer step.
        validation_s: Seconds per validation image.
        test_s: Seconds per test image, with all its scores.
        start_s: Seconds before the first step.
    """

    step_s: float
    validation_s: float
    test_s: float
    start_s: float


class _EnoughError(Exception):
    """Stops the run that is measured."""


class _Stopwatch:
    """Listens to a short run, and stops it when it has heard enough."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last: float | None = None
        self.start_s = 0.0
        self.times: dict[str, list[float]] = {"step": [], "validation": [], "test": []}

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case RunStarted():
                self.start_s = now - self._began
            case StepTaken():
                self._note("step", now)
            case Scoring():
                kind = "validation" if event.part == "validation" else "test"
                self._note(kind, now)
                if kind == "test" and len(self.times[kind]) >= _IMAGES:
                    raise _EnoughError
            case _:
                self._last = None
                return
        self._last = now

    def _note(self, kind: str, now: float) -> None:
        if self._last is not None:
            self.times[kind].append(now - self._last)


def measure(config: RunConfig) -> Cost:
    """Measures a few steps and scores of a run, in a folder that is gone afterwards."""
    watch = _Stopwatch()
    short = configure(config, rounds=1, local_steps=_STEPS_PER_SITE, style_from=None)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        experiment.train(short, Path(folder) / "run", listeners=[watch])
    mean = {kind: sum(times) / max(len(times), 1) for kind, times in watch.times.items()}
    return Cost(mean["step"], mean["validation"], mean["test"], watch.start_s)


def estimate(plan: Plan, index: Index, watch: Callable[[str], None] = lambda what: None) -> pd.DataFrame:
    """Estimates every run of a plan.

    Args:
        plan: The plan.
        index: Its data.
        watch: Told what is being measured.

    Returns:
        A row per run, in the order of work: ``path``, ``kind`` (trial, trunk, cell), ``what`` (its arm),
        ``unseen_site`` (empty for none), ``rounds``, ``steps`` of all sites in a round, ``seconds`` where it runs
        alone.

    Raises:
        FedgsError: As `fedgs.experiment.train`, for a run that cannot be.
    """
    torch.set_num_threads(plan.threads)
    costs: dict[str, Cost] = {}
    rows = []
    for run in plan.runs():
        config = configure(plan.config(run), data=str(index.folder))
        kind = str(configure(config, unseen_site=None, fold=0, seed=0, rounds=1, lr=1.0))
        if kind not in costs:
            watch(_what(run))
            try:
                costs[kind] = measure(config)
            except FedgsError as error:
                raise type(error)(f"{run.path}: {error}") from error
        rows.append(
            {
                "path": run.path,
                "kind": type(run).__name__.lower(),
                "what": _what(run),
                "unseen_site": config.data.unseen_site or "",
                **_row(config, index, costs[kind]),
            }
        )
    return pd.DataFrame(rows)


def _row(config: RunConfig, index: Index, cost: Cost) -> dict[str, float]:
    split = split_of(config, index, None)
    parts = split["part"].value_counts()
    sites = split.loc[split["part"] == "train", "site"].value_counts()
    of_site = [steps_of(config, str(site), int(cases)) for site, cases in sites.items()]
    taking_part = max(1, round(config.federation.fraction_of_sites * len(of_site)))
    steps = round(sum(of_site) * taking_part / len(of_site))
    rounds, scored = config.federation.rounds, -(-config.federation.rounds // config.federation.evaluate_every)
    tested = 2 * sum(parts.get(part, 0) for part in ("test_in", "test_out"))  # the last network and a best one
    seconds = cost.start_s + rounds * steps * cost.step_s + scored * parts.get("validation", 0) * cost.validation_s
    return {"rounds": rounds, "steps": steps, "seconds": seconds + tested * cost.test_s}


def _what(run: Run) -> str:
    match run:
        case Cell():
            return run.arm
        case Trial():
            return f"{run.search}, tuning"
        case _:
            return "trunk"
