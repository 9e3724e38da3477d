"""Augmentation: image and mask move together, colours stay in range, draws do not depend on the device."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgs.data.augment import Augmentation, Draw, apply, apply_to_regions, draw, normalise
from fedgs.data.lesions import nearest_lesions
from fedgs.errors import ConfigError

RGB = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def still(batch: int = 1) -> Draw:
    return draw(batch, Augmentation.none(), torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def undo(images: Tensor) -> Tensor:
    """Back from normalised values to [0, 1]."""
    mean, deviation = RGB if images.shape[1] == 3 else (torch.tensor([0.449]), torch.tensor([0.226]))
    return images * deviation[:, None, None] + mean[:, None, None]


def blob(x: float, y: float, radius: float) -> Tensor:
    """A disc with an arm, so that every flip and angle shows, at 512 x 512, bool."""
    columns, rows = np.meshgrid((np.arange(512) + 0.5) / 512, (np.arange(512) + 0.5) / 512)
    disc = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    arm = (abs(rows - y) < radius / 4) & (columns > x) & (columns < x + 2 * radius)
    return torch.from_numpy(disc | arm)


@pytest.mark.parametrize("size", [64, 96, 128, 256, 512])
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), x=st.floats(0.2, 0.7), y=st.floats(0.25, 0.75), radius=st.floats(0.05, 0.15))
def test_a_shape_in_image_and_mask_overlaps_after_every_draw(
    size: int, seed: int, x: float, y: float, radius: float
) -> None:
    mask = blob(x, y, radius)[None]
    image = torch.nn.functional.interpolate(mask[:, None].float(), (size, size), mode="area").expand(-1, 3, -1, -1)
    images, masks = apply(image, mask, draw(1, Augmentation(jitter=0), generator(seed)), size)
    values = undo(images)[0, 0]
    assert bool(masks.any()) == bool((values > 0.5).any())
    # Half a pixel off along the outline would give 0.25 in the mean over the pixels that it crosses.
    outline = ((values - masks[0].float()).abs() > 1e-3).sum().clamp_min(1)
    assert (values - masks[0].float()).abs().sum() / outline < 0.35
    assert (values - masks[0].float()).sum().abs() / outline < 0.12


@pytest.mark.parametrize("size", [64, 100, 128, 352, 512])
def test_masks_are_never_shifted_to_one_side(size: int) -> None:
    rows = torch.rand(8, 1, 1, generator=generator()) * 0.5 + 0.25
    edges = (torch.arange(512) + 0.5)[None, :, None] / 512 < rows  # Everything above a random height.
    masks = edges.expand(8, 512, 512)
    image = torch.nn.functional.interpolate(masks[:, None].float(), (size, size), mode="area")
    for flips in (torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)):
        images, sampled = apply(image, masks, replace(still(8), flip_y=flips), size)
        heights = undo(images)[:, 0].sum(1).mean(1), sampled.float().sum(1).mean(1)
        assert (heights[0] - heights[1]).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", [1, 7, 64, 100, 128, 200, 256, 333, 512, 640, 1024])
def test_still_mask_is_the_pixel_under_each_centre(size: int) -> None:
    masks = torch.rand(2, 512, 512, generator=generator()) < 0.5
    index = (2 * torch.arange(size) + 1) * 512 // (2 * size)
    _, sampled = apply(torch.zeros(2, 1, size, size), masks, still(2), size)
    assert torch.equal(sampled, masks[:, index][:, :, index])


@pytest.mark.parametrize("channels", [1, 3])
def test_without_augmentation_images_are_only_normalised(channels: int) -> None:
    images = torch.rand(2, channels, 64, 64, generator=generator())
    before = images.clone()
    augmented, _ = apply(images, torch.zeros(2, 512, 512, dtype=torch.bool), still(2), 64)
    assert torch.equal(augmented, normalise(images))
    assert torch.equal(images, before)
    torch.testing.assert_close(undo(augmented), images)
    assert augmented.is_contiguous()


@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("quarters", [-1, 0, 1, 2])
def test_quarter_turns_and_flips_are_exact(flip_x: bool, flip_y: bool, quarters: int) -> None:
    images = torch.rand(1, 3, 512, 512, generator=generator())
    masks = images[:, 0] < 0.3
    move = replace(
        still(),
        flip_x=torch.tensor([flip_x]),
        flip_y=torch.tensor([flip_y]),
        angle=torch.tensor([quarters * math.pi / 2]),
    )
    axes = [axis for axis, wanted in ((-1, flip_x), (-2, flip_y)) if wanted]
    moved, moved_masks = apply(images, masks, move, 512)
    expected = torch.rot90(images.flip(axes), quarters, (-2, -1))
    torch.testing.assert_close(undo(moved), expected, atol=5e-4, rtol=0)
    assert torch.equal(moved_masks, torch.rot90(masks.flip(axes), quarters, (-2, -1)))


def test_a_point_turns_anticlockwise_by_the_angle() -> None:
    size, angle = 200, math.radians(37)
    masks = torch.zeros(1, 512, 512, dtype=torch.bool)
    masks[0, 250:262, 380:392] = True  # Right of the centre, at (386 - 256) / 512 of the field.
    _, turned = apply(torch.zeros(1, 3, size, size), masks, replace(still(), angle=torch.tensor([angle])), size)
    row, column = (turned[0].nonzero().float() + 0.5).mean(0) / size - 0.5
    radius = 130 / 512
    assert float(column) == pytest.approx(radius * math.cos(angle), abs=0.003)
    assert float(row) == pytest.approx(-radius * math.sin(angle), abs=0.003)


def test_outside_is_black_and_background_also_under_jitter() -> None:
    settings_ = Augmentation(jitter=1, contrast=0.9, brightness=0.9)
    move = replace(draw(4, settings_, generator()), angle=torch.full((4,), math.pi / 4))
    images, masks = apply(torch.full((4, 3, 64, 64), 0.7), torch.ones(4, 512, 512, dtype=torch.bool), move, 64)
    corner = undo(images)[:, :, :8, :8]
    torch.testing.assert_close(corner, torch.zeros_like(corner), atol=1e-6, rtol=0)
    assert not masks[:, :8, :8].any()
    assert masks[:, 32, 32].all()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), channels=st.sampled_from([1, 3]))
def test_colours_stay_in_range_and_geometry_does_not_depend_on_them(seed: int, channels: int) -> None:
    images = torch.rand(3, channels, 32, 32, generator=generator(seed))
    masks = torch.rand(3, 512, 512, generator=generator(seed)) < 0.5
    strong = Augmentation(jitter=1, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
    jittered, with_jitter = apply(images, masks, draw(3, strong, generator(seed)), 32)
    _, without = apply(images, masks, draw(3, replace(strong, jitter=0), generator(seed)), 32)
    assert torch.equal(with_jitter, without)
    values = undo(jittered)
    assert values.min() >= -1e-6
    assert values.max() <= 1 + 1e-6


def test_each_jitter_is_what_its_name_says() -> None:
    image = torch.rand(1, 3, 16, 16, generator=generator()) * 0.5 + 0.25
    luma = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    masks = torch.zeros(1, 512, 512, dtype=torch.bool)

    def changed(**factors: float) -> Tensor:
        change = {name: torch.tensor([value]) for name, value in factors.items()}
        return undo(apply(image, masks, replace(still(), jitter=torch.tensor([True]), **change), 16)[0])

    assert_close = partial(torch.testing.assert_close, atol=2e-4, rtol=0)
    assert_close(changed(), image)
    assert_close(changed(brightness=1.2), image * 1.2)
    assert_close(changed(contrast=0.8), luma.mean() + 0.8 * (image - luma.mean()))
    assert_close(changed(saturation=0.5), luma + 0.5 * (image - luma))
    turned = changed(hue=0.03)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert_close((turned * weights).sum(1, keepdim=True), luma)
    assert (turned - image).abs().max() > 0.01
    assert_close(changed(hue=1.0), image)


def test_hue_turns_red_towards_yellow_and_leaves_grey_alone() -> None:
    masks = torch.zeros(2, 512, 512, dtype=torch.bool)
    images = torch.stack([torch.full((3, 4, 4), 0.4), torch.tensor([0.6, 0.3, 0.3])[:, None, None].expand(3, 4, 4)])
    move = replace(still(2), jitter=torch.tensor([True, True]), hue=torch.tensor([0.05, 0.05]))
    grey, red = undo(apply(images, masks, move, 4)[0])
    torch.testing.assert_close(grey, images[0], atol=1e-5, rtol=0)
    assert red[1].mean() > red[2].mean() + 0.05


def test_draws_follow_their_probabilities() -> None:
    drawn = draw(20000, Augmentation(), generator())
    for flags, share in ((drawn.flip_x, 0.5), (drawn.flip_y, 0.5), (drawn.jitter, 0.3)):
        assert float(flags.float().mean()) == pytest.approx(share, abs=0.02)
    for values, middle, reach in (
        (drawn.angle, 0, math.pi / 2),
        (drawn.brightness, 1, 0.2),
        (drawn.contrast, 1, 0.2),
        (drawn.saturation, 1, 0.2),
        (drawn.hue, 0, 0.02),
    ):
        assert float(values.min()) == pytest.approx(middle - reach, rel=0.01)
        assert float(values.max()) == pytest.approx(middle + reach, rel=0.01)
        assert float(values.std()) == pytest.approx(reach / math.sqrt(3), rel=0.02)
    together = torch.stack([value.float() for value in (drawn.flip_x, drawn.flip_y, drawn.angle, drawn.jitter)])
    assert (torch.corrcoef(together) - torch.eye(4)).abs().max() < 0.03


def test_a_draw_takes_the_same_numbers_whatever_the_settings() -> None:
    first, second = generator(), generator()
    draw(5, Augmentation(), first)
    draw(5, Augmentation.none(), second)
    assert torch.equal(first.get_state(), second.get_state())


def test_nothing_is_read_back_from_the_device() -> None:
    # Tensors on "meta" have no values: whatever would wait for one fails.
    images = torch.empty(4, 3, 96, 96, device="meta")
    masks = torch.empty(4, 512, 512, dtype=torch.bool, device="meta")
    augmented, sampled = apply(images, masks, draw(4, Augmentation(jitter=1), generator()), 64)
    assert augmented.shape == (4, 3, 64, 64)
    assert sampled.shape == (4, 64, 64)
    assert sampled.dtype == torch.bool


def test_a_batch_is_its_images_one_by_one() -> None:
    images = torch.rand(4, 3, 64, 64, generator=generator())
    masks = images[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2) > 0.5
    drawn = draw(4, Augmentation(jitter=0.5), generator(3))
    together = apply(images, masks, drawn, 64)
    for i in range(4):
        one = Draw(*(getattr(drawn, name)[i : i + 1] for name in Draw.__dataclass_fields__))
        alone = apply(images[i : i + 1], masks[i : i + 1], one, 64)
        torch.testing.assert_close(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])


def test_channels_last_memory_gives_the_same() -> None:
    images = torch.rand(2, 3, 64, 64, generator=generator())
    masks = torch.rand(2, 512, 512, generator=generator()) < 0.5
    drawn = draw(2, Augmentation(jitter=1), generator())
    usual = apply(images, masks, drawn, 64)
    stored = apply(images.contiguous(memory_format=torch.channels_last), masks, drawn, 64)
    torch.testing.assert_close(stored[0], usual[0])
    assert torch.equal(stored[1], usual[1])


@pytest.mark.parametrize("size", [32, 100, 128, 512])
@pytest.mark.parametrize("seed", range(3))
def test_regions_move_with_their_lesions(size: int, seed: int) -> None:
    """Each lesion moved as a mask of its own is what the moved regions make of the moved mask."""
    lesions = torch.stack([blob(0.25, 0.3, 0.1), blob(0.6, 0.7, 0.03), blob(0.7, 0.2, 0.005)])
    mask = lesions.any(0)
    regions = torch.from_numpy(nearest_lesions(mask.numpy()))
    drawn = draw(2, Augmentation(jitter=0), generator(seed))
    images = torch.zeros(2, 3, size, size)
    _, moved = apply(images, mask.expand(2, -1, -1), drawn, size)
    numbers = apply_to_regions(regions.expand(2, -1, -1), drawn, size)
    assert (numbers.dtype, numbers.shape) == (torch.uint8, moved.shape)
    assert numbers.min() >= 1
    for lesion in lesions:
        (number,) = regions[lesion].unique()
        _, alone = apply(images, lesion.expand(2, -1, -1), drawn, size)
        assert torch.equal((numbers == number) & moved, alone)


def test_regions_go_on_beyond_the_edge_of_the_image() -> None:
    regions = torch.ones(1, 512, 512, dtype=torch.uint8)
    regions[:, :, 256:] = 255
    quarter = replace(still(), angle=torch.tensor([math.pi / 4]))
    moved = apply_to_regions(regions, quarter, 64)
    assert moved.unique().tolist() == [1, 255]
    _, seen = apply(torch.zeros(1, 3, 64, 64), torch.ones_like(regions, dtype=torch.bool), quarter, 64)
    assert not seen[0, 0, 0]
    assert torch.equal(
        apply_to_regions(torch.ones_like(regions), quarter, 64), torch.ones(1, 64, 64, dtype=torch.uint8)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip", 1.1),
        ("flip", -0.1),
        ("rotation_degrees", 181),
        ("jitter", math.nan),
        ("brightness", 1.0),
        ("contrast", -1),
        ("saturation", math.inf),
        ("hue", 0.6),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"augmentation {name}: expected"):
        Augmentation(**{name: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_gives_the_same_masks_and_nearly_the_same_images() -> None:
    images = torch.rand(8, 3, 256, 256, generator=generator())
    masks = torch.rand(8, 512, 512, generator=generator()) < 0.5
    drawn = draw(8, Augmentation(jitter=0.5), generator())
    here, there = apply(images, masks, drawn, 256), apply(images.cuda(), masks.cuda(), drawn, 256)
    torch.testing.assert_close(there[0].cpu(), here[0], atol=1e-3, rtol=0)
    assert (there[1].cpu() != here[1]).float().mean() < 1e-3
