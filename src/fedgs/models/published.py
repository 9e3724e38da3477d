"""The names that published checkpoints use for the parameters of our networks.

A published `.pt` file is a state dict. Its names follow from ours by one table per class of module, applied along the
path of a parameter: `down2.2.attention.to_out.depthwise.weight` is `down2.blocks.2.attn.to_out.depthwise.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fedgs.errors import CheckpointError, ConfigError
from fedgs.models.utnet import (
    AttentionBlock,
    AttentionUp,
    CrossAttention,
    PlainUp,
    RelativePositionBias,
    ResidualBlock,
    SelfAttention,
    UTNet,
)

__all__ = ["from_published", "published_names", "to_published"]

_NAMES: Mapping[type[nn.Module], Mapping[str, str]] = {
    UTNet: {
        "stem": "inc",
        "down1": "down1.conv",
        "down2": "down2.blocks",
        "down3": "down3.blocks",
        "down4": "down4.blocks",
        "head": "outc",
    },
    ResidualBlock: {"norm1": "bn1", "norm2": "bn2"},
    AttentionBlock: {"norm": "bn1", "attention": "attn", "mlp_norm": "bn2"},
    SelfAttention: {"position_bias": "relative_position_encoding"},
    CrossAttention: {"position_bias": "relative_position_encoding"},
    RelativePositionBias: {"table": "relative_position_bias_table", "index": "relative_position_index"},
    AttentionUp: {
        "low_norm": "attn_decoder.bn_l",
        "skip_norm": "attn_decoder.bn_h",
        "project": "attn_decoder.conv_ch",
        "attention": "attn_decoder.attn",
        "mlp_norm": "attn_decoder.bn2",
        "mlp": "attn_decoder.mlp",
        "merge": "blocks.0",
    },
    PlainUp: {"project": "conv_ch", "merge": "conv"},
}


def _published_name(model: nn.Module, name: str) -> str:
    owner, path = model, []
    for part in name.split("."):
        path.append(_NAMES.get(type(owner), {}).get(part, part))
        owner = getattr(owner, part)
    return ".".join(path)


def published_names(model: nn.Module) -> dict[str, str]:
    """Gives the published name of every entry of a network's state dict, by our name.

    Args:
        model: A network that was published, so far `UTNet`.

    Raises:
        ConfigError: The network was not published.
    """
    if type(model) not in _NAMES:
        raise ConfigError(f"no published checkpoints are known for a {type(model).__name__}")
    return {name: _published_name(model, name) for name in model.state_dict()}


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """Gives a network's state dict under the published names.

    Args:
        model: A network that was published, so far `UTNet`.

    Returns:
        The tensors of the state dict themselves, not copies.

    Raises:
        ConfigError: The network was not published.
    """
    state = model.state_dict()
    return {published: state[name] for name, published in published_names(model).items()}


def from_published(model: nn.Module, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives a published state dict under our names, ready for `model.load_state_dict`.

    Args:
        model: The network that it belongs to; it is only looked at.
        published: Tensors by published name.

    Returns:
        The same tensors by our names, in the order of the model's state dict.

    Raises:
        CheckpointError: Entries are missing, superfluous or of another shape than the model's.
        ConfigError: The network was not published.
    """
    names, state = published_names(model), model.state_dict()
    _refuse("lacks", set(names.values()) - set(published), model)
    _refuse("has unknown", set(published) - set(names.values()), model)
    for name, theirs in names.items():
        came, expected = tuple(published[theirs].shape), tuple(state[name].shape)
        if came != expected:
            raise CheckpointError(
                f"published checkpoint: '{theirs}' has shape {came}, {type(model).__name__} expects {expected}; "
                "were its channels, classes or widths others?"
            )
    return {name: published[theirs] for name, theirs in names.items()}


def _refuse(what: str, entries: set[str], model: nn.Module) -> None:
    if entries:
        raise CheckpointError(
            f"published checkpoint {what} '{min(entries)}' ({len(entries)} such entries); "
            f"was it made by a {type(model).__name__}?"
        )
