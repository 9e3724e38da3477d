from __future__ import annotations

import json
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor, nn

from fedgs import ScaledUpdate
from fedgs.core import Update
from fedgs.errors import ConfigError
from fedgs.tensors import weights_of
from nets import Tiny, batches, objective, tiny

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]
LR = 1e-3

OPTIMIZERS: dict[str, tuple[Make, bool]] = {
    "adamw": (partial(torch.optim.AdamW, lr=LR, weight_decay=0.3), True),
    "adamw-fused": (partial(torch.optim.AdamW, lr=LR, weight_decay=0.3, fused=True), True),
    "adamw-foreach": (partial(torch.optim.AdamW, lr=LR, weight_decay=0.3, foreach=True), True),
    "adamw-single": (partial(torch.optim.AdamW, lr=LR, weight_decay=0.3, foreach=False), True),
    "adamw-amsgrad": (partial(torch.optim.AdamW, lr=LR, weight_decay=0.3, amsgrad=True), True),
    "adam": (partial(torch.optim.Adam, lr=LR, weight_decay=0.3), False),
    "adam-decoupled": (partial(torch.optim.Adam, lr=LR, weight_decay=0.3, decoupled_weight_decay=True), True),
    "sgd": (partial(torch.optim.SGD, lr=LR, weight_decay=0.3), False),
    "sgd-momentum": (partial(torch.optim.SGD, lr=LR, momentum=0.9, weight_decay=0.3), False),
    "sgd-nesterov": (partial(torch.optim.SGD, lr=LR, momentum=0.9, nesterov=True, weight_decay=0.3), False),
    "rmsprop": (partial(torch.optim.RMSprop, lr=LR, momentum=0.5, weight_decay=0.3), False),
    "radam": (partial(torch.optim.RAdam, lr=LR, weight_decay=0.3), False),
    "radam-decoupled": (partial(torch.optim.RAdam, lr=LR, weight_decay=0.3, decoupled_weight_decay=True), True),
    "nadam": (partial(torch.optim.NAdam, lr=LR, weight_decay=0.3, decoupled_weight_decay=True), True),
    "adagrad": (partial(torch.optim.Adagrad, lr=LR, weight_decay=0.3), False),
    "adafactor": (partial(torch.optim.Adafactor, lr=LR, weight_decay=0.3), True),
}


