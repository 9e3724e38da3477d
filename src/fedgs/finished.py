"""A finished run as those see it who use its network: one of its checkpoints, and the data that it knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch.nn import Module

from fedgs.assembly import build_network
from fedgs.config import RunConfig
from fedgs.data.index import Index, Progress, open_data
from fedgs.data.lesions import SmallRule
from fedgs.engine import State
from fedgs.errors import CheckpointError, ConfigError, DataError, understood
from fedgs.run_folder import RunFolder
from fedgs.summary import ADDED

__all__ = ["Finished", "read_finished"]


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run and one of its checkpoints.

    Attributes:
        folder: Where it is.
        config: Its settings.
        state: What the checkpoint holds.
        small_rule: Which lesions are small.
        channels: Channels of the images, which the network takes.
        cases: Those that it was trained or selected on, with the hashes of their images.
        size_quartiles: Areas that divide the lesions of its training images; None where they are not known.
        known_cases: By added part and the round that was scored, how many of each site's images are among them.
    """

    folder: RunFolder
    config: RunConfig
    state: State
    small_rule: SmallRule
    channels: int
    cases: pd.DataFrame
    size_quartiles: tuple[float, ...] | None
    known_cases: Mapping[tuple[str, int], Mapping[str, int]]

    def require_images(self, purpose: str) -> None:
        """Makes sure that the run's network looks at images, and not at slices of volumes in a window of their own.

        Raises:
            ConfigError: It was trained on slices.
        """
        if "slices" in self.folder.summary()["data"]:
            raise ConfigError(
                f"{self.folder.path}: was trained on slices of volumes, for which there is no {purpose} yet; take a "
                "run on images"
            )

    def network(self) -> Module:
        """Builds the run's network, whose weights are still to be loaded from `state`."""
        return build_network(self.config, self.channels)

    def open_data(self, data: Path, adapter: str | None, on_indexing: Progress | None) -> Index:
        """Opens data with the rule and the colours that the run was trained with.

        Raises:
            DataError: The data are missing or broken, or have colours that the network does not take.
        """
        size, rule = self.config.data.size, self.small_rule
        index = open_data(data, adapter=adapter, size=size, small_rule=rule, on_progress=on_indexing)
        if index.channels < self.channels:
            return index.in_colour()
        if index.channels > self.channels:
            raise DataError(
                f"{data}: holds colour images, the run's network takes grey ones; convert the images to grey first"
            )
        return index


def read_finished(folder: RunFolder, config: RunConfig, checkpoint: str) -> Finished:
    """Reads a finished run.

    Args:
        folder: Its folder.
        config: Its settings, on the device that is wanted.
        checkpoint: ``"best"``, ``"best_small"`` or ``"last"``.

    Raises:
        ConfigError: No run, or an unfinished one.
        CheckpointError: The run was altered, or the checkpoint is missing, damaged or of another round than the
            summary tells; no other is taken instead.
    """
    summary = folder.summary()
    folder.require_unaltered()
    split, state = folder.split(), folder.load(checkpoint)
    with understood(folder.path / "summary.json"):
        told = summary["round"] if checkpoint == "last" else summary[checkpoint]["round"]
        added = {part: summary[part] for part in ADDED if part in summary}
        quartiles = summary["data"].get("size_quartiles")
        finished = Finished(
            folder=folder,
            config=config,
            state=state,
            small_rule=SmallRule(**summary["data"]["small_rule"]),
            channels=int(summary["data"]["channels"]),
            cases=split.loc[split["part"].isin(("train", "validation")), ["image_hash", "near_hash"]],
            size_quartiles=None if quartiles is None else tuple(float(area) for area in quartiles),
            known_cases={(part, found["round"]): found["known_cases_of_site"] for part, found in added.items()},
        )
    if told != state.server.round:
        raise CheckpointError(
            f"{folder.checkpoint(checkpoint)}: is of round {state.server.round}, the run's is of round {told}; "
            "restore it from a copy"
        )
    return finished
