"""Computing activations again changes neither values, nor gradients, nor running statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedgs import models
from fedgs.data.case import Batch

SMALL: dict[str, dict[str, Any]] = {
    "utnet": {"base_channels": 8, "reduce_size": 2},
    "sd_utnet": {"base_channels": 8, "reduce_size": 2},
    "unet_sdnet": {"base_channels": 8},
    "sdnet": {"base_channels": 8},
}


def one_step(name: str, *, recompute: bool, training: bool) -> dict[str, torch.Tensor]:
    model = models.build(name, in_channels=3, image_size=32, recompute=recompute, **SMALL[name])
    models.initialise(model, torch.Generator().manual_seed(0))
    model.train(training)
    draw = torch.Generator().manual_seed(1)
    images, masks = torch.randn(2, 3, 32, 32, generator=draw), torch.rand(2, 32, 32, generator=draw) > 0.8
    torch.manual_seed(2)
    if training:
        objective = models.objective(models.entry(name)[0].objective)
        loss = torch.stack(list(objective(model(images), Batch(images, masks, masks[:, 0, 0])).values())).sum()
    else:
        loss = models.segment(model, images)[:, 1][masks].log().mean()
    loss.backward()
    gradients = {f"gradient {key}": weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **gradients, **model.state_dict()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_a_step_is_the_same(name: str, training: bool) -> None:
    plain, again = (one_step(name, recompute=recompute, training=training) for recompute in (False, True))
    assert plain.keys() == again.keys()
    assert any("gradient" in key for key in plain)
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    kept = []
    for recompute in (False, True):
        model = models.build(name, in_channels=3, image_size=64, recompute=recompute, **SMALL[name]).train()
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(torch.randn(2, 3, 64, 64))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
