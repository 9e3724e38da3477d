"""What a study is going to do: its runs, their settings, and what decides."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from fedgs.config import RunConfig, configure
from fedgs.errors import ConfigError, unknown_choice

__all__ = ["OUTCOMES", "Arm", "Block", "Cell", "Plan", "Primary", "Run", "Trial", "Trunk", "Tune"]

OUTCOMES = ("dice", "dice_n", "dice_s", "dice_t", "dice_l")
"""Means that a study may be judged by, see `fedgs.metrics.table.STRATA`."""

BASELINE = "fedavg-published"
"""What trunks are trained with, and whose curve tells whether runs have converged."""

TRUNK_SEEDS = 1000
"""Added to the seed of a trunk, so that those who go on from it draw batches that it has not seen."""


_NETWORK = ("model", "model_options")
"""Settings that make a network another one."""

_OF_ALL = ("adapter", "split", "split_seed", "score_size", "rounds", "evaluate_every")
"""Settings without which arms would not be tested on the same images, in the same way and after as many rounds."""

_LONGEST = 100
"""Characters of a part of a file name; most file systems take 255 in all."""


@dataclass(frozen=True, slots=True)
class Primary:
    """What decides, declared before any run.

    What is judged is not a choice: cells from trunks where there are any (others are a check on them), on the images of
    the hospital that was left out, or, where none was, on held-out images of all.

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
        pairs = [frozenset(pair) for pair in self.contrasts]
        if repeated := [pair for pair in self.contrasts if pairs.count(frozenset(pair)) > 1]:
            raise ConfigError(f"contrasts in [primary] name {' and '.join(repeated[0])} more than once; decide for one")
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
    """How settings are chosen: on validation images, in a fold and with a seed that do not enter the comparison.

    All folds share their images. So where every hospital is left out once, hospitals that were seen while tuning are
    test data later; that favours no arm which shares the choice, but scores as such are a little too good.

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
        return f"tune/{self.search}/{_file_name(chosen)}"


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
        return f"trunks/{_group(self.unseen_site, self.fold, self.seed)}{_file_name(self.network)}"


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
            own = self.config(cell).model
            network = own.model, own.model_options
            if cell.trunk and network != ((trunk := self.config(cell.trunk).model).model, trunk.model_options):
                raise ConfigError(
                    f"{cell.path}: goes on from a trunk with another network; give 'model' and 'model_options' in "
                    "[settings] or in the table of the arm, and not in [trunk]"
                )

    def _check_names(self) -> None:
        run = {arm for block in self.blocks for arm in block.arms}
        for table, given in ((f"arms.{arm.name}", arm.settings) for arm in self.arms.values()):
            if apart := sorted(given.keys() & set(_OF_ALL)):
                raise ConfigError(
                    f"[{table}] gives '{apart[0]}', in which all arms must be alike; give it in [settings]"
                )
        if self.tune and (apart := sorted(self.tune.settings.keys() & {"split", "split_seed"})):
            raise ConfigError(
                f"[tune] gives '{apart[0]}', and so other folds than those of the comparison; leave it out there"
            )
        if self.tune is None and (tuned := [arm.name for arm in self.arms.values() if arm.tuned_as]):
            raise ConfigError(
                f"arm '{tuned[0]}' has 'tuned_as', but there is no table [tune]; add one, or leave it out"
            )
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
        for name, grid in self.tune.searches.items():
            self._check_search(name, grid)
        tried = self.config(self.trials(next(iter(counts)))[0])
        seeds = {seed for block in self.blocks for seed in block.seeds}
        seeds |= {TRUNK_SEEDS + seed for block in self.blocks for seed in block.seeds if block.from_trunk}
        for what, value, used in (
            ("fold", tried.data.fold, {fold for block in self.blocks for fold in block.folds}),
            ("seed", tried.federation.seed, seeds),
        ):
            if value in used:
                raise ConfigError(f"{what} {value} in [tune] enters the comparison; tune on another {what}")

    def _check_search(self, name: str, grid: Mapping[str, tuple[Any, ...]]) -> None:
        """Makes sure that a search tries something, nothing twice, and nothing that is settled otherwise."""
        if not grid:
            raise ConfigError(
                f"[tune.search.{name}] tries no setting; name one with its values, such as lr = [5e-4, 1e-3]"
            )
        for setting, values in grid.items():
            if repeated := [value for number, value in enumerate(values) if value in values[:number]]:
                raise ConfigError(f"[tune.search.{name}] tries {setting} = {repeated[0]} more than once")
            if setting in _OF_ALL:
                raise ConfigError(f"[tune.search.{name}] cannot choose '{setting}', which all runs share")
            for table, of_table in (("trunk", self.trunk), ("scratch", self.scratch)):
                if setting in (of_table or {}):
                    raise ConfigError(
                        f"[{table}] gives '{setting}', which [tune.search.{name}] chooses; leave it out there"
                    )
        for arm in self.arms.values():
            settled = sorted(grid.keys() & arm.settings.keys()) if _search_of(self, arm) == name else []
            if settled:
                raise ConfigError(
                    f"[arms.{arm.name}] gives '{settled[0]}', which [tune.search.{name}] chooses; leave it out there"
                )

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
                network = self._network_of(self.arms[run.arm])
                like = (
                    arm for arm in self.arms.values() if self.is_baseline(arm.name) and self._network_of(arm) == network
                )
                return _search_of(self, next(like, self.arms.get(BASELINE, Arm(BASELINE))))
            case Cell():
                return _search_of(self, self.arms[run.arm])

    def is_baseline(self, arm: str) -> bool:
        """Whether an arm is the baseline in all that it sets, its network apart."""
        settings = {"algorithm": arm, **self.arms[arm].settings}
        return settings.pop("algorithm") == BASELINE and not settings.keys() - {*_NETWORK}

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
                given = {"algorithm": BASELINE, **self.settings, **self._network_of(self.arms[run.arm])}
                given |= {**self._choice(run, chosen), **self.trunk}
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

    def _network_of(self, arm: Arm) -> dict[str, Any]:
        given = self._settings_of(arm)
        return {name: given[name] for name in _NETWORK if name in given}

    def _choice(self, run: Run, chosen: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        search = self.search_of(run)
        if search is None or self.tune is None:
            return {}
        return chosen.get(search) or self.tune.choices(search)[0]

    def _trunk(self, arm: str, unseen_site: str | None, fold: int, seed: int) -> Trunk:
        network = self._network_of(self.arms[arm])
        differs = {name: value for name, value in network.items() if value != self.settings.get(name)}
        options = differs.pop("model_options", None)
        label = {**differs, **{name: options[name] for name in sorted(options or ())}}
        label |= {"model_options": "none"} if options == {} else {}
        return Trunk(unseen_site, fold, seed, "".join(f",{name}={value}" for name, value in label.items()), arm)


def _searches(plan: Plan) -> Collection[str]:
    return plan.tune.searches if plan.tune else ()


def _search_of(plan: Plan, arm: Arm) -> str | None:
    return arm.tuned_as or (arm.name if arm.name in _searches(plan) else None)


def _group(unseen_site: str | None, fold: int, seed: int) -> str:
    left_out = "all-sites" if unseen_site is None else f"without-{_file_name(unseen_site)}"
    return f"{left_out}-fold{fold}-seed{seed}"


def _file_name(text: str) -> str:
    """Gives text as part of a file name that any file system takes; a long one is cut, and told apart by a hash."""
    coded = quote(text, safe=" ,=+")
    if len(coded) <= _LONGEST:
        return coded
    return f"{coded[: _LONGEST // 2]}~{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
