"""A federation small enough to compute by hand: f_k(w) = a_k / 2 * |w - b_k|^2 with plain SGD, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedgs.core import Algorithm, Global, Site, global_of, run_round
from fedgs.data.case import Batch
from fedgs.tensors import Tensors

A = {"x": 1.0, "y": 3.0}
B = {"x": np.array([1.0, -2.0]), "y": np.array([-0.5, 4.0])}
STEPS = {"x": 2, "y": 3}
EXAMPLES = {"x": 10, "y": 30}
LR = 0.1
START = np.array([0.3, 0.7])


class Point(nn.Module):
    """One weight; its output is the weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(START))

    def forward(self, images: Tensor) -> Tensor:
        return self.w


def batch(small: bool = False, area: int = 1) -> Batch:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks.view(-1)[:area] = True
    return Batch(torch.zeros(1, 1, 8, 8), masks, torch.tensor([small]))


def site(name: str, number: int, batches: Sequence[Batch] | None = None) -> Site:
    def objective(output: Tensor, _: Batch) -> Mapping[str, Tensor]:
        return {"square": A[name] / 2 * (output - torch.tensor(B[name])).square().sum()}

    return Site(
        name=name,
        round=number,
        batches=[batch()] * STEPS[name] if batches is None else batches,
        num_examples=EXAMPLES[name],
        objective=objective,
        optimizer=partial(torch.optim.SGD, lr=LR),
    )


def gradient(name: str, w: np.ndarray) -> np.ndarray:
    return A[name] * (w - B[name])


def run(
    algorithm: Algorithm, rounds: int = 2, taking_part: Sequence[Sequence[str]] | None = None
) -> tuple[Global, Mapping[str, Tensors]]:
    """Trains; ``taking_part`` says who does so in each round."""
    model, memories = Point(), {}
    state = algorithm.start(global_of(model), ["x", "y"])
    for number in range(1, rounds + 1):
        names = taking_part[number - 1] if taking_part else ["x", "y"]
        state, memories = run_round(algorithm, model, state, [site(name, number) for name in names], memories)
    return state, memories


def weights(algorithm: Algorithm, rounds: int = 2) -> np.ndarray:
    return run(algorithm, rounds)[0].weights["w"].numpy()
