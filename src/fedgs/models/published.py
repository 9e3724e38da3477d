"""Published checkpoints: which network a state dict belongs to, and the names that it uses for our parameters.

A published `.pt` file is a state dict. Its names follow from ours by one table per class of module, applied along the
path of a parameter: `down2.2.attention.to_out.depthwise.weight` is `down2.blocks.2.attn.to_out.depthwise.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from torch import Tensor, nn

from fedgs.errors import CheckpointError, ConfigError
from fedgs.models.disentangled import Segmentor, StyleDecoder, StyleEncoder
from fedgs.models.feddis import Decoder, Encoder, FedDis, FedDisServer
from fedgs.models.sd_utnet import SDUTNet, SDUTNetServer
from fedgs.models.sdnet import SDNet
from fedgs.models.unet_sdnet import Bottleneck, SDNetUNet
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

__all__ = ["FORMS", "Form", "from_published", "published_names", "to_published"]

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
    SDNetUNet: {
        **{f"down{level}": f"encoder_block{level}" for level in (1, 2, 3, 4)},
        **{f"project{level}": f"decoder_upconv{level}" for level in (1, 2, 3, 4)},
        **{f"merge{level}": f"decoder_block{level}" for level in (1, 2, 3, 4)},
        "head": "classifier_conv",
    },
    Bottleneck: {"first": "conv1", "second": "conv2", "shortcut": "resconv"},
    StyleEncoder: {**{f"down{level}": f"block{level}" for level in (1, 2, 3, 4)}, "hidden": "fc"},
    StyleDecoder: {
        **{f"conv{layer}": f"decoder.dec.conv{layer}" for layer in (1, 2, 3, 4)},
        **{f"adain{layer}": f"decoder.dec.adain{layer}" for layer in (1, 2, 3)},
        "hidden1": "decoder.mlp.fc1",
        "hidden2": "decoder.mlp.fc2",
        "to_norms": "decoder.mlp.fc3",
    },
    Segmentor: {"head": "pred"},
    Encoder: {f"{layer}": f"_encode_{layer}" for layer in (0, 1, 2)},
    Decoder: {**{f"{layer}": f"_decode_{layer}" for layer in (0, 1, 2)}, "3": "_decode_final"},
}

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by our names."""


