"""Aggregation of UTNet's updates: time and memory at 5 sites, memory at 50."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

import fedgs
from benchmarks.measure import MIB, Row, against, announce, paired, peak_memory
from benchmarks.plain.aggregation import aggregate
from fedgs.core import Update
from fedgs.models.utnet import UTNet
from fedgs.spool import Spool


def run(*, quick: bool) -> Iterator[Row]:
    """Measures against stacking all sites; many updates wait where the engine keeps them."""
    state = fedgs.global_of(UTNet(in_channels=3))
    model_size = sum(tensor.nbytes for tensor in state.weights.values()) / MIB
    yield from _of_five(state, 5 if quick else 15, model_size)
    yield _of_many(state, 20 if quick else 50, model_size)


def _of_five(state: fedgs.Global, repeats: int, model_size: float) -> Iterator[Row]:
    updates = {f"C{site}": _update(state, site) for site in range(5)}
    directions, rule = [update.direction for update in updates.values()], fedgs.fedgs().aggregate
    ways = {"ours": lambda: rule(state, updates), "plain": lambda: aggregate(state.weights, directions, [1] * 5)}
    found = paired(ways, repeats=repeats)
    yield against("aggregation of 5 UTNets", found["ours"], found["plain"], at_most=1 / 3)
    memory = {}
    for name, call in ways.items():
        with peak_memory() as peak:
            result = call()
            memory[name] = peak()
        del result
    yield _in_models("memory of that", memory["ours"], model_size, note=f"plain: {memory['plain']:.0f} MiB")


def _of_many(state: fedgs.Global, sites: int, model_size: float) -> Row:
    announce(f"a round of {sites} sites")
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
        held = {f"C{site:02d}": spool.hold(_update(state, site)) for site in range(sites)}
        with peak_memory() as peak:
            result = fedgs.fedgs().aggregate(state, held)
            extra = peak()
        del result
    return _in_models(f"memory of {sites} sites", extra, model_size, note="8 wait in memory, the others on disk")


def _in_models(what: str, extra: float, model_size: float, note: str) -> Row:
    return Row(f"{what}, in models", extra, model_size, "MiB", "<= 1.5 models", extra / model_size <= 1.5, note)


def _update(state: fedgs.Global, site: int) -> Update:
    draw = torch.Generator().manual_seed(site)
    direction: Mapping[str, Tensor] = dict(_noise(state.weights, draw))
    floats = {name: buffer for name, buffer in state.buffers.items() if buffer.is_floating_point()}
    return Update(direction, dict(_noise(floats, draw)), num_examples=4, num_steps=1)


def _noise(like: Mapping[str, Tensor], draw: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in like.items():
        yield name, torch.randn(tensor.shape, generator=draw) * 1e-3
