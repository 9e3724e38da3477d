"""Laws: what an algorithm is when the one thing that it changes is turned off, and what it shares."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch

from fedgs import models
from fedgs.algorithms import (
    ALGORITHMS,
    EXTENSIONS,
    build,
    ditto,
    fedavg,
    fedavg_published,
    fedbn,
    fedgs,
    fedgs_gradient,
    fednova,
    fedopt,
    fedper,
    fedprox,
    local,
    matched_global,
    matched_gradient,
    matched_site,
    scaffold,
    shuffled_scale,
    silobn,
    weighted_loss,
)
from fedgs.algorithms.composition import Around
from fedgs.core import global_of, run_round, train_locally
from fedgs.engine import State
from fedgs.errors import ConfigError
from fedgs.own import own_in, own_of, personal_in
from fedgs.scoring import networks_for
from fedgs.tensors import compare
from nets import site, tiny

STEPS = {"A": 3, "B": 5, "C": 4}


def sites(algorithm, model, number, steps=STEPS, **options):
    own = own_of(model, algorithm.keeps(model))
    return [
        replace(
            site(name, steps=count, number=number, seed=10 * number + index, **options),
            own=own,
            generator=torch.Generator().manual_seed(number + index),
            seed=index,
        )
        for index, (name, count) in enumerate(steps.items())
    ]


def after(algorithm, rounds=2, **options):
    """The server's state, the memories and the updates of the last round."""
    model, memories, updates = tiny(), {}, {}
    start = own_of(model, algorithm.keeps(model))
    state = algorithm.start(global_of(model, start.keys()), list("ABC"))

    def hold(at, update):
        updates[at.name] = update
        return update

    for number in range(1, rounds + 1):
        fresh = tiny()
        members = [replace(at, own=start) for at in sites(algorithm, fresh, number, **options)]
        state, memories = run_round(algorithm, model, state, members, memories, hold)
    return state, memories, updates


def same(one, other):
    return all(
        getattr(one, part).keys() == getattr(other, part).keys()
        and all(torch.equal(tensor, getattr(other, part)[name]) for name, tensor in getattr(one, part).items())
        for part in ("weights", "buffers")
    )


def same_memories(one, other):
    return one.keys() == other.keys() and all(
        memory.keys() == other[name].keys()
        and all(torch.equal(tensor, other[name][key]) for key, tensor in memory.items())
        for name, memory in one.items()
    )


EQUAL = {"A": 4, "B": 4, "C": 4}


@pytest.mark.parametrize("base", [fedavg, fedavg_published, fedgs])
def test_turned_off_an_extension_is_what_it_extends(base):
    expected, _, _ = after(base())
    assert same(after(fedprox(base(), mu=0))[0], expected)
    assert not same(after(fedprox(base(), mu=1))[0], expected)
    plain_sgd = partial(fedopt, server_optimizer="sgd", server_beta1=0)
    assert same(after(plain_sgd(base(), server_lr=1))[0], expected)
    assert not same(after(plain_sgd(base(), server_lr=0.5))[0], expected)
    assert same(after(ditto(base(), ditto_lambda=3))[0], expected)


@pytest.mark.parametrize("base", [fedavg, fedavg_published])
def test_fednova_with_equal_steps_is_what_it_extends(base):
    assert same(after(fednova(base()), steps=EQUAL)[0], after(base(), steps=EQUAL)[0])
    assert not same(after(fednova(base()))[0], after(base())[0])


@pytest.mark.parametrize("base", [fedavg, fedavg_published, fedgs])
def test_the_first_round_of_scaffold_is_what_it_extends_where_examples_and_steps_are_equal(base):
    assert same(after(scaffold(base()), 1, steps=EQUAL)[0], after(base(), 1, steps=EQUAL)[0])
    assert not same(after(scaffold(base()), 2, steps=EQUAL)[0], after(base(), 2, steps=EQUAL)[0])


