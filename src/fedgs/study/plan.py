"""What a study is going to do, as plan.toml says it before the first run."""

from __future__ import annotations

import re
import tomllib
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from fedgs.config import RunConfig, configure, settings
from fedgs.errors import ConfigError, unknown_choice

__all__ = ["OUTCOMES", "Arm", "Block", "Cell", "Plan", "Primary", "Run", "Trial", "Trunk", "Tune", "read_plan"]

OUTCOMES = ("dice", "dice_n", "dice_s", "dice_t", "dice_l")
"""Means that a study may be judged by, see `fedgs.metrics.table.STRATA`."""

BASELINE = "fedavg-published"
"""What trunks are trained with, and whose curve tells whether runs have converged."""

TRUNK_SEEDS = 1000
"""Added to the seed of a trunk, so that those who go on from it draw batches that it has not seen."""

_GIVEN_BY_THE_GRID = ("unseen_site", "fold", "seed", "data", "init_from", "init_partial", "init_checkpoint")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")


@dataclass(frozen=True, slots=True)
class Primary:
    """What decides, declared before any run.

    Attributes:
        outcome: The mean that the verdict is about, one of `OUTCOMES`, of test images after the last round.
        contrasts: Pairs of arms, the one that is claimed to be better first.
        margin: How much Dice of large lesions may fall before a gain counts for nothing, in (0, 1).
    """

    outcome: str
    contrasts: tuple[tuple[str, str], ...]
    margin: float

    def __post_init__(self) -> None:
        """Checks the choices."""
        if self.outcome not in OUTCOMES:
            raise unknown_choice("outcome in [primary]", self.outcome, OUTCOMES)
        if not self.contrasts or any(first == second for first, second in self.contrasts):
            raise ConfigError(
                "contrasts in [primary] must name at least one pair of two arms, such as [['fedgs', 'matched-site']]"
            )
        if not 0 < self.margin < 1:
            raise ConfigError(f"margin in [primary] must lie in (0, 1), got {self.margin}")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        name: Name of the arm, and of its algorithm unless its settings name another one.
        settings: What it sets beside the settings of all.
        tuned_as: The search whose choice it takes; that of its own name, if there is one, when left out.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Cells of a grid, all arms of a seed and hospital together, the first seed whole before the second.

    Attributes:
        arms: Names of the arms.
        unseen_sites: Hospitals left out, one per run; None is a run without an unseen hospital.
        seeds: Seeds of the runs.
        folds: Folds of the split.
        from_trunk: Whether they go on from a trunk, or start from random weights.
    """

    arms: tuple[str, ...]
    unseen_sites: tuple[str | None, ...] = (None,)
    seeds: tuple[int, ...] = (0,)
    folds: tuple[int, ...] = (0,)
    from_trunk: bool = False


@dataclass(frozen=True, slots=True)
class Tune:
    """How settings are chosen, on data that do not enter the comparison.

    Attributes:
        settings: Of all trials, beside the settings of all runs; with the fold, seed and unseen hospital.
        outcome: What is to be highest: a mean over validation images, averaged over the last quarter of the rounds.
        searches: By name of the arm that is tried, the values that are tried of some settings.
    """

    settings: Mapping[str, Any]
    outcome: str
    searches: Mapping[str, Mapping[str, tuple[Any, ...]]]

    def choices(self, name: str) -> list[dict[str, Any]]:
        """Gives the settings of every trial of a search."""
        grid = self.searches[name]
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


@dataclass(frozen=True, slots=True)
class Trial:
    """A run of the tuning: one choice of one search."""

    search: str
    choice: tuple[tuple[str, Any], ...]

    @property
    def path(self) -> str:
        """Where it lies in the folder of the study."""
        chosen = ",".join(f"{name}={value}" for name, value in self.choice)
        return f"tune/{self.search}/{quote(chosen, safe=',=+')}"


@dataclass(frozen=True, slots=True)
class Trunk:
    """A run of the baseline from which arms branch.

    Attributes:
        unseen_site: The hospital left out.
        fold: Fold of the split.
        seed: Of those that branch from it.
        network: What tells it from trunks of other networks; empty for the network of the plan.
        arm: One of the arms that branch from it, whose network it has.
    """

    unseen_site: str | None
    fold: int
    seed: int
    network: str
    arm: str = field(compare=False)

    @property
    def path(self) -> str:
        """Where it lies in the folder of the study."""
        return f"trunks/{_group(self.unseen_site, self.fold, self.seed)}{quote(self.network, safe=',=+')}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A run that enters the comparison."""

    arm: str
    unseen_site: str | None
    fold: int
    seed: int
    trunk: Trunk | None = None

    @property
    def group(self) -> tuple[Any, ...]:
        """What it shares with those that it is compared with."""
        return (self.unseen_site, self.fold, self.seed, self.trunk is None)

    @property
    def path(self) -> str:
        """Where it lies in the folder of the study."""
        start = "scratch" if self.trunk is None else "trunk"
        return f"cells/from-{start}/{_group(self.unseen_site, self.fold, self.seed)}/{self.arm}"


