"""Arithmetic on named tensors, and the names by which the tensors of a model travel."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from fedgs.errors import ConfigError

__all__ = [
    "Difference",
    "Tensors",
    "accumulate",
    "added",
    "buffers_of",
    "compare",
    "float_buffers_of",
    "is_instance",
    "load_tensors_into",
    "norm",
    "norms",
    "numbers",
    "storage_key",
    "unwrap",
    "weights_of",
    "wide",
]

Tensors = Mapping[str, Tensor]


def wide(dtype: torch.dtype) -> torch.dtype:
    """Gives the type in which sums over this type are formed: at least float32; float64 stays float64."""
    return torch.promote_types(dtype, torch.float32)


class Difference(Mapping[str, Tensor]):
    """``before - after - less`` for every name of ``after``, in at least float32; formed when it is asked for.

    Args:
        before: Tensors by name.
        after: Likewise, of the same shapes.
        less: Likewise, on the device of ``after``; nothing where a name is missing.
    """

    def __init__(self, before: Tensors, after: Tensors, less: Tensors = MappingProxyType({})) -> None:
        self._before, self._after, self._less = before, after, less

    def __getitem__(self, name: str) -> Tensor:
        after = self._after[name].detach()
        before = self._before[name].detach().to(after.device, wide(after.dtype))
        return before - after - self._less[name] if name in self._less else before - after

    def __iter__(self) -> Iterator[str]:
        return iter(self._after)

    def __len__(self) -> int:
        return len(self._after)


def accumulate(sums: dict[str, Tensor], tensors: Tensors, shares: Mapping[str, float]) -> None:
    """Adds a share of each tensor that has one to the sum of its name, which starts from zero."""
    for name in shares.keys() & tensors.keys():
        tensor = tensors[name].detach()
        if name not in sums:
            sums[name] = torch.zeros_like(tensor, dtype=wide(tensor.dtype))
        sums[name].add_(tensor, alpha=shares[name])


def norms(tensors: Tensors) -> dict[str, float]:
    """Gives the Euclidean norm of every tensor; in float32 it is not finite either where an entry is beyond 1e19."""
    lengths = [torch.linalg.vector_norm(tensor.detach()) for tensor in tensors.values()]
    return dict(zip(tensors, numbers(lengths), strict=True))


def norm(tensors: Tensors) -> float:
    """Gives the Euclidean norm over all entries of all tensors."""
    return math.hypot(*norms(tensors).values())


def added(terms: Tensors) -> tuple[Tensor, float, dict[str, float]]:
    """Sums up scalars of any float type.

    Returns:
        The sum, in at least float32 and part of the graph; the same as a number; and the scalars as numbers, all read
        from their device at once.
    """
    total = torch.stack([term.to(wide(term.dtype)) for term in terms.values()]).sum()
    number, *values = numbers([total, *terms.values()])
    return total, number, dict(zip(terms, values, strict=True))


def compare(one: Tensors, other: Tensors) -> tuple[float | None, float | None]:
    """Gives the ratio of two lengths and the cosine of the angle between them, over all entries of ``other``.

    Both are None where either has no length.
    """
    sums = [torch.zeros(3, dtype=torch.float64)]
    for name, second in other.items():
        first, second = one[name].detach().flatten(), second.detach().flatten()
        products = torch.stack([first.dot(first), first.dot(second), second.dot(second)])
        sums.append(products.double().cpu())
    squares, product, other_squares = torch.stack(sums).sum(0).tolist()
    if not squares or not other_squares:
        return None, None
    return math.sqrt(squares / other_squares), product / math.sqrt(squares * other_squares)


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Reads scalars of any float type from their device, all at once, so that it has to be waited for once."""
    return torch.stack([scalar.detach().double() for scalar in scalars]).tolist() if scalars else []


