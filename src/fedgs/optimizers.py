"""What has to be known of torch's optimizers to count their steps from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.errors import ConfigError
from fedgs.tensors import is_instance, storage_key, weights_of

__all__ = ["decay_rates", "decoupling", "refuse_unsupported", "step_with"]

Decouples = Callable[[Mapping[str, Any]], bool]


def _always(_: Mapping[str, Any]) -> bool:
    return True


def _never(_: Mapping[str, Any]) -> bool:
    return False


def _if_asked(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


_KNOWN: dict[str, Decouples] = {
    "ASGD": _never,
    "Adadelta": _never,
    "Adafactor": _always,
    "Adagrad": _never,
    "Adam": _if_asked,
    "AdamW": _always,
    "Adamax": _never,
    "LBFGS": _never,
    "Muon": _always,
    "NAdam": _if_asked,
    "RAdam": _if_asked,
    "RMSprop": _never,
    "Rprop": _never,
    "SGD": _never,
    "SparseAdam": _never,
}


def decoupling(optimizer: Optimizer, told: bool | None) -> Decouples:
    """Tells which parameter groups of an optimizer shrink the weights apart from the gradient's step.

    Decoupled decay is ``w <- w - lr * weight_decay * w`` beside the step, as in AdamW; coupled decay is part of the
    gradient. Torch's own optimizers are known, and so are subclasses that leave ``step`` alone.

    Args:
        optimizer: Any torch optimizer.
        told: What the caller knows; None asks the table.

    Raises:
        ConfigError: The optimizer is unknown and has weight decay.
    """
    if told is not None:
        return _always if told else _never
    for kind in type(optimizer).__mro__:
        if getattr(torch.optim, kind.__name__, None) is kind and kind.__name__ in _KNOWN:
            return _KNOWN[kind.__name__]
        if "step" in vars(kind):
            break
    if any(group.get("weight_decay", 0) for group in optimizer.param_groups):
        raise ConfigError(
            f"{type(optimizer).__name__} is not an optimizer of torch.optim, and it has weight decay: say whether the "
            "decay is decoupled from the gradient, as in AdamW, with decoupled_decay=True or =False"
        )
    return _never


def decay_rates(optimizer: Optimizer, decouples: Decouples) -> list[float]:
    """Gives lambda = lr * weight_decay of each parameter group as it stands now, 0 where decay is not decoupled."""
    return [
        float(group["lr"]) * float(group.get("weight_decay", 0)) if decouples(group) else 0.0
        for group in optimizer.param_groups
    ]


def refuse_unsupported(model: Module, optimizer: Optimizer) -> None:
    """Refuses what cannot be counted from outside.

    Raises:
        ConfigError: Sharded or lazy parameters, a differentiable optimizer, or an optimizer of another model.
    """
    for module in model.modules():
        if is_instance(module, "torch.distributed.fsdp", "FullyShardedDataParallel"):
            raise ConfigError(
                "the model is wrapped in FullyShardedDataParallel, whose parameters are pieces of flat shards without "
                "names of their own; use DistributedDataParallel"
            )
    for name, parameter in model.named_parameters():
        if is_instance(parameter, "torch.distributed.tensor", "DTensor"):
            raise ConfigError(
                f"parameter '{name}' is a DTensor, of which this process holds a part only; use DistributedDataParallel"
            )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ConfigError("the optimizer has differentiable=True, whose steps are part of a graph; leave it False")
    known = {storage_key(weight) for weight in weights_of(model).values()}
    known |= {storage_key(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if storage_key(parameter) not in known:
                raise ConfigError(
                    f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not in the model; "
                    "make the optimizer from this model's parameters"
                )


def step_with(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> tuple[Any, bool]:
    """Takes a step under an enabled GradScaler.

    Returns:
        What the optimizer returned, and whether the weights were moved: False where the scaler, or the fused optimizer
        itself, skipped the step for infinite gradients.
    """
    taken = False

    def record(*_: object) -> None:
        # A fused optimizer is called even so; while it runs, the scaler lends it this attribute.
        nonlocal taken
        found = getattr(optimizer, "found_inf", None)
        taken = not (isinstance(found, torch.Tensor) and bool(found.item()))

    hook = optimizer.register_step_post_hook(record)
    try:
        result = scaler.step(optimizer)
    finally:
        hook.remove()
    return result, taken
