"""Reads published checkpoints: which network a file is of, with which sizes, and what has to be mended in it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedgs.errors import CheckpointError, FedgsError
from fedgs.models.published import FORMS, Form, from_published
from fedgs.models.utnet import RelativePositionBias

__all__ = ["Published", "load_published", "read_published", "read_state"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


class Published(NamedTuple):
    """A published checkpoint: what it is of, for people, the network, and what that was made with."""

    title: str
    model: nn.Module
    sizes: Mapping[str, Any]


def load_published(
    source: Path | str | Mapping[str, Any], *, careful: Callable[[str], None] = warnings.warn
) -> nn.Module:
    """Makes the network that a published state dict belongs to, with its weights, see `read_published`.

    Returns:
        The network in training mode; `to_published` gives its tensors back under the same names.
    """
    return read_published(source, careful=careful).model


def read_published(
    source: Path | str | Mapping[str, Any], *, careful: Callable[[str], None] = warnings.warn
) -> Published:
    """Makes the network that a published state dict belongs to, with its weights.

    Which network, with which channels, classes, widths and image size follows from names and shapes. Prefixes and
    wrapping dicts of trainers are taken off, and half precision becomes float32. Tables of relative positions that a
    release has averaged as floats are made anew.

    Args:
        source: A `.pt` or `.pth` file, which is opened without running any code in it, or the state dict itself.
        careful: Told what had to be mended.

    Returns:
        The network in training mode, and which of the published it is.

    Raises:
        CheckpointError: The file cannot be read without running code, or its content is of no known network or not
            finite; the message tells the nearest network and what differs.
    """
    state = read_state(source) if isinstance(source, (str, Path)) else _plain(source)
    form, names = _recognised(state)
    shapes = {ours: tuple(state[theirs].shape) for ours, theirs in names.items()}
    try:
        sizes = form.sizes(shapes)
        model = form.network(**sizes)
    except FedgsError as error:
        raise CheckpointError(f"a checkpoint of {form.title}, but of sizes that it cannot have: {error}") from error
    object.__setattr__(model, "published_form", form.title)
    expected = model.state_dict()
    given = from_published(model, {names[ours]: _typed(state[names[ours]], expected[ours]) for ours in names})
    for name, value in given.items():
        if not value.isfinite().all():
            raise CheckpointError(f"a checkpoint of {form.title}: '{names[name]}' is not finite")
    model.load_state_dict(given | _mended(model, given, careful))
    return Published(form.title, model, sizes)


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Reads the state dict in a `.pt` or `.pth` file without running any code in it.

    Raises:
        CheckpointError: There is no such file, it is damaged, would run code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .pt or .pth file with a state dict")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # over how it was pickled, which does not matter here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds something other than tensors, and opening it would run code; it is not opened. Ask its "
            "author for a plain state dict: torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: cannot be read, it is cut short or no file of torch ({_brief(error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    try:
        return _plain(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _plain(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Takes off what trainers wrap around a state dict."""
    inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
    if inner is not None:
        return _plain(inner)
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        found = f"'{others[0]}' ({type(content[others[0]]).__name__})" if others else "nothing"
        raise CheckpointError(f"expected a state dict of tensors, found {found}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            return _plain({name.removeprefix(prefix): value for name, value in content.items()})
    return dict(content)


def _recognised(state: Mapping[str, Tensor]) -> tuple[Form, dict[str, str]]:
    """The form whose names these are, with the published name of every entry by our name."""
    known = {}
    for form in FORMS:
        with torch.device("meta"):
            known[form.title] = form, form.published(form.network(in_channels=1, **form.example))
    distances = {title: len(set(names.values()) ^ state.keys()) for title, (_, names) in known.items()}
    nearest = min(distances, key=lambda title: distances[title])
    form, names = known[nearest]
    if distances[nearest]:
        missing, unknown = sorted(set(names.values()) - state.keys()), sorted(state.keys() - set(names.values()))
        differences = [
            f"{what} {_some(entries)}" for what, entries in (("lacks", missing), ("has", unknown)) if entries
        ]
        raise CheckpointError(
            f"a checkpoint of no known network; the nearest is {nearest}, but it {' and '.join(differences)}. "
            f"Known are: {', '.join(known)}"
        )
    return form, names


def _some(entries: list[str], shown: int = 5) -> str:
    more = f" and {len(entries) - shown} more" if len(entries) > shown else ""
    return ", ".join(entries[:shown]) + more


def _typed(value: Tensor, like: Tensor) -> Tensor:
    """An entry in our type; integers that were averaged as floats are left to `_mended`."""
    return value.to(like.dtype) if value.dtype != like.dtype else value


def _mended(model: nn.Module, given: Mapping[str, Tensor], careful: Callable[[str], None]) -> dict[str, Tensor]:
    """Tables of relative positions are constants; where they differ, they were averaged as if they were weights."""
    own = {
        f"{path}.index": module.index
        for path, module in model.named_modules()
        if isinstance(module, RelativePositionBias)
    }
    off = sum(int((given[name] != index).sum()) for name, index in own.items())
    if off:
        entries = sum(index.numel() for index in own.values())
        careful(f"{off:,} of {entries:,} entries of the relative-position tables were off; they were computed anew")
    return dict(own) if off else {}


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
