"""The networks of one finished run, or of several, that look at an input together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from fedgs.assembly import autocast_of, resolve
from fedgs.config import configure
from fedgs.core import load
from fedgs.data.augment import normalise
from fedgs.errors import ConfigError, unknown_choice
from fedgs.evaluation import lesion_probabilities
from fedgs.finished import Finished, read_finished
from fedgs.own import own_in, personal_in
from fedgs.prediction.options import PredictOptions
from fedgs.run_folder import RunFolder
from fedgs.scoring import networks_for
from fedgs.tensors import Tensors

__all__ = ["Member", "Networks", "read_networks"]

_FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""Axes of images that are mirrored: none, left and right, top and bottom, both."""


@dataclass(frozen=True, slots=True)
class Member:
    """One of the networks.

    Attributes:
        model: In evaluation mode.
        precision: ``"fp32"`` or ``"bf16"``, in words.
        autocast: Type of the activations; None computes in the type of the weights.
        weights: Checksum of the checkpoint that they are from.
    """

    model: Module
    precision: str
    autocast: torch.dtype | None
    weights: str


@dataclass(frozen=True, slots=True)
class Networks:
    """Networks of one size and one number of channels.

    Attributes:
        members: One per run.
        size: Side of the images that they take, in pixels.
        channels: Of these images.
        batch_size: Images per forward pass.
        device: Where they are.
        tta: Whether they look at flipped images too.
    """

    members: Sequence[Member]
    size: int
    channels: int
    batch_size: int
    device: torch.device
    tta: bool

    @torch.inference_mode()
    def probabilities(self, frames: Sequence[NDArray[Any]]) -> Tensor:
        """Gives the mean probability of lesion over networks and flips.

        Args:
            frames: Each (size, size, channels), uint8, or float32 in [0, 1].

        Returns:
            (B, size, size), at least float32, on the device.
        """
        stacked = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2)
        images = normalise(stacked)
        looks = list(self._looks(images))
        return looks[0] if len(looks) == 1 else torch.stack(looks).mean(0)

    def _looks(self, images: Tensor) -> Iterator[Tensor]:
        for axes in _FLIPS if self.tta else ((),):
            turned = images.flip(axes) if axes else images
            for member in self.members:
                found = lesion_probabilities(member.model, turned, member.autocast)
                yield found.flip(axes) if axes else found

    def about(self) -> list[dict[str, str]]:
        """Tells these networks from others: by the content of their checkpoints, wherever they lie."""
        return [{"weights": member.weights, "precision": member.precision} for member in self.members]


def read_networks(runs: Sequence[Path], options: PredictOptions) -> Networks:
    """Reads the networks of finished runs.

    Args:
        runs: Folders of the runs.
        options: Which checkpoint and whose parts of it, where and how to compute.

    Raises:
        ConfigError: No run, or an unfinished one; one that is given twice; runs that take other images than the first;
            or a site that keeps nothing, or none where hospitals share nothing.
        CheckpointError: A run was altered, or lacks the checkpoint; no other is taken instead.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError("a run is given twice; an ensemble is of different runs, so give each once")
    finished = [_read(RunFolder(run), options) for run in runs]
    first = finished[0]
    for other in finished[1:]:
        _require_alike(first, other)
    return Networks(
        members=[_member(each, options) for each in finished],
        size=first.config.data.size,
        channels=first.channels,
        batch_size=options.batch_size or first.config.training.batch_size,
        device=torch.device(first.config.training.device),
        tta=options.tta,
    )


def _read(folder: RunFolder, options: PredictOptions) -> Finished:
    changes = {"device": options.device} | ({"precision": options.precision} if options.precision else {})
    finished = read_finished(folder, resolve(configure(folder.config(), **changes)), options.checkpoint)
    finished.require_images("prediction")
    return finished


def _member(finished: Finished, options: PredictOptions) -> Member:
    model = finished.network()
    load(model, finished.state.server, _own_parts(finished, options.site))
    model.eval()
    with finished.folder.checkpoint(options.checkpoint).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return Member(model, finished.config.training.precision, autocast_of(finished.config), weights)


def _own_parts(finished: Finished, site: str | None) -> Tensors:
    """Gives what is the site's own of the network; without a site, what scores an unknown hospital's images."""
    state, run = finished.state, finished.folder.path
    keepers = [name for name, memory in state.memories.items() if own_in(memory) or personal_in(memory)]
    if site is not None and not keepers:
        raise ConfigError(f"{run}: no hospital keeps a part of the network for itself; leave --site out")
    if site is not None and site not in keepers:
        raise unknown_choice("hospital in --site", site, keepers)
    networks = networks_for(state, site or "")
    if len(networks) > 1:
        raise ConfigError(
            f"{run}: its hospitals share nothing, each has a network of its own; choose one with --site: "
            f"{', '.join(sorted(networks))}"
        )
    return next(iter(networks.values()))


def _require_alike(first: Finished, other: Finished) -> None:
    facts = {
        "size": (first.config.data.size, other.config.data.size),
        "channels": (first.channels, other.channels),
    }
    differ = [f"{name} {ours} and {theirs}" for name, (ours, theirs) in facts.items() if ours != theirs]
    if differ:
        raise ConfigError(
            f"{first.folder.path} and {other.folder.path}: take different images ({'; '.join(differ)}), so their "
            "probabilities have no mean; give --ensemble runs of one size and number of channels"
        )
