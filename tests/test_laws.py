"""Laws that relate the algorithms to each other and to plain training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import fedgs
from fedgs.algorithms.server_rules import mean_by, with_momentum
from fedgs.core import Algorithm, Global, LocalRule, Site, Update, global_of, load, run_round, train_locally
from fedgs.errors import AggregationError, ConfigError, TrainingError
from nets import batches, objective, site, tiny

PLAIN = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)


def two_rounds(algorithm: Algorithm, make: Callable[[int], list[Site]]) -> Global:
    model = tiny()
    state = global_of(model)
    for number in (1, 2):
        state, _ = run_round(algorithm, model, state, make(number), {})
    return state


def same_bits(one: Global, other: Global) -> bool:
    pairs = [(one.weights, other.weights), (one.buffers, other.buffers), (one.state, other.state)]
    return all(
        left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
        for left, right in pairs
    )


def assert_close(one: Global, other: Global, tolerance: float = 1e-5) -> None:
    for name, tensor in one.weights.items():
        torch.testing.assert_close(tensor, other.weights[name], rtol=tolerance, atol=tolerance)


def sites(number: int, *, small: bool = True, steps: tuple[int, ...] = (3, 5, 4), **options: object) -> list[Site]:
    return [
        site(name, steps=count, number=number, seed=10 * number + index, small=small, **options)  # type: ignore[arg-type]
        for index, (name, count) in enumerate(zip("ABC", steps, strict=True))
    ]


def test_fedgs_without_small_lesions_is_the_published_fedavg_to_the_bit() -> None:
    make = partial(sites, small=False)
    assert same_bits(two_rounds(fedgs.fedgs(), make), two_rounds(fedgs.fedavg_published(), make))
    assert not same_bits(two_rounds(fedgs.fedgs(), sites), two_rounds(fedgs.fedavg_published(), sites))


def test_fedgs_with_eta_1_is_mcmahans_fedavg_where_steps_and_examples_agree_and_nothing_decays() -> None:
    make = partial(sites, small=False, steps=(4, 4, 4), optimizer=PLAIN)
    assert_close(two_rounds(fedgs.fedgs(), make), two_rounds(fedgs.fedavg(), make))
    unequal = partial(sites, small=False, steps=(2, 9, 4), optimizer=PLAIN)
    by_examples = [replace(s, num_examples=7) for s in unequal(1)]
    by_steps, _ = run_round(fedgs.fedgs(), tiny(), global_of(tiny()), unequal(1), {})
    mcmahan, _ = run_round(fedgs.fedavg(), tiny(), global_of(tiny()), by_examples, {})
    with pytest.raises(AssertionError):
        assert_close(by_steps, mcmahan)


def test_counted_decay_reaches_the_server_and_uncounted_does_not() -> None:
    published, mcmahan = (
        two_rounds(algorithm, partial(sites, small=False, steps=(4, 4, 4)))
        for algorithm in (fedgs.fedavg_published(), fedgs.fedavg())
    )
    with pytest.raises(AssertionError):
        assert_close(published, mcmahan)
    assert_close(published, two_rounds(fedgs.fedavg("steps", False), partial(sites, small=False, steps=(4, 4, 4))), 0)


def test_one_site_is_local_training() -> None:
    model = tiny()
    state, _ = run_round(fedgs.fedavg(), model, global_of(model), [site("A", steps=6)], {})
    alone = tiny()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-2, weight_decay=0.01)
    for batch in site("A", steps=6).batches:
        optimizer.zero_grad()
        objective(alone(batch.images), batch)["ce"].backward()
        optimizer.step()
    assert_close(state, global_of(alone), 1e-6)
    torch.testing.assert_close(state.buffers["norm.running_var"], alone.norm.running_var)


@pytest.mark.parametrize("make", [fedgs.fedgs, fedgs.fedavg, partial(fedgs.fedgs, server_momentum=0.9, lr=0.1)])
def test_the_order_of_sites_changes_no_bit(make: Callable[[], Algorithm]) -> None:
    assert same_bits(two_rounds(make(), sites), two_rounds(make(), lambda number: sites(number)[::-1]))


def random_update(seed: int, steps: int) -> Update:
    generator = torch.Generator().manual_seed(seed)
    return Update({"w": torch.randn(5, generator=generator)}, {"b": torch.randn(2, generator=generator)}, steps, steps)


SERVER = Global({"w": torch.linspace(0, 1, 5)}, {"b": torch.zeros(2), "i": torch.arange(3)})


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_the_server_takes_the_weighted_mean(steps: list[int]) -> None:
    updates = {f"s{index}": random_update(index, count) for index, count in enumerate(steps)}
    state = mean_by("steps")(SERVER, updates)
    share = torch.tensor(steps, dtype=torch.float64) / sum(steps)
    direction = sum(s * u.direction["w"].double() for s, u in zip(share, updates.values(), strict=True))
    buffers = sum(s * u.buffers["b"].double() for s, u in zip(share, updates.values(), strict=True))
    torch.testing.assert_close(state.weights["w"].double(), SERVER.weights["w"] - direction, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.buffers["b"].double(), buffers, rtol=1e-5, atol=1e-6)
    assert state.round == 1


@given(st.floats(-3, 3))
def test_the_mean_is_linear(factor: float) -> None:
    updates = {name: random_update(index, index + 1) for index, name in enumerate("abc")}
    scaled = {name: replace(u, direction={"w": factor * u.direction["w"]}) for name, u in updates.items()}
    plain, more = (mean_by("steps")(SERVER, u).weights["w"] - SERVER.weights["w"] for u in (updates, scaled))
    torch.testing.assert_close(more, factor * plain, rtol=1e-4, atol=1e-5)


def test_integer_buffers_and_frozen_parameters_come_back_bit_for_bit() -> None:
    state = two_rounds(fedgs.fedgs(), sites)
    start = global_of(tiny())
    for name in ("index", "frozen", "norm.num_batches_tracked"):
        assert torch.equal(state.buffers[name], start.buffers[name])
        assert state.buffers[name].dtype == start.buffers[name].dtype
    assert "scratch" not in state.buffers
    assert not torch.equal(state.buffers["norm.running_mean"], start.buffers["norm.running_mean"])


def test_integers_in_an_update_are_never_averaged() -> None:
    state = replace(SERVER, buffers={**SERVER.buffers, "flag": torch.tensor(True)})
    wrong = {"b": torch.ones(2), "i": torch.full((3,), 9), "flag": torch.tensor(False)}
    after = mean_by("steps")(state, {name: replace(random_update(0, 1), buffers=wrong) for name in "ac"})
    assert torch.equal(after.buffers["i"], state.buffers["i"])
    assert after.buffers["flag"]
    torch.testing.assert_close(after.buffers["b"], torch.ones(2))


def test_a_float_buffer_that_no_update_holds_is_kept() -> None:
    after = mean_by("steps")(SERVER, {"a": replace(random_update(0, 1), buffers={})})
    assert torch.equal(after.buffers["b"], SERVER.buffers["b"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_server_keeps_its_types_and_sums_in_wider_ones(dtype: torch.dtype) -> None:
    state = Global({"w": torch.ones(1000, dtype=dtype)}, {"b": torch.ones(2, dtype=dtype)})
    updates = {
        f"s{index}": Update({"w": torch.full((1000,), 1e-3, dtype=dtype)}, {"b": torch.ones(2, dtype=dtype)}, 1, 1)
        for index in range(300)
    }
    after = mean_by("steps")(state, updates)
    assert after.weights["w"].dtype == after.buffers["b"].dtype == dtype
    one = torch.tensor(1e-3, dtype=dtype).to(torch.promote_types(dtype, torch.float32))
    torch.testing.assert_close(after.weights["w"], torch.full((1000,), 1 - float(one)).to(dtype), rtol=1e-5, atol=0)


def test_golden_aggregation(shared: Path) -> None:
    golden = load_file(shared / "golden" / "update_tiny.safetensors")
    about = json.loads((shared / "golden" / "update_tiny.json").read_text())
    buffers = [name for name in about["state_keys"] if name not in about["param_names"]]
    for number in range(2):
        at = f"round{number}/"
        state = Global(
            {name: golden[f"{at}server_in/{name}"] for name in about["param_names"]},
            {name: golden[f"{at}server_in/{name}"] for name in buffers},
        )
        updates = {
            f"site{k}": Update(
                {name: golden[f"{at}site{k}/update/{name}"] for name in about["param_names"]},
                {name: golden[f"{at}site{k}/update/{name}"] for name in buffers if "running" in name},
                num_examples=1,
                num_steps=steps,
            )
            for k, steps in enumerate(about["steps"])
        }
        after = fedgs.fedgs().aggregate(state, updates)
        for name in (*about["param_names"], "bn.running_mean", "bn.running_var"):
            ours = {**after.weights, **after.buffers}[name]
            torch.testing.assert_close(ours.double(), golden[f"{at}server_out/{name}"].double(), rtol=0, atol=1e-6)
        for name in ("idx", "bn.num_batches_tracked"):
            assert torch.equal(after.buffers[name], state.buffers[name])


def test_server_momentum() -> None:
    rule = with_momentum("steps", momentum=0.5, lr=0.1)
    first, second = random_update(0, 3), random_update(1, 3)
    assert SERVER.state == {}
    one = rule(SERVER, {"a": first})
    moment = first.direction["w"] / 0.1
    torch.testing.assert_close(one.state["momentum/w"], moment)
    torch.testing.assert_close(one.weights["w"], SERVER.weights["w"] - 0.1 * moment)
    two = rule(one, {"a": second})
    moment = 0.5 * moment + second.direction["w"] / 0.1
    torch.testing.assert_close(two.state["momentum/w"], moment)
    torch.testing.assert_close(two.weights["w"], one.weights["w"] - 0.1 * moment)
    assert_close(one, mean_by("steps")(SERVER, {"a": first}), 1e-6)
    torch.testing.assert_close(one.state["momentum/w"], first.direction["w"] / 0.1)  # the old state was not touched


class Lazy(Mapping[str, Update]):
    """Makes an update when it is asked for, and remembers how many are alive."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        return (f"s{index}" for index in range(self.count))

    def __getitem__(self, name: str) -> Update:
        update = random_update(int(name[1:]), 2)
        self.alive += 1
        self.most = max(self.most, self.alive)
        finalize = update.direction["w"]
        import weakref

        weakref.finalize(finalize, self._gone)
        return update

    def _gone(self) -> None:
        self.alive -= 1


