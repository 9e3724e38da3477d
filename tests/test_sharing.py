"""What is shared and what stays at a site: the predicate, its memory, and styles that travel where sites agree."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fedgs.algorithms import fedavg, fedavg_published, fedbn, fedgs, with_style_augmentation
from fedgs.algorithms.references import central, local
from fedgs.algorithms.style_augmentation import partner_of
from fedgs.core import Algorithm, Global, LocalRule, Site, global_of, run_round, train_locally
from fedgs.data.case import Batch
from fedgs.engine import State
from fedgs.errors import ConfigError
from fedgs.models import build, initialise, objective
from fedgs.own import own_in, own_of, parts_of_sites
from fedgs.scoring import networks_for, sites_keep
from fedgs.tensors import buffers_of, weights_of
from nets import Tiny, site, tiny

SIDE = 32
OPTIONS = {
    "sd_utnet": {"base_channels": 2, "reduce_size": 2},
    "sdnet": {"base_channels": 2},
    "feddis": {"base_channels": 4},
}


def network(name: str) -> nn.Module:
    model = build(name, in_channels=3, image_size=SIDE, **OPTIONS[name])
    initialise(model, torch.Generator().manual_seed(0))
    return model


def batches(seed: int, count: int = 2) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.randn(2, 3, SIDE, SIDE, generator=generator)
        yield Batch(images, images[:, 0] > 0.5, torch.ones(2, dtype=torch.bool))


def hospital(name: str, model: nn.Module, kept: Collection[str], number: int = 1, loss: str = "disentangled") -> Site:
    torch.manual_seed(ord(name) + number)  # styles are drawn from torch's own generator
    return Site(
        name=name,
        round=number,
        batches=batches(ord(name)),
        num_examples=4,
        objective=objective(loss),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        own=own_of(model, kept),
    )


def rounds(
    algorithm: Algorithm, model: nn.Module, names: str = "ABC", count: int = 2, loss: str = "disentangled"
) -> list[State]:
    """States after each round, beginning with the first."""
    kept = frozenset(algorithm.keeps(model))
    own = own_of(model, kept)
    states = [State(global_of(model, kept))]
    for number in range(1, count + 1):
        sites = (replace(hospital(name, model, kept, number, loss), own=own) for name in names)
        server, memories = run_round(algorithm, model, states[-1].server, sites, states[-1].memories)
        states.append(State(replace(server, round=number), memories))
    return states


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sd_utnet", {"style_encoder", "decoder"}),
        ("sdnet", {"style_encoder", "decoder"}),
        ("feddis", {"appearance_encoder", "appearance_decoder", "merger", "projector"}),
    ],
)
def test_networks_say_what_belongs_to_a_site(name: str, parts: set[str]) -> None:
    model = network(name)
    kept = parts_of_sites(model)
    assert {entry.partition(".")[0] for entry in kept} == parts
    assert kept == {entry for entry in model.state_dict() if entry.partition(".")[0] in parts}
    assert parts_of_sites(nn.DataParallel(model)) == kept
    assert parts_of_sites(tiny()) == frozenset()


@pytest.mark.parametrize("make", [fedgs, fedavg_published, fedavg])
@pytest.mark.parametrize("name", ["sd_utnet", "feddis"])
def test_what_is_kept_never_travels_and_is_remembered(make: type[Algorithm], name: str) -> None:
    model, seen = network(name), []
    algorithm = make()

    def aggregate(state: Global, updates: Mapping[str, object]) -> Global:
        seen.extend(updates.values())
        return algorithm.aggregate(state, updates)

    watched = replace(algorithm, aggregate=aggregate)
    kept = parts_of_sites(model)
    first, second, third = rounds(watched, model, loss="feddis" if name == "feddis" else "disentangled")
    for state in (first, second, third):
        assert not kept & (state.server.weights.keys() | state.server.buffers.keys())
        assert kept | state.server.weights.keys() | state.server.buffers.keys() == model.state_dict().keys()
    assert all(not kept & (update.direction.keys() | update.buffers.keys()) for update in seen)
    for one, other in ("AB", "BC"):
        mine, theirs = (own_in(third.memories[site]) for site in (one, other))
        assert mine.keys() == theirs.keys() == kept
        assert not all(torch.equal(mine[entry], theirs[entry]) for entry in kept)
    assert {entry: value.tolist() for entry, value in own_in(third.memories["C"]).items()} == {
        entry: value.tolist()
        for entry, value in own_of(model, kept).items()  # C trained last
    }


def test_a_site_goes_on_from_its_own_parts() -> None:
    model = network("sd_utnet")
    states = rounds(fedgs(), model, count=1)
    kept = parts_of_sites(model)
    started: dict[str, Tensor] = {}

    def loss(output: object, batch: Batch) -> dict[str, Tensor]:
        if not started:
            started.update(own_of(model, kept))
        return objective("disentangled")(output, batch)

    again = replace(hospital("B", model, kept, 2), objective=loss)
    train_locally(model, fedgs().local_rule(), states[1].server, states[1].memories["B"], again)
    for entry, value in own_in(states[1].memories["B"]).items():
        if "running" not in entry and "num_batches" not in entry:  # these move with the first forward pass
            assert torch.equal(started[entry], value), entry


def test_a_site_that_joins_gets_nothing_of_what_the_network_leaves_to_others() -> None:
    model = network("sd_utnet")
    kept, norms = parts_of_sites(model), fedbn(fedgs()).keeps(model)
    initial = own_of(model, norms)
    before = rounds(fedbn(fedgs()), model, names="AB", count=1)[1]
    started: dict[str, Tensor] = {}

    class Note(LocalRule):
        def begin(self, *arguments: object) -> None:
            started.update(own_of(model, norms))

    joining = [replace(hospital("C", model, norms, 2), own=initial)]
    run_round(replace(fedbn(fedgs()), local_rule=Note), model, before.server, joining, before.memories)
    mean = networks_for(before, "C")[""]
    shared_norms = norms - kept
    assert shared_norms
    assert kept < norms
    assert all(torch.equal(started[name], initial[name]) for name in kept)
    assert all(torch.equal(started[name], mean[name]) for name in shared_norms)
    assert any(not torch.equal(mean[name], initial[name]) for name in shared_norms)
    assert any(not torch.equal(mean[name], initial[name]) for name in kept)


def test_local_is_training_alone() -> None:
    states = rounds(local(), network("sd_utnet"), count=2)
    assert states[2].server.weights == {}
    assert states[2].server.buffers == {}
    for name in "AC":
        alone = rounds(local(), network("sd_utnet"), names=name, count=2)[2]
        mine, theirs = own_in(states[2].memories[name]), own_in(alone.memories[name])
        assert mine.keys() == theirs.keys() == network("sd_utnet").state_dict().keys()
        assert all(torch.equal(mine[entry], theirs[entry]) for entry in mine)


def test_one_site_alone_is_a_federation_of_one() -> None:
    alone = own_in(rounds(local(), network("sd_utnet"), names="A", count=1)[1].memories["A"])
    kept = parts_of_sites(network("sd_utnet"))
    federated = rounds(fedavg(), network("sd_utnet"), names="A", count=1)[1]
    for entry, value in own_in(federated.memories["A"]).items():
        assert entry in kept
        assert torch.equal(value, alone[entry])
    for entry, value in federated.server.weights.items():
        torch.testing.assert_close(value, alone[entry], rtol=0, atol=1e-6)


def test_references_differ_from_plain_training_in_one_field() -> None:
    assert (central().pools, local().pools, fedgs().pools) == (True, False, False)
    model = tiny()
    assert set(local().keeps(model)) == {*weights_of(model), *buffers_of(model)}
    assert set(central().keeps(model)) == set()


def test_a_network_without_parts_of_sites_is_shared_whole() -> None:
    model = tiny()
    sites = [site(name) for name in "AB"]
    server, memories = run_round(fedgs(), model, global_of(model), sites, {})
    assert memories == {}
    assert server.weights.keys() | server.buffers.keys() == {*weights_of(model), *buffers_of(model)}


def test_networks_for_a_hospital() -> None:
    weights = {"w": torch.zeros(1)}
    memories = {
        "A": {"own/x": torch.tensor([1.0]), "own/n": torch.tensor(3), "control": torch.tensor([9.0])},
        "B": {"own/x": torch.tensor([3.0]), "own/n": torch.tensor(5)},
    }
    shared, alone = State(Global(weights, {}), memories), State(Global({}, {}), memories)
    assert networks_for(shared, "B") == {"": {"x": torch.tensor([3.0]), "n": torch.tensor(5)}}
    assert networks_for(shared, "new") == {"": {"x": torch.tensor([2.0]), "n": torch.tensor(3)}}
    assert networks_for(alone, "A") == {"A": {"x": torch.tensor([1.0]), "n": torch.tensor(3)}}
    assert list(networks_for(alone, "new")) == ["A", "B"]
    assert networks_for(State(Global(weights, {})), "A") == {"": {}}
    assert (sites_keep(shared), sites_keep(State(Global(weights, {})))) == (True, False)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_partners_rotate(count: int) -> None:
    givers = "ABCDE"[:count]
    for number in range(2, 12):
        partners = [partner_of(name, givers, number) for name in givers]
        assert sorted(partners) == list(givers)
        assert all(own != other for own, other in zip(givers, partners, strict=True))
    for name in givers:
        seen = {partner_of(name, givers, number) for number in range(2, 2 + count - 1)}
        assert seen == set(givers) - {name}
    assert {partner_of("Z", givers, number) for number in range(2, 2 + count)} == set(givers)
    assert partner_of("A", "A", 3) is None
    assert partner_of("A", "", 3) is None


@pytest.mark.parametrize("name", ["sd_utnet", "sdnet"])
@pytest.mark.parametrize("make", [fedgs, fedavg])
def test_styles_travel_from_the_round_on_and_are_frozen(name: str, make: type[Algorithm]) -> None:
    model = network(name)
    states = rounds(with_style_augmentation(make(), 3), model, count=4)
    kept = parts_of_sites(model)
    styles = [{entry for entry in state.server.state if entry.startswith("style/")} for state in states]
    assert styles[1] == set()
    assert styles[2] == {f"style/{site}/{entry}" for site in "ABC" for entry in {*kept, "round"}}
    for before, after in pairwise(states[2:]):
        for site_name in "ABC":
            for entry, value in own_in(after.memories[site_name]).items():
                assert torch.equal(after.server.state[f"style/{site_name}/{entry}"], value)
        assert before.server.state.keys() == after.server.state.keys()


def test_a_site_may_keep_its_style_to_itself() -> None:
    algorithm = with_style_augmentation(fedgs(), 2, private={"B"})
    state = rounds(algorithm, network("sd_utnet"), count=3)[3].server
    assert {entry.split("/")[1] for entry in state.state} == {"A", "C"}
    sent = {name: {key.split("/")[1] for key in algorithm.send(state, name).extra} for name in "ABC"}
    assert sent["A"] == {"C"}
    assert sent["C"] == {"A"}
    assert sent["B"] in ({"A"}, {"C"})
    assert algorithm.send(state, "A").state == {}


def test_a_partner_that_dropped_out_serves_on_with_its_last_style() -> None:
    model = network("sd_utnet")
    algorithm = with_style_augmentation(fedgs(), 2)
    state = rounds(algorithm, model, names="ABC", count=2)[2]
    kept = parts_of_sites(model)
    updates = {}

    def hold(site: Site, update: object) -> object:
        updates[site.name] = update
        return update

    sites = [hospital(name, model, kept, 3) for name in "AB"]
    server, _ = run_round(algorithm, model, state.server, sites, state.memories, hold)
    partners = {name: update.metrics["style_of"] for name, update in updates.items()}
    assert partners == {name: partner_of(name, "ABC", 3) for name in "AB"}
    assert "C" in partners.values()
    assert {update.metrics["style_round"] for update in updates.values()} == {2}
    sites = [hospital(name, model, kept, 4) for name in "AB"]
    run_round(algorithm, model, replace(server, round=3), sites, state.memories, hold)
    of_round = {update.metrics["style_of"]: update.metrics["style_round"] for update in updates.values()}
    assert of_round == {partner: 2 if partner == "C" else 3 for partner in of_round}
    of_c = [entry for entry in server.state if entry.startswith("style/C/")]
    assert all(torch.equal(server.state[entry], state.server.state[entry]) for entry in of_c)


def test_the_term_is_the_distance_of_contents_by_hand() -> None:
    model = network("sd_utnet")
    algorithm = with_style_augmentation(fedavg(), 2, weight=0.5)
    state = rounds(algorithm, model, count=1)[1]
    rule, kept = algorithm.local_rule(), parts_of_sites(model)
    member = hospital("A", model, kept, 2)
    update, _ = train_locally(
        model, rule, algorithm.send(state.server, "A"), state.memories["A"], replace(member, batches=batches(1, 1))
    )
    assert list(update.metrics)[:6] == [
        "loss",
        "loss/dice",
        "loss/kl",
        "loss/style",
        "loss/reconstruction",
        "loss/content",
    ]
    assert update.metrics["loss"] == pytest.approx(sum(update.metrics[f"loss/{t}"] for t in TERMS), rel=1e-5)
    assert 0 < update.metrics["loss/content"] < 0.5 * 2


TERMS = ("dice", "kl", "style", "reconstruction", "content")


def test_other_networks_have_no_style_to_give() -> None:
    algorithm = with_style_augmentation(fedgs(), 2)
    state = replace(global_of(Tiny()), state={"style/B/x": torch.zeros(1)}, round=1)
    with pytest.raises(ConfigError, match="needs a network that renders images in a style, such as sd_utnet or sdnet"):
        train_locally(Tiny(), algorithm.local_rule(), algorithm.send(state, "A"), {}, site("A", number=2))
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        with_style_augmentation(fedgs(), 1)
