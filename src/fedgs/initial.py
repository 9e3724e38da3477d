"""What a run starts from: random weights, the networks of another run, or a published checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torch.nn import Module

from fedgs.config import ModelConfig
from fedgs.core import Global, global_of
from fedgs.engine import State
from fedgs.errors import CheckpointError, ConfigError
from fedgs.models.published import FORMS
from fedgs.models.published_files import mended, read_published, read_state
from fedgs.own import memory_of
from fedgs.run_folder import RunFolder
from fedgs.scoring import networks_for
from fedgs.tensors import Tensors, buffers_of, weights_of

__all__ = ["describe_initial", "initial_state"]

_SHOWN = 8


def initial_state(
    config: ModelConfig, model: Module, *, kept: Collection[str], sites: Collection[str], careful: Callable[[str], None]
) -> State:
    """Gives the state before the first round.

    Args:
        config: Names the run or file to start from, if any, and says whether a part of it will do. A hospital that the
            run knew starts with what it kept there, any other one with the mean of that.
        model: The network with its random weights; it stays as it is.
        kept: Names of its tensors that sites keep.
        sites: Names of the sites.
        careful: Told what had to be mended, and what does not fit.

    Raises:
        CheckpointError: The file cannot be read, or it does not fit and shall not be taken in part.
        ConfigError: The folder is not that of a finished run, or holds no one network that all could start from.
    """
    if config.init_from is None:
        return State(global_of(model, kept))
    path, random = Path(config.init_from), _tensors_of(model)
    if path.is_dir():
        given = _networks_of_run(path, config.init_checkpoint)
    elif config.init_checkpoint is None:
        given = _network_of_file(path, model, careful, partial=config.init_partial)
    else:
        raise ConfigError(f"init_checkpoint '{config.init_checkpoint}' is one of a run, and {path} is no folder of one")
    told: set[str] = set()

    def network_for(site: str) -> Tensors:
        tensors, problems = _fitting(random, given(site))
        if not tensors:
            raise CheckpointError(f"{path}: nothing in it fits the network {type(model).__name__}; choose another file")
        if problems and not config.init_partial:
            raise CheckpointError(
                f"{path}: does not fit the network {type(model).__name__}: it {'; it '.join(problems)}. Choose its "
                "network with --model and --model-option, or take what fits with --init-partial"
            )
        if problems and problems[0] not in told:
            told.update(problems)
            careful(f"{path}: {len(tensors)} of {len(random)} tensors are taken; it {'; it '.join(problems)}")
        return {name: tensors.get(name, random[name]).detach().clone() for name in random}

    shared = network_for("") if random.keys() - kept else {}
    return State(
        Global(
            weights={name: shared[name] for name in weights_of(model) if name not in kept},
            buffers={name: shared[name] for name in buffers_of(model) if name not in kept},
        ),
        {site: memory_of({name: own[name] for name in kept}) for site in sites if kept and (own := network_for(site))},
    )


def describe_initial(config: ModelConfig) -> dict[str, Any]:
    """Tells, for environment.json, which bytes a run started from."""
    if config.init_from is None:
        return {}
    path = Path(config.init_from)
    file = _checkpoint_of(RunFolder(path), config.init_checkpoint) if path.is_dir() else path
    with file.open("rb") as content:
        return {"init_from": {"file": file.name, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}}


def _tensors_of(model: Module) -> Tensors:
    return {**weights_of(model), **buffers_of(model)}


def _checkpoint_of(folder: RunFolder, wanted: str | None) -> Path:
    """The checkpoint that is wanted, or the one that an evaluation takes too, where there is one."""
    folder.summary()
    if wanted is not None:
        return folder.checkpoint(wanted)
    best = folder.checkpoint("best")
    return best if best.is_file() else folder.checkpoint("last")


def _networks_of_run(path: Path, wanted: str | None) -> Callable[[str], Tensors]:
    folder = RunFolder(path)
    folder.config()
    state = folder.load(_checkpoint_of(folder, wanted).stem)

    def network_for(site: str) -> Tensors:
        networks = list(networks_for(state, site).values())
        if len(networks) != 1:
            raise ConfigError(
                f"{path}: its hospitals share nothing, so it holds no network that others could start from; "
                "choose a run of another algorithm"
            )
        return {**state.server.weights, **state.server.buffers, **networks[0]}

    return network_for


def _network_of_file(
    path: Path, model: Module, careful: Callable[[str], None], *, partial: bool
) -> Callable[[str], Tensors]:
    if path.suffix == ".safetensors":
        raise ConfigError(f"{path}: give the folder of the run, not its checkpoint; or a .pt or .pth file")
    state: Tensors = read_state(path)
    try:
        state = _tensors_of(read_published(state, careful=careful).model)
    except CheckpointError as error:
        names = _names_in(state, model)
        if not names or (not partial and any(ours != theirs for ours, theirs in names.items())):
            raise CheckpointError(f"{path}: {error}") from error
        if broken := [name for name in names.values() if not state[name].isfinite().all()]:
            raise CheckpointError(f"{path}: '{broken[0]}' is not finite") from None
        rest = {name: tensor for name, tensor in state.items() if name not in names.values()}
        known = {ours: state[theirs] for ours, theirs in names.items()}
        state = {**rest, **known, **mended(model, known, careful)}
    return lambda site: state


def _names_in(state: Tensors, model: Module) -> dict[str, str]:
    """The names in a file by our own: it has these, as of torch.save(model.state_dict(), path), or published ones."""
    known = [{name: name for name in _tensors_of(model)}]
    known += [form.published(model) for form in FORMS if form.network is type(model)]
    found = [{ours: theirs for ours, theirs in names.items() if theirs in state} for names in known]
    return max(found, key=len)


def _fitting(like: Tensors, given: Tensors) -> tuple[Tensors, list[str]]:
    """Those that have a name and a shape of the network's, and in words what the others are."""
    common = [name for name in like if name in given]
    # Integers that were averaged as floats are constants, or counts that nothing depends on.
    fitting = {
        name: given[name].to(like[name].dtype)
        if given[name].is_floating_point() == like[name].is_floating_point()
        else like[name]
        for name in common
        if given[name].shape == like[name].shape
    }
    others = {
        "lacks": [name for name in like if name not in given],
        "has unknown": sorted(given.keys() - like.keys()),
        "has in another shape": [
            f"{name} {tuple(given[name].shape)} for {tuple(like[name].shape)}" for name in common if name not in fitting
        ],
    }
    return fitting, [f"{what} {_some(names)}" for what, names in others.items() if names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