def test_lazy_updates_are_read_site_by_site() -> None:
    lazy = Lazy(50)
    state = mean_by("steps")(SERVER, lazy)
    eager = mean_by("steps")(SERVER, {name: lazy[name] for name in lazy})
    lazy_most = Lazy(50)
    mean_by("steps")(SERVER, lazy_most)
    assert lazy_most.most <= 3
    assert same_bits(state, eager)


def broken(update: Update, **changes: object) -> dict[str, Update]:
    return {"C1": random_update(1, 2), "C3": replace(update, **changes)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("updates", "says"),
    [
        ({}, "cannot average by steps"),
        ({"C1": random_update(0, 0)}, "one must be above"),
        (broken(random_update(0, 1), direction={}), r"site 'C3': direction lacks 'w' \(1 of 1\)"),
        (broken(random_update(0, 1), direction={"w": torch.zeros(5), "v": torch.zeros(1)}), "unknown 'v'"),
        (broken(random_update(0, 1), direction={"w": torch.zeros(4)}), r"shape \(4,\), the server has \(5,\)"),
        (broken(random_update(0, 1), num_steps=-1), "none may be below 0"),
        (broken(random_update(0, 1), buffers={}), "site 'C3': buffers lacks 'b'"),
        ({"C1": replace(random_update(0, 1), buffers={}), "C3": random_update(0, 1)}, "site 'C1': buffers lacks 'b'"),
        (broken(random_update(0, 1), buffers={"b": torch.zeros(2), "z": torch.zeros(1)}), "buffers has unknown 'z'"),
        (broken(random_update(0, 1), buffers={"b": torch.tensor([1.0, torch.inf])}), r"\['C3'\] hold .* in 'b'"),
        (broken(random_update(0, 1), direction={"w": torch.full((5,), torch.nan)}), r"\['C3'\] hold values"),
    ],
)
def test_updates_that_do_not_fit_are_refused(updates: dict[str, Update], says: str) -> None:
    with pytest.raises(AggregationError, match=says):
        mean_by("steps")(SERVER, updates)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: fedgs.fedgs(base=1), "base"),
        (lambda: fedgs.fedgs(difficulty="size"), "difficulty"),
        (lambda: fedgs.fedgs(server_momentum=0.9), "needs lr"),
        (lambda: fedgs.fedgs(server_momentum=1.0, lr=0.1), r"\(0, 1\)"),
        (lambda: fedgs.fedavg(weight_by="size"), "weighting"),
    ],
)
def test_algorithms_check_their_values(make: Callable[[], Algorithm], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


class Counting(LocalRule):
    """Uses every hook: memory, loss, gradients, and the update."""

    def begin(self, model, optimizer, sent, memory, site):  # type: ignore[no-untyped-def]
        self.rounds = memory.get("rounds", torch.zeros(())) + 1
        self.steps = 0

    def loss(self, model, batch, objective):  # type: ignore[no-untyped-def]
        terms = super().loss(model, batch, objective)
        return {**terms, "extra": torch.tensor(2.0, requires_grad=True)}

    def before_step(self, model, optimizer, batch):  # type: ignore[no-untyped-def]
        for weight in model.parameters():
            weight.grad = None

    def after_step(self, model, optimizer, batch):  # type: ignore[no-untyped-def]
        self.steps += 1

    def finish(self, update, model, optimizer):  # type: ignore[no-untyped-def]
        return replace(update, num_steps=self.steps), {"rounds": self.rounds}


def test_every_hook_is_called_and_a_site_remembers() -> None:
    algorithm = Algorithm("counting", Counting, mean_by("steps"))
    model = tiny()
    state, memories = global_of(model), {}
    seen: list[Update] = []

    def hold(_: Site, update: Update) -> Update:
        seen.append(update)
        return update

    for number in (1, 2):
        state, memories = run_round(algorithm, model, state, [site("A", number=number)], memories, hold)
        assert seen[-1].num_steps == 5
        assert seen[-1].metrics["loss"] == pytest.approx(seen[-1].metrics["loss/ce"] + 2)
    assert memories["A"]["rounds"] == 2
    assert torch.equal(state.weights["head.bias"], global_of(tiny()).weights["head.bias"])  # no gradient, no step


def test_the_servers_state_is_not_sent() -> None:
    seen = []

    class Spy(LocalRule):
        def begin(self, model, optimizer, sent, memory, site):  # type: ignore[no-untyped-def]
            seen.append(sent.state)

    state = replace(global_of(tiny()), state={"secret": torch.ones(1)})
    after, _ = run_round(Algorithm("spy", Spy, mean_by("steps")), tiny(), state, [site("A")], {})
    assert seen == [{}]
    assert "secret" in after.state


def test_a_site_that_sits_out_keeps_its_memory() -> None:
    algorithm = Algorithm("counting", Counting, mean_by("steps"))
    model = tiny()
    state, memories = run_round(algorithm, model, global_of(model), [site("A"), site("B")], {})
    _, memories = run_round(algorithm, model, state, [site("B", number=2)], memories)
    assert (memories["A"]["rounds"], memories["B"]["rounds"]) == (1, 2)


def test_training_is_in_training_mode_and_in_the_asked_precision() -> None:
    seen = []

    class Spy(LocalRule):
        def loss(self, model, batch, objective):  # type: ignore[no-untyped-def]
            output = model(batch.images)
            seen.append((model.training, output.dtype))
            return objective(output.float(), batch)

    model = tiny().eval()
    train_locally(model, Spy(), global_of(model), {}, replace(site("A", steps=1), autocast=torch.bfloat16))
    assert seen == [(True, torch.bfloat16)]


def test_a_loss_that_is_not_finite_names_site_round_and_step() -> None:
    bad = list(batches(3, 0))
    bad[1] = bad[1]._replace(images=torch.full_like(bad[1].images, torch.inf))
    with pytest.raises(TrainingError, match="site 'A', round 7, step 2: the loss is nan"):
        train_locally(tiny(), LocalRule(), global_of(tiny()), {}, replace(site("A", number=7), batches=bad))


def test_a_state_of_another_network_is_refused() -> None:
    state = global_of(tiny())
    with pytest.raises(ConfigError, match="lacking"):
        load(torch.nn.Sequential(tiny()), state)
    with pytest.raises(ConfigError, match="has shape"):
        load(tiny(), replace(state, weights={**state.weights, "head.bias": torch.zeros(9)}))


def test_load_keeps_ties() -> None:
    model = tiny()
    state = global_of(tiny(seed=1))
    load(model, state)
    assert torch.equal(model.alias.weight, state.weights["second.weight"])
    assert model.alias.weight is model.second.weight
