"""Instance normalisation in channels-last memory is torch's own, without its copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedgs import models
from fedgs.models.instance_norm import InstanceNorm, with_instance_norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (4, 16, 8, 8), (3, 1, 4, 4)])
def test_it_is_torchs_own(shape: tuple[int, ...], layout: torch.memory_format, training: bool, affine: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    theirs = nn.InstanceNorm2d(shape[1], affine=affine).double().train(training)
    for weight in theirs.parameters():
        nn.init.normal_(weight, generator=draw)
    ours = with_instance_norm(nn.Sequential(theirs))
    assert type(ours[0]) is InstanceNorm
    images = torch.randn(shape, generator=draw, dtype=torch.float64)
    found = []
    for norm in (theirs, ours):
        given = images.to(memory_format=layout).requires_grad_()
        made = norm(given)
        (made * torch.arange(made.numel(), dtype=made.dtype).reshape(made.shape).sin()).sum().backward()
        gradients = [weight.grad for weight in norm.parameters() if weight.grad is not None]
        found.append([made.detach(), given.grad, *gradients])
        norm.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_channels_last_stays_channels_last() -> None:
    images = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    assert InstanceNorm(8)(images).is_contiguous(memory_format=torch.channels_last)


def test_one_with_running_statistics_is_left_as_it_is() -> None:
    norm = with_instance_norm(nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)))
    norm(torch.randn(2, 2, 4, 4).to(memory_format=torch.channels_last))
    statistics = norm[0].running_mean
    assert isinstance(statistics, torch.Tensor)
    assert statistics.ne(0).all()


@pytest.mark.parametrize("name", ["unet", "monai:AttentionUnet"])
def test_networks_have_it(name: str) -> None:
    options = {"norm": "instance"} if name == "unet" else {"channels": (4, 8), "strides": (2,)}
    model = models.build(name, in_channels=3, image_size=32, **options)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.InstanceNorm2d)}
    assert kinds <= {InstanceNorm}
    assert kinds or name != "unet"
