"""Scores of a finished run on hospitals that it never knew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from fedgs.adaptation import require_statistics
from fedgs.assembly import build_scorer, require_lesions, resolve
from fedgs.config import configure
from fedgs.data.index import Progress
from fedgs.data.linked import shown_among
from fedgs.errors import unknown_choice
from fedgs.evaluation import Prediction
from fedgs.events import Listener, Scoring
from fedgs.finished import read_finished
from fedgs.locks import locked
from fedgs.run_folder import CHECKPOINTS, RunFolder
from fedgs.scoring import score_state
from fedgs.summary import ADAPTED, EXTERNAL, means_of_part

__all__ = ["evaluate"]


def evaluate(
    run: Path | str,
    data: Path | str,
    *,
    adapter: str | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    adapt: bool = False,
    listeners: Sequence[Listener] = (),
    on_indexing: Progress | None = None,
) -> Mapping[str, Any]:
    """Scores a finished run on hospitals that it never knew.

    Adds a row per case to the run's scores.csv with the part ``external``, or ``adapted``, in place of earlier ones of
    the same part, site and round, and the summary of that part to its summary.json. The checkpoint stays as it is.

    Args:
        run: Folder of the run.
        data: Folder of images and masks, or an index.
        adapter: Layout of the folder; None guesses it.
        checkpoint: ``"best"``, ``"best_small"`` or ``"last"``.
        device: Where to compute; it need not be where the run was trained.
        adapt: Re-estimate the statistics of batch normalisation from each hospital's own images, of which no mask is
            used for it, before they are scored. Such scores are of another kind: do not set them against others.
        listeners: Told what happens.
        on_indexing: Told of the indexing that comes first.

    Returns:
        The summary of these hospitals, with ``checkpoint``, ``round`` and ``known_cases``: how many of the images, or
        near duplicates of them, the run was trained or selected on, which then are no external test.

    Raises:
        ConfigError: No run, an unfinished one, one that another process writes to, or an unknown checkpoint; or its
            network has no batch normalisation to adapt.
        CheckpointError: The checkpoint or a table is missing or damaged; no other is taken instead.
        DataError: The data are missing or broken, or have colours that the network does not take; or there is too
            little of a hospital to adapt to.
    """
    part = ADAPTED if adapt else EXTERNAL
    folder = RunFolder(Path(run))
    config = resolve(configure(folder.config(), device=device))
    if checkpoint not in CHECKPOINTS:
        raise unknown_choice("checkpoint", checkpoint, CHECKPOINTS)
    folder.summary()
    with locked(folder.path):
        finished = read_finished(folder, config, checkpoint)
        state, network = finished.state, finished.network()
        if adapt:
            require_statistics(network)
        index = finished.open_data(Path(data), adapter, on_indexing)
        if config.data.score_size == "native":
            index.require_source()
        require_lesions(part, index.table, "score them together with others")
        number, done = state.server.round, count(1)

        def note(_: Prediction, __: float) -> None:
            event = Scoring(number, part, next(done), len(index))
            for listener in listeners:
                listener(event)

        rows = score_state(
            replace(build_scorer(config), detailed=True, size_quartiles=finished.size_quartiles),
            network,
            state,
            index,
            range(len(index)),
            part=part,
            adapt=adapt,
            on_prediction=note,
        )
        seen = pd.Series(shown_among(index.table, finished.cases))
        known = {str(site): int(found.sum()) for site, found in seen.groupby(index.table["site"])}
        about = {"checkpoint": checkpoint, "round": number}
        all_known = {**finished.known_cases.get((part, number), {}), **known}
        told = {"known_cases": sum(all_known.values()), "known_cases_of_site": all_known}
        added = about | told | means_of_part(folder.keep_external(rows))
        folder.finish({**folder.summary(), part: added})
        return about | {"known_cases": sum(known.values())} | means_of_part(rows)
