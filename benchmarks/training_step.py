"""A UTNet training step at 256 px and batch 4 against the plain network with the plain optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from benchmarks.measure import Row, against, paired
from benchmarks.plain.optimizer import AccumulatingAdamW
from benchmarks.plain.utnet import utnet
from fedgs import models
from fedgs.data.case import Batch
from fedgs.models.utnet import UTNet
from fedgs.scaled_update import ScaledUpdate


def run(*, quick: bool) -> list[Row]:
    """Measures forward, loss, backward and the counted optimizer step; quick at 128 px."""
    size = 128 if quick else 256
    draw = torch.Generator().manual_seed(0)
    images, masks = torch.randn(4, 3, size, size, generator=draw), torch.zeros(4, size, size, dtype=torch.bool)
    masks[:, : size // 4, : size // 4] = True
    batch = Batch(images, masks, torch.ones(4, dtype=torch.bool))
    ways = {"plain": _plain(batch), "fp32": _ours(batch, None)}
    if has_fast_bf16():
        ways["bf16"] = _ours(batch, torch.bfloat16)
    found = paired(ways, repeats=3 if quick else 7, warmup=1)
    rows = [against(f"UTNet training step {size} px, fp32", found["fp32"], found["plain"], at_most=1 / 1.3)]
    if "bf16" in found:
        rows.append(against("the same in bf16", found["bf16"], found["plain"], at_most=1 / 2.5))
    return rows


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _plain(batch: Batch) -> Callable[[], None]:
    model = utnet()
    optimizer = AccumulatingAdamW(list(model.parameters()))

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        foreground = torch.softmax(model(batch.images), dim=1)[:, 1].flatten()
        truth = batch.masks.flatten().float()
        overlap = (foreground * truth).sum()
        loss = 1 - (2 * overlap + 0.1) / (foreground.sum() + truth.sum() + 0.1)
        loss.backward()
        optimizer.step(1.5)

    return step


def _ours(batch: Batch, autocast: torch.dtype | None) -> Callable[[], None]:
    model = UTNet(in_channels=3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scaled, objective = ScaledUpdate(model, optimizer), models.objective("dice_batch")

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            terms = objective(model(batch.images), batch)
        sum(terms.values()).backward()
        scaled.step(1.5)

    return step