@pytest.mark.parametrize("base", [fedavg, fedavg_published, fedgs])
def test_scaffold_weights_all_sites_alike_whatever_it_extends(base):
    state, _, updates = after(scaffold(base()), 1)
    for name, start in global_of(tiny()).weights.items():
        mean = torch.stack([update.direction[name] for update in updates.values()]).mean(0)
        torch.testing.assert_close(start - state.weights[name], mean, rtol=1e-4, atol=1e-6)
    assert not same(state, after(base(), 1)[0])


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_alone_extends_mcmahans_fedavg(name):
    alone, named, called = (
        after(build(name, known={})),
        after(build(f"fedavg+{name}", known={})),
        after(EXTENSIONS[name]()),
    )
    assert same(alone[0], named[0])
    assert same_memories(alone[1], named[1])
    assert same(alone[0], called[0])
    assert same_memories(alone[1], called[1])


@pytest.mark.parametrize("base", [fedavg, fedgs])
@pytest.mark.parametrize(("first", "second"), [*combinations(EXTENSIONS, 2)])
def test_the_order_in_which_extensions_are_applied_changes_no_bit(first, second, base):
    one, other = EXTENSIONS[first], EXTENSIONS[second]
    try:
        made = other(one(base()))
    except ConfigError:  # which pairs these are is what the table of the documentation is tested for
        with pytest.raises(ConfigError, match="cannot be combined"):
            one(other(base()))
        return
    (state, memories, _), (again, remembered, _) = after(made), after(one(other(base())))
    assert same(state, again)
    assert same_memories(memories, remembered)
    assert state.extra.keys() == again.extra.keys()
    assert all(torch.equal(tensor, again.extra[name]) for name, tensor in state.extra.items())


def test_without_a_pull_dittos_personal_networks_are_local_training():
    _, alone, _ = after(local())
    _, memories, _ = after(ditto(ditto_lambda=0))
    for name in "ABC":
        personal, expected = personal_in(memories[name]), own_in(alone[name])
        assert personal.keys() == expected.keys()
        assert all(torch.equal(personal[entry], expected[entry]) for entry in expected)
    _, pulled, _ = after(ditto(ditto_lambda=1))
    assert not torch.equal(personal_in(pulled["A"])["head.weight"], own_in(alone["A"])["head.weight"])


def test_fedbn_and_silobn_keep_norms_and_share_the_rest():
    norms = {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    for make, kept in ((fedbn, norms), (silobn, norms - {"norm.weight", "norm.bias"})):
        state, memories, updates = after(make(fedgs()))
        assert {*own_in(memories["A"])} == kept
        assert not kept & {*state.weights, *state.buffers}
        for update in updates.values():
            assert not kept & {*update.direction, *update.buffers, *update.extra}
        assert not torch.equal(own_in(memories["A"])["norm.running_mean"], own_in(memories["B"])["norm.running_mean"])


def test_a_network_without_batch_norm_is_refused():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.InstanceNorm2d(2, affine=True))
    for make in (fedbn, silobn):
        with pytest.raises(ConfigError, match=r"this Sequential has none \(instance and group norm"):
            make().keeps(model)


def test_fedper_keeps_the_head():
    state, memories, _ = after(fedper())
    assert {*own_in(memories["B"])} == {"head.weight", "head.bias"}
    assert "head.weight" not in state.weights
    with pytest.raises(ConfigError, match="unknown part of Tiny 'haed'; did you mean 'head'"):
        fedper(head="haed").keeps(tiny())


def test_fedper_refuses_a_part_that_sites_keep_anyway():
    model = models.build("sdnet", in_channels=3, image_size=32)
    with pytest.raises(ConfigError, match="unknown part of SDNet 'style_encoder'") as refusal:
        fedper(head="style_encoder").keeps(model)
    choices = str(refusal.value).partition("Choose one of: ")[2].split(", ")
    assert "segmentor" in choices
    assert not {"style_encoder", "decoder"} & set(choices)
    assert fedper(head="segmentor").keeps(model)


class Seen(Around):
    """Notes what a site's network holds when its training begins."""

    def __init__(self, inner, starts):
        super().__init__(inner)
        self._starts = starts

    def begin(self, model, optimizer, sent, memory, site):
        self._starts[site.round, site.name] = own_of(model, model.state_dict().keys())
        super().begin(model, optimizer, sent, memory, site)


