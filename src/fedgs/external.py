"""Scores of a finished run on hospitals that it never knew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from fedgs.assembly import build_network, build_scorer, require_lesions, resolve
from fedgs.config import configure
from fedgs.data.index import Index, Progress, open_data
from fedgs.data.lesions import SmallRule
from fedgs.data.linked import shown_among
from fedgs.engine import State
from fedgs.errors import CheckpointError, DataError, understood, unknown_choice
from fedgs.evaluation import Prediction
from fedgs.events import Listener, Scoring
from fedgs.locks import locked
from fedgs.metrics.table import summarise
from fedgs.run_folder import CHECKPOINTS, RunFolder
from fedgs.scoring import score_state

__all__ = ["evaluate"]


def evaluate(
    run: Path | str,
    data: Path | str,
    *,
    adapter: str | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    listeners: Sequence[Listener] = (),
    on_indexing: Progress | None = None,
) -> Mapping[str, Any]:
    """Scores a finished run on hospitals that it never knew.

    Adds a row per case to the run's scores.csv with the part ``external``, in place of earlier ones of the same site
    and round, and the summary of that part to its summary.json.

    Args:
        run: Folder of the run.
        data: Folder of images and masks, or an index.
        adapter: Layout of the folder; None guesses it.
        checkpoint: ``"best"``, ``"best_small"`` or ``"last"``.
        device: Where to compute; it need not be where the run was trained.
        listeners: Told what happens.
        on_indexing: Told of the indexing that comes first.

    Returns:
        The summary of these hospitals, with ``checkpoint``, ``round`` and ``known_cases``: how many of the images, or
        near duplicates of them, the run was trained or selected on, which then are no external test.

    Raises:
        ConfigError: No run, an unfinished one, one that another process writes to, or an unknown checkpoint.
        CheckpointError: The checkpoint or a table is missing or damaged; no other is taken instead.
        DataError: The data are missing or broken, or have colours that the network does not take.
    """
    folder = RunFolder(Path(run))
    config = resolve(configure(folder.config(), device=device))
    if checkpoint not in CHECKPOINTS:
        raise unknown_choice("checkpoint", checkpoint, CHECKPOINTS)
    folder.summary()
    with locked(folder.path):
        folder.require_unaltered()
        trained_on = _TrainedOn.read(folder)
        state = _state_of(folder, checkpoint)
        index = _index_like(trained_on, Path(data), adapter, config.data.size, on_indexing)
        if config.data.score_size == "native":
            index.require_source()
        require_lesions("external", index.table, "score them together with others")
        model = build_network(config, trained_on.channels)
        number, done = state.server.round, count(1)

        def note(_: Prediction, __: float) -> None:
            event = Scoring(number, "external", next(done), len(index))
            for listener in listeners:
                listener(event)

        rows = score_state(
            build_scorer(config), model, state, index, range(len(index)), part="external", on_prediction=note
        )
        seen = pd.Series(shown_among(index.table, trained_on.cases))
        known = {str(site): int(found.sum()) for site, found in seen.groupby(index.table["site"])}
        about = {"checkpoint": checkpoint, "round": number}
        all_known = {**trained_on.known_cases.get(number, {}), **known}
        told = {"known_cases": sum(all_known.values()), "known_cases_of_site": all_known}
        external = about | told | summarise(folder.keep_external(rows))
        folder.finish({**folder.summary(), "external": external})
        return about | {"known_cases": sum(known.values())} | summarise(rows)


@dataclass(frozen=True, slots=True)
class _TrainedOn:
    """What a finished run tells of the data that it knows.

    Attributes:
        small_rule: Which lesions are small.
        channels: Channels of the images, which the network takes.
        cases: Those that it was trained or selected on, with the hashes of their images.
        known_cases: By the round that was scored, how many of each external site's images are among them.
    """

    small_rule: SmallRule
    channels: int
    cases: pd.DataFrame
    known_cases: Mapping[int, Mapping[str, int]]

    @classmethod
    def read(cls, folder: RunFolder) -> _TrainedOn:
        split, summary = folder.split(), folder.summary()
        with understood(folder.path / "summary.json"):
            external = summary.get("external")
            return cls(
                small_rule=SmallRule(**summary["data"]["small_rule"]),
                channels=int(summary["data"]["channels"]),
                cases=split.loc[split["part"].isin(("train", "validation")), ["image_hash", "near_hash"]],
                known_cases={external["round"]: external["known_cases_of_site"]} if external else {},
            )


def _state_of(folder: RunFolder, checkpoint: str) -> State:
    """Reads a checkpoint, which must be of the round that the summary tells."""
    summary, state = folder.summary(), folder.load(checkpoint)
    with understood(folder.path / "summary.json"):
        told = summary["round"] if checkpoint == "last" else summary[checkpoint]["round"]
    if told != state.server.round:
        raise CheckpointError(
            f"{folder.checkpoint(checkpoint)}: is of round {state.server.round}, the run's is of round {told}; "
            "restore it from a copy"
        )
    return state


def _index_like(
    trained_on: _TrainedOn, data: Path, adapter: str | None, size: int, on_indexing: Progress | None
) -> Index:
    """Opens data with the rule and the colours that a run was trained with."""
    index = open_data(data, adapter=adapter, size=size, small_rule=trained_on.small_rule, on_progress=on_indexing)
    if index.channels < trained_on.channels:
        return index.in_colour()
    if index.channels > trained_on.channels:
        raise DataError(
            f"{data}: holds colour images, the run's network takes grey ones; convert the images to grey first"
        )
    return index
