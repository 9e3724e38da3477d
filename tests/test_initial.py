"""What a run starts from: the networks of another run, or a file of weights."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedgs.assembly import build_algorithm, build_network, resolve
from fedgs.config import RunConfig, configure
from fedgs.core import global_of
from fedgs.engine import State
from fedgs.errors import CheckpointError, ConfigError
from fedgs.events import Event, RoundFinished, RoundStarted
from fedgs.experiment import train
from fedgs.initial import describe_initial, initial_state
from fedgs.models import initialise, to_published
from fedgs.models.published import FORMS
from fedgs.own import memory_of, own_in, own_of
from fedgs.run_folder import RunFolder
from fedgs.seeds import generator
from fedgs.tensors import Tensors, buffers_of, weights_of
from runs import fedgs, flags, make_phantom, tiny_config

CHANNELS = 3
UTNET = {"base_channels": 4, "reduce_size": 2}
OPTIONS: Mapping[str, Mapping[str, int]] = {
    "unet": {},
    "utnet": UTNET,
    "unet_sdnet": {"base_channels": 4},
    "sd_utnet": UTNET,
    "sd_utnet_server": UTNET,
    "sdnet": {"base_channels": 4},
    "feddis": {"base_channels": 8},
    "feddis_server": {"base_channels": 8},
}
TAKEN_APART = ["sd_utnet", "sdnet", "feddis"]


def settings(name: str, **more: Any) -> RunConfig:
    return configure(**({"model": name, "model_options": OPTIONS[name], "size": 32, "device": "cpu"} | more))


def network(config: RunConfig, seed: int = 0) -> nn.Module:
    model = build_network(config, CHANNELS)
    initialise(model, generator(seed))
    return model


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """Gives a network other weights and running statistics, and counters that tell the seed."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1, generator=draw)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(seed)
    return model


def kept_by(config: RunConfig, model: nn.Module) -> frozenset[str]:
    return frozenset(build_algorithm(config, base=100.0).keeps(model))


def state_of(config: RunConfig, seed: int, sites: str = "") -> State:
    """What a round of a run with these settings may have left, different in every tensor and every site."""
    model = shuffled(build_network(config, CHANNELS), seed)
    kept = kept_by(config, model)
    server = global_of(model, kept)
    memories = {site: memory_of(own_of(shuffled(model, seed + ord(site)), kept)) for site in sites if kept}
    return State(server, memories)


def finished_run(path: Path, config: RunConfig, best: State, last: State) -> Path:
    folder, columns = RunFolder(path), ("site", "case", "part", "image_hash", "near_hash")
    folder.create(resolve(config), {"data": "of nobody"}, pd.DataFrame(columns=columns))
    folder.keep(best, ["best"])
    folder.keep(last, [])
    folder.write_scores()
    folder.finish({})
    return path


def started(
    config: RunConfig, sites: Collection[str] = "AB", careful: Callable[[str], None] = pytest.fail
) -> tuple[State, dict[str, Tensor]]:
    """The first state of a run, and the random weights that it would have had."""
    model = network(config)
    random = {name: tensor.clone() for name, tensor in (weights_of(model) | buffers_of(model)).items()}
    kept = kept_by(config, model)
    state = initial_state(config.model, model, kept=kept, sites=sites, careful=careful)
    assert equal(weights_of(model) | buffers_of(model), random)
    return state, random


def whole(state: State, site: str) -> dict[str, Tensor]:
    return {**state.server.weights, **state.server.buffers, **own_in(state.memories.get(site, {}))}


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 12)


@pytest.mark.parametrize("name", ["unet", *TAKEN_APART])
def test_a_run_starts_from_the_best_round_of_another(name: str, tmp_path: Path) -> None:
    config = settings(name)
    best = state_of(config, 1, "AB")
    run = finished_run(tmp_path / "run", config, best, state_of(config, 2, "AB"))
    state, _ = started(configure(config, init_from=run))
    assert equal(state.server.weights, best.server.weights)
    assert equal(state.server.buffers, best.server.buffers)
    assert (state.server.round, dict(state.server.state), dict(state.best)) == (0, {}, {})
    assert state.memories.keys() == (set("AB") if name in TAKEN_APART else set())
    for site in state.memories:
        assert equal(own_in(state.memories[site]), own_in(best.memories[site]))


def test_a_run_without_validation_gives_its_last_round(tmp_path: Path) -> None:
    config = settings("unet")
    last = state_of(config, 2)
    run = finished_run(tmp_path / "run", config, state_of(config, 1), last)
    (run / "checkpoints" / "best.safetensors").unlink()
    state, _ = started(configure(config, init_from=run))
    assert equal(state.server.weights, last.server.weights)


