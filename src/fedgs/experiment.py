"""From settings to results: puts data, network, algorithm and engine together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import Module

from fedgs import models
from fedgs.assembly import (
    autocast_of,
    build_algorithm,
    build_network,
    build_objective,
    build_scorer,
    lr_of_round,
    require_lesions,
    require_sharing,
    require_split,
    resolve,
    split_of,
    steps_of,
    with_needed_regions,
    with_unseen_site,
)
from fedgs.config import RunConfig, configure, differences, read_config
from fedgs.core import Algorithm, Site
from fedgs.data.augment import Augmentation
from fedgs.data.batches import training_batches
from fedgs.data.case import Batch
from fedgs.data.index import Index, Progress, open_data
from fedgs.data.lesions import MASK_SIZE
from fedgs.data.splits import parts_of_volumes
from fedgs.engine import BEST, Federation, Schedule, State, run_rounds
from fedgs.errors import ConfigError, DataError, MissingExtraError
from fedgs.evaluation import Prediction, Scorer
from fedgs.events import Careful, Event, Listener, RunFinished, RunStarted, Scoring, StepTaken
from fedgs.initial import describe_initial, initial_state
from fedgs.locks import locked
from fedgs.metrics.table import summarise
from fedgs.overlays import Gallery, Masks
from fedgs.own import own_of
from fedgs.resume import describe_cases, refuse_other_cases, refuse_other_settings, refuse_other_split
from fedgs.run_folder import CHECKPOINTS, RunFolder, describe_machine, refuse_foreign
from fedgs.scoring import score_state
from fedgs.seeds import derive, generator
from fedgs.summary import CROSS, TESTS, describe_data, means_of_round, means_of_volumes, training_quartiles
from fedgs.tensors import Tensors
from fedgs.volumes import score_volumes

__all__ = ["train"]

_POOL = "all sites"
"""Name of the one site that has the data of all."""


def train(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    on_indexing: Progress | None = None,
) -> Mapping[str, Any]:
    """Trains one algorithm on the hospitals of a data folder, scores it, and keeps everything in a run folder.

    Args:
        config: What to train, see `configure`.
        out: The run folder; it must not exist or be empty, unless ``resume`` is set.
        resume: Go on after the last finished round; the result is the same to the byte. A folder without a finished
            round starts over; a finished run stays as it is, and only gets its page if that is missing.
        listeners: Told what happens.
        on_indexing: Told of the indexing that comes first.

    Returns:
        The content of summary.json.

    Raises:
        ConfigError: A setting cannot work, the folder exists or another process writes to it, or the run in it has
            other settings or data.
        CheckpointError: Nothing intact is left of the run in the folder.
        DataError: The data are missing, broken or not laid out as the adapter expects.
        TrainingError: The loss is not finite; finished rounds are kept.
    """
    folder = RunFolder(Path(out))
    if not resume:
        _require_new(folder)
    elif not folder.is_started:
        refuse_foreign(folder.path)
    config = resolve(config)
    if resume and folder.is_finished:
        refuse_other_settings(folder, configure(config, device=folder.config().training.device))
        if not (folder.path / "report.html").is_file():
            with locked(folder.path):
                _write_report(folder)
        return folder.summary()
    if config.data.data is not None and folder.path.resolve().is_relative_to(Path(config.data.data)):
        raise ConfigError(f"{folder.path}: lies inside the data, to which nothing is written; choose another --out")

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)
        _write_log(folder, event)

    with locked(folder.path):
        if not resume:
            _require_new(folder)
        begun = folder if folder.is_started else None
        if begun:
            refuse_other_settings(folder, config)
        trial = _Trial.prepare(config, on_indexing, begun)
        state = _go_on(folder, trial, emit) if begun else _begin(folder, trial, emit)
        return trial.run(folder, state, emit)


@dataclass(frozen=True, slots=True)
class _Anew:
    """Batches that are made anew, and so are the same, each time they are iterated over."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