def in_turns(algorithm, turns, make=tiny, began=None):
    """What every network began with, by round and site, and the states and memories before each round."""
    model, starts = make(), {}
    first = own_of(model, algorithm.keeps(model))
    watched = replace(algorithm, local_rule=lambda: Seen(algorithm.local_rule(), starts))
    state, memories = began or (algorithm.start(global_of(model, first.keys()), list("ABC")), {})
    history = [(state, memories)]
    for number, names in enumerate(turns, state.round + 1):
        members = {at.name: replace(at, own=first) for at in sites(algorithm, make(), number)}
        state, memories = run_round(watched, model, state, [members[name] for name in names], memories)
        history.append((state, memories))
    return starts, history


KEEP = {"fedbn": fedbn, "silobn": silobn, "fedper": fedper, "fedgs+fedbn": lambda: fedbn(fedgs())}


@pytest.mark.parametrize("make", KEEP.values(), ids=KEEP)
def test_a_site_that_joins_starts_from_the_mean_of_those_that_were_in_before(make):
    starts, history = in_turns(make(), ["AB", "ABC"])
    kept = own_of(tiny(), make().keeps(tiny()))
    state, memories = history[1]
    a, b = own_in(memories["A"]), own_in(memories["B"])
    for name, initial in kept.items():
        assert torch.equal(starts[1, "A"][name], initial)
        assert torch.equal(starts[1, "B"][name], initial)  # though A was trained before
        assert torch.equal(starts[2, "A"][name], a[name])
        joined = starts[2, "C"][name]
        if initial.is_floating_point():
            assert torch.equal(joined, torch.stack([a[name], b[name]]).mean(0))
            assert not torch.equal(joined, initial)
            assert not torch.equal(a[name], b[name])
        else:
            assert torch.equal(joined, a[name])
    own = networks_for(State(state, memories), "C")[""]
    assert own.keys() == kept.keys()
    assert all(torch.equal(starts[2, "C"][name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("make", KEEP.values(), ids=KEEP)
def test_who_trains_first_in_a_round_and_where_a_run_was_cut_change_no_bit_of_a_site_that_joins(make):
    _, history = in_turns(make(), ["A", "ABC", "BC"])
    _, permuted = in_turns(make(), ["A", "CBA", "CB"])
    _, resumed = in_turns(make(), ["ABC", "BC"], began=history[1])
    for state, memories in (permuted[-1], resumed[-1]):
        assert same(state, history[-1][0])
        assert same_memories(memories, history[-1][1])


def test_where_nothing_is_shared_or_a_network_is_personal_a_site_that_joins_starts_as_if_alone():
    starts, _ = in_turns(local(), ["AB", "ABC"])
    assert all(torch.equal(tensor, starts[2, "C"][name]) for name, tensor in starts[1, "A"].items())
    starts, history = in_turns(ditto(ditto_lambda=0), ["AB", "ABC"])
    assert not same(history[0][0], history[1][0])
    for name, tensor in {**history[1][0].weights, **history[1][0].buffers}.items():
        assert torch.equal(starts[2, "C"][name], tensor)
    # Without a pull C's personal network is plain training from the shared one, which is C's half of FedAvg.
    model = tiny()
    member = next(at for at in sites(fedavg(), model, 2) if at.name == "C")
    train_locally(model, fedavg().local_rule(), history[1][0], {}, member)
    personal = personal_in(history[2][1]["C"])
    trained = {**global_of(model).weights, **global_of(model).buffers}
    assert personal.keys() == trained.keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in personal.items())


def directions(algorithm, **options):
    return {name: update.direction for name, update in after(algorithm, 1, **options)[2].items()}


def assert_close(one, other, tolerance=1e-5):
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, rtol=tolerance, atol=tolerance * float(tensor.abs().max()))


def test_matched_site_multiplies_by_the_mean_eta_of_the_site():
    plain, matched, scaled = after(fedavg_published(), 1)[2], after(matched_site(), 1)[2], after(fedgs(), 1)[2]
    for name in "ABC":
        eta = scaled[name].metrics["mean_eta"]
        assert eta > 1.05
        assert matched[name].metrics["mean_eta"] == pytest.approx(eta, rel=1e-12)
        assert_close(matched[name].direction, {n: eta * t for n, t in plain[name].direction.items()})
        assert matched[name].metrics["norm_ratio"] == pytest.approx(eta, rel=1e-6)
        assert matched[name].metrics["cosine"] == pytest.approx(1, abs=1e-6)


STRONG = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5)


