"""A training sample from the index's cache against reading it from disk, and whether training ever waits for it."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Row, against, announce, paired
from benchmarks.plain.sample import sample
from fedgs import models
from fedgs.data import phantom
from fedgs.data.augment import Augmentation
from fedgs.data.batches import training_batches
from fedgs.data.case import Batch
from fedgs.data.index import Index, build_index, open_index

CASES, BATCH = 16, 4


def run(*, quick: bool) -> Iterator[Row]:
    """Measures on generated 1080p JPEG frames."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "frames"
        announce("frames are drawn and indexed")
        files = _frames(source)
        index = build_index(source, Path(folder) / "index", adapter="folder", size=512, workers=1)
        batches, numbers, turn = forever(index), np.random.default_rng(0), itertools.cycle(files)
        found = paired(
            {"ours": lambda: next(batches), "plain": lambda: sample(*next(turn), 512, numbers)},
            repeats=20 if quick else 60,
        )
        yield against("augmented 512 px sample", found["ours"] / BATCH, found["plain"], at_most=1 / 5)
        for network, size in (("unet", 128), ("unet", 256), ("utnet", 256)):
            index = open_index(Path(folder) / "index", size=size)
            yield _waiting(index, network, steps=2 if quick else 6)


def _frames(source: Path) -> list[tuple[Path, Path]]:
    """Drawn frames as 1080p JPEG files in the folder layout."""
    drawn = source.with_name("drawn")
    phantom.generate(drawn, sites=phantom.SITES[:1], cases_per_site=CASES)
    files = []
    for image in sorted(drawn.glob("*/images/*.png")):
        pair = []
        for kind in ("images", "masks"):
            path = source / "C1" / kind / f"{image.stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(image.parents[1] / kind / image.name) as picture:
                picture.resize((1920, 1080), Image.Resampling.NEAREST).save(path, quality=90)
            pair.append(path)
        files.append((pair[0], pair[1]))
    return files


def forever(index: Index) -> Iterator[Batch]:
    """Gives augmented batches of all cases for as long as anyone asks."""
    return training_batches(
        index,
        range(len(index)),
        batch_size=BATCH,
        augmentation=Augmentation(),
        generator=torch.Generator().manual_seed(0),
        steps=10**6,
    )


def _waiting(index: Index, network: str, steps: int) -> Row:
    """Trains for a few steps and tells which share of the time went by before a batch was there."""
    model = models.build(network, in_channels=3, image_size=index.size).to(memory_format=torch.channels_last)
    objective, batches = models.objective("dice_batch"), forever(index)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    waited = worked = 0.0
    for step in range(steps + 1):
        started = time.perf_counter()
        batch = next(batches)
        there = time.perf_counter()
        optimizer.zero_grad()
        sum(objective(model(batch.images), batch).values()).backward()
        optimizer.step()
        if step:
            waited, worked = waited + there - started, worked + time.perf_counter() - there
    what = f"waiting for a batch: {network} {index.size} px"
    return Row(what, waited / steps * 1e3, (waited + worked) / steps * 1e3, "ms", note="share of a training step")