@dataclass(frozen=True, slots=True)
class _Trial:
    """One run, prepared: everything is checked, nothing is written."""

    config: RunConfig
    index: Index
    split: pd.DataFrame
    model: Module
    own: Tensors
    scorer: Scorer

    @classmethod
    def prepare(cls, config: RunConfig, on_indexing: Progress | None, begun: RunFolder | None) -> _Trial:
        # What can be checked without the data comes first: indexing may take a while.
        algorithm = build_algorithm(config, base=100.0)
        build_objective(config)
        build_network(config, channels=3)
        if not begun:
            require_split(config)
        if config.data.data is None:
            raise ConfigError("no data: name the folder of the hospitals' images with --data (--data DIR)")
        index = open_data(
            Path(config.data.data), adapter=config.data.adapter, size=config.data.size, on_progress=on_indexing
        )
        if config.data.score_size == "native" or index.volumes is not None:
            index.require_source()
        model = build_network(config, index.channels)
        models.initialise(model, generator(config.federation.seed, "network", config.data.fold))
        if begun:
            refuse_other_cases(begun, index)
        split = split_of(config, index, begun.path / "split.csv" if begun else None)
        own = own_of(model, algorithm.keeps(model))
        scorer = replace(build_scorer(config), size_quartiles=training_quartiles(index, split))
        trial = cls(with_unseen_site(config, split), index, split, model, own, scorer)
        require_sharing(config, algorithm, model, trial.training_rows().keys())
        for site, rows in trial.training_rows().items():
            steps_of(config, site, len(rows))
        for part in ("train", "validation", *TESTS):
            require_lesions(part, index.table.iloc[trial.rows(part)])
        return trial

    def start(self) -> tuple[State, list[str]]:
        """Gives the state before the first round, and what a person should know of it."""
        notes: list[str] = []
        sites = list(self.training_rows())
        state = initial_state(self.config.model, self.model, kept=self.own.keys(), sites=sites, careful=notes.append)
        algorithm = build_algorithm(self.config, base=self.index.small_rule.base)
        return replace(state, server=algorithm.start(state.server, sites)), notes

    def rows(self, part: str) -> list[int]:
        """Rows of the index that are of a part; the split has the index's order."""
        return self.split.index[self.split["part"] == part].tolist()

    def training_rows(self) -> dict[str, list[int]]:
        train = self.split[self.split["part"] == "train"]
        if train.empty:
            raise DataError(
                "no training case is left: there is no hospital beside the unseen one, or all images of the others are "
                "of one patient, who is tested; give more data, or try another --fold"
            )
        return {str(site): rows.index.tolist() for site, rows in train.groupby("site")}

    def run(self, folder: RunFolder, state: State, emit: Listener) -> Mapping[str, Any]:
        started = time.monotonic()
        rows = self.training_rows()
        free = [site for site in rows if not self.index.table["lesion_area"].iloc[rows[site]].any()]
        if free:
            emit(Careful(f"the training cases of {', '.join(free)} show no lesion; are their masks right?"))
        schedule = self._schedule()
        algorithm = build_algorithm(self.config, base=self.index.small_rule.base)
        steps = {site: steps_of(self.config, site, len(rows[site])) for site in rows}
        if algorithm.pools:
            rows, steps = {_POOL: sorted(row for own in rows.values() for row in own)}, {_POOL: sum(steps.values())}
        name, rounds = self.config.algorithm.algorithm, self.config.federation.rounds
        emit(RunStarted(name, rounds, state.server.round, round(sum(steps.values()) * schedule.fraction_of_sites)))
        sites = {site: partial(self._site, algorithm, site, rows[site], steps[site], emit) for site in rows}
        federation = Federation(self.model, algorithm, sites, partial(self._validate, folder, emit))
        state = run_rounds(federation, schedule, state, folder, emit)
        summary = self._final(folder, state, emit) | {"seconds": round(time.monotonic() - started, 1)}
        folder.finish(summary)
        _write_report(folder)
        emit(RunFinished(summary))
        return summary

    def _schedule(self) -> Schedule:
        federation = self.config.federation
        return Schedule(
            rounds=federation.rounds,
            seed=federation.seed,
            fold=self.config.data.fold,
            fraction_of_sites=federation.fraction_of_sites,
            evaluate_every=federation.evaluate_every,
        )

    def _case_weights(self, algorithm: Algorithm, rows: list[int]) -> NDArray[np.float64] | None:
        if algorithm.case_weights is None:
            return None
        cases = self.index.table.iloc[rows]
        areas = cases["lesion_area"].to_numpy(dtype=float) / MASK_SIZE**2
        weights: NDArray[np.float64] = algorithm.case_weights(cases["is_small"].to_numpy(dtype=bool), areas)
        return weights

    def _site(self, algorithm: Algorithm, name: str, rows: list[int], steps: int, emit: Listener, number: int) -> Site:
        training, device = self.config.training, torch.device(self.config.training.device)
        names = (self.config.data.fold, number, name)
        seed = self.config.federation.seed
        batches = partial(
            training_batches,
            with_needed_regions(self.config, self.index),
            rows,
            batch_size=training.batch_size,
            steps=steps,
            augmentation=Augmentation(),
            device=device,
            case_weights=self._case_weights(algorithm, rows),
        )
        fused = device.type in ("cpu", "cuda")
        return Site(
            name=name,
            round=number,
            batches=_Anew(lambda: batches(generator=generator(seed, "batches", *names))),
            num_examples=len(rows),
            objective=build_objective(self.config),
            optimizer=partial(
                torch.optim.AdamW,
                lr=lr_of_round(self.config, number),
                betas=(training.beta1, 0.999),
                weight_decay=training.weight_decay,
                fused=fused,
            ),
            own=self.own,
            generator=generator(seed, "rule", *names),
            seed=derive(seed, "layers", *names),
            autocast=autocast_of(self.config),
            on_step=lambda step, loss, terms: emit(StepTaken(number, name, step, loss, terms)),
        )

    def _validate(self, folder: RunFolder, emit: Listener, state: State) -> Mapping[str, Any]:
        scores = self._score(state, "validation", emit)
        folder.keep_scores(scores)
        return summarise(scores)

    def _score(
        self,
        state: State,
        part: str,
        emit: Listener,
        show: Callable[[Prediction, float], None] = lambda prediction, dice: None,
    ) -> pd.DataFrame:
        by_others = part == CROSS
        rows, done = self.rows("test_in" if by_others else part), count(1)
        scorer = replace(self.scorer, detailed=part in TESTS)

        def note(prediction: Prediction, dice: float) -> None:
            emit(Scoring(state.server.round, part, number := next(done), max(number, len(rows))))
            show(prediction, dice)

        return score_state(
            scorer, self.model, state, self.index, rows, part=part, by_others=by_others, on_prediction=note
        )

    def _final(self, folder: RunFolder, state: State, emit: Listener) -> dict[str, Any]:
        """Scores the test images with the last network and with the best ones; they were not looked at before."""
        tested = [row for part in TESTS for row in self.rows(part)]
        gallery = Gallery(folder.path / "overlays", self.index, tested)
        masks = Masks(folder.path / "masks", self.index, tested)

        def show(part: str, prediction: Prediction, dice: float) -> None:
            gallery.keep(part, prediction, dice)
            masks.keep(part, prediction)

        numbers = {state.server.round} | {best.round for best in state.best.values()}
        for name in CHECKPOINTS:
            kept = state if name == "last" else folder.load(name) if name in state.best else None
            if kept and kept.server.round in numbers:
                numbers.remove(kept.server.round)
                for part in TESTS if kept.server.weights else (*TESTS, CROSS):
                    shown = (partial(show, part),) if name == "last" and part in TESTS else ()
                    folder.keep_scores(self._score(kept, part, emit, *shown))
        gallery.close()
        masks.close()
        volumes = self._final_volumes(folder, state, emit)
        scores = folder.write_scores()
        best = {name: means_of_round(scores, state.best[name].round) if name in state.best else None for name in BEST}
        return self._about(state) | means_of_round(scores, state.server.round) | best | volumes

    def _final_volumes(self, folder: RunFolder, state: State, emit: Listener) -> dict[str, Any]:
        """Scores volumes as wholes with the last network."""
        if self.index.volumes is None:
            return {}
        data, number = self.config.data, state.server.round
        parts = parts_of_volumes(
            self.index.volumes, self.index.table, self.split, fold=data.fold, unseen_site=data.unseen_site
        )
        scores = score_volumes(
            self.scorer,
            self.model,
            state,
            self.index,
            parts,
            on_volume=lambda part, done, of: emit(Scoring(number, f"volumes, {part}", done, of)),
        )
        folder.write_volumes(scores)
        return {"volumes": means_of_volumes(scores)}

    def _about(self, state: State) -> dict[str, Any]:
        config = self.config
        return {
            "format": 1,
            "algorithm": config.algorithm.algorithm,
            "model": config.model.model,
            "size": config.data.size,
            "seed": config.federation.seed,
            "fold": config.data.fold,
            "unseen_site": config.data.unseen_site,
            "rounds": config.federation.rounds,
            "round": state.server.round,
            "data": describe_data(self.index, self.split),
        }


