"""What speaks for a lesion: against networks whose answer is known, and for every network that there is."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgs.attribution import Attribution, attribute, layer_of
from fedgs.errors import ConfigError, MissingExtraError
from fedgs.models import MODELS, build, initialise, segment

SIDE = 64
UTNET = {"base_channels": 4, "reduce_size": 4}
SMALL: Mapping[str, Mapping[str, Any]] = {
    "unet": {},
    "utnet": UTNET,
    "unet_sdnet": {"base_channels": 4},
    "sd_utnet": UTNET,
    "sd_utnet_server": UTNET,
    "sdnet": {"base_channels": 4},
    "feddis": {"base_channels": 8},
    "feddis_server": {"base_channels": 8},
    "monai:SegResNet": {"init_filters": 8},
    "monai:AttentionUnet": {"channels": [8, 16, 16], "strides": [2, 2]},
}


def network(name: str, in_channels: int = 3, **more: Any) -> nn.Module:
    model = build(name, in_channels=in_channels, image_size=SIDE, **SMALL[name], **more)
    initialise(model, torch.Generator().manual_seed(0))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def noise(channels: int = 3, side: int = SIDE, seed: int = 0) -> Tensor:
    coarse = torch.randn(1, channels, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (side, side), mode="bilinear")[0]


def square(top: int, left: int, size: int = 8, side: int = SIDE) -> Tensor:
    region = torch.zeros(side, side, dtype=torch.bool)
    region[top : top + size, left : left + size] = True
    return region


def blurred(image: Tensor) -> Tensor:
    """The image as means of 8 x 8 patches, drawn smoothly."""
    patches = functional.adaptive_avg_pool2d(image[None], 8)
    return functional.interpolate(patches, image.shape[-2:], mode="bilinear", align_corners=False)[0]


def odds(model: nn.Module, image: Tensor, region: Tensor) -> float:
    with torch.no_grad():
        lesion = segment(model.eval(), image[None])[0, 1]
    return float(lesion.logit()[region].mean())


IMAGE, REGION = noise(), square(24, 16)


@cache
def explained(name: str) -> tuple[nn.Module, Attribution]:
    model = network(name)
    return model, attribute(model, IMAGE, REGION)


def test_every_network_of_the_table_is_explained() -> None:
    assert {re.sub(":.*", ":NAME", name) for name in SMALL} == MODELS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_every_network_gives_maps_of_the_size_of_its_image(name: str) -> None:
    model, found = explained(name)
    for values in (found.grad_cam, found.gradients):
        assert values.shape == (SIDE, SIDE)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert not values.requires_grad
    assert (found.grad_cam >= 0).all()
    assert found.gradients.any()
    assert found.score == pytest.approx(odds(model, IMAGE, REGION), abs=1e-4)
    gained = found.score - odds(model, blurred(IMAGE), REGION)
    assert abs(found.gradients.sum().item() - gained) == pytest.approx(found.gap * abs(gained), abs=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_every_network_has_a_layer_four_times_coarser(name: str) -> None:
    model, attribution = explained(name)
    found, layer = layer_of(model.eval(), IMAGE[None])
    assert model.get_submodule(found) is layer
    shapes: list[torch.Size] = []
    watch = layer.register_forward_hook(lambda module, given, output: shapes.append(output.shape))
    segment(model, IMAGE[None])
    watch.remove()
    assert {tuple(shape[-2:]) for shape in shapes} == {(SIDE // 4, SIDE // 4)}
    assert attribution.layer == f"{found} (16 x 16)"


@pytest.mark.parametrize("name", SMALL)
def test_grad_cam_is_that_of_its_definition(name: str) -> None:
    """relu(sum over maps of (mean gradient of the score) * map), of what the layer gave before others changed it."""
    model, attribution = explained(name)
    _, layer = layer_of(model.eval(), IMAGE[None])
    maps: list[Tensor] = []

    def take(module: nn.Module, given: object, output: Tensor) -> Tensor:
        maps.append(output)
        return output.clone()  # what comes later may write into its input

    watch = layer.register_forward_hook(take)
    lesion = segment(model, IMAGE[None])[0, 1]
    watch.remove()
    (features,) = maps
    (slopes,) = torch.autograd.grad(lesion.logit()[REGION].mean(), features)
    expected = (slopes.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    expected = functional.interpolate(expected, (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0].detach()
    strongest = expected.max()
    assert strongest > 0
    torch.testing.assert_close(attribution.grad_cam / strongest, expected / strongest, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["utnet", "sd_utnet", "unet_sdnet", "sdnet"])
def test_a_network_that_computes_again_has_the_same_reasons(name: str) -> None:
    model, expected = explained(name)
    again = network(name, recompute=True)
    again.load_state_dict(model.state_dict())
    found = attribute(again, IMAGE, REGION)
    assert found.layer == expected.layer
    for ours, theirs in zip((found.grad_cam, found.gradients), (expected.grad_cam, expected.gradients), strict=True):
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_left_behind(name: str) -> None:
    _, other = explained(name)
    model = network(name)
    before = {entry: value.clone() for entry, value in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    image, region = IMAGE.clone(), REGION.clone()
    given = image.clone(), region.clone()
    random = torch.get_rng_state()
    found = attribute(model, image, region)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[entry]) for entry, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(hooks(module) for module in model.modules())
    assert torch.equal(image, given[0])
    assert torch.equal(region, given[1])
    assert not image.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(found.grad_cam, other.grad_cam)
    assert torch.equal(found.gradients, other.gradients)


def hooks(module: nn.Module) -> list[object]:
    return [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks, *module._backward_pre_hooks]


class Detector(nn.Module):
    """Sees means of 4 x 4 pixels of red and of green; the odds of lesion rise with red and fall with green."""

    def __init__(self, gain: float = 1.0, *, smooth: bool = False) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 2, 4, stride=4, bias=False)
        self.judge = nn.Conv2d(2, 2, 1)
        self.smooth = smooth
        with torch.no_grad():
            self.look.weight.zero_()
            self.look.weight[0, 0] = self.look.weight[1, 1] = 1 / 16
            self.judge.weight.copy_(gain * torch.tensor([[0.0, 0.0], [1.0, -1.0]])[:, :, None, None])
            self.judge.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        seen = self.look(images)
        summed = (torch.tanh(seen) if self.smooth else seen.relu()).sum((2, 3), keepdim=True)
        logits: Tensor = self.judge(summed)
        return logits.expand(-1, -1, *images.shape[-2:])


RED, GREEN = square(40, 16), square(12, 44)


def spots() -> Tensor:
    image = torch.zeros(3, SIDE, SIDE)
    image[0, RED] = image[1, GREEN] = 2.0
    return image


def peak(values: Tensor) -> tuple[int, int]:
    return divmod(int(values.argmax()), SIDE)


def test_both_maps_peak_where_the_network_looks() -> None:
    found = attribute(Detector(), spots(), torch.ones(SIDE, SIDE, dtype=torch.bool))
    assert RED[peak(found.grad_cam)]
    assert RED[peak(found.gradients)]
    assert GREEN[peak(-found.gradients)]
    assert found.grad_cam[RED].min() > 0
    away = functional.max_pool2d((RED | GREEN)[None].float(), 17, stride=1, padding=8)[0] == 0
    assert not found.grad_cam[~(functional.max_pool2d(RED[None].float(), 9, stride=1, padding=4)[0] > 0)].any()
    assert found.gradients[away].abs().max() < 1e-6
    assert found.layer == "look (16 x 16)"


def test_gradients_of_a_linear_network_are_known_pixel_by_pixel() -> None:
    image = spots() + 1  # no relu is at work where all is above 0
    found = attribute(Detector(gain=0.5), image, RED)
    change = (image - blurred(image))[:2]
    torch.testing.assert_close(found.gradients, 0.5 * (change[0] - change[1]) / 16, rtol=1e-3, atol=1e-5)


def test_the_map_follows_the_region_that_is_asked_for() -> None:
    """A network that only looks at the pixels themselves has no other reason for what it marks."""

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look = nn.AvgPool2d(4)

        def forward(self, images: Tensor) -> Tensor:
            lesion = functional.interpolate(self.look(images.sum(1, keepdim=True)), scale_factor=4)
            return torch.cat([-lesion, lesion], 1)

    image = noise()
    for region in (RED, GREEN):
        found = attribute(Local(), image, region)
        assert found.gradients[region].abs().sum() > 0
        assert not found.gradients[~region].any()


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_a_smooth_network_add_up(seed: int) -> None:
    torch.manual_seed(seed)
    smooth = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=4, padding=2), nn.Tanh(), nn.Conv2d(6, 2, 3, padding=1), nn.Upsample(scale_factor=4)
    )
    image, region = noise(seed=seed), square(24, 16)
    found = attribute(smooth, image, region)
    expected = odds(smooth, image, region) - odds(smooth, blurred(image), region)
    assert found.gradients.sum().item() == pytest.approx(expected, rel=0.01, abs=1e-4)
    assert found.score == pytest.approx(odds(smooth, image, region), abs=1e-5)
    assert found.gap < 0.01
    assert found.gap == pytest.approx(abs(found.gradients.sum().item() / expected - 1), abs=1e-3)


@pytest.mark.parametrize("far", [15.0, 30.0, 60.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_network_that_is_sure_still_has_its_reasons(far: float, sign: int) -> None:
    """Logits of plus and minus `far`, whose probabilities are rounded to 1 and 0."""

    class Sure(Detector):
        def forward(self, images: Tensor) -> Tensor:
            lesion = super().forward(images)[:, 1:]
            return torch.cat([-lesion, lesion], 1) + sign * far * torch.tensor([-1.0, 1.0])[:, None, None]

    model = Sure(gain=0.05)
    found = attribute(model, spots(), RED)
    plain = attribute(Detector(gain=0.1), spots(), RED)
    assert plain.gradients.any()
    torch.testing.assert_close(found.gradients, plain.gradients, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(found.grad_cam, plain.grad_cam, rtol=1e-2, atol=1e-5)
    assert found.score - 2 * sign * far == pytest.approx(plain.score, abs=1e-3)


class Pointwise(nn.Module):
    """Has no layer that is coarser than the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(images).tanh())
        return logits


