"""An optimizer step that is also counted, against the same fused AdamW step alone."""

from __future__ import annotations

import itertools

import torch
from torch.nn import Module

from benchmarks.measure import MIB, Row, against, paired, peak_memory
from benchmarks.plain.optimizer import AccumulatingAdamW
from fedgs.models.utnet import UTNet
from fedgs.scaled_update import ScaledUpdate


def run(*, quick: bool) -> list[Row]:
    """Measures the three ways of counting, and the memory that they hold."""
    ways = {"bare": _fused(_network()).step, "plain": AccumulatingAdamW(list(_network().parameters())).step}
    for name, exact, scales in (
        ("exact", True, itertools.cycle((1.3, 1.7))),
        ("unscaled", False, itertools.repeat(1.0)),
        ("scaled", False, itertools.cycle((1.3, 1.7))),
    ):
        ways[name] = _counted(exact, scales)
    found = paired(ways, repeats=15 if quick else 41, warmup=3)
    bare = found["bare"]
    return [
        Row("plain accumulating AdamW", found["plain"], bare, "ms"),
        against("step, exact=False, unscaled", found["unscaled"], bare, at_most=1.1),
        against("step, exact=False, scaled", found["scaled"], bare, at_most=2.2),
        against("step, default", found["exact"], bare, at_most=2.6),
        _memory(),
    ]


def _network() -> Module:
    model = UTNet(in_channels=3).to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return model


def _fused(model: Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)


def _counted(exact: bool, scales: itertools.cycle[float] | itertools.repeat[float]):
    model = _network()
    scaled = ScaledUpdate(model, _fused(model), exact=exact)
    return lambda: scaled.step(next(scales))


def _memory() -> Row:
    model = _network()
    optimizer = _fused(model)
    optimizer.step()  # its moments are not ours
    with peak_memory() as peak:
        optimizer.step()
        alone = peak()
    with peak_memory() as peak:
        scaled = ScaledUpdate(model, optimizer)
        for _ in range(3):
            scaled.step(1.5)
        extra = peak() - alone
    model_size = sum(parameter.nbytes for parameter in model.parameters()) / MIB
    return Row("memory of counting, in models", extra, model_size, "MiB", "2 models", extra <= 2.05 * model_size)
