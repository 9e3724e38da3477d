from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedgs.assembly import build_algorithm, lr_of_round
from fedgs.config import RunConfig, configure, differences, read_config, settings, write_config
from fedgs.errors import ConfigError
from fedgs.experiment import train
from fedgs.models import entry
from fedgs.run_folder import RunFolder
from runs import make_phantom, tiny_config


def test_defaults_are_those_of_the_publication() -> None:
    config = RunConfig()
    training = config.training
    assert (training.lr, training.weight_decay, training.batch_size, training.epochs) == (1e-4, 0.01, 4, 5)
    assert (training.objective, training.precision, config.federation.rounds) == (None, "fp32", 100)
    assert {entry(name)[0].objective for name in ("unet", "utnet")} == {"dice_batch"}
    assert (config.data.size, config.data.fold, config.federation.seed, config.data.score_size) == (256, 0, 0, "512")


def test_toml_round_trip(tmp_path: Path) -> None:
    config = configure(data="a b/ü", algorithm="fedavg", local_steps=7, lr=1, model_options={"norm": "group"})
    path = tmp_path / "config.toml"
    path.write_text(write_config(config), encoding="utf-8")
    assert read_config(path) == config
    assert config.training.epochs is None


def test_what_is_given_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[federation]\nrounds = 7\nseed = 3\n[training]\nlocal_epochs = 2\n")
    config = configure(read_config(path), rounds=9, local_steps=5)
    assert (config.federation.rounds, config.federation.seed) == (9, 3)
    assert (config.training.local_steps, config.training.local_epochs) == (5, None)


def test_differences_name_the_settings() -> None:
    assert differences(configure(rounds=3), configure(rounds=4, lr=0.1)) == ["lr: 0.0001 -> 0.1", "rounds: 3 -> 4"]


def test_a_setting_stands_in_one_table_only_and_is_described() -> None:
    names = [name for _, name, _, _, _ in settings()]
    assert len(names) == len(set(names))
    assert all(description.endswith(".") for *_, description in settings())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"round": 3}, "did you mean 'rounds'"),
        ({"rounds": "3"}, "'rounds' must be int"),
        ({"rounds": True}, "'rounds' must be int"),
        ({"lr": "fast"}, "'lr' must be float"),
        ({"rounds": 0}, "at least 1"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "above 0"),
        ({"weight_decay": -1.0}, "0 or above"),
        ({"fold": 5}, "0 to 4"),
        ({"size": 0}, "at least 1"),
        ({"precision": "fp16"}, "fp32 or bf16"),
        ({"score_size": "300"}, "512 or native"),
        ({"fraction_of_sites": 0.0}, r"\(0, 1\]"),
        ({"batch_size": 0}, "at least 1"),
        ({"local_steps": 0}, "at least 1"),
        ({"local_steps": 3, "local_epochs": 3}, "exclude each other"),
        ({"evaluate_every": 0}, "at least 1"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configure(**given)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("rounds = 3", r"put it under \[federation\]"),
        ("[rounds]\na = 3", "unknown table .rounds."),
        ("[data]\nrounds = 3", r"unknown setting in \[data\]"),
        ("[federation]\nround = 3", "did you mean 'rounds'"),
        ("[federation", "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_config(path)


def test_the_learning_rate_falls_along_a_cosine_and_is_constant_unless_asked() -> None:
    config = configure(lr=2e-3, lr_first=0.5, lr_last=0.25, rounds=5)
    rates = [lr_of_round(config, number) for number in range(1, 6)]
    little = 0.25e-3 * (1 - 0.5**0.5)
    assert rates == pytest.approx([1e-3, 1e-3 - little, 0.75e-3, 0.5e-3 + little, 0.5e-3])
    assert {lr_of_round(configure(lr=1e-3, rounds=5), number) for number in range(1, 6)} == {1e-3}
    assert lr_of_round(configure(lr=1e-3, lr_first=0.5, rounds=1), 1) == 0.5e-3


def test_a_share_of_the_learning_rate_is_that_learning_rate(tmp_path: Path) -> None:
    data = make_phantom(tmp_path / "phantom", 8)
    for name, changes in (("whole", {"lr": 1e-3}), ("share", {"lr": 2e-3, "lr_first": 0.5, "lr_last": 0.5})):
        train(tiny_config(data, rounds=2, local_steps=1, **changes), tmp_path / name)
    whole, share = (RunFolder(tmp_path / name).load("last").server.weights for name in ("whole", "share"))
    assert all(torch.equal(whole[name], share[name]) for name in whole)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["lr_first", "lr_last"])
def test_a_share_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be in \(0, 1\]"):
        configure(**{name: value})


def test_server_momentum_needs_one_learning_rate() -> None:
    config = configure(algorithm="fedgs", server_momentum=0.5, lr_last=0.5)
    with pytest.raises(ConfigError, match="leave lr_first and lr_last equal"):
        build_algorithm(config, base=100.0)
    build_algorithm(configure(config, lr_first=0.5), base=100.0)