def test_a_run_starts_from_the_checkpoint_that_is_named(tmp_path: Path) -> None:
    config = settings("unet")
    best, last = state_of(config, 1), state_of(config, 2)
    run = finished_run(tmp_path / "run", config, best, last)
    for name, expected in (("best", best), ("last", last)):
        named = configure(config, init_from=run, init_checkpoint=name)
        assert equal(started(named)[0].server.weights, expected.server.weights)
        assert describe_initial(named.model)["init_from"] == {
            "file": f"{name}.safetensors",
            "sha256": sha256(run / "checkpoints" / f"{name}.safetensors"),
        }
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        started(configure(config, init_from=run, init_checkpoint="best_small"))


def test_a_checkpoint_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    config = settings("unet")
    torch.save(network(config).state_dict(), tmp_path / "network.pt")
    with pytest.raises(ConfigError, match="name that with --init-from"):
        configure(init_checkpoint="last")
    with pytest.raises(ConfigError, match=r"'newest'.* Choose one of: best, best_small, last"):
        configure(init_from="run", init_checkpoint="newest")
    with pytest.raises(ConfigError, match=r"network\.pt is no folder of one"):
        started(configure(config, init_from=tmp_path / "network.pt", init_checkpoint="last"))


@pytest.mark.parametrize("name", TAKEN_APART)
def test_a_hospital_that_the_run_never_knew_starts_with_the_mean_of_what_others_kept(name: str, tmp_path: Path) -> None:
    config = settings(name)
    best = state_of(config, 1, "AB")
    run = finished_run(tmp_path / "run", config, best, best)
    state, _ = started(configure(config, init_from=run), ["B", "new"])
    one, other = (own_in(best.memories[site]) for site in "AB")
    assert equal(own_in(state.memories["B"]), other)
    mean = own_in(state.memories["new"])
    for entry, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (one[entry] + other[entry]) / 2, rtol=1e-6, atol=0)
        else:
            assert torch.equal(value, one[entry])
    assert mean.keys() == one.keys()


@pytest.mark.parametrize("name", ["unet", "sd_utnet"])
def test_where_hospitals_share_nothing_each_starts_with_the_whole_network(name: str, tmp_path: Path) -> None:
    config = settings(name)
    best = state_of(config, 1, "AB")
    run = finished_run(tmp_path / "run", config, best, best)
    state, random = started(configure(config, init_from=run, algorithm="local"), ["A", "B", "new"])
    assert (dict(state.server.weights), dict(state.server.buffers)) == ({}, {})
    for site in "AB":
        assert equal(own_in(state.memories[site]), whole(best, site))
    assert own_in(state.memories["new"]).keys() == random.keys()


def test_parts_that_one_network_for_all_had_are_where_every_hospital_starts(tmp_path: Path) -> None:
    config = settings("sd_utnet", algorithm="central")
    best = state_of(config, 1)
    run = finished_run(tmp_path / "run", config, best, best)
    state, _ = started(configure(config, init_from=run, algorithm="fedgs"))
    for site in "AB":
        assert own_in(state.memories[site])
        assert equal(whole(state, site), whole(best, ""))


def test_hospitals_that_went_on_alone_go_on_alone_and_give_no_network_for_all(tmp_path: Path) -> None:
    config = settings("unet", algorithm="local")
    best = state_of(config, 1, "AB")
    run = finished_run(tmp_path / "run", config, best, best)
    state, _ = started(configure(config, init_from=run))
    for site in "AB":
        assert equal(own_in(state.memories[site]), own_in(best.memories[site]))
    for changes, sites in (({"algorithm": "fedgs"}, "AB"), ({}, "AC")):
        with pytest.raises(
            ConfigError, match=r"run: its hospitals share nothing, so .*choose a run of another algorithm"
        ):
            started(configure(config, init_from=run, **changes), sites)


PUBLISHED = {"UTNet": "utnet", "U-Net of SDNet": "unet_sdnet", "SD-UTNet of a site": "sd_utnet", "SDNet": "sdnet"}
PUBLISHED |= {"SD-UTNet": "sd_utnet", "FedDis of a site": "feddis"}


@pytest.mark.parametrize("title", PUBLISHED)
def test_a_published_file_gives_its_weights_to_all(title: str, tmp_path: Path) -> None:
    config = settings(PUBLISHED[title])
    model = shuffled(network(config), 1)
    (form,) = (form for form in FORMS if form.title == title)
    state_dict = model.state_dict()
    file = tmp_path / "published.pt"
    torch.save({theirs: state_dict[ours] for ours, theirs in form.published(model).items()}, file)
    state, _ = started(configure(config, init_from=file))
    for site in "AB":
        assert equal(whole(state, site), weights_of(model) | buffers_of(model))


