"""A published checkpoint as a run folder, which can be evaluated like a run that was trained here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fedgs import models
from fedgs.assembly import build_network, resolve
from fedgs.config import configure
from fedgs.core import global_of
from fedgs.data.lesions import SMALL_RULES, SmallRule
from fedgs.engine import State
from fedgs.errors import CheckpointError, ConfigError
from fedgs.files import write_atomically
from fedgs.locks import locked
from fedgs.models.published_files import Published, read_published
from fedgs.run_folder import RunFolder, describe_machine
from fedgs.summary import means_of_round

__all__ = ["import_checkpoint"]

_SIZE = 512
"""Side of the images in the publication, in pixels."""


def import_checkpoint(
    file: Path | str,
    out: Path | str,
    *,
    size: int | None = None,
    small_rule: SmallRule = SMALL_RULES["components"],
    score_size: str = "512",
    careful: Callable[[str], None] = lambda message: None,
) -> Mapping[str, Any]:
    """Makes a run folder of a published checkpoint, with no round, no data and no scores of its own.

    Args:
        file: A `.pt` or `.pth` file; no code in it is run.
        out: The run folder; it must not exist or be empty.
        size: Side of the square images that the network is given, in pixels; None takes that which it is made for (of
            those that fit, the multiple of 16), or else 512, as published.
        small_rule: Which lesions are small in evaluations.
        score_size: ``"512"`` (as published) or ``"native"``.
        careful: Told what had to be mended.

    Returns:
        The content of summary.json.

    Raises:
        CheckpointError: The file cannot be read, is of no known network, or tells more than two classes apart.
        ConfigError: The folder exists or holds something.
        ShapeError: The network cannot take images of that size.
    """
    published, folder = read_published(file, image_size=size, careful=careful), RunFolder(Path(out))
    if not folder.is_new:
        raise ConfigError(f"{folder.path}: exists already; choose another --out")
    found = dict(published.sizes)
    channels, classes = found.pop("in_channels"), found.pop("num_classes")
    if classes != 2:
        raise CheckpointError(f"{file}: tells {classes} classes apart; expected 2, background and lesion")
    made_for = found.pop("image_size", (None, None))[0]
    config = resolve(
        configure(
            algorithm="imported",
            model=_name_of(published),
            model_options=found,
            size=made_for or (_SIZE if size is None else size),
            score_size=score_size,
            device="cpu",
        )
    )
    model = build_network(config, channels)
    model.load_state_dict(published.model.state_dict())
    checksum = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    origin = {"file": Path(file).name, "sha256": checksum, "form": published.title}
    columns = ("site", "case", "part", "image_hash", "mask_hash", "near_hash")
    with locked(folder.path):
        machine = describe_machine(torch.device("cpu"))
        folder.create(config, {**machine, "data": checksum, "published": origin}, pd.DataFrame(columns=columns))
        write_atomically(folder.path / "rounds.jsonl", "")
        folder.keep(State(global_of(model)), ["best"])
        nothing = means_of_round(folder.write_scores(), 0)
        summary = {
            **{"format": 1, "algorithm": "imported", "model": config.model.model, "size": config.data.size},
            **{"seed": 0, "fold": 0, "unseen_site": None, "rounds": 0, "published": origin},
            "data": {
                **{"source": Path(file).name, "adapter": None, "channels": channels, "small_rule": asdict(small_rule)},
                **{"sites": {}, "patients_unknown": 0},
                "leaks": {"patients": 0, "duplicates": 0, "near_duplicates": 0},
            },
            **nothing,
            **{"best": nothing, "best_small": None, "seconds": 0.0},
        }
        folder.finish(summary)
    return folder.summary()


def _name_of(published: Published) -> str:
    kind = type(published.model)
    return next(
        name
        for name, entry in models.MODELS.items()
        if (entry.module, entry.class_name) == (kind.__module__, kind.__name__)
    )
