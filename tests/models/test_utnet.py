"""UTNet: its attention against the definition, its sizes, its precision."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedgs.data.case import Batch
from fedgs.errors import ConfigError, ShapeError
from fedgs.models import build, initialise, objective
from fedgs.models.utnet import PlainUp, RelativePositionBias, ResidualBlock, attend, resize


def attention_by_definition(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, grid: int) -> Tensor:
    """Pixel by pixel and head by head; keys and values are (B, C, grid, grid)."""
    batch, channels, height, width = queries.shape
    heads = table.shape[1]
    result = torch.zeros_like(queries)
    for b in range(batch):
        for head in range(heads):
            own = slice(head, channels, heads)
            for y in range(height):
                for x in range(width):
                    row, column = y * grid // height, x * grid // width
                    scores = torch.stack(
                        [
                            queries[b, own, y, x] @ keys[b, own, r, c]
                            + table[(row - r + grid - 1) * (2 * grid - 1) + column - c + grid - 1, head]
                            for r in range(grid)
                            for c in range(grid)
                        ]
                    )
                    weights = (scores / math.sqrt(channels // heads)).softmax(0)
                    result[b, own, y, x] = (weights * values[b, own].flatten(1)).sum(1)
    return result


@pytest.mark.parametrize(("height", "width", "low"), [(4, 4, (2, 2)), (2, 6, (2, 3)), (8, 4, (4, 8))])
def test_attention_is_its_definition(height: int, width: int, low: tuple[int, int]) -> None:
    torch.manual_seed(0)
    bias = RelativePositionBias(heads=3, grid=2).double()
    queries = torch.randn(2, 12, height, width, dtype=torch.float64)
    keys_and_values = torch.randn(2, 24, *low, dtype=torch.float64)
    resized = functional.interpolate(keys_and_values, size=(2, 2), mode="bilinear", align_corners=True)
    expected = attention_by_definition(queries, resized[:, :12], resized[:, 12:], bias.table, 2)
    torch.testing.assert_close(attend(queries, keys_and_values, bias), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_is_the_fused_one(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    bias = RelativePositionBias(heads=2, grid=4).double()
    queries = torch.randn(2, 8, 8, 16, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    keys_and_values = torch.randn(2, 16, 4, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    inputs = (queries, keys_and_values, bias.table)

    def heads_apart(features: Tensor) -> Tensor:
        return features.reshape(2, 4, 2, -1).permute(0, 2, 3, 1)

    q, k, v = (heads_apart(part) for part in (queries, *keys_and_values.chunk(2, dim=1)))
    fused = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias(8, 16) / math.sqrt(4))
    expected = fused.permute(0, 3, 1, 2).reshape(2, 8, 8, 16)
    result = attend(queries, keys_and_values, bias)
    torch.testing.assert_close(result, expected)
    weights = torch.randn_like(result)
    torch.testing.assert_close(
        torch.autograd.grad((result * weights).sum(), inputs), torch.autograd.grad((expected * weights).sum(), inputs)
    )


def test_one_pixel_per_cell_takes_the_index_as_it_is() -> None:
    bias = RelativePositionBias(heads=1, grid=3)
    with torch.no_grad():
        bias.table[:, 0] = torch.arange(25)
    assert torch.equal(bias(3, 3)[0], bias.index.float())
    assert bias.index[0].tolist() == [12, 11, 10, 7, 6, 5, 2, 1, 0]


def test_the_index_survives_training_and_is_an_integer_buffer() -> None:
    model = build("utnet", in_channels=1, base_channels=2, reduce_size=2)
    indices = {name: value for name, value in model.named_buffers() if name.endswith("position_bias.index")}
    assert len(indices) == 9
    assert all(value.dtype == torch.int64 for value in indices.values())
    assert not any(name.endswith("position_bias.index") for name, _ in model.named_parameters())


def test_projecting_before_upsampling_is_upsampling_before_projecting() -> None:
    torch.manual_seed(0)
    up = PlainUp(6, 4).double()
    low, skip = torch.randn(2, 6, 4, 6, dtype=torch.float64), torch.randn(2, 4, 8, 12, dtype=torch.float64)
    upsampled = functional.interpolate(low, scale_factor=2, mode="bilinear", align_corners=True)
    expected = up.merge(torch.cat((skip, up.project(upsampled)), dim=1))
    torch.testing.assert_close(up(low, skip), expected)


def test_resizing_to_the_same_size_is_the_identity() -> None:
    features = torch.randn(1, 2, 3, 4)
    assert resize(features, 3, 4) is features


def test_a_residual_block_leaves_its_input_alone() -> None:
    features = torch.randn(2, 3, 4, 4)
    before = features.clone()
    ResidualBlock(3, 5)(features)
    ResidualBlock(3, 3)(features)
    assert torch.equal(features, before)


def test_number_of_parameters_is_the_published_one() -> None:
    assert sum(parameter.numel() for parameter in build("utnet", in_channels=3).parameters()) == 14_418_788


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (64, 32)])
def test_every_multiple_works_square_or_not(size: tuple[int, int]) -> None:
    model = build("utnet", in_channels=1, image_size=size, base_channels=2, reduce_size=2)
    assert model(torch.randn(2, 1, *size)).shape == (2, 2, *size)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((200, 256), "256 x 256"), ((64, 64), "128 x 128"), ((300, 500), "256 x 512"), ((0, -3), "128 x 128")],
)
def test_a_size_that_the_grid_does_not_divide_is_refused(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(ShapeError, match=f"multiples of 128 pixels, got {size[0]} x {size[1]}; .* works is {nearest}$"):
        build("utnet", in_channels=3, image_size=size)


def test_the_forward_pass_refuses_it_too() -> None:
    model = build("utnet", in_channels=1, base_channels=1, reduce_size=2)
    with pytest.raises(ShapeError, match="got 32 x 48; the nearest size that works is 32 x 64"):
        model(torch.zeros(1, 1, 32, 48))


@pytest.mark.parametrize("option", ["base_channels", "reduce_size"])
def test_widths_below_one_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        build("utnet", in_channels=3, **{option: 0})


def test_attention_under_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    bias = RelativePositionBias(heads=2, grid=4)
    queries, keys_and_values = torch.randn(2, 16, 8, 16), torch.randn(2, 32, 4, 4)
    exact = attend(queries, keys_and_values, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = attend(queries.bfloat16(), keys_and_values.bfloat16(), bias)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_autocast_stays_near_float32(layout: torch.memory_format) -> None:
    model = build("utnet", in_channels=3, base_channels=4, reduce_size=2)
    initialise(model, torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, images[:, 0] > 1, torch.zeros(2, dtype=torch.bool))
    exact = model(images)
    model.to(memory_format=layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images.to(memory_format=layout))
        loss = objective("dice_batch+ce")(output, batch)
    assert output.dtype == torch.bfloat16
    assert {term.dtype for term in loss.values()} == {torch.float32}
    # A deep network with random weights amplifies rounding; how much, rounding the weights alone tells.
    with torch.no_grad():
        for parameter in (rounded := deepcopy(model)).parameters():
            parameter.copy_(parameter.bfloat16())
        rounding = (rounded(images.bfloat16().float()) - exact).norm()
    assert 0 < rounding < 0.1 * exact.norm()
    assert (output.float() - exact).norm() < 3 * rounding
    sum(loss.values(), torch.tensor(0.0)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
