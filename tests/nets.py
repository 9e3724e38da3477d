"""Small networks and sites for the tests of the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedgs.core import Site
from fedgs.data.case import Batch

ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.01)


class Tiny(nn.Module):
    """Conv + BatchNorm with an integer buffer, a frozen and a tied parameter, and one that never gets a gradient."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 1, bias=False)
        self.alias = nn.Conv2d(3, 3, 1, bias=False)
        self.alias.weight = self.second.weight
        self.head = nn.Conv2d(3, 2, 1)
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.full((2,), 0.1), requires_grad=False)
        self.register_buffer("index", torch.arange(4))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(images)))
        return self.head(self.alias(torch.relu(self.second(hidden))))


def tiny(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny(dtype)


def objective(output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
    return {"ce": nn.functional.cross_entropy(output, batch.masks.long())}


def batches(count: int, seed: int, *, small: bool = True, dtype: torch.dtype = torch.float32) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.randn(4, 1, 8, 8, generator=generator, dtype=dtype)
        masks = images[:, 0] > 0.8
        flags = torch.rand(4, generator=generator) < 0.5
        yield Batch(images, masks, flags & small)


def site(
    name: str,
    *,
    steps: int = 5,
    examples: int | None = None,
    seed: int | None = None,
    number: int = 1,
    small: bool = True,
    optimizer: Callable[..., Any] = ADAMW,
    dtype: torch.dtype = torch.float32,
) -> Site:
    return Site(
        name=name,
        round=number,
        batches=list(batches(steps, hash_of(name) if seed is None else seed, small=small, dtype=dtype)),
        num_examples=4 * steps if examples is None else examples,
        objective=objective,
        optimizer=optimizer,
    )


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 10_000
