"""A study on disk: what every finished run left, and what tells whether it is a run of this plan.

A run is trained in ``work/`` and, once it is finished, put in its place in one step; that place is what makes it count.
What lies there (``summary.json``, ``scores.csv``, ``rounds.jsonl`` and the predicted masks) is small, so a study can be
committed, go on and be reported elsewhere. Trunks keep their weights beside it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedgs.assembly import NAMED_SPLITS, resolve, split_of
from fedgs.config import RunConfig, configure, write_config
from fedgs.data.index import Index
from fedgs.errors import CheckpointError, ConfigError, FedgsError, understood
from fedgs.files import read_json, sealed, write_atomically, write_json
from fedgs.locks import LOCK_FILE
from fedgs.metrics.table import read_scores
from fedgs.resume import describe_cases
from fedgs.run_folder import RunFolder
from fedgs.study.plan import Cell, Plan, Primary, Run, Trial, Trunk
from fedgs.study.reading import read_plan
from fedgs.tables import as_csv

__all__ = ["Result", "StudyFolder"]

_ERROR = "error.txt"
_STAGED = ".staged"
_EARLIER = "earlier-plans"
_TOLD_OF_TRUNKS = ("fedgs", "python", "torch", "device", "threads", "data", "small_rule", "channels")
_KINDS = ("tune", "trunks", "cells")


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run of a study.

    Attributes:
        path: Its folder.
        summary: Content of its summary.json.
        told: What the study noted there: settings, primary outcome, tuned or not, start.
    """

    path: Path
    summary: Mapping[str, Any]
    told: Mapping[str, Any]

    @property
    def rounds(self) -> list[Mapping[str, Any]]:
        """Lines of its rounds.jsonl.

        Raises:
            CheckpointError: They were altered.
        """
        path = self._intact("rounds.jsonl")
        with understood(path):
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    @property
    def scores(self) -> pd.DataFrame:
        """Rows of its scores.csv, which are those of the last round.

        Raises:
            CheckpointError: They were altered.
        """
        return read_scores(self._intact("scores.csv"))

    def require_whole(self) -> None:
        """Makes sure that all that a finished run consists of is there.

        Raises:
            CheckpointError: A file is missing or was altered.
        """
        for name in self.summary["files"]:
            self._intact(name)

    def _intact(self, name: str) -> Path:
        path = self.path / name
        with understood(self.path / "summary.json"):
            expected = self.summary["files"][name]
        if not path.exists() or _hash_of(path) != expected:
            raise CheckpointError(f"{path}: is missing or was altered; restore it from a copy, or run the cell again")
        return path

    def validation(self, outcome: str) -> dict[int, float]:
        """A mean over validation images, by round, of the rounds that were scored."""
        parts = {int(record["round"]): record["validation"] for record in self.rounds}
        means = {number: part[outcome]["mean"] for number, part in parts.items() if part is not None}
        return {number: float(mean) for number, mean in means.items() if mean is not None}


