"""The settings of a run: frozen dataclasses, one per concern; TOML in, resolved TOML out."""

from __future__ import annotations

import math
import tomllib
import types
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from fedgs.errors import ConfigError, unknown_choice

__all__ = [
    "AlgorithmConfig",
    "DataConfig",
    "FederationConfig",
    "ModelConfig",
    "RunConfig",
    "TrainingConfig",
    "configure",
    "differences",
    "read_config",
    "read_toml",
    "settings",
    "write_config",
]


def _setting(default: Any, description: str) -> Any:
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is trained on and tested on."""

    data: str | None = _setting(None, "Folder with the hospitals' images, or an index made by 'fedgs index'.")
    adapter: str | None = _setting(None, "Layout of the folder: folder, phantom or polypgen; guessed when left out.")
    size: int = _setting(256, "Side of the training images in pixels.")
    score_size: str = _setting("512", "Where predictions are scored: 512 (as published) or native.")
    unseen_site: str | None = _setting(None, "Hospital left out of training and tested on as a whole (out-test).")
    fold: int = _setting(0, "Fold of the split, 0 to 4.")
    split: str = _setting("grouped", "grouped (patients never straddle), published, or a split.csv of another run.")
    split_seed: int = _setting(0, "Seed of the grouped split.")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _require(self.size >= 1, "size", self.size, "at least 1 pixel")
        _require(self.score_size in ("512", "native"), "score_size", self.score_size, "512 or native")
        _require(0 <= self.fold <= 4, "fold", self.fold, "0 to 4")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network."""

    model: str = _setting("unet", "Network: unet, utnet, unet_sdnet, sd_utnet, sdnet, feddis, or monai:NAME.")
    model_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"description": "Option of the network as NAME=VALUE, such as norm=group."}
    )
    init_from: str | None = _setting(
        None, "Run folder, or published checkpoint (.pt, .pth), to start from instead of random weights."
    )
    init_partial: bool = _setting(False, "Take from it what fits the network, and list the rest.")
    init_checkpoint: str | None = _setting(
        None, "Checkpoint of that run: last, best or best_small; best, where it has one, when left out."
    )

    def __post_init__(self) -> None:
        """Checks that there is something to start from."""
        for name in ("init_partial", "init_checkpoint"):
            if getattr(self, name) and self.init_from is None:
                raise ConfigError(f"{name} says how to start from another network; name that with --init-from")
        checkpoints = ("last", "best", "best_small")
        if self.init_checkpoint not in (None, *checkpoints):
            raise unknown_choice("checkpoint in init_checkpoint", self.init_checkpoint, checkpoints)