@pytest.mark.parametrize("make", [fedavg_published, matched_global, weighted_loss, matched_site])
def test_a_direction_is_not_compared_with_one_that_has_decayed(make):
    """Where steps count alike, lengths differ by the one factor and the angle is none, however strong the decay."""
    for update in after(make(), 1, steps={"A": 100, "B": 30}, optimizer=STRONG)[2].values():
        factor = update.metrics["mean_eta"] if make is matched_site else 1.0
        assert update.metrics["norm_ratio"] == pytest.approx(factor, rel=5e-6)
        assert update.metrics["cosine"] == pytest.approx(1, abs=2e-6)


class _Recorded(torch.optim.AdamW):
    """Notes the steps that it takes, less what decay takes, in the order of the parameters."""

    def __init__(self, parameters, steps):
        super().__init__(parameters, lr=1e-2, weight_decay=0.5)
        self._taken = steps

    def step(self, closure=None):
        (group,) = self.param_groups
        moving = [p for p in group["params"] if p.grad is not None]
        kept = [p.detach() * (1 - group["lr"] * group["weight_decay"]) for p in moving]
        super().step(closure)
        self._taken.append(torch.cat([(k - p.detach()).flatten() for k, p in zip(kept, moving, strict=True)]))


@pytest.mark.parametrize("make", [fedgs, fedgs_gradient])
def test_a_direction_is_compared_with_the_sum_of_the_steps(make, monkeypatch):
    """Against brute force in float64."""
    steps, algorithm = [], make()
    monkeypatch.setattr("fedgs.scaled_update.decoupling", lambda *_: lambda group: True)
    monkeypatch.setattr("fedgs.scaled_moments.kind_of", lambda _: "AdamW")
    model = tiny(dtype=torch.float64)
    given = site("A", steps=40, dtype=torch.float64, optimizer=partial(_Recorded, steps=steps))
    update = train_locally(model, algorithm.local_rule(), global_of(model), {}, given)[0]
    assert len(steps) == update.num_steps == 40
    sent = torch.cat([update.direction[name].flatten() for name in update.direction if name != "unused"])
    plain = torch.stack(steps).sum(0)
    assert update.metrics["norm_ratio"] == pytest.approx(float(sent.norm() / plain.norm()), rel=1e-9)
    assert update.metrics["norm_ratio"] > 1.01
    expected = float(sent @ plain / (sent.norm() * plain.norm()))
    assert update.metrics["cosine"] == pytest.approx(expected, rel=1e-9)
    assert expected < 1 - 1e-6


def test_matched_global_multiplies_by_the_mean_eta_of_the_round():
    plain, state, _ = after(fedavg_published(), 1)[0], *after(matched_global(), 1)[:2]
    etas = {name: update.metrics["mean_eta"] for name, update in after(fedgs(), 1)[2].items()}
    factor = sum(STEPS[name] * etas[name] for name in STEPS) / sum(STEPS.values())
    assert state.metrics["scale"] == pytest.approx(factor, rel=1e-12)
    start = global_of(tiny()).weights
    assert_close(
        {name: start[name] - state.weights[name] for name in start},
        {name: factor * (start[name] - plain.weights[name]) for name in start},
        1e-4,
    )
    for name, buffer in plain.buffers.items():
        assert torch.equal(state.buffers[name], buffer)


@pytest.mark.parametrize(
    "make", [matched_site, matched_global, matched_gradient, shuffled_scale, weighted_loss, fedgs_gradient]
)
def test_without_small_lesions_a_control_is_the_published_fedavg(make):
    assert_close(after(make(), small=False)[0].weights, after(fedavg_published(), small=False)[0].weights)


def test_shuffled_scale_applies_the_same_etas_in_another_order():
    scaled, shuffled = after(fedgs(), 1)[2], after(shuffled_scale(), 1)[2]
    for name in "ABC":
        assert shuffled[name].metrics["mean_eta"] == pytest.approx(scaled[name].metrics["mean_eta"], rel=1e-12)
    ratio, cosine = compare(shuffled["B"].direction, scaled["B"].direction)
    assert cosine < 1 - 1e-6
    assert ratio == pytest.approx(1, abs=0.1)


def test_a_normalised_weighted_loss_has_mean_weight_1():
    raw, normalised = after(weighted_loss(), 1)[2], after(weighted_loss(normalised=True), 1)[2]
    plain = after(fedavg_published(), 1)[2]
    for name in "ABC":
        assert normalised[name].metrics["loss"] < raw[name].metrics["loss"]
        assert normalised[name].metrics["loss"] == pytest.approx(plain[name].metrics["loss"], rel=0.1)


