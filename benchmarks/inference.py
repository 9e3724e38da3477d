"""Segmentation of one 512 px image by every network, after a short training so that there is something to segment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Row, announce, paired
from benchmarks.plain.utnet import plainly
from benchmarks.training_step import has_fast_bf16
from fedgs import models
from fedgs.data.case import Batch

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"norm": "instance"},
    "utnet": {},
    "unet_sdnet": {},
    "sd_utnet": {},
    "sdnet": {},
    "feddis": {},
    "monai:SegResNet": {},
}
SIZE, STEPS = 128, 60
COMPILED = {"unet", "monai:SegResNet"}
"""Networks of many small layers, which the compiler puts together; others gain little."""


def run(*, quick: bool) -> Iterator[Row]:
    """Measures each network; quick at 256 px and after fewer steps."""
    for name in NETWORKS:
        yield from _rows(name, quick=quick)


def _rows(name: str, *, quick: bool) -> Iterator[Row]:
    image = discs(torch.Generator().manual_seed(7), 1, 256 if quick else 512).images
    steps = 5 if quick else STEPS
    announce(f"{name}, image of {image.shape[-1]} px, after {steps} steps of training")
    state = trained(name, steps)
    plain, ours = plainly(_copy(name, state)), _copy(name, state).to(memory_format=torch.channels_last)
    ways = {"plain": _way(plain, image), "fp32": _way(ours, image)}
    if has_fast_bf16():
        ways["bf16"] = _way(ours, image, torch.bfloat16)
    notes = {}
    if name in COMPILED and not quick:
        ways["fp32, compiled"] = _way(torch.compile(_copy(name, state).to(memory_format=torch.channels_last)), image)
        notes["fp32, compiled"] = f"; warm-up {_seconds(ways['fp32, compiled']):.0f} s"
    found = paired(ways, repeats=3 if quick else 7, warmup=1)
    masks = {way: call() > 0.5 for way, call in ways.items()}
    for way in list(ways)[1:]:
        equal = (masks[way] == masks["plain"]).double().mean().item()
        met = found[way] <= found["plain"] / 2 and equal >= 0.999
        note = f"{100 * equal:.3f} % of mask pixels equal, {100 * masks['plain'].double().mean().item():.1f} % lesion"
        goal = "<= 1/2 and 99.9 % equal" if way != "fp32" else ""
        what = f"{name}, image of {image.shape[-1]} px, {way}"
        yield Row(what, found[way], found["plain"], "ms", goal, met if goal else None, note + notes.get(way, ""))


def _seconds(call: Callable[[], Tensor]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def discs(draw: torch.Generator, images: int, size: int) -> Batch:
    """Bright discs on a structured ground; the discs are the lesions."""
    ground = nn.functional.interpolate(torch.randn(images, 3, 8, 8, generator=draw), size=(size, size), mode="bicubic")
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    centres, radii = torch.rand(images, 2, generator=draw), 0.05 + 0.15 * torch.rand(images, generator=draw)
    masks = torch.stack(
        [(rows - y) ** 2 + (columns - x) ** 2 < r * r for (y, x), r in zip(centres, radii, strict=True)]
    )
    noise = 0.1 * torch.randn(images, 3, size, size, generator=draw)
    return Batch(ground * 0.5 + noise + masks[:, None] * 0.9, masks, masks.flatten(1).any(1))


def trained(name: str, steps: int) -> Mapping[str, Tensor]:
    """Weights of a network after some steps on discs, so that it marks something."""
    model = models.build(name, in_channels=3, image_size=SIZE, **NETWORKS[name])
    models.initialise(model, torch.Generator().manual_seed(0))
    model = model.to(memory_format=torch.channels_last).train()
    objective, draw = models.objective(models.entry(name)[0].objective), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        batch = discs(draw, 4, SIZE)
        with torch.autocast("cpu", torch.bfloat16) if has_fast_bf16() else contextlib.nullcontext():
            terms = objective(model(batch.images), batch)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    return model.state_dict()


def _copy(name: str, state: Mapping[str, Tensor]) -> nn.Module:
    model = models.build(name, in_channels=3, image_size=SIZE, **NETWORKS[name])
    model.load_state_dict(state)
    return model.to(memory_format=torch.contiguous_format).eval()


def _way(model: nn.Module, image: Tensor, autocast: torch.dtype | None = None) -> Callable[[], Tensor]:
    def segment() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            return models.segment(model, image)[:, 1]

    return segment
