"""From settings to the things that they name: network, algorithm, split, scorer."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn import Module

from fedgs import algorithms, models
from fedgs.config import RunConfig, configure
from fedgs.core import Algorithm
from fedgs.data.batches import count_steps
from fedgs.data.index import Index
from fedgs.data.splits import published_split, read_split, split_cases
from fedgs.errors import ConfigError, DataError, unknown_choice
from fedgs.evaluation import Scorer
from fedgs.tensors import weights_of

__all__ = [
    "NAMED_SPLITS",
    "autocast_of",
    "build_algorithm",
    "build_network",
    "build_objective",
    "build_scorer",
    "lr_of_round",
    "require_lesions",
    "require_sharing",
    "require_split",
    "resolve",
    "split_of",
    "steps_of",
    "with_needed_regions",
    "with_unseen_site",
]

NAMED_SPLITS = {"grouped", "published"}
"""Splits that are computed; any other name is that of a stored one."""


def resolve(config: RunConfig) -> RunConfig:
    """Gives the settings with what they leave open decided: device, absolute paths, number of epochs, objective.

    Raises:
        ConfigError: The device is not there, or the network or its objective is unknown.
    """
    found, _ = models.entry(config.model.model)
    device = config.training.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0][:200]
        raise ConfigError(f"device '{device}' cannot be used here ({reason}); try --device cpu") from error
    given: dict[str, Any] = {"device": device, "objective": config.training.objective or found.objective}
    if config.data.data is not None:
        given["data"] = str(Path(config.data.data).resolve())
    if config.data.split not in NAMED_SPLITS:
        given["split"] = str(Path(config.data.split).resolve())
    if config.model.init_from is not None:
        given["init_from"] = str(Path(config.model.init_from).resolve())
    if config.training.local_steps is None:
        given["local_epochs"] = config.training.epochs
    return configure(config, **given)


def build_network(config: RunConfig, channels: int) -> Module:
    """Builds the network of a run, untrained, on its device.

    Raises:
        ConfigError: An unknown network or option.
        ShapeError: The network cannot take the size.
    """
    options = dict(config.model.model_options)
    if decided := sorted(options.keys() & signature(models.build).parameters.keys()):
        raise ConfigError(f"model option '{decided[0]}' is decided by the data and by --model and --size; leave it out")
    model = models.build(config.model.model, in_channels=channels, image_size=config.data.size, **options)
    models.check_batch(model, config.training.batch_size, config.data.size)
    # The faster layout for convolutions, on CPUs too; what travels and what is stored does not depend on it.
    layout = getattr(model, "memory_format", torch.channels_last)
    return model.to(torch.device(config.training.device)).to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def build_objective(config: RunConfig) -> models.Objective:
    """Makes what the sites minimise.

    Raises:
        ConfigError: An unknown objective or term, a weight that cannot be, or an objective for other networks.
    """
    found, _ = models.entry(config.model.model)
    name = config.training.objective or found.objective
    made = models.objective(name, **config.training.objective_weights)
    if not models.OBJECTIVES[name].for_any and name != found.objective:
        fit = [other for other, kind in models.OBJECTIVES.items() if kind.for_any or other == found.objective]
        raise ConfigError(
            f"objective '{name}' is made for other networks than '{config.model.model}'; "
            f"choose one of: {', '.join(fit)}"
        )
    return made


def with_needed_regions(config: RunConfig, index: Index) -> Index:
    """Gives the index, whose training batches carry the regions of the lesions where the objective asks for them."""
    found, _ = models.entry(config.model.model)
    kind = models.OBJECTIVES[config.training.objective or found.objective]
    return index.with_regions() if kind.needs_regions else index


def build_scorer(config: RunConfig) -> Scorer:
    """Makes what predicts and scores as the run is set."""
    return Scorer(config.data.score_size, config.training.batch_size, config.training.device, autocast_of(config))


def autocast_of(config: RunConfig) -> torch.dtype | None:
    """Gives the type of the activations; None is that of the weights."""
    return torch.bfloat16 if config.training.precision == "bf16" else None


def lr_of_round(config: RunConfig, number: int) -> float:
    """Gives the learning rate of the sites in a round, from 1 on: constant, or along half a cosine."""
    training, rounds = config.training, config.federation.rounds
    gone = (number - 1) / (rounds - 1) if rounds > 1 else 0.0
    share = training.lr_last + (training.lr_first - training.lr_last) * (1 + math.cos(math.pi * gone)) / 2
    return training.lr * share


def build_algorithm(config: RunConfig, base: float) -> Algorithm:
    """Makes the algorithm of a run; ``base`` is that of the data.

    Raises:
        ConfigError: An unknown algorithm, or an option that is not its own or out of range.
    """
    options = {name: value for name, value in asdict(config.algorithm).items() if value is not None}
    style_from, share_style = options.pop("style_from", None), options.pop("share_style")
    objective = config.training.objective or models.entry(config.model.model)[0].objective
    per_image = objective in models.OBJECTIVES and models.OBJECTIVES[objective].per_image
    training = config.training
    if options.get("server_momentum") and training.lr_first != training.lr_last:
        raise ConfigError(
            "server_momentum is made for one learning rate in all rounds; leave lr_first and lr_last equal"
        )
    known = {"base": base, "lr": lr_of_round(config, 1), "per_image": per_image}
    algorithm = algorithms.build(options.pop("algorithm"), known=known, **options)
    if style_from is None:
        return algorithm
    if style_from > config.federation.rounds:
        raise ConfigError(f"style_from {style_from} lies beyond the last of {config.federation.rounds} rounds")
    private = {site for site, shares in share_style.items() if not shares}
    return algorithms.with_style_augmentation(algorithm, style_from, private=private)


def require_sharing(config: RunConfig, algorithm: Algorithm, model: Module, sites: Collection[str]) -> None:
    """Refuses settings that need hospitals to share what they do not share.

    Args:
        config: The settings.
        algorithm: Made of them.
        model: The network.
        sites: Names of the hospitals that train.

    Raises:
        ConfigError: Hospitals are sampled, or hand on styles, although they share nothing or are put together; the
            network has no style; or no hospital could be handed another one's.
    """
    apart = not weights_of(model).keys() - algorithm.keeps(model)
    if config.federation.fraction_of_sites < 1 and (apart or algorithm.pools):
        raise ConfigError(
            f"algorithm '{algorithm.name}' is a reference with all hospitals in every round; leave out "
            f"fraction_of_sites, got {config.federation.fraction_of_sites}"
        )
    style_from, share_style = config.algorithm.style_from, config.algorithm.share_style
    for site in share_style:
        if site not in sites:
            raise unknown_choice("hospital in share_style", site, sites)
    if style_from is None:
        return
    algorithms.require_styles(model)
    if apart or algorithm.pools:
        raise ConfigError(f"style_from: with algorithm '{algorithm.name}' nothing travels, so no styles either")
    if len(sites) < 2 or not any(share_style.get(site, True) for site in sites):
        raise ConfigError(
            f"style_from: no hospital of {', '.join(sorted(sites))} would be handed the style of another one; leave it "
            "out, or let one share its style"
        )


def steps_of(config: RunConfig, site: str, cases: int) -> int:
    """Counts the optimizer steps of a site in a round.

    Raises:
        DataError: The site has fewer cases than one batch.
    """
    training = config.training
    if cases < training.batch_size:
        raise DataError(
            f"site '{site}' has {cases} training cases, fewer than one batch of {training.batch_size}; "
            "lower --batch-size or leave the site out of the data"
        )
    return count_steps(cases, training.batch_size, epochs=training.epochs, steps=training.local_steps)


def require_lesions(part: str, cases: pd.DataFrame, remedy: str = "try another --fold or --split-seed") -> None:
    """Refuses a part of the data that has cases but no lesion: nothing can be learnt from it, or measured on it.

    Args:
        part: Its name.
        cases: Its rows of the index's table; may be none.
        remedy: What else can be done than to look at the masks.

    Raises:
        DataError: None of the cases shows a lesion.
    """
    if len(cases) and not cases["lesion_area"].any():
        sites = ", ".join(cases["site"].unique())
        raise DataError(
            f"none of the {len(cases)} cases of the part '{part}' ({sites}) shows a lesion; {remedy}, give more data, "
            "or check the masks: a lesion is non-zero there, and above 127 in JPEG"
        )


def require_split(config: RunConfig) -> None:
    """Raises ConfigError unless the split is a named one or a file."""
    split = config.data.split
    if split not in NAMED_SPLITS and not Path(split).is_file():
        problem = unknown_choice("split", Path(split).name, NAMED_SPLITS)
        raise ConfigError(f"{problem}; or give a file, but there is no {split}")


def split_of(config: RunConfig, index: Index, stored: Path | None) -> pd.DataFrame:
    """Splits the cases, in the order of the index, as the settings say or as a run has stored it."""
    data = config.data
    if stored is not None:
        split = read_split(stored, index.table)
    elif data.split == "grouped":
        split = split_cases(index.table, fold=data.fold, unseen_site=data.unseen_site, seed=data.split_seed)
    elif data.split == "published":
        split = published_split(index.table, fold=data.fold, unseen_site=data.unseen_site)
    else:
        split = read_split(Path(data.split), index.table)
    return split.reset_index(drop=True)


def with_unseen_site(config: RunConfig, split: pd.DataFrame) -> RunConfig:
    """Gives the settings with the unseen site that the split has, which a stored split decides."""
    sites = sorted(split.loc[split["part"] == "test_out", "site"].unique())
    wanted = config.data.unseen_site
    if len(sites) > 1:
        raise ConfigError(f"the split leaves out {', '.join(sites)}; a run has one unseen site at most")
    if wanted is not None and sites != [wanted]:
        raise ConfigError(f"the split leaves out {sites or 'no site'}, not '{wanted}'; leave --unseen-site out")
    return configure(config, unseen_site=sites[0] if sites else None)
