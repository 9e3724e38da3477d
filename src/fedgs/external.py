"""Scores of a finished run on hospitals that it never knew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgs.assembly import build_network, build_scorer, resolve
from fedgs.config import configure
from fedgs.core import load
from fedgs.data.index import Index, Progress, open_data
from fedgs.data.lesions import SmallRule
from fedgs.errors import DataError, unknown_choice
from fedgs.evaluation import Prediction
from fedgs.events import Listener, Scoring
from fedgs.metrics.table import summarise
from fedgs.run_folder import CHECKPOINTS, RunFolder

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
        The summary of these hospitals, with ``checkpoint``, ``round`` and ``known_cases``: how many of the images the
        run was trained or selected on, which then are no external test.

    Raises:
        ConfigError: No run, an unfinished one, or an unknown checkpoint.
        CheckpointError: The checkpoint is missing or damaged; no other is taken instead.
        DataError: The data are missing or broken, or have colours that the network does not take.
    """
    folder = RunFolder(Path(run))
    config = resolve(configure(folder.config(), device=device))
    if checkpoint not in CHECKPOINTS:
        raise unknown_choice("checkpoint", checkpoint, CHECKPOINTS)
    summary = dict(folder.summary())
    state = folder.load(checkpoint)
    index = _index_like(summary["data"], Path(data), adapter, config.data.size, on_indexing)
    if config.data.score_size == "native":
        index.require_source()
    model = build_network(config, int(summary["data"]["channels"]))
    load(model, state.server)
    number, done = state.server.round, 0

    def note(_: Prediction, __: float) -> None:
        nonlocal done
        done += 1
        for listener in listeners:
            listener(Scoring(number, "external", done, len(index)))

    rows = build_scorer(config).score(
        model, index, range(len(index)), part="external", number=number, on_prediction=note
    )
    seen = set(folder.split().query("part in ('train', 'validation')")["image_hash"])
    known = {str(site): int(cases["image_hash"].isin(seen).sum()) for site, cases in index.table.groupby("site")}
    about = {"checkpoint": checkpoint, "round": number}
    before = summary.get("external") or {}
    all_known = (before["known_cases_of_site"] if before.get("round") == number else {}) | known
    told = {"known_cases": sum(all_known.values()), "known_cases_of_site": all_known}
    folder.finish(summary | {"external": about | told | summarise(folder.keep_external(rows))})
    return about | {"known_cases": sum(known.values())} | summarise(rows)


def _index_like(
    trained_on: Mapping[str, Any], data: Path, adapter: str | None, size: int, on_indexing: Progress | None
) -> Index:
    """Opens data with the rule and the colours that a run was trained with."""
    rule = SmallRule(**trained_on["small_rule"])
    index = open_data(data, adapter=adapter, size=size, small_rule=rule, on_progress=on_indexing)
    if index.channels < trained_on["channels"]:
        return index.in_colour()
    if index.channels > trained_on["channels"]:
        raise DataError(
            f"{data}: holds colour images, the run's network takes grey ones; convert the images to grey first"
        )
    return index