MEANINGFUL = [
    ("fedgs", "fedprox"),
    ("fedgs", "scaffold"),
    ("fedgs", "fedopt"),
    ("fedgs", "fedbn"),
    ("fedgs", "silobn"),
    ("fedgs", "fedper"),
    ("fedgs", "ditto"),
    ("fedgs-gradient", "fedbn"),
    ("matched-site", "fedbn"),
    ("fedavg-published", "fednova"),
    ("fedprox", "fedbn"),
    ("scaffold", "fedbn"),
    ("fednova", "fedopt"),
    ("fedprox", "ditto"),
    ("fedbn", "fedper"),
]


@pytest.mark.parametrize("names", MEANINGFUL, ids="+".join)
def test_meaningful_combinations_train_and_do_not_depend_on_the_order_of_names(names):
    one, other = (build("+".join(order), known={"base": 100.0, "lr": 1e-2}) for order in (names, names[::-1]))
    state, memories, _ = after(one)
    assert all(tensor.isfinite().all() for tensor in state.weights.values())
    again, remembered, _ = after(other)
    assert same(state, again)
    assert memories.keys() == remembered.keys()
    for name, memory in memories.items():
        assert memory.keys() == remembered[name].keys()
        assert all(torch.equal(tensor, remembered[name][entry]) for entry, tensor in memory.items())
    assert set(one.name.split("+")) == set(names)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fedgs+fednova", "takes the mean scale of the hospital out again"),
        ("matched-site+fednova", "takes the mean scale of the hospital out again"),
        ("fedprox+scaffold", "would take the pull toward"),
        ("scaffold+fedprox", "would take the pull toward"),
        ("fednova+scaffold", "derived for the plain mean"),
        ("fedbn+silobn", "keep their statistics"),
        ("ditto+fedbn", "has everything of its own already"),
        ("fedper+ditto", "has everything of its own already"),
        ("weighted-loss+ditto", "would train by the loss as it is, without the weights"),
        ("local+fedbn", "share nothing"),
        ("fedprox+central", "all data are in one place"),
        ("fedprox+fedprox", "it is there already"),
        ("fedgs+fedavg", "both say how a hospital's steps count"),
        ("fedgs+fedbm", r"unknown algorithm 'fedbm'; did you mean 'fedbn'"),
        ("fedgs+", "unknown algorithm ''"),
    ],
)
def test_combinations_without_a_meaning_are_refused_with_the_reason(name, says):
    with pytest.raises(ConfigError, match=says):
        build(name, known={})


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("fedprox", {"mu": -1.0}, "mu of fedprox must be finite and not below 0, got -1"),
        ("fedprox", {"mu": float("nan")}, "mu of fedprox"),
        ("ditto", {"ditto_lambda": -0.1}, "ditto_lambda"),
        ("fedopt", {"server_optimizer": "adamw"}, "unknown server_optimizer 'adamw'; did you mean 'adam'"),
        ("fedopt", {"server_lr": 0.0}, "server_lr of fedopt must be finite and above 0"),
        (
            "fedopt",
            {"server_optimizer": "sgd", "server_tau": 5.0},
            "server_tau has no meaning with server_optimizer 'sgd'",
        ),
        ("fedopt", {"server_tau": 0.0}, "server_tau of fedopt must be finite and above 0"),
        ("fedopt", {"server_beta1": 1.0}, r"in \[0, 1\)"),
        ("fedgs+fedopt", {"server_momentum": 0.9}, "a server step of its own already"),
        ("fedgs+fedbn", {"mu": 0.1}, "'mu' is no option of algorithm 'fedgs\\+fedbn', but of fedprox"),
        ("matched-site", {"difficulty": "size"}, "difficulty"),
    ],
)
def test_options_out_of_range_are_refused(name, options, says):
    with pytest.raises(ConfigError, match=says):
        build(name, known={"base": 100.0, "lr": 0.1}, **options)


def test_every_name_builds_alone_and_says_so():
    for name in (*ALGORITHMS, *EXTENSIONS):
        assert build(name, known={"base": 100.0, "lr": 0.1, "per_image": False}).name == name
