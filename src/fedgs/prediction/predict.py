"""Masks of new images by finished runs: everything is checked first, then input after input is read, seen, written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedgs.errors import ConfigError, DataError
from fedgs.locks import locked
from fedgs.prediction.kind import Source
from fedgs.prediction.ledger import Ledger
from fedgs.prediction.networks import Networks, read_networks
from fedgs.prediction.options import PredictOptions
from fedgs.prediction.overlay import fitted
from fedgs.prediction.pipeline import Failed, predict_sources
from fedgs.prediction.sources import find_inputs
from fedgs.report.predictions import MOST_SHOWN, SIDE, Shown, write_predictions
from fedgs.report.rendering import require_extra

__all__ = ["Predictions", "predict"]


@dataclass(frozen=True, slots=True)
class Predictions:
    """What became of some inputs.

    Attributes:
        table: A row per input, as in predictions.csv.
        failed: Those of which there is no mask, with the reason.
        skipped: How many were there already.
        passed_over: Files in the given folders that are of no kind that can be predicted.
        page: The page about them, if one was asked for.
    """

    table: pd.DataFrame
    failed: Sequence[Failed]
    skipped: int
    passed_over: Sequence[Path]
    page: Path | None


def predict(
    runs: Sequence[Path | str] | Path | str,
    inputs: Sequence[Path | str] | Path | str,
    out: Path | str,
    options: PredictOptions | None = None,
    *,
    resume: bool = False,
    report: bool = False,
    on_case: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Makes masks of images by the network of a finished run, or by those of several together.

    Images are prepared as the run's index prepared them. A mask has the width and height that a viewer shows of its
    image, 255 where a lesion is and 0 elsewhere, and lies below `out` where the image lies below its input folder.

    Args:
        runs: Folder of the run, or of several, whose probabilities are averaged.
        inputs: Files, and folders that are searched to their depth; nothing is written to them.
        out: Folder for the masks, predictions.csv and whatever else is asked for; new, empty, or one to go on with.
        options: How; the defaults if None.
        resume: Leave what is there already, if the same networks and options made it.
        report: Also write a page, report.html.
        on_case: Told how many inputs are done, of those that were not there already.

    Returns:
        What became of them; an input that cannot be predicted does not stop the others.

    Raises:
        ConfigError: A run or an option cannot be used, runs do not go together, or outputs have no place of their own.
        CheckpointError: A run was altered, or lacks the checkpoint.
        DataError: An input does not exist, or holds nothing that can be predicted.
        MissingExtraError: A page is asked for, and the extra for it is not installed.
        OSError: The disk is full, for instance; what is done stays, and nothing is there by half.
    """
    folders, paths, place = _paths(runs), _paths(inputs), Path(out)
    options = options or PredictOptions()
    if report:
        require_extra()
    if not folders:
        raise ConfigError("no run; give the folder of a finished one")
    found = find_inputs(paths, place, options)
    networks = read_networks(folders, options)
    made_by = {"networks": networks.about(), **options.of_masks()}
    ledger = Ledger(place, made_by)
    with locked(place):
        ledger.begin(resume=resume)
        to_do = [source for source in found.sources if not ledger.has(source, options)]
        failed = _work(to_do, networks, options, place, ledger, on_case)
        table = ledger.write_table(failed)
        page = None
        if report:
            shown = _shown(found.sources, table, networks, place)
            page = write_predictions(place / "report.html", [run.resolve().name for run in folders], table, shown)
    return Predictions(table, failed, len(found.sources) - len(to_do), found.passed_over, page)


def _paths(given: Sequence[Path | str] | Path | str) -> list[Path]:
    return [Path(given)] if isinstance(given, (Path, str)) else [Path(path) for path in given]


def _work(
    sources: Sequence[Source],
    networks: Networks,
    options: PredictOptions,
    out: Path,
    ledger: Ledger,
    on_case: Callable[[int, int], None] | None,
) -> list[Failed]:
    failed = []
    with closing(predict_sources(sources, networks, options, out)) as outcomes:
        for number, outcome in enumerate(outcomes, 1):
            if isinstance(outcome, Failed):
                failed.append(outcome)
            else:
                ledger.enter(outcome)
            if on_case:
                on_case(number, len(sources))
    return failed


def _shown(sources: Sequence[Source], table: pd.DataFrame, networks: Networks, out: Path) -> list[Shown]:
    """Loads the inputs that the networks were least sure of, for they are worth a look."""
    done = table[table["confidence"].notna()].sort_values(["confidence", "input"]).head(MOST_SHOWN)
    by_name = {source.name: source for source in sources}
    shown = []
    for row in done.itertuples():
        source = by_name.get(str(row.input))
        if source is None:  # of an earlier call, with other inputs
            continue
        try:
            reading = source.kind.read(source.path, networks.size, networks.channels)
            view = reading.view(source.kind.decode_mask(out / source.mask))
        except DataError:  # has changed since; the page goes without
            continue
        shown.append(Shown(source.name, *fitted(*view, SIDE)))
    return shown
