"""The processes that train one network together under DistributedDataParallel, seen from one of them."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Ranks"]


class Ranks:
    """All ranks of a model; one where it is not wrapped.

    Args:
        model: The network. The wrapper need not be the outermost: torch.compile may sit around it.
    """

    def __init__(self, model: Module) -> None:
        parallel = (module for module in model.modules() if isinstance(module, DistributedDataParallel))
        self._model, self._parallel = model, next(parallel, None)
        self.count = self._parallel.process_group.size() if self._parallel is not None else 1

    def sum(self, value: float) -> float:
        """Adds a number up over all ranks; NaN on any is NaN on all."""
        if self._parallel is None:
            return value
        cell = torch.tensor(value, dtype=torch.float64, device=next(self._model.parameters()).device)
        torch.distributed.all_reduce(cell, group=self._parallel.process_group)
        return float(cell)

    def of_first(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the first rank's values in place of each rank's own, which are overwritten."""
        if self._parallel is not None:
            for tensor in tensors.values():
                torch.distributed.broadcast(tensor, group=self._parallel.process_group, group_src=0)
        return tensors
