"""Finished runs that enter a comparison, of run folders or of a study."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from fedgs.errors import ConfigError, DataError, understood
from fedgs.metrics.table import read_scores
from fedgs.report.provenance import without_paths
from fedgs.report.reading import read_run
from fedgs.study.folder import Result, StudyFolder
from fedgs.study.plan import BASELINE, Cell, Plan, Primary
from fedgs.study.reading import read_plan
from fedgs.study.table import cells_table, gain, is_converged
from fedgs.summary import TESTS
from fedgs.verdict.outcomes import as_numbers

__all__ = ["SCRATCH", "Observation", "Observed", "observe", "settings_apart"]

SCRATCH = " from scratch"
"""Behind the name of an arm whose cells started from random weights, in a study whose others did not."""

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Observed:
    """A finished run.

    Attributes:
        arm: The way it was trained.
        unseen_site: The hospital that was left out, or None.
        fold: Of the split.
        seed: Of the run.
        settings: Resolved, by name.
        data: Checksum of its cases, flags and parts.
        start: Checksum of the weights it started from, or None for random ones.
        scores: Rows of scores.csv, of test images after the last round, as `as_numbers` gives them.
        rounds: Lines of rounds.jsonl.
        machine: Versions and device.
        path: Its folder.
        converged: Whether the baseline beside it had, or, of run folders without one, the run itself; None where that
            is not known.
        adapter: Layout of its data, by which one knows whom to cite; may be empty.
    """

    arm: str
    unseen_site: str | None
    fold: int
    seed: int
    settings: Mapping[str, Any]
    data: str
    start: str | None
    scores: pd.DataFrame
    rounds: Sequence[Mapping[str, Any]]
    machine: Mapping[str, Any]
    path: Path
    converged: bool | None = None
    adapter: str = ""

    @property
    def block(self) -> str:
        """What it shares with runs that differ in arm and seed alone."""
        return f"without {self.unseen_site}, fold {self.fold}" if self.unseen_site else f"fold {self.fold}"


@dataclass(frozen=True, slots=True)
class Observation:
    """All that is known of some runs together.

    Attributes:
        name: For titles.
        runs: Finished runs; of one arm, block and seed there is one.
        primary: What decides, where it was declared before the runs.
        missing: Paths of cells that the plan names and that are not there.
        failed: Why cells could not be finished, by path.
        untuned: Arms whose settings no search chose, of a study that has searches.
    """

    name: str
    runs: Sequence[Observed]
    primary: Primary | None = None
    missing: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    untuned: Sequence[str] = ()

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in the order of the runs."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Observed]:
        """The runs of an arm."""
        return [run for run in self.runs if run.arm == arm]


def observe(paths: Sequence[Path], *, fewest: int = 2) -> Observation:
    """Reads what is to be compared.

    Args:
        paths: The folder of one study, or those of runs.
        fewest: How many runs there must be.

    Raises:
        ConfigError: It is neither, or a run is given twice.
        DataError: A run is missing, not finished or cannot be understood.
        CheckpointError: A file of a study was altered.
    """
    studies = [path for path in paths if (path / "plan.toml").is_file()]
    if studies and len(paths) > 1:
        raise ConfigError(f"{studies[0]}: is a study, which is compared alone; name it, or runs, and not both")
    if studies:
        return _of_study(studies[0])
    if len(paths) < fewest:
        raise ConfigError(
            "a comparison needs two runs or the folder of a study; name what 'fedgs train' or 'study' wrote"
        )
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("a comparison got the same run folder twice; name every run once")
    names = list(dict.fromkeys(path.resolve().name for path in paths))
    together = " and ".join(names) if len(names) <= _MOST_NAMED else f"{len(paths)} runs"
    return Observation(together, _named(_beside_baseline(list(map(_of_run, paths)))))


def _of_study(path: Path) -> Observation:
    plan, folder = read_plan(path / "plan.toml"), StudyFolder(path)
    table = cells_table(plan, folder)
    has_trunks = any(cell.trunk for cell in plan.cells())
    runs, missing, failed = [], [], {}
    for cell, row in zip(plan.cells(), table.to_dict("records"), strict=True):
        if row["state"] == "finished":
            result = folder.result(cell)
            result.require_whole()
            arm = cell.arm + (SCRATCH if has_trunks and cell.trunk is None else "")
            runs.append(_of_cell(cell, result, arm, {"True": True, "False": False}.get(row["converged"])))
        elif row["state"] == "failed":
            failed[cell.path] = without_paths(str(row["reason"]))
        else:
            missing.append(cell.path)
    if not runs:
        raise DataError(f"{path}: no cell of the study is finished; go on with it: fedgs study … --out {path} --resume")
    return Observation(plan.name, runs, plan.primary, missing, failed, _untuned(plan))


def _untuned(plan: Plan) -> list[str]:
    cells = {cell.arm: cell for cell in plan.cells()} if plan.tune else {}
    return [arm for arm, cell in cells.items() if plan.search_of(cell) is None]


def _of_cell(cell: Cell, result: Result, arm: str, converged: bool | None) -> Observed:
    return Observed(
        arm=arm,
        unseen_site=cell.unseen_site,
        fold=cell.fold,
        seed=cell.seed,
        settings=result.told["settings"],
        data=str(result.told["data"]),
        start=result.told["start"],
        scores=_tested(result.scores, result.path),
        rounds=result.rounds,
        machine=result.told["machine"],
        path=result.path,
        converged=converged,
        adapter=str(result.summary["data"]["adapter"]),
    )


def _of_run(path: Path) -> Observed:
    run = read_run(path)
    if run.published:
        raise ConfigError(
            f"{path}: is a published checkpoint and was not trained here; it can be evaluated, not compared"
        )
    scores = read_scores(path / "scores.csv")
    environment = run.environment
    curve = {
        each.number: float(mean)
        for each in run.history
        if each.validation is not None and (mean := each.validation.pooled["dice_n"].mean) is not None
    }
    return Observed(
        arm=run.algorithm,
        unseen_site=run.unseen_site,
        fold=run.fold,
        seed=run.seed,
        settings={name: value for table in run.config.values() for name, value in table.items()},
        data=str(environment.get("data", run.split)),
        start=environment.get("init_from", {}).get("sha256"),
        scores=_tested(scores[scores["round"] == run.rounds], path),
        rounds=_lines(path),
        machine={name: environment[name] for name in ("fedgs", "torch", "device", "threads") if name in environment},
        path=path,
        converged=is_converged(gain(curve)),
        adapter=run.adapter,
    )


def _beside_baseline(runs: Sequence[Observed]) -> list[Observed]:
    """Takes over from the baseline, where it is there, whether training had converged, as in a study."""
    known = {(run.block, run.seed): run.converged for run in runs if run.arm == BASELINE}
    return [replace(run, converged=known.get((run.block, run.seed), run.converged)) for run in runs]


def _tested(scores: pd.DataFrame, path: Path) -> pd.DataFrame:
    try:
        parts = [as_numbers(scores[scores["part"] == part]) for part in TESTS]
    except DataError as error:
        raise DataError(f"{path / 'scores.csv'}: {error}") from error
    return pd.concat(parts, ignore_index=True)


def _named(runs: Iterable[Observed]) -> list[Observed]:
    """Tells runs of one algorithm apart, by the settings in which they differ or else by their folders."""
    read = list(runs)
    named = [replace(run, arm=label) for run, label in zip(read, _labels(read), strict=True)]
    if not _clash(named):
        return named
    paths = [run.path.resolve() for run in named]
    longer = (["/".join(path.parts[-count:]) for path in paths] for count in range(2, 99))
    for names in ([path.name for path in paths], [path.parent.name for path in paths], *longer):
        told = [replace(run, arm=f"{run.arm} ({name})") for run, name in zip(named, names, strict=True)]
        if not _clash(told):
            break
    return told


def _clash(runs: Sequence[Observed]) -> bool:
    """Whether two runs of one name share hospital, fold and seed, so that they cannot be one arm."""
    return len({(run.arm, run.block, run.seed) for run in runs}) < len(runs)


_OF_THE_GRID = frozenset({"algorithm", "seed", "fold", "unseen_site"})
_OF_THE_MACHINE = frozenset({"data", "device", "init_from", "init_checkpoint"})


def settings_apart(runs: Sequence[Observed]) -> dict[str, list[Any]]:
    """Gives the settings in which runs differ, with their values, run by run; not what a grid varies."""
    names = sorted({name for run in runs for name in run.settings} - _OF_THE_GRID - _OF_THE_MACHINE)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: of_runs for name, of_runs in values.items() if any(value != of_runs[0] for value in of_runs)}


def _labels(runs: Sequence[Observed]) -> list[str]:
    """Names of algorithms, with settings where runs of one algorithm are several arms."""
    labels = []
    for run in runs:
        alike = [other for other in runs if other.arm == run.arm]
        beside = [[other for other in alike if (other.block, other.seed) == (one.block, one.seed)] for one in alike]
        names = sorted({name for together in beside for name in settings_apart(together)})
        own = [f"{name}={run.settings[name]}" for name in names if name in run.settings]
        labels.append(", ".join([run.arm, *own]))
    return labels


def _lines(run: Path) -> list[Mapping[str, Any]]:
    path = run / "rounds.jsonl"
    with understood(path):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