class StudyFolder:
    """The folder of a study, see the module.

    Args:
        path: The folder; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_new(self) -> bool:
        """Whether nothing is there, a lock apart."""
        if not self.path.is_dir():
            return not self.path.exists()
        return all(entry.name == LOCK_FILE for entry in self.path.iterdir())

    def place(self, run: Run) -> Path:
        """Where a run lies once it is finished."""
        return self.path / run.path

    def work(self, run: Run) -> Path:
        """The run folder of a run that is not finished."""
        return self.path / "work" / run.path

    def is_finished(self, run: Run) -> bool:
        """Whether a run is complete."""
        return (self.place(run) / "summary.json").is_file()

    def weights(self, trunk: Trunk) -> Path | None:
        """The run folder of a trunk whose weights are there; None where it is not finished, or they were not kept."""
        place = self.place(trunk)
        return place if self.is_finished(trunk) and RunFolder(place).checkpoint("last").is_file() else None

    def result(self, run: Run) -> Result:
        """Reads what a finished run left.

        Raises:
            CheckpointError: It was altered.
        """
        path = self.place(run)
        summary = read_json(path / "summary.json")
        with understood(path / "summary.json"):
            return Result(path, summary, summary["study"])

    def begin(self, plan_text: str) -> None:
        """Keeps the plan, and the earlier one beside it where it has grown.

        Raises:
            ConfigError: The folder holds something that is not of a study.
        """
        known = {"plan.toml", "study.csv", LOCK_FILE, "work", _EARLIER, *_KINDS}
        foreign = [
            entry.name
            for entry in self.path.glob("*")
            if entry.name not in known and not entry.name.startswith(".") and entry.suffix != ".md"
        ]
        if foreign:
            raise ConfigError(f"{self.path}: is no folder of a study, it holds '{min(foreign)}'; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        plan, earlier = self.path / "plan.toml", self.path / _EARLIER
        if plan.is_file() and (before := plan.read_text(encoding="utf-8")) != plan_text:
            earlier.mkdir(exist_ok=True)
            write_atomically(earlier / f"{1 + len(list(earlier.glob('*.toml')))}.toml", before)
        write_atomically(plan, plan_text)

    def chosen(self, plan: Plan) -> dict[str, dict[str, Any]]:
        """Gives what the searches of a plan chose, of those whose trials are all finished.

        It is the trial with the highest mean over the last quarter of its scored rounds, the first of equal ones.
        """
        chosen = {}
        for search in plan.tune.searches if plan.tune else ():
            trials = plan.trials(search)
            if all(self.is_finished(trial) for trial in trials):
                chosen[search] = dict(max(trials, key=lambda trial: self._mean_of_trial(plan, trial)).choice)
        return chosen

    def _mean_of_trial(self, plan: Plan, trial: Trial) -> float:
        assert plan.tune is not None, "it has a trial"
        curve = [*self.result(trial).validation(plan.tune.outcome).values()]
        return float(np.mean(curve[-max(1, len(curve) // 4) :])) if curve else -math.inf

    def keep(self, run: Run, config: RunConfig, about: Mapping[str, Any]) -> None:
        """Puts a run that is finished in its place, without what is large and can be made again.

        Args:
            run: The run, finished in `work`.
            config: Its settings, resolved.
            about: What the study knows of it, for its summary.
        """
        work, place = RunFolder(self.work(run)), self.place(run)
        made = self.path / _STAGED
        shutil.rmtree(made, ignore_errors=True)  # left by a killed process
        made.mkdir()
        if isinstance(run, Trunk):
            about = {**about, "weights": _keep_weights(work, config, made)}
        shutil.copyfile(work.path / "rounds.jsonl", made / "rounds.jsonl")
        hashed = ["rounds.jsonl", "scores.csv"]
        if (work.path / "masks").is_dir() and isinstance(run, Cell):
            shutil.copytree(work.path / "masks", made / "masks")
            hashed.append("masks")
        summary = {name: value for name, value in work.summary().items() if name != "own_scores"}
        scores = read_scores(work.path / "scores.csv")
        write_atomically(made / "scores.csv", as_csv(scores[scores["round"] == summary["round"]]))
        machine = {name: work.environment()[name] for name in ("fedgs", "torch", "device", "threads")}
        started = work.environment().get("init_from", {}).get("sha256")
        noted = {"settings": as_settings(config), "data": work.environment()["data"], "start": started}
        files = {name: _hash_of(made / name) for name in hashed}
        write_json(
            made / "summary.json", sealed({**summary, "files": files, "study": {**noted, "machine": machine, **about}})
        )
        shutil.rmtree(place, ignore_errors=True)  # a trunk whose weights had not been kept
        place.parent.mkdir(parents=True, exist_ok=True)
        made.replace(place)
        shutil.rmtree(work.path)

    def fail(self, run: Run, message: str) -> None:
        """Notes why a run could not be finished; what it has is kept and tried again by the next --resume."""
        self.work(run).mkdir(parents=True, exist_ok=True)
        write_atomically(self.work(run) / _ERROR, message)

    def begun(self, run: Run) -> RunConfig | None:
        """Settings of a run that is under way; None where it has not begun."""
        work = RunFolder(self.work(run))
        return work.config() if work.is_started else None

    def weights_in_work(self, trunk: Trunk, config: RunConfig) -> str:
        """Checksum that the weights of a trunk which is finished in `work` will have in their place."""
        with tempfile.TemporaryDirectory() as made:
            return _keep_weights(RunFolder(self.work(trunk)), config, Path(made))

    def tidy(self, run: Run) -> None:
        """Removes what a killed process left of a run that is finished."""
        if self.work(run).exists():
            shutil.rmtree(self.work(run))

    def forget_failure(self, run: Run) -> None:
        """Forgets why a run could not be finished, before it is tried again."""
        (self.work(run) / _ERROR).unlink(missing_ok=True)

    def failure(self, run: Run) -> str | None:
        """Why a run could not be finished; None where that was not tried, or it is finished."""
        path = self.work(run) / _ERROR
        return path.read_text(encoding="utf-8") if path.is_file() and not self.is_finished(run) else None

    def found(self) -> Iterator[str]:
        """Gives the paths of all runs that are finished or begun, whatever plan they are of."""
        for folder in (self.path, self.path / "work"):
            for kind in _KINDS:
                for mark in ("summary.json", "config.toml"):
                    for path in (folder / kind).rglob(mark):
                        yield path.parent.relative_to(folder).as_posix()

    def refuse_other_plan(self, plan: Plan) -> None:
        """Makes sure that what has been run is of this plan, which may have grown since.

        Raises:
            ConfigError: The primary outcome, contrasts or margin were changed after a run had begun, a run is of no
                plan like this one, or it had other settings.
        """
        runs, chosen = {run.path: run for run in plan.runs()}, self.chosen(plan)
        stranger = next((path for path in sorted(set(self.found())) if path not in runs), None)
        if stranger is not None:
            raise ConfigError(
                f"{self.path}: is the study of another plan: it has '{stranger}', which this plan has not. Choose "
                "another --out, or take that run out of the folder if it shall not count"
            )
        if runs.keys() & set(self.found()) and (self.path / "plan.toml").is_file():
            before = described(read_plan(self.path / "plan.toml").primary)
            self._require_same_primary(before, plan.primary, "it")
        for run in runs.values():
            if self.is_finished(run):
                result = self.result(run)
                result.require_whole()
                self._require_same_primary(result.told["primary"], plan.primary, f"'{run.path}'")
            if (search := plan.search_of(run)) is not None and search not in chosen:
                continue  # trials that were lost are made again, and compared after that
            ran = self._settings_of(run)
            now = {**as_settings(resolve(plan.config(run, chosen))), "threads": plan.threads}
            changed = [] if ran is None else _differences(ran, now)
            if changed:
                raise ConfigError(
                    f"{self.path}: is the study of another plan: in '{run.path}', {'; '.join(changed)}. Restore the "
                    "plan, choose another --out, or delete that run to have it made again"
                )

    def _settings_of(self, run: Run) -> Mapping[str, Any] | None:
        if self.is_finished(run):
            told = self.result(run).told  # by an earlier version maybe, which knew fewer settings
            return {**as_settings(configure(None, **told["settings"])), "threads": told["machine"]["threads"]}
        work = RunFolder(self.work(run))
        if not (work.path / "config.toml").is_file():
            return None
        try:
            return {**as_settings(work.config()), "threads": work.environment()["threads"]}
        except FedgsError:  # it will fail alone when it is to go on
            return None

    def refuse_other_data(self, plan: Plan, index: Index) -> None:
        """Makes sure that finished runs had the cases, flags and parts that others are going to have.

        Raises:
            ConfigError: They had not.
        """
        known: dict[tuple[str | None, int], object] = {}
        for run in plan.runs():
            if not self.is_finished(run):
                continue
            config = plan.config(run)
            split = (config.data.unseen_site, config.data.fold)
            if split not in known:
                known[split] = describe_cases(index, split_of(config, index, None))["data"]
            if self.result(run).told["data"] != known[split]:
                raise ConfigError(
                    f"{self.path}: the images, masks or flags in {index.folder} are not those that '{run.path}' was "
                    "made with; restore the data, or start a new study with another --out"
                )

    def _require_same_primary(self, told: Mapping[str, Any], primary: Primary, what: str) -> None:
        if changed := _differences(told, described(primary)):
            raise ConfigError(
                f"{self.path}: {what} has been run for another primary outcome: {'; '.join(changed)}. What "
                "decides is declared before the first run; restore [primary], or start a new study with another --out"
            )


def _keep_weights(work: RunFolder, config: RunConfig, made: Path) -> str:
    """Writes the last weights of a trunk as a run folder, and gives their checksum.

    It tells neither where the data lay nor of the machine: it can be committed, and is the same bytes elsewhere.
    """
    told = {name: value for name, value in work.environment().items() if name in _TOLD_OF_TRUNKS}
    kept = RunFolder(made)
    kept.create(_without_places(config), told, work.split())
    kept.keep(work.load("last"), [])
    kept.checkpoint("last").with_suffix(".json").unlink()
    return _hash_of(kept.checkpoint("last"))


def described(primary: Primary) -> dict[str, Any]:
    """Gives what decides as JSON can hold it."""
    pairs = [list(pair) for pair in primary.contrasts]
    return {"outcome": primary.outcome, "contrasts": pairs, "margin": primary.margin}


def as_settings(config: RunConfig) -> dict[str, Any]:
    """Gives the resolved settings of a run as JSON can hold them, less where things lie and what a machine decides."""
    tables = tomllib.loads(write_config(_without_places(config)))
    return {name: value for table in tables.values() for name, value in table.items() if name != "device"}


def _without_places(config: RunConfig) -> RunConfig:
    split = config.data.split if config.data.split in NAMED_SPLITS else Path(config.data.split).name
    return configure(config, data=None, init_from=None, init_checkpoint=None, split=split)


def _hash_of(path: Path) -> str:
    """Of the bytes of a file; of a folder, of the names and hashes of all that is in it."""
    if path.is_dir():
        inside = "".join(f"{each.name} {_hash_of(each)}\n" for each in sorted(path.iterdir()))
        return hashlib.sha256(inside.encode()).hexdigest()
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(before.keys() | now.keys())
    return [f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in names if before.get(name) != now.get(name)]
