"""Activation checkpointing: a part of a network is computed again in the backward pass, which saves memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["run_stage"]


def run_stage(stage: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """Runs a part of a network; values and gradients are the same either way.

    Args:
        stage: The part, from tensors to one tensor, with nothing random in it.
        inputs: What it takes.
        recompute: Keep none of its activations for the backward pass, which computes them again.
    """
    if not (recompute and torch.is_grad_enabled()):
        output: Tensor = stage(*inputs)
        return output
    contexts = partial(_contexts, stage)
    again: Tensor = checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return again


def _contexts(stage: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _still(stage)


@contextmanager
def _still(stage: nn.Module) -> Iterator[None]:
    """Keeps running statistics from counting the same batch twice."""
    norms = [module for module in stage.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [(module.momentum, module.num_batches_tracked) for module in norms]
    for module in norms:  # they are passed on as before, but move by nothing
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, (momentum, count) in zip(norms, kept, strict=True):
            module.momentum, module.num_batches_tracked = momentum, count