def _require_new(folder: RunFolder) -> None:
    if not folder.is_new:
        raise ConfigError(f"{folder.path}: exists already; choose another --out, or go on with it by --resume")


def _begin(folder: RunFolder, trial: _Trial, emit: Listener) -> State:
    if (folder.path / "config.toml").is_file():
        changed = differences(read_config(folder.path / "config.toml"), trial.config)
        how = f"with other settings ({'; '.join(changed)})" if changed else "with the same settings"
        emit(Careful(f"no round was finished, so the run starts over, {how}"))
    state, notes = trial.start()
    machine = describe_machine(torch.device(trial.config.training.device)) | describe_initial(trial.config.model)
    hashes = {name: trial.index.table[name] for name in ("image_hash", "mask_hash", "near_hash")}
    folder.create(trial.config, machine | describe_cases(trial.index, trial.split), trial.split.assign(**hashes))
    for note in notes:
        emit(Careful(note))
    return state


def _go_on(folder: RunFolder, trial: _Trial, emit: Listener) -> State:
    refuse_other_split(folder, trial.index, trial.split)
    return folder.restore(lambda message: emit(Careful(message)))


def _write_report(folder: RunFolder) -> None:
    from fedgs.report.html import write_report

    try:
        write_report([folder.path], folder.path / "report.html")
    except MissingExtraError as error:
        folder.log(f"no report.html: {error}")


def _write_log(folder: RunFolder, event: Event) -> None:
    if not isinstance(event, (StepTaken, Scoring)):
        folder.log(_in_words(event))


def _in_words(event: Event) -> str:
    """One line of the log: the event's name and what it carries, without the long tables."""
    carried = {name: getattr(event, name) for name in event.__slots__ if name != "summary"}
    return f"{type(event).__name__} {json.dumps(carried, default=str, ensure_ascii=False)}"
