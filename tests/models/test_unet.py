"""The small U-Net: its sizes and norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedgs.errors import ConfigError, ShapeError
from fedgs.models import build, initialise


def unet(norm: str = "batch", seed: int = 0) -> nn.Module:
    model = build("unet", in_channels=3, norm=norm)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_it_has_about_two_million_parameters() -> None:
    assert 1.5e6 < sum(parameter.numel() for parameter in unet().parameters()) < 2.5e6


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("size", [(32, 32), (32, 80)])
def test_every_norm_trains_on_a_single_image_of_the_smallest_sizes(norm: str, size: tuple[int, int]) -> None:
    output = unet(norm)(images(1, 3, *size))
    assert output.shape == (1, 2, *size)
    assert output.isfinite().all()


@pytest.mark.parametrize(("norm", "apart"), [("batch", False), ("instance", True), ("group", True)])
def test_only_batch_norm_lets_images_of_a_batch_see_each_other(norm: str, apart: bool) -> None:
    model, batch = unet(norm), images(2, 3, 32, 32)
    together = model(batch)[:1]
    assert torch.allclose(together, model(batch[:1]), atol=1e-5) is apart
    assert bool(list(model.buffers())) is not apart


@pytest.mark.parametrize(
    ("size", "nearest"), [(100, "96 x 96"), (16, "32 x 32"), ((40, 64), "48 x 64"), ((64, 1), "64 x 32")]
)
def test_a_size_that_the_skips_cannot_take_is_refused(size: int | tuple[int, int], nearest: str) -> None:
    with pytest.raises(ShapeError, match=f"multiples of 16 and at least 32 pixels, .* works is {nearest}$"):
        build("unet", in_channels=3, image_size=size)


def test_the_forward_pass_refuses_it_too() -> None:
    with pytest.raises(ShapeError, match="got 40 x 32"):
        unet()(images(1, 3, 40, 32))


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown norm 'grup'; did you mean 'group'"):
        build("unet", in_channels=3, norm="grup")
