"""Networks the plain way: UTNet with explicit einsum attention and a bias materialised per pixel and image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgs.models.instance_norm import InstanceNorm
from fedgs.models.utnet import (
    AttentionBlock,
    AttentionUp,
    CrossAttention,
    PlainUp,
    RelativePositionBias,
    ResidualBlock,
    SelfAttention,
)


def plainly(model: nn.Module) -> nn.Module:
    """Gives a network whose UTNet and instance norms, or what it has of them, run the plain way.

    Parameters stay as they are.
    """
    plain: dict[type[nn.Module], type[nn.Module]] = {
        SelfAttention: _SelfAttention,
        CrossAttention: _CrossAttention,
        ResidualBlock: _ResidualBlock,
        AttentionBlock: _AttentionBlock,
        PlainUp: _PlainUp,
        AttentionUp: _AttentionUp,
        InstanceNorm: nn.InstanceNorm2d,
    }
    for module in model.modules():
        module.__class__ = plain.get(type(module), type(module))
    return model


def _upsampled(features: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=True)


def _bias(position: RelativePositionBias, height: int, width: int) -> Tensor:
    grid = position.grid
    bias = position.table[position.index.reshape(-1)].reshape(grid**2, grid**2, -1).permute(2, 0, 1)
    bias = bias.reshape(-1, grid, grid, grid**2)
    bias = bias.repeat_interleave(height // grid, dim=1).repeat_interleave(width // grid, dim=2)
    return bias.reshape(-1, height * width, grid**2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, position: RelativePositionBias) -> Tensor:
    batch, channels, height, width = queries.shape
    heads, grid = position.table.shape[1], position.grid
    keys, values = (
        functional.interpolate(part, size=(grid, grid), mode="bilinear", align_corners=True) for part in (keys, values)
    )
    q, k, v = (
        part.reshape(batch, channels // heads, heads, -1).permute(0, 2, 3, 1) for part in (queries, keys, values)
    )
    scores = torch.einsum("bhid,bhjd->bhij", q, k)
    scores = scores + _bias(position, height, width).unsqueeze(0).repeat(batch, 1, 1, 1)
    weights = functional.softmax(scores * (channels // heads) ** -0.5, dim=-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v).permute(0, 3, 1, 2).reshape(queries.shape)


class _SelfAttention(SelfAttention):
    def forward(self, features: Tensor) -> Tensor:
        queries, keys, values = self.to_qkv(features).chunk(3, dim=1)
        return self.to_out(_attend(queries, keys, values, self.position_bias))


class _CrossAttention(CrossAttention):
    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        keys, values = self.to_kv(low).chunk(2, dim=1)
        return self.to_out(_attend(self.to_q(skip), keys, values, self.position_bias))


class _ResidualBlock(ResidualBlock):
    def forward(self, features: Tensor) -> Tensor:
        hidden = self.conv1(functional.relu(self.norm1(features)))
        hidden = self.conv2(functional.relu(self.norm2(hidden)))
        return self.shortcut(features) + hidden


class _AttentionBlock(AttentionBlock):
    def forward(self, features: Tensor) -> Tensor:
        attended = features + self.attention(self.norm(features))
        return attended + self.mlp(functional.relu(self.mlp_norm(attended)))


class _PlainUp(PlainUp):
    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        return self.merge(torch.cat((skip, self.project(_upsampled(low, skip))), dim=1))


class _AttentionUp(AttentionUp):
    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        residual = _upsampled(self.project(low), skip)
        attended = self.attention(self.low_norm(low), self.skip_norm(skip)) + residual
        attended = attended + self.mlp(functional.relu(self.mlp_norm(attended)))
        return self.merge(torch.cat((attended, skip), dim=1))
