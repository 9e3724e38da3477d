"""A federation small enough to compute by hand: f_k(w) = a_k / 2 * |w - b_k|^2 with plain SGD, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module

from fedgs.core import Algorithm, Global, Site, global_of, run_round
from fedgs.data.case import Batch
from fedgs.own import own_of
from fedgs.tensors import Tensors

A = {"x": 1.0, "y": 3.0}
B = {"x": np.array([1.0, -2.0]), "y": np.array([-0.5, 4.0])}
STEPS = {"x": 2, "y": 3}
EXAMPLES = {"x": 10, "y": 30}
LR = 0.1
START = np.array([0.3, 0.7])
AREAS = {"x": (1, 40), "y": (None, 6, 25)}
"""Pixels of the small lesion in the one image of each batch; None where it is not small."""
MOMENTUM = 0.1
"""With which batch normalisation takes on new statistics."""


class Point(nn.Module):
    """One weight; its output is the weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(START))

    def forward(self, images: Tensor) -> Tensor:
        return self.w


class Normed(nn.Module):
    """A weight beside a batch normalisation, whose scale and shift are weights like it; gives the three together."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(START))
        self.norm = nn.BatchNorm1d(2, momentum=MOMENTUM, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        self.norm(images.flatten(1))
        return torch.stack([self.w, self.norm.weight, self.norm.bias])


def batch(small: bool = False, area: int = 1, images: Tensor | None = None) -> Batch:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks.view(-1)[:area] = True
    return Batch(
        torch.zeros(1, 1, 8, 8, dtype=torch.float64) if images is None else images, masks, torch.tensor([small])
    )


def lesions(name: str) -> list[Batch]:
    """The batches of a site, some with a small lesion, see `AREAS`."""
    return [batch(area is not None, area or 64) for area in AREAS[name]]


def site(name: str, number: int, batches: Sequence[Batch] | None = None, momentum: float = 0.0) -> Site:
    def objective(output: Tensor, _: Batch) -> Mapping[str, Tensor]:
        return {"square": A[name] / 2 * (output - torch.tensor(B[name])).square().sum()}

    return Site(
        name=name,
        round=number,
        batches=[batch()] * STEPS[name] if batches is None else batches,
        num_examples=EXAMPLES[name],
        objective=objective,
        optimizer=partial(torch.optim.SGD, lr=LR, momentum=momentum),
        generator=torch.Generator().manual_seed(number),
    )


def gradient(name: str, w: np.ndarray) -> np.ndarray:
    return A[name] * (w - B[name])


def run(
    algorithm: Algorithm,
    rounds: int = 2,
    taking_part: Sequence[Sequence[str]] | None = None,
    *,
    make: Callable[[], Module] = Point,
    batches: Callable[[str], Sequence[Batch]] | None = None,
    **options: Any,
) -> tuple[Global, Mapping[str, Tensors]]:
    """Trains; ``taking_part`` says who does so in each round."""
    model, memories = make(), {}
    own = own_of(model, algorithm.keeps(model))
    state = algorithm.start(global_of(model, own.keys()), ["x", "y"])
    for number in range(1, rounds + 1):
        names = taking_part[number - 1] if taking_part else ["x", "y"]
        sites = [replace(site(name, number, batches(name) if batches else None, **options), own=own) for name in names]
        state, memories = run_round(algorithm, model, state, sites, memories)
    return state, memories


def weights(algorithm: Algorithm, rounds: int = 2, **options: Any) -> np.ndarray:
    return run(algorithm, rounds, **options)[0].weights["w"].numpy()