def weights_of(model: Module) -> dict[str, Parameter]:
    """Gives the live trainable parameters by name, one name per storage: a tied alias does not appear.

    Wrappers (DistributedDataParallel, torch.compile) are looked through wherever they sit, so that their prefixes
    never become part of a name.

    Raises:
        ConfigError: A parameter has no shape yet (lazy) or is complex.
    """
    weights: dict[str, Parameter] = {}
    seen: set[object] = set()
    for name, parameter in _parameters(model):
        if is_lazy(parameter):
            raise ConfigError(f"parameter '{name}' is lazy and has no shape yet; run the model once on a batch first")
        if parameter.requires_grad and storage_key(parameter) not in seen:
            if parameter.is_complex():
                raise ConfigError(
                    f"parameter '{name}' is complex ({parameter.dtype}); only real networks are supported"
                )
            weights[name] = parameter
            seen.add(storage_key(parameter))
    return weights


def buffers_of(model: Module) -> dict[str, Tensor]:
    """Gives the live tensors that belong to the model's state but are not trained, by name.

    These are the persistent buffers, of float and integer type, and the frozen parameters.
    """
    seen = {storage_key(weight) for weight in weights_of(model).values()}
    buffers: dict[str, Tensor] = {}
    for name, tensor in (*_parameters(model), *_buffers(model)):
        if is_lazy(tensor):
            raise ConfigError(f"buffer '{name}' is lazy and has no shape yet; run the model once on a batch first")
        if storage_key(tensor) not in seen:
            buffers[name] = tensor
            seen.add(storage_key(tensor))
    return buffers


def float_buffers_of(model: Module) -> dict[str, Tensor]:
    """Gives the live buffers that are averaged: of float type and no frozen parameter."""
    return {
        name: tensor
        for name, tensor in buffers_of(model).items()
        if tensor.is_floating_point() and not isinstance(tensor, Parameter)
    }


@torch.no_grad()
def load_tensors_into(model: Module, tensors: Tensors) -> None:
    """Copies values into the live tensors of a model; ties, device and type of the model stay as they are.

    Raises:
        ConfigError: A name is missing or unknown, or a shape differs.
    """
    live: dict[str, Tensor] = {**weights_of(model), **buffers_of(model)}
    if live.keys() != tensors.keys():
        missing, unknown = live.keys() - tensors.keys(), tensors.keys() - live.keys()
        raise ConfigError(
            f"tensors do not fit the model: {_some('lacking', missing)}{_some('unknown', unknown)}"
            "build the same network with the same options"
        )
    for name, tensor in tensors.items():
        if live[name].shape != tensor.shape:
            raise ConfigError(
                f"tensor '{name}' has shape {tuple(tensor.shape)}, the model wants {tuple(live[name].shape)}; "
                "build the same network with the same options"
            )
        live[name].copy_(tensor)


def unwrap(module: Module) -> Module:
    """Gives the user's own module inside DistributedDataParallel, DataParallel or torch.compile."""
    while True:
        if isinstance(module, (DistributedDataParallel, DataParallel)):
            module = module.module
        elif is_instance(module, "torch._dynamo.eval_frame", "OptimizedModule"):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def is_instance(thing: object, module: str, name: str) -> bool:
    """Tells whether a thing is of a class of a heavy module, which is not imported for the question."""
    loaded = sys.modules.get(module)
    kind: Any = getattr(loaded, name, None)
    return kind is not None and isinstance(thing, kind)


def storage_key(tensor: Tensor) -> object:
    """Gives a value that is equal for two tensors just when they are the same stretch of memory."""
    pointer = tensor.untyped_storage().data_ptr()
    return (pointer, tensor.storage_offset(), tensor.numel()) if pointer else id(tensor)


def _modules(module: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    module = unwrap(module)
    yield prefix, module
    for name, child in module.named_children():
        yield from _modules(child, f"{prefix}{name}.")


def _parameters(model: Module) -> Iterator[tuple[str, Parameter]]:
    for prefix, module in _modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            yield prefix + name, parameter


def _buffers(model: Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in _modules(model):
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield prefix + name, buffer


def _some(label: str, names: Collection[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:3])
    return f"{label} {shown}{' …' if len(names) > 3 else ''} ({len(names)}); "