def _sizes_of_utnet(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    width, channels = shapes[f"{prefix}stem.0.conv1.weight"][:2]
    cells = isqrt(shapes[f"{prefix}down2.2.attention.position_bias.table"][0])
    return {"in_channels": channels, "base_channels": width, "reduce_size": (cells + 1) // 2}


def _sizes_of_unet(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    width, channels = shapes[f"{prefix}down1.0.weight"][:2]
    return {"in_channels": channels, "base_channels": width}


def _sizes_of_style(shapes: Shapes) -> dict[str, Any]:
    tiles, rest = divmod(shapes["style_encoder.hidden.weight"][1], 128)  # as many channels for each, of 16 x 16 pixels
    if rest or not tiles:
        raise CheckpointError(
            f"m_encoder.fc.weight has the shape {shapes['style_encoder.hidden.weight']}, expected (32, 128 * n) with n "
            "= ceil(height / 16) * ceil(width / 16) of its images"
        )
    return {"num_classes": shapes["segmentor.head.weight"][0], "tiles": tiles}


def _sizes_of_feddis(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes["shape_encoder.0.conv.weight"][:2]
    classes = shapes["segmentation_decoder.3.conv.weight"][0]
    return {"in_channels": channels, "base_channels": width, "num_classes": classes}


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of state dict that was published.

    Attributes:
        title: What it is, for people.
        network: Our class.
        names: Published names of the network's own parts.
        sizes: From shapes by our names to what the class is made with; where that is made for images of one size, the
            number of tiles of 16 x 16 pixels that cover them stands for the size.
        prefix: Before every published name.
        example: What a small network of the class is made with beside one channel; its names are those of all sizes.
    """

    title: str
    network: type[nn.Module]
    names: Mapping[str, str]
    sizes: Callable[[Shapes], dict[str, Any]]
    prefix: str = ""
    example: Mapping[str, Any] = field(default_factory=dict)

    def published(self, model: nn.Module) -> dict[str, str]:
        """Gives the published name of every entry of a network's state dict, by our name."""
        return {name: self.prefix + self._published_name(model, name) for name in model.state_dict()}

    def _published_name(self, model: nn.Module, name: str) -> str:
        owner, path = model, []
        for part in name.split("."):
            names = self.names if owner is model else _NAMES.get(type(owner), {})
            path.append(names.get(part, part))
            owner = getattr(owner, part)
        return ".".join(path)


_STYLE = {"style_encoder": "m_encoder"}
_SIZE = {"image_size": (128, 128)}

FORMS = (
    Form("UTNet", UTNet, _NAMES[UTNet], lambda s: _sizes_of_utnet(s) | {"num_classes": s["head.weight"][0]}),
    Form(
        "U-Net of SDNet",
        SDNetUNet,
        _NAMES[SDNetUNet],
        lambda s: _sizes_of_unet(s) | {"num_classes": s["head.weight"][0]},
        prefix="net.",
    ),
    Form(
        "SD-UTNet",
        SDUTNet,
        {"content_encoder": "a_encoder.utnet", **_STYLE},
        lambda s: _sizes_of_utnet(s, "content_encoder.") | _sizes_of_style(s),
        example=_SIZE,
    ),
    Form(
        "SD-UTNet of a site",
        SDUTNet,
        {"content_encoder": "content_encoder.utnet", "segmentor": "content_segmentor", **_STYLE},
        lambda s: _sizes_of_utnet(s, "content_encoder.") | _sizes_of_style(s),
        example=_SIZE,
    ),
    Form(
        "SD-UTNet of the server",
        SDUTNetServer,
        {"content_encoder": "encoder.utnet"},
        lambda s: _sizes_of_utnet(s, "content_encoder.") | {"num_classes": s["segmentor.head.weight"][0]},
    ),
    Form(
        "SDNet",
        SDNet,
        {"content_encoder": "a_encoder.unet", **_STYLE},
        lambda s: _sizes_of_unet(s, "content_encoder.") | _sizes_of_style(s),
        example=_SIZE,
    ),
    Form(
        "FedDis of a site",
        FedDis,
        {
            "shape_encoder": "encode_content",
            "appearance_encoder": "encode_style",
            "shape_decoder": "decode_content",
            "appearance_decoder": "decode_style",
            "segmentation_decoder": "decode_content_seg",
            "merger": "merger.0",
        },
        _sizes_of_feddis,
    ),
    Form(
        "FedDis of the server",
        FedDisServer,
        {"shape_encoder": "encode", "shape_decoder": "decode", "segmentation_decoder": "decoder_seg"},
        _sizes_of_feddis,
    ),
)
"""All kinds of state dicts that were published."""


def _form_of(model: nn.Module) -> Form:
    """The form that a network came from, or else the first that it has."""
    remembered = getattr(model, "published_form", None)
    for form in FORMS:
        if type(model) is form.network and remembered in (None, form.title):
            return form
    raise ConfigError(f"no published checkpoints are known for a {type(model).__name__}")


def published_names(model: nn.Module) -> dict[str, str]:
    """Gives the published name of every entry of a network's state dict, by our name.

    Args:
        model: A network that was published.

    Raises:
        ConfigError: The network was not published.
    """
    return _form_of(model).published(model)


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """Gives a network's state dict under the published names.

    Args:
        model: A network that was published; one that `load_published` made keeps the form that it came in.

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
        CheckpointError: Entries are missing, superfluous or of another shape than the model's; all are listed.
        ConfigError: The network was not published.
    """
    names, state = published_names(model), model.state_dict()
    problems = [f"lacks {name}" for name in sorted(set(names.values()) - set(published))]
    problems += [f"has unknown {name}" for name in sorted(set(published) - set(names.values()))]
    for name, theirs in names.items():
        if theirs in published and published[theirs].shape != state[name].shape:
            came, expected = tuple(published[theirs].shape), tuple(state[name].shape)
            problems.append(f"{theirs} has the shape {came}, expected {expected}")
    if problems:
        raise CheckpointError(f"the checkpoint is none of this {type(model).__name__}: {'; '.join(problems)}")
    return {name: published[theirs] for name, theirs in names.items()}
