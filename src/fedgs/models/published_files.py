"""Reads published checkpoints: which network a file is of, with which sizes, and what has to be mended in it."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from math import isqrt, prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedgs.errors import CheckpointError, FedgsError, ShapeError
from fedgs.models.instance_norm import with_instance_norm
from fedgs.models.published import FORMS, Form, from_published
from fedgs.models.sizes import check_size
from fedgs.models.utnet import RelativePositionBias

__all__ = ["Published", "load_published", "mended", "read_published", "read_state"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_DEEPEST_WRAPPING = 8
_LARGEST_COUNT = 2**53
_PREFIXES = ("module.", "_orig_mod.", "model.")
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
_DECIMAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# How torch words that a file names a class or function that it does not know as harmless.
_CODE = re.compile("GLOBAL|unrecognized function|allowlisted")


class Published(NamedTuple):
    """A published checkpoint: what it is of, for people, the network, and what that was made with."""

    title: str
    model: nn.Module
    sizes: Mapping[str, Any]


def load_published(
    source: Path | str | Mapping[str, Any],
    *,
    image_size: int | tuple[int, int] | None = None,
    careful: Callable[[str], None] = warnings.warn,
) -> nn.Module:
    """Makes the network that a published state dict belongs to, with its weights, see `read_published`.

    Returns:
        The network in training mode; `to_published` gives its tensors back under the same names.
    """
    return read_published(source, image_size=image_size, careful=careful).model


def read_published(
    source: Path | str | Mapping[str, Any],
    *,
    image_size: int | tuple[int, int] | None = None,
    careful: Callable[[str], None] = warnings.warn,
) -> Published:
    """Makes the network that a published state dict belongs to, with its weights.

    Which network, with which channels, classes and widths follows from names and shapes. Prefixes and
    wrapping dicts of trainers are taken off, and half precision becomes float32. Tables of relative positions that a
    release has averaged as floats are made anew.

    Args:
        source: A `.pt` or `.pth` file, which is opened without running any code in it, or the state dict itself.
        image_size: Side of the square images, or (height, width), in pixels. A network with a style encoder is made for
            one size, of which the file tells only ceil(height / 16) * ceil(width / 16); None assumes square images
            whose sides are multiples of 16.
        careful: Told what had to be mended.

    Returns:
        The network in training mode, and which of the published it is.

    Raises:
        CheckpointError: The file cannot be read without running code, its content is of no known network or not
            finite, or its images cannot be square; the message tells the nearest network and what differs.
        ShapeError: The network cannot take `image_size`.
    """
    if not isinstance(source, (str, Path)):
        return _read(_plain(source), image_size, careful)
    state = read_state(source)
    try:
        return _read(state, image_size, careful)
    except (CheckpointError, ShapeError) as error:
        raise type(error)(f"{source}: {error}") from error


def _read(
    state: dict[str, Tensor], image_size: int | tuple[int, int] | None, careful: Callable[[str], None]
) -> Published:
    form, names, state = _recognised(state)
    sizes = _sizes(form, {ours: tuple(state[theirs].shape) for ours, theirs in names.items()}, image_size)
    with torch.device("meta"):  # so that nothing is allocated before all shapes are known to fit
        empty = _made(form, sizes)
    from_published(empty, state)
    if image_size is not None:
        check_size(empty, *_both_sides(image_size))
    model = _made(form, sizes)
    given = {ours: state[theirs] for ours, theirs in names.items()}
    for ours, value in model.state_dict().items():
        if value.is_floating_point() and not given[ours].is_floating_point():
            raise CheckpointError(f"{names[ours]} holds whole numbers ({given[ours].dtype}), expected {value.dtype}")
    model.load_state_dict(given | mended(model, given, careful))
    return Published(form.title, model, sizes)


def _made(form: Form, sizes: Mapping[str, Any]) -> nn.Module:
    try:
        model = with_instance_norm(form.network(**sizes))
    except Exception as error:  # sizes come from the file; whatever they lead to is its fault
        reason = str(error) if isinstance(error, FedgsError) else _brief(error)
        raise CheckpointError(f"a checkpoint of {form.title}, but of sizes that it cannot have: {reason}") from error
    object.__setattr__(model, "published_form", form.title)
    return model


def _sizes(
    form: Form, shapes: Mapping[str, tuple[int, ...]], image_size: int | tuple[int, int] | None
) -> dict[str, Any]:
    sizes = form.sizes(shapes)
    tiles = sizes.pop("tiles", None)
    if tiles is None:
        return sizes
    root = isqrt(tiles)
    height, width = size = _both_sides(16 * root if image_size is None else image_size)
    if -(-height // 16) * -(-width // 16) == tiles:
        return sizes | {"image_size": size}
    area = f"ceil(height / 16) * ceil(width / 16) = {tiles}"
    if image_size is None:
        raise CheckpointError(
            f"a checkpoint of {form.title} for images that are not square; load it in Python with "
            f"image_size=(height, width), where {area}"
        )
    if root * root == tiles and height == width:
        smallest = 16 * root if "reduce_size" in sizes else max(16, 16 * root - 15)  # UTNet takes multiples of 16
        fit = " to ".join(f"{side} x {side}" for side in sorted({smallest, 16 * root})) + " pixels"
        raise ShapeError(f"its style encoder takes images of {fit} only, got a size of {height}; leave the size out")
    raise ShapeError(f"its style encoder takes images with {area} only, got {height} x {width} pixels")


def _both_sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Reads the state dict in a `.pt` or `.pth` file without running any code in it.

    Raises:
        CheckpointError: There is no such file, it is damaged, would run code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "no such file"
        raise CheckpointError(f"{path}: {what}; expected a .pt or .pth file with a state dict")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # over how it was pickled, which does not matter here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever damaged bytes happen to lead to
        if isinstance(error, pickle.UnpicklingError) and _CODE.search(str(error)):
            raise CheckpointError(
                f"{path}: holds something other than tensors, and opening it would run code; it is not opened. Ask its "
                "author for a plain state dict: torch.save(model.state_dict(), path)"
            ) from error
        raise CheckpointError(
            f"{path}: cannot be read, it is cut short or no file of torch ({_brief(error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    try:
        return _plain(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _plain(content: Any) -> dict[str, Tensor]:
    """Takes off what trainers wrap around a state dict, and refuses entries that are no plain numbers by name."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"expected a state dict, or the path of a file that holds one, got {content!r:.80}")
    content = _unwrapped(content)
    if not content:
        raise CheckpointError("expected a state dict of tensors, found nothing")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"expected a state dict of tensors by name, found {_shortened(repr(name))} ({type(value).__name__})"
            )
        if problem := _problem(value):
            raise CheckpointError(f"'{name}' {problem}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            return _plain({name.removeprefix(prefix): value for name, value in content.items()})
    return {name: value.detach().cpu() for name, value in content.items()}


def _unwrapped(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    for _ in range(_DEEPEST_WRAPPING):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return content
        content = inner
    raise CheckpointError(f"its state dict is wrapped more than {_DEEPEST_WRAPPING} times, or holds itself")


def _problem(value: Tensor) -> str | None:
    """What keeps an entry from being used; only what is stored as it is shaped costs no more memory than its file."""
    dense = value.layout is torch.strided and not value.is_nested and not value.is_meta
    if not dense or value.dtype not in _WHOLE + _DECIMAL:
        return (
            f"is a tensor of {str(value.dtype).removeprefix('torch.')} ({str(value.layout).removeprefix('torch.')}, "
            f"{value.device.type}); expected a dense tensor of real numbers"
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has the shape {tuple(value.shape)}, but not as many stored values; save copies: value.clone()"
    # As float32, which it becomes, and in which larger numbers are infinite.
    return "is not finite" if value.dtype in _DECIMAL and not value.float().isfinite().all() else None


def _recognised(state: dict[str, Tensor]) -> tuple[Form, dict[str, str], dict[str, Tensor]]:
    """The form whose names these are, the published name of every entry by ours, and the entries by published name."""
    with torch.device("meta"):
        examples = {form.title: form.network(in_channels=1, **form.example) for form in FORMS}
    known = {form.title: (form, form.published(examples[form.title])) for form in FORMS}
    for (
        form,
        names,
    ) in known.values():  # a prefix that all entries share may have been taken off as if it were a wrapper
        prefixed = {form.prefix + name: value for name, value in state.items()}
        if form.prefix and prefixed.keys() == set(names.values()):
            state = prefixed
    published = {title: set(names.values()) for title, (_, names) in known.items()}
    likeness = {title: len(state.keys() & names) / len(state.keys() | names) for title, names in published.items()}
    nearest = max(likeness, key=lambda title: (likeness[title], -abs(len(published[title]) - len(state))))
    form, names = known[nearest]
    missing, unknown = sorted(published[nearest] - state.keys()), sorted(state.keys() - published[nearest])
    if missing or unknown:
        how = "" if likeness[nearest] else " (by the number of entries; no name is shared)"
        differences = [
            f"{what} {_some(entries)}" for what, entries in (("lacks", missing), ("has", unknown)) if entries
        ]
        raise CheckpointError(
            f"a checkpoint of no known network; the nearest is {nearest}{how}, but it {' and '.join(differences)}. "
            f"Known are: {', '.join(known)}"
        )
    for ours, example in examples[nearest].state_dict().items():
        shape = tuple(state[names[ours]].shape)
        if len(shape) != example.ndim or not prod(shape):
            raise CheckpointError(
                f"a checkpoint of {nearest}, but {names[ours]} has the shape {shape}, expected {example.ndim} "
                "dimensions, none of them empty"
            )
    return form, names, state


def _some(entries: list[str], shown: int = 5) -> str:
    more = f" and {len(entries) - shown} more" if len(entries) > shown else ""
    return ", ".join(entries[:shown]) + more


def mended(model: nn.Module, given: Mapping[str, Tensor], careful: Callable[[str], None]) -> dict[str, Tensor]:
    """Gives the whole numbers of a network anew where they were averaged as if they were weights.

    Tables of relative positions are constants and become what the network has; counts are rounded.

    Args:
        model: The network.
        given: Tensors by our names, not necessarily all; of another shape they are left alone.
        careful: Told how many were off.
    """
    known = {name: value for name, value in model.state_dict().items() if name in given}
    whole = {
        name: value
        for name, value in known.items()
        if not value.is_floating_point() and value.shape == given[name].shape
    }
    tables = [f"{path}.index" for path, part in model.named_modules() if isinstance(part, RelativePositionBias)]
    constants = {name: whole[name] for name in tables if name in whole}
    if off := sum(int((given[name] != value).sum()) for name, value in constants.items()):
        entries = sum(value.numel() for value in constants.values())
        careful(f"{off:,} of {entries:,} entries of the relative-position tables were off; they were computed anew")
    counts = {name: given[name].round() for name in whole.keys() - constants.keys()}
    if off := sum(int((given[name] != value).sum()) for name, value in counts.items()):
        careful(f"{off:,} of {len(counts):,} counts of batches were no whole numbers; they were rounded")
    if large := sorted(name for name, value in counts.items() if (value.abs().double() > _LARGEST_COUNT).any()):
        raise CheckpointError(f"{large[0]} is {counts[large[0]].max():g}, expected a count of batches")
    return {**constants, **{name: value.to(whole[name].dtype) for name, value in counts.items()}}


def _brief(error: Exception) -> str:
    """The reason alone; torch precedes it by advice to run whatever is in the file."""
    reason = (str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines() or [""])[0]
    return _shortened(reason if any(sign.isalpha() for sign in reason) else type(error).__name__)


def _shortened(text: str, longest: int = 120) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"
