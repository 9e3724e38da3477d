"""AdamW tensor by tensor, which also accumulates the scaled step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AccumulatingAdamW:
    """AdamW without fused or multi-tensor kernels; ``total`` gathers every step times its scale."""

    def __init__(self, parameters: Sequence[Tensor], *, lr: float = 1e-4, weight_decay: float = 0.01) -> None:
        self.parameters, self.lr, self.weight_decay, self.steps = list(parameters), lr, weight_decay, 0
        self.mean = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.square = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.total = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """Moves every parameter and adds ``scale`` times its movement, decay apart."""
        self.steps += 1
        correction1, correction2 = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        for parameter, mean, square, total in zip(self.parameters, self.mean, self.square, self.total, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            parameter.mul_(1 - self.lr * self.weight_decay)
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            step = mean.div(square.sqrt().div_(correction2**0.5).add_(1e-8)).mul_(self.lr / correction1)
            parameter.sub_(step)
            total.add_(step, alpha=scale)