class BruteForce:
    """The definition, step by step, in float64: eta * ((before - after) - lambda * before)."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, decoupled: bool) -> None:
        self.weights, self.optimizer, self.decoupled = weights_of(model), optimizer, decoupled
        self.total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in self.weights.items()}
        self.moved = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in self.weights.items()}

    def before(self) -> None:
        self.rates = {
            id(p): float(group["lr"]) * group["weight_decay"] if self.decoupled and p.grad is not None else 0.0
            for group in self.optimizer.param_groups
            for p in group["params"]
        }
        self.values = {name: w.detach().double().clone() for name, w in self.weights.items()}

    def after(self, eta: float) -> None:
        for name, weight in self.weights.items():
            rate = self.rates.get(id(weight), 0.0)
            step = (self.values[name] - weight.detach().double()) - rate * self.values[name]
            self.total[name] += eta * step
            self.moved[name] += eta * step.abs()


def train(
    model: nn.Module, etas: list[float], make: Make, *, decoupled: bool, exact: bool, count: bool = False, seed: int = 0
) -> tuple[Update, BruteForce]:
    dtype = next(model.parameters()).dtype
    optimizer = make(
        [
            {"params": [p for name, p in model.named_parameters() if "first" in name]},
            {"params": [p for name, p in model.named_parameters() if "first" not in name], "lr": 3e-4},
        ]
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    scaled = ScaledUpdate(model, optimizer, exact=exact, count_weight_decay=count)
    brute = BruteForce(model, optimizer, decoupled=decoupled and not count)
    for eta, batch in zip(etas, batches(len(etas), seed, dtype=dtype), strict=True):
        optimizer.zero_grad()
        sum(objective(model(batch.images), batch).values()).backward()
        brute.before()
        scaled.step(eta)
        brute.after(eta)
        schedule.step()
    return scaled.finish(num_examples=4 * len(etas)), brute


def assert_equal(update: Update, reference: dict[str, Tensor], tolerance: float) -> None:
    assert update.direction.keys() == reference.keys()
    largest = max(float(tensor.abs().max()) for tensor in reference.values())
    for name, tensor in reference.items():
        assert torch.allclose(update.direction[name].double(), tensor, rtol=tolerance, atol=tolerance * largest), name


ETAS = [1.0, 2.5, 1.0, 1.0, 1.2, 1.3, 1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("count", [False, True], ids=["decay left out", "decay counted"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exact_equals_brute_force(name: str, count: bool) -> None:
    make, decoupled = OPTIMIZERS[name]
    update, brute = train(tiny(dtype=torch.float64), ETAS, make, decoupled=decoupled, exact=True, count=count)
    assert_equal(update, brute.total, 1e-9)
    assert update.num_steps == len(ETAS)
    assert update.metrics["mean_eta"] == pytest.approx(sum(ETAS) / len(ETAS))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_closed_form_stays_within_its_bound(name: str) -> None:
    make, decoupled = OPTIMIZERS[name]
    update, brute = train(tiny(dtype=torch.float64), ETAS * 4, make, decoupled=decoupled, exact=False)
    if not decoupled:
        assert_equal(update, brute.total, 1e-9)
    for key, total in brute.total.items():
        assert ((update.direction[key] - total).abs() <= 1e-3 * brute.moved[key] + 1e-15).all()


@pytest.mark.parametrize("name", ["adamw", "adam-decoupled"])
def test_closed_form_is_exact_where_decay_is_counted(name: str) -> None:
    make, _ = OPTIMIZERS[name]
    update, brute = train(tiny(dtype=torch.float64), ETAS, make, decoupled=True, exact=False, count=True)
    assert_equal(update, brute.total, 1e-9)


def test_closed_form_really_differs_so_that_the_bound_means_something() -> None:
    make, _ = OPTIMIZERS["adamw"]
    update, brute = train(tiny(dtype=torch.float64), [1.0] * 12, make, decoupled=True, exact=False)
    assert any(not torch.allclose(update.direction[name], total, rtol=1e-8) for name, total in brute.total.items())


def test_closed_form_refuses_a_step_with_too_much_decay() -> None:
    model = tiny()
    scaled = ScaledUpdate(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.05), exact=False)
    with pytest.raises(ConfigError, match="exact=True"):
        scaled.step(1.0)


@pytest.mark.parametrize("scaled", [False, True], ids=["eta 1", "eta varies"])
def test_300_steps_in_float32_lose_at_most_1e5(scaled: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(1 + 0.1 * torch.randn_like(weight))  # near 1, where a careless order loses most
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    counter, brute = ScaledUpdate(model, optimizer), BruteForce(model, optimizer, decoupled=True)
    for step in range(300):
        optimizer.zero_grad()
        model(torch.randn(8, 30)).square().mean().backward()
        brute.before()
        counter.step(eta := 1 + step % 5 / 2 if scaled else 1.0)
        brute.after(eta)
    direction = counter.finish(8).direction
    error = sum(float((direction[name] - total).square().sum()) for name, total in brute.total.items()) ** 0.5
    size = sum(float(total.square().sum()) for total in brute.total.values()) ** 0.5
    assert error <= 1e-5 * size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_are_at_least_float32(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 4).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaled = ScaledUpdate(model, optimizer)
    before = {name: weight.detach().clone().double() for name, weight in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4, dtype=dtype)).sum().backward()
        scaled.step(1.0)
    update = scaled.finish(2)
    for name, weight in model.named_parameters():
        assert update.direction[name].dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(update.direction[name].double(), before[name] - weight.detach().double())


def test_golden_updates(shared: Path) -> None:
    golden = load_file(shared / "golden" / "update_tiny.safetensors")
    about = json.loads((shared / "golden" / "update_tiny.json").read_text())
    for number in range(2):
        for site, steps in enumerate(about["steps"]):
            model = nn.Module()
            start = f"round{number}/server_in/"
            for name in about["param_names"]:
                _register(model, name, golden[start + name])
            optimizer = torch.optim.AdamW(
                model.parameters(), about["lr"], tuple(about["betas"]), about["eps"], about["weight_decay"]
            )
            scaled = ScaledUpdate(model, optimizer)
            for step in range(steps):
                here = f"round{number}/site{site}/step{step}/"
                for name, weight in model.named_parameters():
                    weight.grad = golden[f"{here}grads/{name}"].clone()
                scaled.step(about["eta"][site][step])
                for name, weight in model.named_parameters():
                    torch.testing.assert_close(weight.detach(), golden[f"{here}params/{name}"], rtol=0, atol=1e-6)
            update = scaled.finish(1)
            assert update.num_steps == steps
            for name, direction in update.direction.items():
                cum = golden[f"round{number}/site{site}/step{steps - 1}/cum_grad/{name}"]
                torch.testing.assert_close(direction, cum, rtol=0, atol=1e-6)
                sent = golden[f"round{number}/site{site}/update/{name}"]
                torch.testing.assert_close(direction, sent, rtol=0, atol=1e-6)


def _register(model: nn.Module, name: str, value: Tensor) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in dict(model.named_children()):
            model.add_module(part, nn.Module())
        model = model.get_submodule(part)
    model.register_parameter(leaf, nn.Parameter(value.float().clone()))


def test_what_follows_finish_is_the_next_round() -> None:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for exact in (True, False):
        scaled = ScaledUpdate(model, optimizer, exact=exact)
        for _ in range(2):
            with torch.no_grad():
                for weight in model.parameters():  # the server's weights arrive between rounds
                    weight.copy_(torch.ones_like(weight))
            for weight in model.parameters():
                weight.grad = torch.ones_like(weight)
            scaled.step(2.0)
            update = scaled.finish(4)
            assert update.num_steps == 1
            for direction in update.direction.values():
                torch.testing.assert_close(direction, torch.full_like(direction, 0.2))


def test_exact_counts_only_the_optimizers_steps() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaled = ScaledUpdate(model, optimizer)
    for _ in range(3):
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        scaled.step(1.0)
        with torch.no_grad():
            model.weight.clamp_(-0.01, 0.01)
    torch.testing.assert_close(scaled.finish(1).direction["weight"], torch.full((2, 2), 0.3))


def test_names_tied_frozen_and_idle_parameters() -> None:
    model = tiny()
    update, _ = train(model, [1.5, 1.0], OPTIMIZERS["adamw"][0], decoupled=True, exact=True)
    assert "alias.weight" not in update.direction
    assert "frozen" not in update.direction
    assert update.direction["unused"].count_nonzero() == 0
    assert set(update.buffers) == {"norm.running_mean", "norm.running_var"}
    assert update.direction.keys() == weights_of(model).keys()
    buffers = update.buffers["norm.running_mean"].clone()
    model.norm.running_mean.zero_()
    assert torch.equal(update.buffers["norm.running_mean"], buffers)  # a copy, not the live tensor


def test_a_parameter_that_misses_single_steps_is_counted_right() -> None:
    model = tiny(dtype=torch.float64)
    for exact in (True, False):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.3)
        scaled, brute = ScaledUpdate(model, optimizer, exact=exact), BruteForce(model, optimizer, decoupled=True)
        for step in range(6):
            for weight in model.parameters():
                weight.grad = torch.ones_like(weight) if weight.requires_grad else None
            if step % 2:
                model.head.weight.grad = None
            brute.before()
            scaled.step(1.0)
            brute.after(1.0)
        update = scaled.finish(1)
        for name, total in brute.total.items():
            assert ((update.direction[name] - total).abs() <= (1e-9 if exact else 1e-3) * brute.moved[name]).all()


def test_parameters_that_share_memory_travel_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False)
            self.two = nn.Linear(3, 3, bias=False)
            self.two.weight = nn.Parameter(self.one.weight.data)

    model = Shared()
    assert list(weights_of(model)) == ["one.weight"]
    scaled = ScaledUpdate(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    scaled.step(1.0)
    torch.testing.assert_close(scaled.finish(1).direction["one.weight"], torch.full((3, 3), 0.2))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_counts_nothing(fused: bool, exact: bool) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaled, brute = ScaledUpdate(model, optimizer, exact=exact), BruteForce(model, optimizer, decoupled=True)
    for step in range(5):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        if step in (0, 2, 3):
            model.weight.grad[0, 0] = torch.inf
        brute.before()
        scaled.step(2.0 if step != 3 else 3.0, scaler=scaler)
        if step not in (0, 2, 3):
            brute.after(2.0)
        scaler.update()
    update = scaled.finish(1)
    assert update.num_steps == 2
    assert update.metrics["mean_eta"] == 2.0
    assert_equal(update, brute.total, 1e-5)


def test_a_closure_counts_as_one_step() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    scaled, calls = ScaledUpdate(model, optimizer), []

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = (model(torch.ones(4, 3)) - 3).square().mean()
        loss.backward()
        return loss

    before = model.weight.detach().clone()
    loss = scaled.step(1.5, closure)
    update = scaled.finish(4)
    assert loss.item() > 0
    assert len(calls) > 1
    assert update.num_steps == 1
    torch.testing.assert_close(update.direction["weight"], 1.5 * (before - model.weight.detach()))


def test_a_closure_under_decoupled_decay() -> None:
    model = tiny(dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.3)
    scaled, brute = ScaledUpdate(model, optimizer), BruteForce(model, optimizer, decoupled=True)
    batch = next(batches(1, 0, dtype=torch.float64))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(model(batch.images), batch)["ce"]
        loss.backward()
        return loss

    closure()
    brute.before()
    optimizer.zero_grad()
    scaled.step(2.0, closure)
    brute.after(2.0)
    assert_equal(scaled.finish(1), brute.total, 1e-9)


def test_bf16_autocast() -> None:
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    scaled, brute = ScaledUpdate(model, optimizer), BruteForce(model, optimizer, decoupled=True)
    for batch in batches(4, 0):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(model(batch.images), batch)["ce"]
        loss.backward()
        brute.before()
        scaled.step(1.5)
        brute.after(1.5)
    assert_equal(scaled.finish(16), brute.total, 1e-5)


class Wrapped(nn.Module):
    """A network with a part called ``module``, which is no wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(inputs)


