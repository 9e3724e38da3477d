"""Choosing networks by name, and their first weights."""

from __future__ import annotations

import subprocess
import sys
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn

from fedgs.data.case import Batch
from fedgs.errors import ConfigError
from fedgs.models import MODELS, OBJECTIVES, build, check_size, foreground, initialise, objective, probabilities

SMALL: dict[str, dict[str, Any]] = {"unet": {}, "utnet": {"base_channels": 4, "reduce_size": 2}}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 2), (3, 3)])
def test_every_network_builds_and_trains_a_step(name: str, in_channels: int, num_classes: int) -> None:
    model = build(name, in_channels=in_channels, num_classes=num_classes, image_size=32, **SMALL[name])
    initialise(model, torch.Generator().manual_seed(0))
    images = torch.randn(2, in_channels, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, images[:, 0] > 1, torch.zeros(2, dtype=torch.bool))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        terms = objective("dice_batch+ce")(model(images), batch)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_published_defaults_build_at_128_pixels(name: str) -> None:
    assert isinstance(build(name, in_channels=3, image_size=128), nn.Module)
    assert isinstance(build(name, in_channels=1, image_size=(128, 256)), nn.Module)


def test_an_unknown_name_is_answered_with_the_choices_and_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'u-tnet'; did you mean 'utnet'.*: unet, utnet"):
        build("u-tnet", in_channels=3)
    with pytest.raises(ConfigError, match=r"unknown model 'zzz'\. Choose one of: unet, utnet"):
        build("zzz", in_channels=3)


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


@pytest.mark.parametrize("name", MODELS)
class TestInitialise:
    def test_depends_on_the_generator_alone(self, name: str) -> None:
        states = []
        for torch_seed in (1, 2):
            torch.manual_seed(torch_seed)
            model = build(name, in_channels=3, **SMALL[name])
            if torch_seed == 2:
                model(torch.randn(2, 3, 32, 32))
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
        model = build(name, in_channels=3, **SMALL[name])
        weights = []
        for seed in (1, 2):
            initialise(model, torch.Generator().manual_seed(seed))
            weights.append(model.head.weight.clone())
        assert not torch.equal(*weights)

    def test_is_xavier_normal_with_zero_biases(self, name: str) -> None:
        model = build(name, in_channels=3)
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


def test_all_choices_are_callables_of_one_kind() -> None:
    assert all(list(signature(function).parameters) == ["output", "batch"] for function in OBJECTIVES.values())
