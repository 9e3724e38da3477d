"""An optimizer step that is also counted, against the same fused AdamW step alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import Module

from benchmarks.measure import MIB, Row, against, announce, paired, peak_memory
from benchmarks.plain.optimizer import AccumulatingAdamW
from fedgs.models.utnet import UTNet
from fedgs.scaled_update import ScaledUpdate

GRADIENT = {"scale": "gradient"}


def run(*, quick: bool) -> Iterator[Row]:
    """Measures the ways of counting, and the memory that they hold."""
    ways = {"bare": _fused(_network()).step, "plain": AccumulatingAdamW(list(_network().parameters())).step}
    for name, scales, choices in (
        ("default", itertools.cycle((1.3, 1.7)), {}),
        ("unscaled", itertools.repeat(1.0), {"exact": False}),
        ("scaled", itertools.cycle((1.3, 1.7)), {"exact": False}),
        ("gradient", itertools.cycle((1.3, 1.7)), GRADIENT),
    ):
        ways[name] = _counted(scales, choices)
    announce(f"a step of each of {len(ways)} ways, in turn")
    found = paired(ways, repeats=15 if quick else 41, warmup=3)
    bare = found["bare"]
    yield Row("plain accumulating AdamW", found["plain"], bare, "ms")
    yield against("step, exact=False, unscaled", found["unscaled"], bare, at_most=1.1)
    yield against("step, exact=False, scaled", found["scaled"], bare, at_most=2.2)
    yield against("step, default", found["default"], bare, at_most=2.6)
    yield Row("step, scale=gradient", found["gradient"], bare, "ms")
    memory, model_size = _memory({})
    yield Row("memory of counting, in models", memory, model_size, "MiB", "2 models", memory <= 2.05 * model_size)
    yield Row("the same, scale=gradient", *_memory(GRADIENT), "MiB")


def _network() -> Module:
    model = UTNet(in_channels=3).to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return model


def _fused(model: Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)


def _counted(scales: Iterator[float], choices: Mapping[str, Any]) -> Callable[[], object]:
    model = _network()
    scaled = ScaledUpdate(model, _fused(model), **choices)
    return lambda: scaled.step(next(scales))


def _memory(choices: Mapping[str, Any]) -> tuple[float, float]:
    """What counting adds to an optimizer, median of five, and the size of the network, in MiB.

    What one peak tells differs by the largest tensor, 0.16 models, with where the allocator puts it.
    """
    network = sum(parameter.nbytes for parameter in _network().parameters()) / MIB
    return statistics.median(_added(choices) for _ in range(5)), network


def _added(choices: Mapping[str, Any]) -> float:
    model = _network()
    optimizer = _fused(model)
    optimizer.step()  # its moments are not ours
    with peak_memory() as peak:
        optimizer.step()
        alone = peak()
    with peak_memory() as peak:
        scaled = ScaledUpdate(model, optimizer, **choices)
        for _ in range(3):
            scaled.step(1.5)
        return peak() - alone
