"""Choosing networks by name, and their first weights."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from fedgs.data.case import Batch
from fedgs.errors import ConfigError, ShapeError
from fedgs.models import (
    MODELS,
    OBJECTIVES,
    build,
    check_batch,
    check_size,
    entry,
    foreground,
    initialise,
    objective,
    probabilities,
    segment,
)
from fedgs.models.outputs import log_probabilities

SMALL: dict[str, dict[str, Any]] = {
    "unet": {},
    "utnet": {"base_channels": 4, "reduce_size": 2},
    "unet_sdnet": {"base_channels": 4},
    "sd_utnet": {"base_channels": 4, "reduce_size": 2},
    "sd_utnet_server": {"base_channels": 4, "reduce_size": 2},
    "sdnet": {"base_channels": 4},
    "feddis": {"base_channels": 8},
    "feddis_server": {"base_channels": 8},
    "monai:SegResNet": {"init_filters": 8},
    "monai:AttentionUnet": {"channels": [8, 16], "strides": [2]},
    "monai:UNETR": {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "feature_size": 4},
    "monai:SwinUNETR": {"feature_size": 12},
}
"""Every entry of the table, small."""

DYNUNET = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 4, 4]}
SIDES = dict.fromkeys(SMALL, 32) | {"monai:SwinUNETR": 64}
UNTRAINED = {"monai:UNETR": ("net.vit.",), "feddis_server": ("shape_decoder.",)}
"""Where there are parts that the objective does not reach: of another use of a transformer, of a reconstruction."""

PUBLISHED = [name for name in SMALL if ":" not in name]


def test_every_entry_of_the_table_is_tested() -> None:
    assert {re.sub(":.*", ":NAME", name) for name in SMALL} == MODELS.keys()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 2), (3, 3)])
def test_every_network_builds_and_trains_a_step(name: str, in_channels: int, num_classes: int) -> None:
    torch.manual_seed(0)
    loss_of = objective(entry(name)[0].objective)
    model = build(name, in_channels=in_channels, num_classes=num_classes, image_size=SIDES[name], **SMALL[name])
    initialise(model, torch.Generator().manual_seed(0))
    images = torch.randn(2, in_channels, SIDES[name], SIDES[name], generator=torch.Generator().manual_seed(1))
    batch = Batch(images, images[:, 0] > 1, torch.zeros(2, dtype=torch.bool))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        terms = loss_of(model(images), batch)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    untrained = [own for own, parameter in model.named_parameters() if parameter.grad is None]
    assert all(own.startswith(UNTRAINED.get(name, ())) for own in untrained), untrained
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_every_network_gives_probabilities_in_one_plain_way(name: str) -> None:
    torch.manual_seed(0)
    side = SIDES[name]
    model = build(name, in_channels=3, num_classes=3, image_size=side, **SMALL[name]).eval()
    images = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        scores, output = segment(model, images), model(images)
        assert torch.equal(segment(model, images), scores)
        with torch.autocast("cpu", torch.bfloat16):
            assert segment(model, images).dtype == torch.float32
    assert scores.shape == (1, 3, side, side)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, side, side))
    torch.testing.assert_close(probabilities(output), scores)
    torch.testing.assert_close(log_probabilities(output).exp(), scores)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_defaults_build_at_128_pixels(name: str) -> None:
    assert isinstance(build(name, in_channels=3, image_size=128), nn.Module)
    assert isinstance(build(name, in_channels=1, image_size=(128, 256)), nn.Module)


def test_an_unknown_name_is_answered_with_the_choices_and_a_guess() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown model 'u-tnet'; did you mean 'utnet'.*: feddis, .*monai:NAME, .*utnet"
    ):
        build("u-tnet", in_channels=3)
    with pytest.raises(ConfigError, match=r"unknown model 'zzz'\. Choose one of: feddis, "):
        build("zzz", in_channels=3)


@pytest.mark.parametrize("name", ["monai", "monai:", "unet:SegResNet", "monai:SegResnet", "monai:Conv", "monai:nn"])
def test_a_name_with_half_of_it_wrong_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown (model|network of MONAI)"):
        build(name, in_channels=3, image_size=32)


def test_a_network_that_takes_contiguous_memory_only_gets_that() -> None:
    model = build("monai:SegResNetVAE", in_channels=3, image_size=32, input_image_size=(32, 32), init_filters=8)
    assert model.memory_format == torch.contiguous_format
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    model.to(memory_format=model.memory_format).train()(images).sum().backward()
    assert build("monai:SegResNet", in_channels=3, image_size=32).memory_format == torch.channels_last


@pytest.mark.parametrize(
    ("name", "options", "size", "told"),
    [
        ("monai:AttentionUnet", {}, 32, "needs channels, strides"),
        ("monai:SegResNet", {"init_filter": 8}, 32, "did you mean 'init_filters'"),
        ("monai:SegResNet", {"init_filters": "many"}, 32, "refuses its options"),
        ("monai:SegResNet", {}, (100, 64), "nearest size that works is 104 x 64"),
        ("monai:UNETR", SMALL["monai:UNETR"], 40, "nearest size that works is 48 x 48"),
        ("monai:UNet", {"channels": (4, 8, 16), "strides": (3, 3)}, 50, "nearest size that works is 54 x 54"),
        ("monai:SegResNet", {}, (33, 47), "nearest size that works is 32 x 48"),
        ("monai:UNet", {"channels": (8, 16), "strides": (0,)}, 32, "refuses its options|does not segment"),
        ("monai:FullyConnectedNet", {"hidden_channels": [4]}, 32, "does not segment|in place of a segmentation"),
        ("sd_utnet", {}, None, "give image_size"),
        ("sd_utnet", {}, 100, "nearest size that works is 128 x 128"),
        ("sdnet", {}, 15, "nearest size that works is 16 x 16"),
        ("feddis", {}, 100, "nearest size that works is 104 x 104"),
        ("feddis", {"base_channels": 6}, 64, "multiple of 4"),
        ("unet_sdnet", {"base_channels": 0}, 64, "at least 1"),
        ("utnet", {"base_channels": "abc"}, 64, r"expected base_channels to be of the type int, got 'abc' \(str\)"),
        ("utnet", {"base_channels": 8.0}, 64, r"base_channels to be of the type int, got 8.0 \(float\)"),
        ("utnet", {"base_channels": None}, 64, r"got None \(NoneType\)"),
        ("utnet", {"base_channels": True}, 64, r"of the type int, got True \(bool\)"),
        ("utnet", {"recompute": 1}, 64, r"expected recompute to be of the type bool, got 1"),
        ("unet", {"norm": 3}, 64, r"expected norm to be of the type str, got 3"),
        ("sd_utnet", {}, (64, 64.0), r"expected image_size to be of the type int \| tuple\[int, int\] \| None"),
        ("unet", {}, "64", r"expected image_size to be .*, got '64'"),
        ("monai:DynUNet", DYNUNET | {"deep_supervision": True}, 32, "choose options without deep supervision"),
        ("monai:BasicUNetPlusPlus", {"deep_supervision": True}, 32, "choose options without deep supervision"),
    ],
)
def test_what_a_network_cannot_take_is_said_before_training(name: str, options: Any, size: Any, told: str) -> None:
    with pytest.raises((ConfigError, ShapeError), match=told):
        build(name, in_channels=3, image_size=size, **options)


@pytest.mark.parametrize("given", [{"in_channels": 3.0}, {"in_channels": "3"}, {"num_classes": True}])
def test_channels_and_classes_are_whole_numbers(given: Any) -> None:
    with pytest.raises(ConfigError, match=f"expected {next(iter(given))} to be of the type int, got "):
        build("utnet", **{"in_channels": 3, **given})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("monai:DynUNet", DYNUNET),
        ("monai:BasicUNetPlusPlus", {"features": [4] * 6}),
        ("monai:SegResNetDS", {"init_filters": 8, "dsdepth": 2}),
    ],
)
def test_networks_of_several_outputs_train_where_the_first_is_the_segmentation(name: str, options: Any) -> None:
    model = build(name, in_channels=1, image_size=32, **options)
    assert model.train()(torch.randn(2, 1, 32, 32)).shape == (2, 2, 32, 32)
    assert model.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 2, 32, 32)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("unet_sdnet", 16, {"base_channels": 4}),
        ("unet_sdnet", (16, 31), {"base_channels": 4}),
        ("utnet", 16, {"base_channels": 4, "reduce_size": 1}),
        ("sd_utnet_server", 16, {"base_channels": 4, "reduce_size": 1}),
        ("sdnet", 64, {"base_channels": 4}),
        ("monai:UNet", 4, {"channels": [4, 4, 4], "strides": [2, 2], "norm": "BATCH"}),
    ],
)
def test_a_batch_of_one_pixel_is_refused_before_it_is_normalised(name: str, size: Any, options: Any) -> None:
    model = build(name, in_channels=1, image_size=size, **options)
    with pytest.raises(ShapeError, match=r"batch of 1, .* use a batch size of at least 2"):
        check_batch(model, 1, size)
    check_batch(model, 2, size)
    height, width = (size, size) if isinstance(size, int) else size
    model.train()(torch.randn(2, 1, height, width))
    if ":" not in name:
        with pytest.raises(ShapeError, match="use a batch size of at least 2"):
            model(torch.randn(1, 1, height, width))


@pytest.mark.parametrize("name", ["unet_sdnet", "utnet", "unet", "feddis", "monai:SegResNet"])
def test_a_single_image_is_trained_on_where_it_can_be(name: str) -> None:
    model = build(name, in_channels=1, image_size=(32, 64), **SMALL[name])
    check_batch(model, 1, (32, 64))
    model.train()(torch.randn(1, 1, 32, 64))


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_that_are_no_power_of_two(name: str) -> None:
    size = (48, 80) if name in ("unet", "feddis", "feddis_server") else (96, 64) if "utnet" in name else (37, 53)
    model = build(name, in_channels=1, image_size=size, **SMALL[name])
    assert segment(model, torch.randn(2, 1, *size)).shape == (2, 2, *size)


@pytest.mark.parametrize("name", ["sd_utnet", "sdnet"])
def test_one_image_is_evaluated_and_not_trained_on(name: str) -> None:
    model = build(name, in_channels=3, image_size=32, **SMALL[name])
    with pytest.raises(ShapeError, match="use a batch size of at least 2"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ShapeError, match="made for images of 32 x 32 pixels, got 32 x 64"):
        model(torch.zeros(2, 3, 32, 64))
    output = model.eval()(torch.zeros(1, 3, 32, 32))
    assert output.z_again is None
    assert output._fields == ("segmentation", "reconstruction", "z", "z_again", "mu", "logvar")


def test_an_unknown_option_is_answered_with_the_options() -> None:
    with pytest.raises(ConfigError, match=r"option of model 'utnet' 'reducesize'; did you mean 'reduce_size'.*: base_"):
        build("utnet", in_channels=3, reducesize=4)
    with pytest.raises(ConfigError, match=r"option of model 'unet' 'base_channels'.*: norm"):
        build("unet", in_channels=3, base_channels=4)


@pytest.mark.parametrize(("in_channels", "num_classes"), [(0, 2), (3, 1)])
def test_impossible_channels_and_classes_are_refused(in_channels: int, num_classes: int) -> None:
    with pytest.raises(ConfigError, match=f"got in_channels={in_channels} and num_classes={num_classes}"):
        build("unet", in_channels=in_channels, num_classes=num_classes)


def test_a_network_that_knows_no_sizes_is_taken_at_its_word() -> None:
    check_size(nn.Conv2d(3, 2, 1), 17, 1)


def test_listing_the_choices_needs_neither_torch_nor_monai() -> None:
    code = (
        "import sys; from fedgs.models import MODELS, OBJECTIVES; sys.exit(bool({'torch', 'monai'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_utnet_does_not_wait_for_monai() -> None:
    code = "import sys; from fedgs.models import build; build('utnet', in_channels=1); sys.exit('monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SMALL)
class TestInitialise:
    def test_depends_on_the_generator_alone(self, name: str) -> None:
        states = []
        for torch_seed in (1, 2):
            torch.manual_seed(torch_seed)
            model = build(name, in_channels=3, image_size=SIDES[name], **SMALL[name])
            if torch_seed == 2:
                model(torch.randn(2, 3, SIDES[name], SIDES[name]))
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(1)
            before = torch.get_rng_state()
            initialise(model, torch.Generator().manual_seed(7))
            assert torch.equal(torch.get_rng_state(), before)
            states.append(model.state_dict())
        one, other = states
        assert all(torch.equal(one[key], other[key]) for key in one)

    def test_another_seed_gives_other_weights(self, name: str) -> None:
        model = build(name, in_channels=3, image_size=SIDES[name], **SMALL[name])
        weights = []
        for seed in (1, 2):
            initialise(model, torch.Generator().manual_seed(seed))
            weights.append([p.detach().clone() for p in model.parameters() if p.ndim == 4])
        assert all(not torch.equal(one, other) for one, other in zip(*weights, strict=True))

    def test_is_xavier_normal_with_zero_biases(self, name: str) -> None:
        if name not in PUBLISHED:
            return  # drawn as MONAI does
        model = build(name, in_channels=3, image_size=128)
        initialise(model, torch.Generator().manual_seed(0))
        seen = set()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan = sum(module.weight.shape[:2]) * module.weight[0, 0].numel()
                if module.weight.numel() > 5000:
                    seen.add(type(module))
                    assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
                assert module.bias is None or not module.bias.any()
            elif isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert not module.bias.any()
        assert nn.Conv2d in seen


def test_tables_of_relative_position_start_small() -> None:
    model = build("utnet", in_channels=3)
    initialise(model, torch.Generator().manual_seed(0))
    tables = torch.cat([value.flatten() for name, value in model.named_parameters() if name.endswith("bias.table")])
    assert tables.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_module_without_a_rule_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Embedding(2, 2))
    with pytest.raises(ConfigError, match="'1', a Embedding"):
        initialise(model, torch.Generator())


def test_probabilities_of_logits() -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    scores = probabilities(logits)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(1), torch.ones(2, 4, 5))
    assert torch.equal(foreground(logits), scores[:, 1])
    assert torch.equal(scores.argmax(1), logits.float().argmax(1))


def test_networks_name_objectives_that_exist() -> None:
    assert {found.objective for found in MODELS.values()} <= OBJECTIVES.keys()
