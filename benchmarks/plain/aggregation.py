"""Averaging by stacking all sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def aggregate(
    weights: Mapping[str, Tensor], updates: Sequence[Mapping[str, Tensor]], steps: Sequence[int]
) -> dict[str, Tensor]:
    """Gives ``weights - mean of the updates``, weighted by steps."""
    shares = torch.tensor(steps, dtype=torch.float32) / sum(steps)
    stacked = {name: torch.stack([update[name] for update in updates]) for name in weights}
    means = {name: (tensors * shares.view(-1, *[1] * (tensors.dim() - 1))).sum(0) for name, tensors in stacked.items()}
    return {name: weight - means[name] for name, weight in weights.items()}
