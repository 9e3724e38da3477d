"""UTNet against numbers recorded from the published implementation."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedgs.data.case import Batch
from fedgs.models import build, objective
from fedgs.models.published import published_names, to_published


def golden_weights(key: str, like: Tensor) -> Tensor:
    """Regenerates a float entry of a published state dict, as the README of the golden numbers says."""
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if like.ndim >= 2:
        return drawn / drawn[0].numel() ** 0.5
    if key.endswith("running_var"):
        return 1 + 0.1 * drawn.abs()
    return 1 + 0.1 * drawn if key.endswith("weight") else 0.1 * drawn


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    # One thread makes torch choose another kernel for 1 x 1 convolutions. Its rounding is as good, but this network
    # with random weights amplifies rounding in evaluation by 1e4, beyond the tolerance; the numbers were recorded with
    # several threads.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass
class Replay:
    recorded: dict[str, Tensor]
    facts: dict[str, Any]
    outputs: dict[str, Tensor]
    losses: dict[str, float]
    gradient_norms: dict[str, float]
    state_before: dict[str, Tensor]
    state_after: dict[str, Tensor]


@pytest.fixture(scope="module")
def replay(shared: Path, two_threads: None) -> Replay:
    recorded = load_file(shared / "golden/models/utnet_rgb_128px.safetensors")
    facts = json.loads((shared / "golden/models/utnet_rgb_128px.json").read_text())
    model = build("utnet", in_channels=3, image_size=facts["image_size"])
    entries = to_published(model)
    for key, value in entries.items():
        if value.is_floating_point():
            value.copy_(golden_weights(key, value))
    before = {key: value.clone() for key, value in entries.items()}
    images = recorded["x"]
    batch = Batch(images, recorded["y"][:, 0] > 0, torch.zeros(len(images), dtype=torch.bool))
    train_output = model.train()(images)
    train_loss = objective("dice_batch")(train_output, batch)["dice"]
    train_loss.backward()
    after = {key: value.clone() for key, value in entries.items()}
    with torch.no_grad():
        eval_output = model.eval()(images)
    names = published_names(model)
    return Replay(
        recorded,
        facts,
        {"train_out/0": train_output.detach(), "eval_out/0": eval_output},
        {"loss": train_loss.item(), "eval_loss": objective("dice_batch")(eval_output, batch)["dice"].item()},
        {names[name]: parameter.grad.norm().item() for name, parameter in model.named_parameters()},
        before,
        after,
    )


@pytest.mark.parametrize("name", ["train_out/0", "eval_out/0"])
def test_outputs(replay: Replay, name: str) -> None:
    expected = replay.recorded[name]
    tolerance = 1e-4 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(replay.outputs[name], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_losses(replay: Replay, name: str) -> None:
    assert replay.losses[name] == pytest.approx(replay.facts[name]["dice_loss"], rel=1e-5)


def test_gradient_norms(replay: Replay) -> None:
    expected = replay.facts["grad_norm"]
    assert replay.gradient_norms.keys() == expected.keys()
    largest = max(expected.values())
    telling = {key: norm for key, norm in expected.items() if norm > 0.01 * largest}
    assert len(telling) > 20
    assert {key: replay.gradient_norms[key] for key in telling} == pytest.approx(telling, rel=5e-3)


def test_float_buffers_after_a_training_pass(replay: Replay) -> None:
    buffers = {key.removeprefix("buffers_after/"): value for key, value in replay.recorded.items() if "buffers_" in key}
    assert buffers
    for key, expected in buffers.items():
        torch.testing.assert_close(replay.state_after[key], expected, rtol=1e-4, atol=1e-5, msg=key)


def test_index_tables(replay: Replay) -> None:
    tables = {key.removeprefix("state_int/"): value for key, value in replay.recorded.items() if "state_int/" in key}
    integers = {key for key, value in replay.state_before.items() if not value.is_floating_point()}
    assert tables.keys() == {key for key in integers if not key.endswith("num_batches_tracked")}
    for key, expected in tables.items():
        assert replay.state_before[key].tolist() == expected.tolist()
        assert replay.state_after[key].tolist() == expected.tolist()