Run = Trial | Trunk | Cell


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole study.

    Attributes:
        name: For titles.
        primary: What decides.
        settings: Of every run, by the names that `fedgs.config.configure` knows.
        arms: The ways to train, by name.
        blocks: The grids, in the order in which they are to run.
        trunk: Settings of the trunks, ``rounds`` among them; None where nothing branches.
        scratch: Settings of the cells that start from random weights, beside those of all.
        tune: How settings are chosen; None where none are.
        threads: Cores of every run, since sums differ in the last digits by how many share them.
    """

    name: str
    primary: Primary
    settings: Mapping[str, Any]
    arms: Mapping[str, Arm]
    blocks: tuple[Block, ...]
    trunk: Mapping[str, Any] | None = None
    scratch: Mapping[str, Any] = field(default_factory=dict)
    tune: Tune | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Checks that the parts fit together, and that every run has settings that can be."""
        if not self.blocks:
            raise ConfigError("the plan has no cells; name arms in at least one table [[cells]]")
        if not isinstance(self.threads, int) or isinstance(self.threads, bool) or self.threads < 1:
            raise ConfigError(f"threads must be a whole number, at least 1, got {self.threads!r}")
        if self.trunk is None and any(block.from_trunk for block in self.blocks):
            raise ConfigError("cells that go on from a trunk need a table [trunk] with its rounds")
        self._check_names()
        self._check_tuning()
        for cell in self.cells():
            self.config(cell)

    def _check_names(self) -> None:
        run = {arm for block in self.blocks for arm in block.arms}
        for kind, names, known in (
            ("arm", [*run, *_searches(self)], self.arms),
            ("arm in the contrasts of [primary]", [arm for pair in self.primary.contrasts for arm in pair], run),
            ("search in tuned_as", [arm.tuned_as for arm in self.arms.values() if arm.tuned_as], _searches(self)),
        ):
            for name in names:
                if name not in known:
                    raise unknown_choice(kind, name, known)

    def _check_tuning(self) -> None:
        if self.tune is None:
            return
        counts = {name: len(self.tune.choices(name)) for name in self.tune.searches}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            told = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
            raise ConfigError(f"every search in [tune] must have the same number of trials, at least one; got {told}")
        if self.tune.outcome not in OUTCOMES:
            raise unknown_choice("outcome in [tune]", self.tune.outcome, OUTCOMES)
        tried = self.config(self.trials(next(iter(counts)))[0])
        for what, value, used in (
            ("fold", tried.data.fold, {fold for block in self.blocks for fold in block.folds}),
            ("seed", tried.federation.seed, {seed for block in self.blocks for seed in block.seeds}),
        ):
            if value in used:
                raise ConfigError(f"{what} {value} in [tune] enters the comparison; tune on another {what}")

    def trials(self, search: str) -> list[Trial]:
        """Lists the runs of a search."""
        return (
            [] if self.tune is None else [Trial(search, tuple(choice.items())) for choice in self.tune.choices(search)]
        )

    def cells(self) -> list[Cell]:
        """Lists the runs that enter the comparison, in the order in which they are to run; each once."""
        found = [
            Cell(arm, unseen_site, fold, seed, self._trunk(arm, unseen_site, fold, seed) if block.from_trunk else None)
            for block in self.blocks
            for seed, fold, unseen_site, arm in product(block.seeds, block.folds, block.unseen_sites, block.arms)
        ]
        return list(dict.fromkeys(found))

    def runs(self) -> Iterator[Run]:
        """Gives every run once, in the order of work: what a run needs comes right before the first that needs it."""
        begun: set[str] = set()
        for cell in self.cells():
            for run in (*((*self.needs(cell.trunk), cell.trunk) if cell.trunk else ()), *self.needs(cell), cell):
                if run.path not in begun:
                    begun.add(run.path)
                    yield run

    def needs(self, run: Run) -> list[Run]:
        """Lists what must be finished before a run can start: the trials of its tuning, and its trunk."""
        search = self.search_of(run)
        trials: list[Run] = [] if search is None else [*self.trials(search)]
        return [*trials, run.trunk] if isinstance(run, Cell) and run.trunk else trials

    def search_of(self, run: Run) -> str | None:
        """Names the search whose choice a run takes; None for one whose settings are as the plan says."""
        match run:
            case Trial():
                return None
            case Trunk():
                return _search_of(self, self.arms.get(BASELINE, Arm(BASELINE)))
            case Cell():
                return _search_of(self, self.arms[run.arm])

    def config(self, run: Run, chosen: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> RunConfig:
        """Gives the settings of a run, without data and without the place of its trunk.

        Args:
            run: A trial, trunk or cell.
            chosen: What the tuning chose, by search; where it has not yet, its first choice stands in.

        Raises:
            ConfigError: A setting is unknown, or given by the grid, or cannot be.
        """
        match run:
            case Trial():
                assert self.tune is not None, "only a plan that tunes has trials"
                given = {**self._settings_of(self.arms[run.search]), **self.tune.settings, **dict(run.choice)}
            case Trunk():
                assert self.trunk is not None, "only a plan with a trunk has trunks"
                own = self.arms[run.arm].settings
                network = {name: own[name] for name in ("model", "model_options") if name in own}
                given = {"algorithm": BASELINE, **self.settings, **network, **self._choice(run, chosen), **self.trunk}
                given |= {"unseen_site": run.unseen_site, "fold": run.fold, "seed": TRUNK_SEEDS + run.seed}
            case Cell():
                given = {**self._settings_of(self.arms[run.arm]), **self._choice(run, chosen)}
                given |= self.scratch if run.trunk is None else {}
                given |= {"unseen_site": run.unseen_site, "fold": run.fold, "seed": run.seed}
        try:
            return configure(None, **given)
        except ConfigError as error:
            raise ConfigError(f"{run.path}: {error}") from error

    def _settings_of(self, arm: Arm) -> dict[str, Any]:
        return {"algorithm": arm.name, **self.settings, **arm.settings}

    def _choice(self, run: Run, chosen: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        search = self.search_of(run)
        if search is None or self.tune is None:
            return {}
        return chosen.get(search) or self.tune.choices(search)[0]

    def _trunk(self, arm: str, unseen_site: str | None, fold: int, seed: int) -> Trunk:
        own = self.arms[arm].settings
        differs = {
            name: own[name]
            for name in ("model", "model_options")
            if name in own and own[name] != self.settings.get(name)
        }
        options = differs.pop("model_options", {})
        label = {**differs, **{name: options[name] for name in sorted(options)}}
        return Trunk(unseen_site, fold, seed, "".join(f",{name}={value}" for name, value in label.items()), arm)


def _searches(plan: Plan) -> Collection[str]:
    return plan.tune.searches if plan.tune else ()


def _search_of(plan: Plan, arm: Arm) -> str | None:
    return arm.tuned_as or (arm.name if arm.name in _searches(plan) else None)


def _group(unseen_site: str | None, fold: int, seed: int) -> str:
    left_out = "all-sites" if unseen_site is None else f"without-{quote(unseen_site, safe=' ')}"
    return f"{left_out}-fold{fold}-seed{seed}"


def read_plan(path: Path) -> Plan:
    """Reads plan.toml.

    Args:
        path: The file; docs/how-to/run-a-study.md tells its tables.

    Raises:
        ConfigError: It cannot be read, lacks a table that it must have, or holds one, or a key, that is unknown; or
            what it says cannot be.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a plan (TOML)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML ({error})") from error
    try:
        return _plan_of(content, path.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _plan_of(content: Mapping[str, Any], stem: str) -> Plan:
    known = ("name", "threads", "primary", "settings", "arms", "cells", "trunk", "scratch", "tune")
    _require_known("table or key", content, known)
    for table in ("primary", "cells"):
        if table not in content:
            raise ConfigError(
                f"lacks the table '{table}'; a plan says what decides ([primary]) and what runs ([[cells]])"
            )
    blocks = _list_of("cells", content["cells"], dict)
    arms = {name: _arm(name, of_arm) for name, of_arm in _table("arms", content.get("arms", {})).items()}
    made = tuple(_block(block, "trunk" in content) for block in blocks)
    for name in [arm for block in made for arm in block.arms]:
        arms.setdefault(name, _arm(name, {}))
    name = content.get("name", stem)
    if not isinstance(name, str):
        raise ConfigError(f"name must be text, got {name!r}")
    return Plan(
        name=name,
        primary=_primary(_table("primary", content["primary"])),
        settings=_settings("settings", content.get("settings", {})),
        arms=arms,
        blocks=made,
        trunk=_settings("trunk", content["trunk"], needed=("rounds",)) if "trunk" in content else None,
        scratch=_settings("scratch", content.get("scratch", {})),
        tune=_tune(_table("tune", content["tune"])) if "tune" in content else None,
        threads=content.get("threads", 1),
    )


def _primary(content: Mapping[str, Any]) -> Primary:
    names = [entry.name for entry in fields(Primary)]
    _require_known("key in [primary]", content, names)
    if missing := [name for name in names if name not in content]:
        raise ConfigError(f"[primary] lacks '{missing[0]}'; outcome, contrasts and margin are declared before any run")
    margin = content["margin"]
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise ConfigError(f"margin in [primary] must be a number, got {margin!r}")
    pairs = [
        tuple(_list_of("a contrast in [primary]", pair, str))
        for pair in _list_of("contrasts", content["contrasts"], list)
    ]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError("a contrast in [primary] is a pair of arms, such as ['fedgs', 'matched-site']")
    return Primary(content["outcome"], tuple((pair[0], pair[1]) for pair in pairs), float(margin))


def _arm(name: str, content: object) -> Arm:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"arm '{name}': its name becomes that of a folder; use letters, digits and + . _ -")
    table = dict(_table(f"arms.{name}", content))
    tuned_as = table.pop("tuned_as", None)
    return Arm(name, _settings(f"arms.{name}", table), tuned_as)


def _block(content: Mapping[str, Any], has_trunk: bool) -> Block:
    _require_known("key in [[cells]]", content, [entry.name for entry in fields(Block)])
    if "arms" not in content:
        raise ConfigError("a table [[cells]] lacks 'arms'; name the arms that run in it")
    kinds = {"arms": str, "unseen_sites": str, "seeds": int, "folds": int}
    given = {
        name: tuple(_list_of(f"{name} in [[cells]]", content[name], kinds[name])) for name in kinds if name in content
    }
    if empty := [name for name, values in given.items() if not values]:
        raise ConfigError(f"{empty[0]} in [[cells]] is empty; leave it out or name some")
    from_trunk = content.get("from_trunk", has_trunk)
    if not isinstance(from_trunk, bool):
        raise ConfigError(f"from_trunk in [[cells]] must be true or false, got {from_trunk!r}")
    return Block(**given, from_trunk=from_trunk)


def _tune(content: Mapping[str, Any]) -> Tune:
    own = dict(content)
    searches = {
        name: {
            setting: tuple(_list_of(f"{setting} in [tune.search.{name}]", values, object))
            for setting, values in _settings(f"tune.search.{name}", grid, typed=False).items()
        }
        for name, grid in _table("tune.search", own.pop("search", {})).items()
    }
    outcome = own.pop("outcome", "dice_n")
    allowed = ("unseen_site", "fold", "seed")
    if missing := [name for name in ("fold", "seed") if name not in own]:
        raise ConfigError(f"[tune] lacks '{missing[0]}'; name a fold and a seed that do not enter the comparison")
    return Tune(_settings("tune", own, allowed=allowed), outcome, searches)


def _settings(
    table: str, content: object, *, allowed: Sequence[str] = (), needed: Sequence[str] = (), typed: bool = True
) -> dict[str, Any]:
    """Checks settings of runs that stand in a table of the plan."""
    given = dict(_table(table, content))
    choices = [name for _, name, *_ in settings() if name not in _GIVEN_BY_THE_GRID or name in allowed]
    for name in given:
        if name == "algorithm" and not table.startswith("arms."):
            raise ConfigError(f"'algorithm' cannot stand in [{table}]: an arm has one, by its name or in [arms.NAME]")
        if name in _GIVEN_BY_THE_GRID and name not in allowed:
            raise ConfigError(f"'{name}' cannot stand in [{table}]: [[cells]] or the command gives it")
        if name not in choices:
            raise unknown_choice(f"setting in [{table}]", name, choices)
    for name in needed:
        if name not in given:
            raise ConfigError(f"[{table}] lacks '{name}'")
    if typed:
        configure(None, **given)
    return given


def _require_known(kind: str, content: Mapping[str, Any], known: Collection[str]) -> None:
    for name in content:
        if name not in known:
            raise unknown_choice(kind, name, known)


def _table(name: str, content: object) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"'{name}' must be a table, as in [{name}]; got {content!r}")
    return content


def _list_of(name: str, content: object, kind: type) -> list[Any]:
    fits = isinstance(content, list) and all(
        isinstance(entry, kind) and (kind is not int or not isinstance(entry, bool)) for entry in content
    )
    if not fits:
        words = {str: "names", int: "whole numbers", dict: "tables", list: "pairs"}.get(kind, "values")
        raise ConfigError(f"{name} must be a list of {words}, got {content!r}")
    return typing.cast("list[Any]", content)
