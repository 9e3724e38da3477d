"""Every algorithm trains on the phantom, says what it did to the updates, and goes on to the same bytes."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgs import configure
from fedgs.algorithms import ALGORITHMS, EXTENSIONS, build
from fedgs.errors import ConfigError
from fedgs.events import Event, SiteFinished
from fedgs.experiment import train
from fedgs.models import OBJECTIVES
from fedgs.run_folder import RunFolder
from runs import make_phantom, tiny_config

COMBINED = ("fedgs+fedbn", "fedgs+scaffold", "fedgs-gradient+ditto", "fedprox+fednova+fedopt", "fedbn+fedper")
ALL = (*ALGORITHMS, *EXTENSIONS, *COMBINED)
OPTIONS: dict[str, dict[str, Any]] = {"weighted-loss": {"normalised": True, "objective": "dice_per_image"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 12)


def can_be_built(name: str) -> bool:
    try:
        build(name, known={})
    except ConfigError:
        return False
    return True


PAIRS = [
    f"{one}+{other}" for one, other in combinations((*ALGORITHMS, *EXTENSIONS), 2) if can_be_built(f"{one}+{other}")
]
"""All that the table of the documentation and the words beside it say yes to."""


def settings(data: Path, name: str) -> Any:
    quick = {"rounds": 2, "local_steps": 2, "unseen_site": "Cedar"}
    return tiny_config(data, algorithm=name, **quick, **OPTIONS.get(name, {}))


def stopped_in(number: int, config: Any, out: Path) -> None:
    """Trains, stops when a site of a round has finished, and goes on to the end."""

    def stop(event: Event) -> None:
        if isinstance(event, SiteFinished) and event.round == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, out, listeners=[stop])
    train(config, out, resume=True)


def assert_same_bytes(stopped: Path, whole: Path) -> None:
    for file in ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "scores.csv", "split.csv"):
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ALL)
def test_it_trains_and_goes_on_to_the_same_bytes(name: str, data: Path, tmp_path: Path) -> None:
    config = settings(data, name)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, whole)
    stopped_in(2, config, stopped)
    assert_same_bytes(stopped, whole)
    for record in records(whole):
        for site in record["sites"].values():
            assert site["norm_ratio"] > 0
            assert -1 <= site["cosine"] <= 1 + 1e-6


@pytest.mark.parametrize("objective", [name for name, kind in OBJECTIVES.items() if kind.for_any])
def test_every_objective_trains_and_goes_on_to_the_same_bytes(objective: str, data: Path, tmp_path: Path) -> None:
    config = configure(settings(data, "fedgs"), objective=objective)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, whole)
    stopped_in(2, config, stopped)
    assert_same_bytes(stopped, whole)
    told = {name for record in records(whole) for site in record["sites"].values() for name in site["terms"]}
    assert told == set(OBJECTIVES[objective].weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_what_can_be_put_together_trains_and_goes_on_to_the_same_bytes(name: str, data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, algorithm=name, rounds=2, local_steps=1, fraction_of_sites=0.67)
    train(config, tmp_path / "whole")
    stopped_in(2, config, tmp_path / "stopped")
    assert_same_bytes(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("name", ["fedbn", "silobn", "fedper", "ditto"])
def test_a_hospital_that_joins_while_a_run_goes_on_after_a_stop_changes_no_byte(
    name: str, data: Path, tmp_path: Path
) -> None:
    config = tiny_config(data, algorithm=name, rounds=3, local_steps=2, fraction_of_sites=0.34)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, whole)
    taking_part = [set(record["sites"]) for record in records(whole)]
    assert taking_part[1] - taking_part[0]  # someone joins in the round that is stopped
    stopped_in(2, config, stopped)
    assert_same_bytes(stopped, whole)


def test_the_mechanism_is_told(data: Path, tmp_path: Path) -> None:
    told = {}
    for name in ("fedavg-published", "fedgs", "matched-site", "matched-global", "fedgs-gradient"):
        train(settings(data, name), tmp_path / name)
        told[name] = records(tmp_path / name)[0]
    for name, record in told.items():
        for site, numbers in record["sites"].items():
            eta = told["fedgs"]["sites"][site]["mean_eta"]
            assert numbers["mean_eta"] == pytest.approx(1.0 if name == "fedavg-published" else eta, rel=1e-12)
            expected = {"matched-site": eta, "fedavg-published": 1.0, "matched-global": 1.0}.get(name)
            if expected:
                assert numbers["norm_ratio"] == pytest.approx(expected, rel=1e-3)
                assert numbers["cosine"] == pytest.approx(1.0, abs=1e-5)
            else:
                assert numbers["norm_ratio"] > 1 if eta > 1 else numbers["norm_ratio"] == pytest.approx(1, abs=1e-5)
        assert bool(record["server"]) == (name == "matched-global")
    steps = told["fedgs"]["sites"]
    factor = sum(s["steps"] * s["mean_eta"] for s in steps.values()) / sum(s["steps"] for s in steps.values())
    assert told["matched-global"]["server"] == {"scale": pytest.approx(factor, rel=1e-12)}


def test_all_see_the_same_batches_unless_they_draw_others(data: Path, tmp_path: Path) -> None:
    first = {}
    for name in ("fedavg-published", "fedgs", "shuffled-scale", "scaffold", "fedprox", "oversample-small"):
        train(settings(data, name), tmp_path / name)
        first[name] = {site: numbers["terms"]["dice"] for site, numbers in records(tmp_path / name)[0]["sites"].items()}
    others = first.pop("oversample-small")
    assert others != first["fedgs"]
    assert all(losses == first["fedgs"] for losses in first.values())


def test_what_stays_at_a_site_is_in_no_checkpoint_of_the_server(data: Path, tmp_path: Path) -> None:
    train(settings(data, "ditto"), tmp_path / "ditto")
    train(settings(data, "scaffold"), tmp_path / "scaffold")
    personal, controls = (RunFolder(tmp_path / name).load("last") for name in ("ditto", "scaffold"))
    assert not personal.server.extra
    assert not personal.server.state
    assert all(key.startswith("personal/") for key in personal.memories["Alder"])
    assert {key.partition("/")[0] for key in controls.memories["Alder"]} == {"control"}
    assert {key.partition("/")[0] for key in controls.server.extra} == {"control"}


def test_without_momentum_scaled_gradients_are_scaled_steps(data: Path, tmp_path: Path) -> None:
    for name in ("fedgs", "fedgs-gradient"):
        train(configure(settings(data, name), beta1=0.0, rounds=1), tmp_path / name)
    steps, gradients = (RunFolder(tmp_path / name).load("last").server.weights for name in ("fedgs", "fedgs-gradient"))
    for name, tensor in steps.items():
        torch.testing.assert_close(gradients[name], tensor, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"beta1 must be in \[0, 1\), got 1.0"):
        configure(beta1=1.0)


@pytest.mark.parametrize("name", ["fedbn", "silobn", "fedgs+fedbn"])
def test_a_network_without_batch_norm_is_refused_before_anything_is_written(
    name: str, data: Path, tmp_path: Path
) -> None:
    config = configure(settings(data, name), model_options={"norm": "instance"})
    with pytest.raises(ConfigError, match="keeps batch normalisation at the hospital, but this UNet has none"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
