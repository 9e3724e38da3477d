"""Objectives that count by lesion against Dice over the batch: a step of the unet, and what a batch for them costs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measure import Row, against, announce, paired
from benchmarks.sample import BATCH, CASES, forever
from fedgs import models
from fedgs.data import phantom
from fedgs.data.case import Batch
from fedgs.data.index import Index, build_index

SIZE = 128
PLAIN, BY_LESION = "dice_batch", ("blob_dice", "cc_dice_ce")


def run(*, quick: bool) -> Iterator[Row]:
    """Measures on drawn images, of which some show several lesions."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "phantom"
        phantom.generate(source, sites=phantom.SITES[:1], cases_per_site=CASES)
        index = build_index(source, Path(folder) / "index", adapter="phantom", size=SIZE, workers=1)
        without, with_regions = _reading(index), _reading(index.with_regions())
        batch = with_regions()
        announce(f"a step of each of {1 + len(BY_LESION)} objectives, in turn")
        steps = paired({name: _step(name, batch) for name in (PLAIN, *BY_LESION)}, repeats=10 if quick else 40)
        for name in BY_LESION:
            yield against(f"unet step {SIZE} px, {name}", steps[name], steps[PLAIN], at_most=1.1)
        reading = paired({"with": with_regions, "without": without}, repeats=20 if quick else 100)
        yield Row(f"batch of {BATCH} with regions", reading["with"], reading["without"], "ms")


def _reading(index: Index) -> Callable[[], Batch]:
    batches = forever(index)
    return lambda: next(batches)


def _step(name: str, batch: Batch) -> Callable[[], None]:
    model = models.build("unet", in_channels=3, image_size=SIZE).to(memory_format=torch.channels_last)
    optimizer, objective = torch.optim.AdamW(model.parameters(), fused=True), models.objective(name)

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(objective(model(batch.images), batch).values())).sum().backward()
        optimizer.step()

    return step