def test_wrappers_leave_no_trace_in_names() -> None:
    plain = Wrapped()
    compiled = torch.compile(plain, backend="eager")
    inner = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"))
    assert list(weights_of(nn.DataParallel(plain))) == ["module.weight", "module.bias"]
    assert list(weights_of(compiled)) == ["module.weight", "module.bias"]
    assert list(weights_of(inner)) == ["0.weight", "0.bias"]
    scaled = ScaledUpdate(compiled, torch.optim.SGD(compiled.parameters(), lr=0.1))
    compiled(torch.ones(1, 2)).sum().backward()
    scaled.step(1.0)
    assert list(scaled.finish(1).direction) == ["module.weight", "module.bias"]


class HomeMade(torch.optim.Optimizer):
    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])


class QuietAdamW(torch.optim.AdamW):
    """A subclass that leaves the step alone."""


def test_an_unknown_optimizer_with_weight_decay_must_be_told() -> None:
    model = tiny(dtype=torch.float64)
    with pytest.raises(ConfigError, match="decoupled_decay"):
        ScaledUpdate(model, HomeMade(model.parameters(), 0.1, 0.1))
    ScaledUpdate(model, HomeMade(model.parameters(), 0.1, 0.0))
    ScaledUpdate(model, HomeMade(model.parameters(), 0.1, 0.1), count_weight_decay=True)
    ScaledUpdate(model, QuietAdamW(model.parameters()))
    optimizer = HomeMade(model.parameters(), 0.1, 0.1)
    scaled = ScaledUpdate(model, optimizer, decoupled_decay=True)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    scaled.step(1.0)
    for name, direction in scaled.finish(1).direction.items():
        if name != "second.weight":
            torch.testing.assert_close(direction, torch.full_like(direction, 0.1))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -0.1])