@dataclass(frozen=True, slots=True)
class AlgorithmConfig:
    """The federated algorithm."""

    algorithm: str = _setting(
        "fedgs",
        "Algorithm: fedgs, fedgs-gradient, fedavg (McMahan's), fedavg-published (paper's baseline), a control "
        "(matched-global, matched-site, matched-gradient, shuffled-scale, oversample-small, weighted-loss), or a "
        "reference (local, central); extended by +fedprox, +fednova, +scaffold, +fedopt, +fedbn, +silobn, +fedper, "
        "+ditto, which alone extend fedavg.",
    )
    difficulty: str | None = _setting(None, "Area that makes an image hard, for fedgs: image (published) or lesion.")
    style_from: int | None = _setting(
        None, "First round in which sites see their images in each other's styles, for sd_utnet and sdnet."
    )
    share_style: Mapping[str, bool] = field(
        default_factory=dict,
        metadata={"description": "Whether a site gives its style, as SITE=false; it does by default."},
    )
    server_momentum: float | None = _setting(None, "Momentum of the server, for fedgs, in [0, 1).")
    server_optimizer: str | None = _setting(None, "Optimizer of the server, for fedopt: adam, yogi, adagrad or sgd.")
    server_lr: float | None = _setting(None, "Learning rate of the server, for fedopt, above 0.")
    server_beta1: float | None = _setting(None, "First moment of the server, for fedopt, in [0, 1).")
    server_tau: float | None = _setting(None, "Smallest denominator of the server's optimizer, for fedopt, above 0.")
    mu: float | None = _setting(None, "Pull toward the server's weights, for fedprox, 0 or above.")
    ditto_lambda: float | None = _setting(None, "Pull of the personal networks to the server's weights, for ditto.")
    head: str | None = _setting(None, "Part of the network that hospitals keep, for fedper.")
    normalised: bool | None = _setting(None, "Divide weights by the hospital's mean, for weighted-loss.")

    def __post_init__(self) -> None:
        """Checks that a site says yes or no."""
        for site, shares in self.share_style.items():
            _require(isinstance(shares, bool), f"share_style of '{site}'", shares, "true or false")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Local training at a site."""

    local_epochs: int | None = _setting(None, "Passes over a site's images per round; 5 when left out.")
    local_steps: int | None = _setting(None, "Optimizer steps per site and round, instead of epochs.")
    batch_size: int = _setting(4, "Images per optimizer step.")
    lr: float = _setting(1e-4, "Learning rate of AdamW.")
    lr_first: float = _setting(1.0, "Learning rate of the first round, as a share of lr.")
    lr_last: float = _setting(1.0, "The same of the last round; a cosine leads from one to the other.")
    weight_decay: float = _setting(0.01, "Decoupled weight decay of AdamW.")
    beta1: float = _setting(0.9, "First moment of AdamW, in [0, 1).")
    objective: str | None = _setting(
        None,
        "Loss: dice_batch or dice_per_image, each also with +ce, blob_dice, cc_dice_ce, disentangled, feddis; "
        "the network's own if left out.",
    )
    objective_weights: Mapping[str, float] = field(
        default_factory=dict, metadata={"description": "Weight of a term of the loss as NAME=VALUE, such as kl=0.1."}
    )
    precision: str = _setting("fp32", "fp32 or bf16 (activations; weights stay float32).")
    device: str = _setting("auto", "cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")

    def __post_init__(self) -> None:
        """Checks the ranges, and that epochs and steps exclude each other."""
        if self.local_epochs is not None and self.local_steps is not None:
            raise ConfigError("local_epochs and local_steps exclude each other; give one of them")
        length = self.local_steps if self.local_steps is not None else self.local_epochs
        _require(length is None or length >= 1, "local_epochs or local_steps", length, "at least 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")
        for name in ("lr_first", "lr_last"):
            _require(0 < getattr(self, name) <= 1, name, getattr(self, name), "in (0, 1]")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "a finite number, 0 or above")
        _require(0 <= self.beta1 < 1, "beta1", self.beta1, "in [0, 1)")
        _require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")

    @property
    def epochs(self) -> int | None:
        """Passes per round; None where steps are counted instead."""
        return None if self.local_steps is not None else (self.local_epochs or 5)


@dataclass(frozen=True, slots=True)
class FederationConfig:
    """Rounds and sites."""

    rounds: int = _setting(100, "Rounds of local training and aggregation.")
    fraction_of_sites: float = _setting(1.0, "Share of the sites that take part in a round, in (0, 1].")
    evaluate_every: int = _setting(1, "Score the validation images after every so many rounds.")
    seed: int = _setting(0, "Seed of the run: initial weights, batches, augmentation.")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        _require(0 < self.fraction_of_sites <= 1, "fraction_of_sites", self.fraction_of_sites, "in (0, 1]")
        _require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "at least 1")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All settings of a run, one table each in the TOML file."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)


_TABLES: dict[str, type[Any]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "algorithm": AlgorithmConfig,
    "training": TrainingConfig,
    "federation": FederationConfig,
}


def settings() -> Iterator[tuple[str, str, Any, Any, str]]:
    """Gives (table, name, type, default, description) of every setting; a name stands in one table only."""
    for table, kind in _TABLES.items():
        hints = typing.get_type_hints(kind)
        for entry in fields(kind):
            yield table, entry.name, hints[entry.name], entry.default, entry.metadata["description"]


def configure(base: RunConfig | None = None, **given: Any) -> RunConfig:
    """Makes the settings of a run from flat names.

    Args:
        base: Settings to start from; the defaults when left out.
        **given: Any setting by its name, for instance ``data="frames"``, ``rounds=30``.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: A name is unknown, or a value has the wrong type or is out of its range.

    >>> configure(algorithm="fedavg", rounds=3).federation.rounds
    3
    """
    config = base or RunConfig()
    known = {name: (table, kind) for table, name, kind, _, _ in settings()}
    tables: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if name not in known:
            raise unknown_choice("setting", name, known)
        table, kind = known[name]
        if isinstance(value, Path) or name == "score_size":
            value = str(value)
        tables.setdefault(table, {})[name] = _typed(name, kind, value)
    if tables.get("training", {}).keys() & {"local_epochs", "local_steps"}:
        tables["training"] = {"local_epochs": None, "local_steps": None} | tables["training"]
    return replace(config, **{table: replace(getattr(config, table), **values) for table, values in tables.items()})


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file, whatever it holds.

    Raises:
        ConfigError: The file is missing, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML ({error})") from error


def read_config(path: Path, base: RunConfig | None = None) -> RunConfig:
    """Reads settings from a TOML file with the tables that `write_config` writes.

    Args:
        path: The file.
        base: Where what is left out comes from; the defaults when None.

    Raises:
        ConfigError: The file is missing, not TOML, or holds an unknown table or setting.
    """
    content = read_toml(path)
    homes = {name: table for table, name, _, _, _ in settings()}
    flat: dict[str, Any] = {}
    for table, values in content.items():
        if table in homes and not isinstance(values, dict):
            raise ConfigError(f"{path}: '{table}' stands outside a table; put it under [{homes[table]}]")
        if table not in _TABLES or not isinstance(values, dict):
            raise ConfigError(f"{path}: {unknown_choice('table', table, _TABLES)}")
        for name, value in values.items():
            if homes.get(name) != table:
                choices = [setting for setting, home in homes.items() if home == table]
                raise ConfigError(f"{path}: {unknown_choice(f'setting in [{table}]', name, choices)}")
            flat[name] = value
    return configure(base, **flat)


def write_config(config: RunConfig) -> str:
    """Gives the settings as TOML; a setting that is None is left out."""
    tables = {
        table: {name: value for name, value in values.items() if value is not None and value != {}}
        for table, values in asdict(config).items()
    }
    return tomli_w.dumps(tables)


def differences(before: RunConfig, after: RunConfig) -> list[str]:
    """Lists the settings in which two runs differ, as ``name: before -> after``."""
    pairs = [
        (name, getattr(getattr(before, table), name), getattr(getattr(after, table), name))
        for table, name, _, _, _ in settings()
    ]
    return [f"{name}: {old!r} -> {new!r}" for name, old, new in pairs if old != new]


def _typed(name: str, kind: Any, value: Any) -> Any:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    accepted = tuple(option if isinstance(option, type) else dict for option in options)
    if (isinstance(value, bool) and bool not in accepted) or not isinstance(
        value, (*accepted, int) if float in accepted else accepted
    ):
        wanted = " or ".join(option.__name__ for option in accepted if option is not types.NoneType)
        raise ConfigError(f"setting '{name}' must be {wanted}, got {value!r}")
    if isinstance(value, str) and any(unicodedata.category(sign) in ("Cc", "Cs") for sign in value):
        raise ConfigError(f"setting '{name}' holds control characters or bytes that are not UTF-8: {value!r}")
    return float(value) if isinstance(value, int) and float in accepted else value


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")
