"""Scaled gradients against a brute-force recomputation in float64, and their laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedgs
from fedgs.errors import ConfigError
from fedgs.scaled_update import ScaledUpdate

ETAS = [1.0, 2.5, 1.0, 1.7, 3.0]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "adam, coupled decay": partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1),
    "adam, amsgrad": partial(torch.optim.Adam, lr=1e-2, amsgrad=True),
    "adam, maximize": partial(torch.optim.Adam, lr=1e-2, maximize=True, weight_decay=0.1),
    "adam, decoupled": partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    "adamw, fused": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw, foreach": partial(torch.optim.AdamW, lr=1e-2, betas=(0.5, 0.9), foreach=True),
    "adamw, without momentum": partial(torch.optim.AdamW, lr=1e-2, betas=(0.0, 0.9)),
    "sgd": partial(torch.optim.SGD, lr=1e-2),
    "sgd, momentum": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "sgd, dampening": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, dampening=0.4),
    "sgd, nesterov": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "sgd, nesterov, foreach": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True, foreach=True),
    "sgd, nesterov, foreach, decay": partial(
        torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True, foreach=True, maximize=True, weight_decay=0.1
    ),
}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def gradients_at(model: nn.Module, step: int) -> None:
    data = torch.randn(6, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    model.zero_grad()
    (model(data).sin().square().sum() * (1 + step)).backward()


def by_hand(
    options: dict[str, Any], adam: bool, history: list[tuple[Tensor, Tensor]], etas: list[float], since: int
) -> Tensor:
    """What a parameter's direction must be, from its gradients and values before every step since the beginning."""
    total = torch.zeros_like(history[0][0])
    coupled = 0.0 if options.get("decoupled_weight_decay") else options.get("weight_decay", 0.0)
    own: Tensor | None = None
    scaled: Tensor | None = None
    v = v_max = torch.zeros_like(total)
    for step, ((gradient, weight), eta) in enumerate(zip(history, etas, strict=True), 1):
        g = (-gradient if options.get("maximize") else gradient) + coupled * weight
        if step == since + 1:
            scaled = None if own is None else own.clone()
        eta = eta if step > since else 1.0
        if adam:
            beta1, beta2 = options["betas"]
            own = beta1 * (0 if own is None else own) + (1 - beta1) * g
            scaled = beta1 * (0 if scaled is None else scaled) + (1 - beta1) * eta * g
            v = beta2 * v + (1 - beta2) * g**2
            v_max = torch.maximum(v_max, v)
            length = ((v_max if options["amsgrad"] else v) / (1 - beta2**step)).sqrt() + options["eps"]
            moved = options["lr"] / (1 - beta1**step) * scaled / length
        else:
            momentum, damped = options["momentum"], 1 - options["dampening"]
            own = g if own is None else momentum * own + damped * g
            scaled = eta * g if scaled is None else momentum * scaled + damped * eta * g
            step_of = eta * g + momentum * scaled if options["nesterov"] else scaled
            moved = options["lr"] * (step_of if momentum else eta * g)
        if step > since:
            total = total + moved
    return total


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("since", [0, 3])
def test_it_is_the_brute_force(name: str, since: int) -> None:
    """Also where a site stays alive, so that the moments of the optimizer go on from an earlier round."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    counted = ScaledUpdate(model, optimizer, scale="gradient")
    history: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.parameters()]
    etas = [2.0] * since + ETAS
    update = None
    for step, eta in enumerate(etas):
        if step == since:
            counted.finish(1)
        gradients_at(model, step)
        for past, parameter in zip(history, model.parameters(), strict=True):
            assert parameter.grad is not None
            past.append((parameter.grad.clone(), parameter.detach().clone()))
        counted.step(eta)
    update = counted.finish(7)
    options = optimizer.param_groups[0]
    for past, (entry, parameter) in zip(history, model.named_parameters(), strict=True):
        expected = by_hand(options, "betas" in options, past, etas, since)
        torch.testing.assert_close(update.direction[entry], expected, rtol=1e-9, atol=1e-12)
        assert parameter.shape == expected.shape
    assert update.num_steps == len(ETAS)
    assert update.metrics["mean_eta"] == pytest.approx(sum(ETAS) / len(ETAS))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_every_eta_1_it_is_fedgs_with_every_eta_1(name: str) -> None:
    found = []
    for scale in ("steps", "gradient"):
        model = network()
        counted = ScaledUpdate(model, OPTIMIZERS[name](model.parameters()), scale=scale)
        for step in range(6):
            gradients_at(model, step)
            counted.step(1.0)
        found.append(counted.finish(1).direction)
    for entry, tensor in found[0].items():
        torch.testing.assert_close(found[1][entry], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("after", ["set to None", "set to zero", "clipped before", "made in a closure"])
def test_it_does_not_matter_when_gradients_come_and_go(name: str, after: str) -> None:
    found = []
    for way in ("step", after):
        model = network()
        optimizer = OPTIMIZERS[name](model.parameters())
        counted = ScaledUpdate(model, optimizer, scale="gradient")
        for step, eta in enumerate(ETAS):
            if way == "made in a closure":
                counted.step(eta, closure=partial(clipped_at, model, step))
                continue
            gradients_at(model, step)
            if way == "clipped before":
                counted.before_step(eta)
                clipped_at(model, step)
                optimizer.step()
                counted.after_step()
                continue
            if "in a closure" in after or "clipped" in after:
                clipped_at(model, step)
            if way == "step":
                counted.step(eta)
                continue
            counted.before_step(eta)
            optimizer.step()
            optimizer.zero_grad(set_to_none=way == "set to None")
            counted.after_step()
        found.append(counted.finish(1).direction)
    for entry, tensor in found[0].items():
        assert float(tensor.abs().sum()) > 0
        torch.testing.assert_close(found[1][entry], tensor, rtol=1e-12, atol=1e-14)


def clipped_at(model: nn.Module, step: int) -> float:
    gradients_at(model, step)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    return 0.0


def test_sgd_with_and_without_momentum_is_refused() -> None:
    model = network()
    groups = [{"params": model[0].parameters(), "momentum": 0.9}, {"params": model[2].parameters()}]
    with pytest.raises(ConfigError, match="which is 0 in a group of parameters; give every group momentum, or none"):
        ScaledUpdate(model, torch.optim.SGD(groups, lr=1e-2), scale="gradient")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    counted = ScaledUpdate(model, optimizer, scale="gradient")
    optimizer.param_groups[0]["momentum"] = 0.0
    gradients_at(model, 0)
    with pytest.raises(ConfigError, match="which is 0 in a group"):
        counted.step(1.0)


def test_momentum_that_sgd_is_given_later_is_noticed() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    counted = ScaledUpdate(model, optimizer, scale="gradient")
    gradients_at(model, 0)
    counted.step(1.5)
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ConfigError, match="had no momentum when the ScaledUpdate was made"):
        counted.step(1.5)


def test_local_training_stays_as_it_was() -> None:
    ends = []
    for wrapped in (False, True):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        counted = ScaledUpdate(model, optimizer, scale="gradient") if wrapped else None
        for step in range(4):
            gradients_at(model, step)
            if counted:
                counted.step(3.0)
            else:
                optimizer.step()
        ends.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_a_parameter_that_gets_its_gradient_late() -> None:
    model = network()
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model.register_parameter("late", late)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    counted = ScaledUpdate(model, optimizer, scale="gradient")
    for step in range(3):
        gradients_at(model, step)
        if step:
            late.grad = torch.full((2,), float(step), dtype=torch.float64)
        counted.step(1.0)
    direction = counted.finish(1).direction["late"]
    torch.testing.assert_close(direction, 1 - late.detach())


def test_a_step_that_a_schedule_slows_down() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    counted = ScaledUpdate(model, optimizer, scale="gradient")
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(2):
        gradients_at(model, step)
        counted.step(1.0)
        schedule.step()
    moved = {name: start[name] - p.detach() for name, p in model.named_parameters()}
    for name, tensor in counted.finish(1).direction.items():
        torch.testing.assert_close(tensor, moved[name])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (partial(torch.optim.RMSprop, lr=1e-2), "knows it of Adam, AdamW, SGD, not of RMSprop"),
        (partial(torch.optim.NAdam, lr=1e-2), "not of NAdam"),
        (partial(torch.optim.Adagrad, lr=1e-2), "not of Adagrad"),
    ],
)
def test_other_optimizers_are_refused_with_the_reason(make: Callable[..., Any], says: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=says):
        ScaledUpdate(model, make(model.parameters()), scale="gradient")


@pytest.mark.parametrize("options", [{"count_weight_decay": True}, {"exact": False}])
def test_choices_that_exclude_it(options: dict[str, bool]) -> None:
    model = network()
    with pytest.raises(ConfigError, match="goes neither with count_weight_decay=True nor"):
        ScaledUpdate(model, torch.optim.AdamW(model.parameters()), scale="gradient", **options)  # type: ignore[arg-type]


def test_an_unknown_scale() -> None:
    model = network()
    with pytest.raises(ConfigError, match="unknown scale 'gradients'; did you mean 'gradient'"):
        ScaledUpdate(model, torch.optim.AdamW(model.parameters()), scale="gradients")
    with pytest.raises(ConfigError, match="unknown scale"):
        fedgs.fedgs(scale="momentum")


def test_an_enabled_scaler_is_refused() -> None:
    model = network()
    counted = ScaledUpdate(model, torch.optim.AdamW(model.parameters()), scale="gradient")
    gradients_at(model, 0)
    with pytest.raises(ConfigError, match="use bfloat16"):
        counted.step(1.0, scaler=torch.amp.GradScaler("cpu"))


def test_without_momentum_a_scaled_gradient_is_a_scaled_step() -> None:
    found = []
    for scale in ("steps", "gradient"):
        model = network()
        counted = ScaledUpdate(model, torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.0, 0.99)), scale=scale)
        for step, eta in enumerate(ETAS):
            gradients_at(model, step)
            counted.step(eta)
        found.append(counted.finish(1).direction)
    for entry, tensor in found[0].items():
        torch.testing.assert_close(found[1][entry], tensor, rtol=1e-6, atol=1e-9)
        assert math.isfinite(float(tensor.sum()))
