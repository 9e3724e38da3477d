"""What has to be known of torch's optimizers to count their steps from outside."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from fedgs.errors import ConfigError
from fedgs.tensors import is_instance, storage_key, weights_of

__all__ = ["decay_rates", "decoupling", "kind_of", "refuse_unsupported", "step_with"]

Decouples = Callable[[Mapping[str, Any]], bool]


def _always(_: Mapping[str, Any]) -> bool:
    return True


def _never(_: Mapping[str, Any]) -> bool:
    return False


def _if_asked(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


def _unless_told(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay", True))


_KNOWN: dict[str, Decouples] = {
    "ASGD": _never,
    "Adadelta": _never,
    "Adafactor": _always,
    "Adagrad": _never,
    "Adam": _if_asked,
    "AdamW": _unless_told,
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
    if (kind := kind_of(optimizer)) is not None:
        return _KNOWN[kind]
    if any(group.get("weight_decay", 0) for group in optimizer.param_groups):
        raise ConfigError(
            f"{type(optimizer).__name__} is not an optimizer of torch.optim, and it has weight decay: say whether the "
            "decay is decoupled from the gradient, as in AdamW, with decoupled_decay=True or =False"
        )
    return _never


def kind_of(optimizer: Optimizer) -> str | None:
    """Gives the name of the class of torch.optim whose ``step`` an optimizer runs; None if it is of none known here."""
    # Making an optimizer wraps the step of its class, so only what is inside tells whose step it is.
    own: type[Any] = type(optimizer)
    step = inspect.unwrap(own.step)
    kind: type[Any]
    for kind in own.__mro__:
        known = getattr(torch.optim, kind.__name__, None) is kind and kind.__name__ in _KNOWN
        if known and inspect.unwrap(kind.step) is step:
            return kind.__name__
    return None


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
    original = optimizer.step
    own = vars(optimizer).get("step")

    @functools.wraps(original)
    def observed(*arguments: Any, **keywords: Any) -> Any:
        nonlocal taken
        result = original(*arguments, **keywords)
        # A fused optimizer is called even for infinite gradients; while it runs, the scaler lends it this attribute.
        found = getattr(optimizer, "found_inf", None)
        taken = not (isinstance(found, torch.Tensor) and bool(found.item()))
        return result

    vars(optimizer)["step"] = observed
    try:
        return scaler.step(optimizer), taken
    finally:
        if own is None:
            del vars(optimizer)["step"]
        else:
            vars(optimizer)["step"] = own