@pytest.mark.parametrize(
    ("name", "prefix"), [("unet", ""), ("utnet", "module."), ("sd_utnet", ""), ("feddis", "module.")]
)
def test_a_file_with_names_of_ours_gives_its_weights(name: str, prefix: str, tmp_path: Path) -> None:
    config = settings(name)
    model = shuffled(network(config), 1)
    torch.save({prefix + entry: value for entry, value in model.state_dict().items()}, tmp_path / "ours.pth")
    state, _ = started(configure(config, init_from=tmp_path / "ours.pth"))
    for site in "AB":
        assert equal(whole(state, site), weights_of(model) | buffers_of(model))


def test_half_precision_becomes_that_of_the_network(tmp_path: Path) -> None:
    config = settings("unet")
    model = shuffled(network(config), 1)
    torch.save(model.half().state_dict(), tmp_path / "half.pt")
    state, random = started(configure(config, init_from=tmp_path / "half.pt"))
    assert equal(whole(state, ""), {name: value.to(random[name].dtype) for name, value in model.state_dict().items()})


@pytest.fixture
def misfit(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file of a network that lacks one entry of ours, has two unknown ones and one of another shape."""
    given = shuffled(network(settings("unet")), 1).state_dict()
    del given["head.bias"]
    given |= {"tail.bias": torch.ones(1), "tail.weight": torch.ones(3), "head.weight": torch.ones(5, 16, 1, 1)}
    torch.save(given, tmp_path / "misfit.pt")
    return tmp_path / "misfit.pt", given


def test_a_misfit_is_refused_and_tells_every_entry(misfit: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(CheckpointError) as error:
        started(settings("unet", init_from=misfit[0]))
    told = str(error.value)
    assert told.startswith(f"{misfit[0]}: does not fit the network UNet: it ")
    assert "it lacks head.bias; it has unknown tail.bias, tail.weight; it has in another shape head.weight" in told
    assert "(5, 16, 1, 1) for (2, 16, 1, 1)" in told
    assert "--model" in told
    assert "--init-partial" in told


def test_what_fits_of_a_misfit_is_taken_the_rest_is_random_and_it_is_told_once(
    misfit: tuple[Path, dict[str, Tensor]],
) -> None:
    file, given = misfit
    for algorithm in ("fedgs", "local"):
        told: list[str] = []
        config = settings("unet", algorithm=algorithm, init_from=file, init_partial=True)
        state, random = started(config, ["A", "B", "new"], told.append)
        for site in ("A", "new"):
            expected = {name: random[name] if name.startswith("head.") else given[name] for name in random}
            assert equal(whole(state, site), expected)
        (note,) = told
        assert note.startswith(f"{file}: {len(random) - 2} of {len(random)} tensors are taken; it lacks head.bias; it ")
        assert note.endswith(
            "tail.bias, tail.weight; it has in another shape head.weight (5, 16, 1, 1) for (2, 16, 1, 1)"
        )


def test_a_run_of_another_network_is_taken_in_part_too(tmp_path: Path) -> None:
    config = settings("sd_utnet")
    best = state_of(config, 1, "A")
    run = finished_run(tmp_path / "run", config, best, best)
    coarser = settings("sd_utnet", model_options=UTNET | {"reduce_size": 1}, init_from=run)
    with pytest.raises(CheckpointError, match=r"has in another shape content_encoder.down2.2.attention.position_bias"):
        started(coarser, "A")
    told: list[str] = []
    state, random = started(configure(coarser, init_partial=True), "A", told.append)
    assert len(told) == 1
    for name, value in whole(state, "A").items():
        assert torch.equal(value, random[name] if "position_bias" in name else whole(best, "A")[name]), name


def test_many_misfits_are_counted(tmp_path: Path) -> None:
    given = network(settings("unet")).state_dict()
    torch.save({"head.bias": given["head.bias"]}, tmp_path / "little.pt")
    with pytest.raises(CheckpointError, match=rf"lacks (body\S+, ){{7}}body\S+ and {len(given) - 1 - 8} more\. Choose"):
        started(settings("unet", init_from=tmp_path / "little.pt"))


def test_what_travelled_of_a_network_starts_one_whose_styles_are_random(tmp_path: Path) -> None:
    server = shuffled(build_network(settings("sd_utnet_server"), CHANNELS), 1)
    torch.save(to_published(server), tmp_path / "server.pt")
    config = settings("sd_utnet", init_from=tmp_path / "server.pt")
    with pytest.raises(CheckpointError, match=r"does not fit the network SDUTNet: it lacks style_encoder\.\S+, "):
        started(config)
    told: list[str] = []
    state, random = started(configure(config, init_partial=True), careful=told.append)
    assert equal({**state.server.weights, **state.server.buffers}, weights_of(server) | buffers_of(server))
    for site in "AB":
        own = own_in(state.memories[site])
        assert own
        assert equal(own, {name: random[name] for name in own})
    (note,) = told
    assert f"{len(server.state_dict())} of {len(random)} tensors are taken" in note


@pytest.mark.parametrize("names", ["ours", "published"])
def test_what_is_not_finite_is_refused_even_in_part(names: str, tmp_path: Path) -> None:
    model = network(settings("sd_utnet"))
    with torch.no_grad():
        model.segmentor.head.bias[0] = torch.nan
    torch.save(model.state_dict() if names == "ours" else to_published(model), tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"'segmentor\.\w+\.bias' is not finite"):
        started(settings("sd_utnet", init_from=tmp_path / "nan.pt", init_partial=True))


def test_a_published_file_that_lacks_an_entry_is_still_called_by_its_name(tmp_path: Path) -> None:
    given = dict(to_published(network(settings("sd_utnet"))))
    del given["segmentor.pred.bias"]
    torch.save(given, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match=r"the nearest is SD-UTNet, but it lacks segmentor.pred.bias"):
        started(settings("sd_utnet", init_from=tmp_path / "cut.pt"))


@pytest.mark.parametrize("title", ["UTNet", "SD-UTNet", "SD-UTNet of a site", "FedDis of a site"])
def test_of_a_published_file_with_other_entries_all_that_fits_is_taken(title: str, tmp_path: Path) -> None:
    config = settings(PUBLISHED[title])
    model = shuffled(network(config), 1)
    (form,) = (form for form in FORMS if form.title == title)
    own, names = weights_of(model) | buffers_of(model), form.published(model)
    lost = next(iter(weights_of(model)))
    given = {theirs: own[ours] for ours, theirs in names.items() if ours != lost} | {"aux.weight": torch.ones(2)}
    torch.save(given, tmp_path / "near.pt")
    told: list[str] = []
    state, random = started(configure(config, init_from=tmp_path / "near.pt", init_partial=True), careful=told.append)
    expected = {**own, lost: random[lost]}
    assert all(equal(whole(state, site), expected) for site in "AB")
    (note,) = told
    assert f"{len(own) - 1} of {len(own)} tensors are taken; it lacks {lost}; it has unknown aux.weight" in note


@pytest.mark.parametrize("names", ["ours", "published", "published, with others"])
def test_averaged_tables_are_mended_on_every_way_in(names: str, tmp_path: Path) -> None:
    model = shuffled(network(settings("utnet")), 1)
    expected = weights_of(model) | buffers_of(model)
    given = dict(model.state_dict() if names == "ours" else to_published(model))
    if names.endswith("others"):
        given["aux.weight"] = torch.ones(2)
    tables = [name for name in given if name.endswith("index")]
    for name in tables:
        given[name] = given[name].clone()
        given[name].view(-1)[::13] += 1
    torch.save(given, tmp_path / "averaged.pt")
    told: list[str] = []
    config = settings("utnet", init_from=tmp_path / "averaged.pt", init_partial=True)
    state, _ = started(config, careful=told.append)
    assert all(equal(whole(state, site), expected) for site in "AB")
    assert "of the relative-position tables were off; they were computed anew" in told[0]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no known network"):
        started(settings("unet", init_from=tmp_path / "other.pt", init_partial=True))


def test_a_place_without_a_network_is_refused_with_advice(tmp_path: Path) -> None:
    config = settings("unet")
    best = state_of(config, 1)
    run = finished_run(tmp_path / "run", config, best, best)
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    (unfinished / "summary.json").unlink()
    for place, says in {
        run / "checkpoints" / "best.safetensors": "give the folder of the run, not its checkpoint; or a .pt or .pth",
        run / "checkpoints": "is not a run folder",
        unfinished: "not finished; finish it with: fedgs train",
        tmp_path / "absent": "no such file; expected a .pt",
    }.items():
        with pytest.raises((ConfigError, CheckpointError), match=re.escape(says)):
            started(configure(config, init_from=place))


def test_a_part_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="name that with --init-from"):
        configure(init_partial=True)


def test_an_imported_checkpoint_is_a_run_like_others(tmp_path: Path) -> None:
    model = shuffled(network(settings("utnet")), 1)
    torch.save(to_published(model), tmp_path / "published.pt")
    fedgs("import-checkpoint", str(tmp_path / "published.pt"), "--out", str(tmp_path / "run"), "--size", "32")
    state, _ = started(settings("utnet", init_from=tmp_path / "run"))
    assert equal(whole(state, ""), weights_of(model) | buffers_of(model))


FEDDIS = ("--model", "feddis", "--model-option", "base_channels=8")
QUICK = {"size": 32, "rounds": 1, "local_steps": 1}


@pytest.fixture(scope="module")
def donor(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("donor") / "run"
    train(tiny_config(data, model="feddis", model_options=OPTIONS["feddis"], **QUICK), out)
    return out


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_that_hardly_learns_ends_where_the_other_one_was_best(data: Path, donor: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    still = flags(**QUICK | {"lr": 1e-30, "weight_decay": 0})
    fedgs("train", "--data", str(data), "--out", str(out), *FEDDIS, *still, "--init-from", str(donor))
    before, after = RunFolder(donor).load("best"), RunFolder(out).load("last")
    running = ("running_mean", "running_var", "num_batches_tracked")
    for site in ("Alder", "Birch", "Cedar"):
        expected = whole(before, site)
        for name, value in whole(after, site).items():
            if not name.endswith(running):
                torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-20, msg=name)
    assert json.loads((out / "environment.json").read_text())["init_from"] == {
        "file": "best.safetensors",
        "sha256": sha256(donor / "checkpoints" / "best.safetensors"),
    }
    assert "init_from" not in json.loads((donor / "environment.json").read_text())


def test_the_run_tells_of_the_file_that_it_started_from(data: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "a file.pt", tmp_path / "run"
    torch.save(to_published(network(settings("feddis_server"))), file)
    line = ("train", "--data", str(data), "--out", str(out), *FEDDIS, *flags(**QUICK), "--init-from", str(file))
    refused = fedgs(*line, check=False)
    assert refused.returncode == 1
    assert "does not fit the network FedDis: it lacks appearance_encoder" in refused.stderr
    assert not out.exists()
    fedgs(*line, "--init-partial")
    assert json.loads((out / "environment.json").read_text())["init_from"] == {
        "file": "a file.pt",
        "sha256": sha256(file),
    }
    assert (out / "log.txt").read_text().count("tensors are taken") == 1
    assert sha256(file) in (out / "report.html").read_text()
    fedgs(*command_on_page(out, data, file, tmp_path / "again"))
    states = [RunFolder(run).load("last") for run in (out, tmp_path / "again")]
    assert equal(*(whole(state, "Alder") for state in states))


def command_on_page(run: Path, data: Path, source: Path, out: Path) -> list[str]:
    """The command that the page of a run gives, with places in the place of names."""
    shown = re.search(
        r'aria-label="Command for [^"]*"><code>(.*?)</code>', (run / "report.html").read_text(), re.DOTALL
    )
    assert shown
    program, *line = shlex.split(html.unescape(shown[1]).replace("\\\n", " "))
    assert program == "fedgs"
    for flag, place in {"--data": data, "--init-from": source, "--out": out}.items():
        if flag in line:
            line[line.index(flag) + 1] = str(place)
    return line


def test_the_command_on_the_page_makes_the_run_again(data: Path, donor: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    fedgs(*command_on_page(donor, data, donor, again))
    for name in ("best", "last"):
        ours, theirs = (RunFolder(run).load(name) for run in (again, donor))
        assert all(equal(whole(ours, site), whole(theirs, site)) for site in ("Alder", "Birch", "Cedar"))


class Stopped(Exception):
    pass


def stop_at(moment: type[RoundStarted | RoundFinished], number: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, moment) and event.round == number:
            raise Stopped

    return listen


def test_a_run_goes_on_to_the_same_bytes_without_what_it_started_from(data: Path, donor: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(donor, tmp_path / "source"))
    config = tiny_config(
        data, model="feddis", model_options=OPTIONS["feddis"], **QUICK | {"rounds": 2}, init_from=str(source)
    )
    train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", listeners=[stop_at(RoundFinished, 1)])
    with pytest.raises(Stopped):
        train(config, tmp_path / "early", listeners=[stop_at(RoundStarted, 1)])
    shutil.rmtree(source)
    fedgs("train", "--out", str(tmp_path / "run"), "--resume")
    for name in ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "scores.csv", "config.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    told = fedgs("train", "--out", str(tmp_path / "early"), "--resume", check=False)
    assert told.returncode == 1
    assert f"{source}: no such file" in told.stderr