def test_a_scale_that_is_no_scale_is_refused(scale: float) -> None:
    model = nn.Linear(2, 2)
    scaled = ScaledUpdate(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ConfigError, match="finite and 0 or more"):
        scaled.step(scale)
    assert torch.equal(model.weight, before)


def test_what_cannot_be_counted_is_refused() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="not in the model"):
        ScaledUpdate(model, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="differentiable"):
        ScaledUpdate(model, torch.optim.SGD(model.parameters(), lr=0.1, differentiable=True))
    lazy = nn.LazyLinear(2)
    with pytest.raises(ConfigError, match="lazy"):
        ScaledUpdate(lazy, torch.optim.SGD(lazy.parameters(), lr=0.1))
    scaled = ScaledUpdate(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="exclude each other"):
        scaled.step(1.0, closure=lambda: None, scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ConfigError, match="num_examples"):
        scaled.finish(-1)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_sharded_parameters_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    mesh = init_device_mesh("cpu", (1,))
    sharded = nn.Linear(4, 4)
    fully_shard(sharded, mesh=mesh)
    with pytest.raises(ConfigError, match="DTensor"):
        ScaledUpdate(sharded, torch.optim.SGD(sharded.parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about FSDP on a CPU
        flat = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    with pytest.raises(ConfigError, match="FullyShardedDataParallel"):
        ScaledUpdate(nn.Sequential(flat), torch.optim.SGD(flat.parameters(), lr=0.1))


def test_parameters_that_come_later_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaled = ScaledUpdate(model, optimizer)
    model.weight.grad = torch.ones(2, 2)
    scaled.step(1.0)
    model.bias.requires_grad_(True)
    with pytest.raises(ConfigError, match="added, replaced, frozen or unfrozen"):
        scaled.step(1.0)
    model.bias.requires_grad_(False)  # undone, the round can be kept
    torch.testing.assert_close(scaled.finish(1).direction["weight"], torch.full((2, 2), 0.1))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ConfigError, match="added, replaced"):
        scaled.step(1.0)


@pytest.mark.parametrize("change", ["add", "replace"])
def test_layers_that_are_added_or_replaced_are_refused(change: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    scaled = ScaledUpdate(model, torch.optim.SGD(model.parameters(), lr=0.1))
    if change == "add":
        model.append(nn.Linear(2, 2))
    else:
        model[1] = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="gained, lost or replaced"):
        scaled.finish(1)
    with pytest.raises(ConfigError, match="added, replaced"):
        scaled.step(1.0)


def fixed_steps(scaled: ScaledUpdate, model: nn.Module, scales: list[Any]) -> None:
    for scale in scales:
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        scaled.step(scale)


@pytest.mark.parametrize("scale", [torch.tensor(2.0), torch.tensor([2.0], requires_grad=True), np.float32(2), 2])
def test_a_scale_may_be_a_number_of_torch_or_numpy(scale: Any) -> None:
    model = nn.Linear(2, 2)
    scaled = ScaledUpdate(model, torch.optim.SGD(model.parameters(), lr=0.1))
    fixed_steps(scaled, model, [scale])
    update = scaled.finish(torch.tensor(3))  # type: ignore[arg-type]
    torch.testing.assert_close(update.direction["bias"], torch.full((2,), 0.2))
    assert type(update.metrics["mean_eta"]) is float
    assert update.num_examples == 3


def test_segments_of_the_closed_form_are_cut_and_unscaled_steps_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[float] = []
    open_segment = ScaledUpdate._open_segment

    def note(self: ScaledUpdate, scale: float) -> None:
        opened.append(scale)
        open_segment(self, scale)

    monkeypatch.setattr(ScaledUpdate, "_open_segment", note)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0999)  # about 1e-4 per step
    scaled = ScaledUpdate(model, optimizer, exact=False)
    fixed_steps(scaled, model, [1.0] * 35)
    assert opened == [1.0] * 4  # ten steps to a segment
    fixed_steps(scaled, model, [2.0, 2.0, 1.0, 1.0])
    assert opened[4:] == [2.0, 2.0, 1.0]