class Halving(nn.Module):
    """Gets half as large at most, in two layers, and has a summary of one pixel that shows no place."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.mix, self.all = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        mixed = self.mix(self.down(images).tanh())
        logits: Tensor = self.up(mixed * self.all(mixed))
        return logits


@pytest.mark.parametrize(
    ("make", "layer"), [(Pointwise, "first (64 x 64)"), (Halving, "mix (32 x 32)"), (Detector, "look (16 x 16)")]
)
def test_a_network_that_gets_less_coarse_shows_the_last_of_its_coarsest(
    make: Callable[[], nn.Module], layer: str
) -> None:
    torch.manual_seed(0)
    assert attribute(make(), noise(), RED).layer == layer


def test_images_of_other_shapes_and_colours_will_do() -> None:
    torch.manual_seed(0)
    found = attribute(network("unet", in_channels=1), noise(1), RED)
    assert found.gradients.shape == (SIDE, SIDE)
    wide = torch.randn(3, 48, 96)
    region = torch.zeros(48, 96, dtype=torch.bool)
    region[5, 90] = True
    found = attribute(Halving(), wide, region)
    assert (found.grad_cam.shape, found.gradients.shape, found.layer) == ((48, 96), (48, 96), "mix (24 x 48)")


def test_an_empty_region_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a region of at least one pixel, got none"):
        attribute(Detector(), spots(), torch.zeros(SIDE, SIDE, dtype=torch.bool))


class Flat(nn.Module):
    """Judges colours as a table of pixels; none of its layers gives maps."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        table: Tensor = self.judge(images.flatten(2).transpose(1, 2))
        return table.transpose(1, 2).unflatten(2, images.shape[-2:])


def test_a_network_without_maps_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="Flat: none of its layers gives maps of features"):
        attribute(Flat(), spots(), RED)
    with pytest.raises(ConfigError, match="Conv2d: none of its layers"):
        attribute(nn.Conv2d(3, 2, 1), spots(), RED)


def test_hooks_are_gone_also_after_a_network_failed() -> None:
    class Broken(Detector):
        def forward(self, images: Tensor) -> Tensor:
            super().forward(images)
            raise RuntimeError("broken")

    model = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        attribute(model, spots(), RED)
    assert not any(hooks(module) for module in model.modules())


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("captum", "captum.attr"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedgs\[explain\]'"):
        attribute(Detector(), spots(), RED)


def test_it_can_be_done_where_gradients_are_off() -> None:
    with torch.no_grad():
        found: Attribution = attribute(Detector(), spots(), RED)
    assert found.gradients.any()
