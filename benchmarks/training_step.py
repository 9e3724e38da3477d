"""Training steps at 256 px and batch 4 against the plain network with the plain optimizer: time and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.measure import Row, against, announce, paired, peak_memory
from benchmarks.plain.optimizer import AccumulatingAdamW
from benchmarks.plain.utnet import plainly
from fedgs import models
from fedgs.data.case import Batch
from fedgs.scaled_update import ScaledUpdate


def run(*, quick: bool) -> Iterator[Row]:
    """Measures forward, loss, backward and the counted optimizer step; quick at 128 px."""
    size = 128 if quick else 256
    for name in ("utnet", "sd_utnet"):
        yield from _rows(name, size, quick=quick)


def _rows(name: str, size: int, *, quick: bool) -> Iterator[Row]:
    draw = torch.Generator().manual_seed(0)
    images, masks = torch.randn(4, 3, size, size, generator=draw), torch.zeros(4, size, size, dtype=torch.bool)
    masks[:, : size // 4, : size // 4] = True
    batch = Batch(images, masks, torch.ones(4, dtype=torch.bool))

    def build(*, recompute: bool = False) -> nn.Module:
        return models.build(name, in_channels=3, image_size=size, recompute=recompute)

    bf16 = torch.bfloat16 if has_fast_bf16() else None
    ways: dict[str, Callable[[], Callable[[], None]]] = {
        "plain": lambda: _plain(plainly(build()), batch, name),
        "fp32": lambda: _ours(build(), batch, name, None),
        **({"bf16": lambda: _ours(build(), batch, name, bf16)} if bf16 else {}),
        "fp32, recompute": lambda: _ours(build(recompute=True), batch, name, None),
    }
    announce(f"{name} training step {size} px: {', '.join(ways)}; memory, then time")
    memory = {way: _peak(make) for way, make in ways.items()}
    found = paired({way: make() for way, make in ways.items()}, repeats=3 if quick else 5, warmup=1)
    for way in list(ways)[1:]:
        what, goal = f"{name} training step {size} px, {way}", 1 / 3 if way == "bf16" else 1 / 1.4
        yield against(what, found[way], found["plain"], at_most=goal)
        yield against("memory of that", memory[way], memory["plain"], at_most=1 / 1.5, unit="MiB")


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _peak(make: Callable[[], Callable[[], None]]) -> float:
    """Memory of network, optimizer and a second step, when all state is there."""
    with peak_memory() as peak:
        step = make()
        step()
        step()
        return peak()


def _plain(model: nn.Module, batch: Batch, name: str) -> Callable[[], None]:
    optimizer, objective = AccumulatingAdamW(list(model.parameters())), _objective(name)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        torch.stack(list(objective(model(batch.images), batch).values())).sum().backward()
        optimizer.step(1.5)

    return step


def _ours(model: nn.Module, batch: Batch, name: str, autocast: torch.dtype | None) -> Callable[[], None]:
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scaled, objective = ScaledUpdate(model, optimizer), _objective(name)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            terms = objective(model(batch.images), batch)
        torch.stack(list(terms.values())).sum().backward()
        scaled.step(1.5)

    return step


def _objective(name: str) -> models.Objective:
    return models.objective(models.entry(name)[0].objective)