def test_the_error_of_the_closed_form_stays_below_c_over_a_long_round() -> None:
    model = nn.Linear(1, 1, dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    scaled, brute = ScaledUpdate(model, optimizer, exact=False), BruteForce(model, optimizer, decoupled=True)
    for _ in range(300):  # c of the whole round would be 0.15
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        brute.before()
        scaled.step(1.0)
        brute.after(1.0)
    update = scaled.finish(1)
    for name, total in brute.total.items():
        error = (update.direction[name] - total).abs()
        assert (error <= 1e-3 * brute.moved[name]).all()
        assert (error > 1e-5 * brute.moved[name]).all()


@pytest.mark.parametrize("exact", [True, False])
def test_a_step_that_fails_leaves_nothing_behind(exact: bool) -> None:
    model = nn.Linear(2, 2)
    scaled = ScaledUpdate(model, torch.optim.SGD(model.parameters(), lr=0.1), exact=exact)

    def out_of_memory() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        scaled.step(2.0, out_of_memory)
    with torch.no_grad():
        model.bias += 1
    fixed_steps(scaled, model, [1.0])
    update = scaled.finish(1)
    assert update.num_steps == 1
    torch.testing.assert_close(update.direction["bias"], torch.full((2,), 0.1))


@pytest.mark.parametrize(("exact", "expected"), [(True, 0.8), (False, 0.8 - (1 + 1 + 3))])
def test_changes_between_steps_count_only_without_exact(exact: bool, expected: float) -> None:
    model = nn.Linear(1, 1)
    scaled = ScaledUpdate(model, torch.optim.SGD(model.parameters(), lr=0.1), exact=exact)
    for scale in (1.0, 1.0, 3.0, 3.0):
        fixed_steps(scaled, model, [scale])
        with torch.no_grad():
            model.bias += 1  # counts with the scale of the step that follows or of the run it lies in; the last never
    torch.testing.assert_close(scaled.finish(1).direction["bias"], torch.full((1,), expected))


def test_groups_of_adamw_may_couple_their_decay() -> None:
    model = tiny(dtype=torch.float64)
    groups = [
        {"params": [model.head.weight], "decoupled_weight_decay": False},
        {"params": [p for p in model.parameters() if p is not model.head.weight]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)
    scaled = ScaledUpdate(model, optimizer)
    before = model.head.weight.detach().clone()
    fixed_steps(scaled, model, [1.0])
    torch.testing.assert_close(scaled.finish(1).direction["head.weight"], before - model.head.weight.detach())


def test_an_optimizer_is_recognised_whatever_was_made_before_it() -> None:
    code = """
import torch
from fedgs import ScaledUpdate
class Quiet(torch.optim.AdamW): pass
class Loud(torch.optim.SGD): pass
model = torch.nn.Linear(2, 2)
ScaledUpdate(model, Quiet(model.parameters()))
ScaledUpdate(model, Loud(model.parameters(), lr=0.1, weight_decay=0.1))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shared_memory_under_decoupled_decay_decays_once_per_object() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False, dtype=torch.float64)
            self.two = nn.Linear(3, 3, bias=False, dtype=torch.float64)
            self.two.weight = nn.Parameter(self.one.weight.data)

    model = Shared()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    scaled, before = ScaledUpdate(model, optimizer), model.one.weight.detach().clone()
    fixed_steps(scaled, model, [1.0])
    rate = 1 - (1 - 5e-3) ** 2
    expected = before - model.one.weight.detach() - rate * before
    torch.testing.assert_close(scaled.finish(1).direction["one.weight"], expected)


@pytest.mark.parametrize("name", ["adamw", "adamw-fused", "sgd-nesterov", "radam", "rmsprop"])
@pytest.mark.parametrize("kind", ["enabled", "unscaled first", "disabled"])
def test_a_scaler_changes_nothing_but_the_skips(kind: str, name: str) -> None:
    make, decoupled = OPTIMIZERS[name]
    model = tiny()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=kind != "disabled", init_scale=8.0)
    scaled, brute = ScaledUpdate(model, optimizer), BruteForce(model, optimizer, decoupled=decoupled)
    for batch in batches(3, 0):
        optimizer.zero_grad()
        scaler.scale(objective(model(batch.images), batch)["ce"]).backward()
        if kind == "unscaled first":
            scaler.unscale_(optimizer)
        brute.before()
        scaled.step(1.5, scaler=scaler)
        brute.after(1.5)
        scaler.update()
    assert "step" not in vars(optimizer)
    update = scaled.finish(12)
    assert update.num_steps == 3
    assert_equal(update, brute.total, 1e-5)


def test_an_optimizer_state_may_be_loaded_between_steps() -> None:
    model = tiny(dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.3)
    scaled, brute = ScaledUpdate(model, optimizer), BruteForce(model, optimizer, decoupled=True)
    for batch in batches(3, 0, dtype=torch.float64):
        optimizer.zero_grad()
        objective(model(batch.images), batch)["ce"].backward()
        brute.before()
        scaled.step(1.5)
        brute.after(1.5)
        optimizer.load_state_dict(optimizer.state_dict())
    assert_equal(scaled.finish(1), brute.total, 1e-9)


def test_the_optimizer_is_left_alone() -> None:
    runs = []
    for counted in (False, True):
        model = tiny()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scaled = ScaledUpdate(model, optimizer)
        for batch in batches(4, 0):
            optimizer.zero_grad()
            objective(model(batch.images), batch)["ce"].backward()
            scaled.step(2.5) if counted else optimizer.step()
        if counted:
            scaled.finish(1)
        runs.append((model, optimizer.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True))
    for index, state in runs[0][1]["state"].items():
        assert all(torch.equal(value, runs[1][1]["state"][index][key]) for key, value in state.items())


class Outer(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": nn.parallel.DistributedDataParallel,
    "compile(DDP)": lambda model: torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager"),
    "Outer(DDP)": lambda model: Outer(nn.parallel.DistributedDataParallel(model)),
}


def _rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name, wrap in WRAPPERS.items():
        torch.save(_train_rank(rank, wrap), folder / f"{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


def _train_rank(rank: int, wrap: Callable[[nn.Module], nn.Module]) -> tuple[Any, ...]:
    model: Tiny = tiny(dtype=torch.float64)
    model.unused.requires_grad_(False)
    wrapped = wrap(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3, weight_decay=0.3)
    scaled = ScaledUpdate(wrapped, optimizer)
    for batch in batches(3, rank, dtype=torch.float64):
        optimizer.zero_grad()
        objective(wrapped(batch.images), batch)["ce"].backward()
        scaled.step(1.0 + rank)  # the mean over ranks is 1.5
    update = scaled.finish(num_examples=10 + rank)
    refused = ""
    try:
        scaled.step(float("nan") if rank else 1.0)
    except ConfigError as error:
        refused = str(error)
    return dict(update.direction), dict(update.buffers), update.num_examples, dict(update.metrics), refused


def test_every_rank_holds_the_same_update(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, tmp_path), nprocs=2)
    for name in WRAPPERS:
        mine, other = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert mine[2] == other[2] == 21
        assert mine[3] == other[3] == {"mean_eta": 1.5}
        assert "every rank" in mine[4]
        assert "every rank" in other[4]
        for part in (0, 1):
            assert all(torch.equal(tensor, other[part][key]) for key, tensor in mine[part].items())
        assert ("net.first.weight" if name == "Outer(DDP)" else "first.weight") in mine[0]
