"""A run on disk: everything that reports, later evaluations and a resumed run read.

After every round the tables are written first and ``checkpoints/last.safetensors`` last; that file is what makes a
round count. Opening a folder drops whatever the tables hold beyond it, so a killed run goes on from its last finished
round.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fedgs.checkpoint import load_tensors, save_tensors
from fedgs.config import RunConfig, configure, read_config, write_config
from fedgs.core import Global
from fedgs.engine import Best, State
from fedgs.errors import CheckpointError, ConfigError, DataError, understood
from fedgs.files import TEMPORARY_SUFFIX, append, copy_atomically, read_json, sealed, write_atomically, write_json
from fedgs.locks import LOCK_FILE
from fedgs.metrics.table import SCORE_COLUMNS, read_scores, summarise, without_empty_details
from fedgs.spool import Spool
from fedgs.summary import ADDED
from fedgs.tables import as_csv, read_csv

__all__ = ["CHECKPOINTS", "RunFolder", "describe_machine", "refuse_foreign"]

CHECKPOINTS = ("last", "best", "best_small")
_MEMORY = "memory"
_REPORTED = ("config.toml", "environment.json", "rounds.jsonl", "scores.csv", "split.csv", "volumes.csv")


class RunFolder:
    """One run's folder, see the module.

    Args:
        path: The folder; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scores: dict[tuple[int, str], pd.DataFrame] = {}

    @property
    def is_started(self) -> bool:
        """Whether a finished round is there."""
        return self.checkpoint("last").is_file() or self.checkpoint("previous").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / "summary.json").is_file()

    @property
    def is_new(self) -> bool:
        """Whether nothing is there, a lock apart."""
        if not self.path.is_dir():
            return not self.path.exists()
        return all(entry.name == LOCK_FILE for entry in self.path.iterdir())

    def checkpoint(self, name: str) -> Path:
        """Gives the path of a checkpoint's tensors; they need not exist."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def config(self) -> RunConfig:
        """Reads the settings of the run.

        Raises:
            ConfigError: The folder is not that of a run, or its settings cannot be read.
            CheckpointError: They are not those that the run began with.
        """
        if not (self.path / "config.toml").is_file():
            raise ConfigError(
                f"{self.path}: is not a run folder, it has no config.toml; name what 'fedgs train --out' wrote"
            )
        config = read_config(self.path / "config.toml")
        if self.environment().get("settings") not in (None, _checksum(config)):
            raise CheckpointError(
                f"{self.path / 'config.toml'}: was altered, its settings are not those that the run began with (by "
                "environment.json); restore it from a copy"
            )
        return config

    def environment(self) -> Mapping[str, Any]:
        """Reads environment.json."""
        return read_json(self.path / "environment.json")

    def split(self) -> pd.DataFrame:
        """Reads split.csv; names stay text."""
        path = self.path / "split.csv"
        split = read_csv(path, {})
        if self.environment().get("split") not in (None, _hash(path.read_bytes())):
            raise CheckpointError(f"{path}: was altered since the run began; restore it from a copy")
        with understood(path):
            return split.astype(dict.fromkeys(("site", "case", "part", "image_hash", "near_hash"), str))

    def summary(self) -> Mapping[str, Any]:
        """Reads summary.json.

        Raises:
            ConfigError: The run is not finished.
        """
        if not self.is_finished:
            raise ConfigError(
                f"{self.path}: the run is not finished; finish it with: fedgs train --out {self.path} --resume"
            )
        return read_json(self.path / "summary.json")

    def create(self, config: RunConfig, environment: Mapping[str, Any], split: pd.DataFrame) -> None:
        """Makes the folder of a run that starts from the beginning.

        Raises:
            ConfigError: The path is a file, or a folder that holds something that is not of a run.
        """
        refuse_foreign(self.path)
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        (self.path / "rounds.jsonl").unlink(missing_ok=True)
        table = as_csv(split)
        began_with = {"settings": _checksum(config), "split": _hash(table.encode())}
        write_json(self.path / "environment.json", sealed({**environment, **began_with}))
        write_atomically(self.path / "split.csv", table)
        write_atomically(self.path / "config.toml", write_config(config))

    def restore(self, careful: Callable[[str], None]) -> State:
        """Gives the state after the last finished round, and forgets what the tables hold beyond it.

        A damaged ``last`` gives way to the round before. A damaged ``best`` is gone, since no other file holds it; the
        best of the rounds to come takes its place.

        Args:
            careful: Told so, where that happens.

        Raises:
            CheckpointError: No intact checkpoint is there, or the tables lack what they must hold.
        """
        try:
            state = self.load("last")
        except CheckpointError as error:
            if not self.checkpoint("previous").is_file():
                raise
            damaged = self.checkpoint("last")
            careful(f"{error if damaged.is_file() else 'killed between two files'}; going on from the round before")
            state = self.load("previous")
            damaged.unlink(missing_ok=True)  # the next round must not put it in the place of the intact one
        lost = [name for name in state.best if not self._is_intact(name, careful)]
        state = replace(state, best={name: best for name, best in state.best.items() if name not in lost})
        records = self._read_records(state.server.round)
        if any(record["validation"] for record in records):
            scores = read_scores(self.path / "scores.csv")
            self.keep_scores(scores[scores["round"] <= state.server.round])
            self._require_agreement(records)
        write_atomically(self.path / "rounds.jsonl", "".join(map(_line, records)))
        return state

    def _is_intact(self, name: str, careful: Callable[[str], None]) -> bool:
        try:
            self.load(name)
        except CheckpointError as error:
            careful(f"{error}; going on without it: '{name}' will be the best of the rounds to come")
            self.checkpoint(name).unlink(missing_ok=True)
            return False
        return True

    def _read_records(self, finished: int) -> list[dict[str, Any]]:
        path = self.path / "rounds.jsonl"
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; restore it from a copy, or start a new run with another --out")
        with understood(path):
            lines = path.read_bytes().split(b"\n")[:-1]  # what a crash left of a line has no end
            records = [record for line in lines if (record := json.loads(line))["round"] <= finished]
            if [record["round"] for record in records] != list(range(1, finished + 1)):
                raise ValueError(f"expected the rounds 1 to {finished}")
            return records

    def _require_agreement(self, records: list[dict[str, Any]]) -> None:
        """Two files tell the validation scores; where they disagree, one of them is damaged."""
        nothing = pd.DataFrame(columns=SCORE_COLUMNS)
        for record in records:
            number, told = record["round"], record["validation"]
            if told is None:
                continue
            try:
                agrees = summarise(self._scores.get((number, "validation"), nothing)) == told
            except DataError:
                agrees = False
            if not agrees:
                raise CheckpointError(
                    f"{self.path / 'scores.csv'}: its validation scores of round {number} are not those that "
                    "rounds.jsonl tells, so one of them was altered; restore both from a copy"
                )

    def load(self, name: str) -> State:
        """Reads the state that a checkpoint holds.

        Raises:
            CheckpointError: It is missing, damaged or of another run; no other one is taken instead.
        """
        if not self.checkpoint(name).is_file():
            raise CheckpointError(
                f"{self.checkpoint(name)}: no such checkpoint; 'best' needs validation images, 'best_small' small ones "
                "among them, and 'last' is there once a round is finished"
            )
        tensors, description = load_tensors(self.checkpoint(name))
        if description.get("format") != 1:
            raise CheckpointError(f"{self.checkpoint(name)}: format {description.get('format')}, this version reads 1")
        if description["run"] != self._identity():
            raise CheckpointError(
                f"{self.checkpoint(name)}: is of a run with other settings or data; restore this run's own from a copy"
            )
        parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in ("weights", "buffers", "extra", "state")}
        memories: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, rest = key.partition("/")
            if part == _MEMORY:
                index, _, tensor_name = rest.partition("/")
                memories.setdefault(description["memory_sites"][int(index)], {})[tensor_name] = tensor
            else:
                parts[part][rest] = tensor
        best = {kind: Best(**fields) for kind, fields in description["best"].items()}
        server = Global(parts["weights"], parts["buffers"], parts["extra"], parts["state"], description["round"])
        return State(server, memories, best)

    def keep_scores(self, rows: pd.DataFrame) -> None:
        """Holds score rows, in place of those of the same round and part, until they are written."""
        for (number, part), group in rows.groupby(["round", "part"], sort=False):
            self._scores[int(str(number)), str(part)] = group

    def keep_external(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Writes rows of hospitals that the run never knew, in place of those of the same part, site and round.

        Args:
            rows: Of one round and of one part, which is among `fedgs.summary.ADDED`.

        Returns:
            All rows of that part and round.
        """
        before = read_scores(self.path / "scores.csv")
        part, number = rows["part"].iloc[0], rows["round"].iloc[0]
        replaced = (before["part"] == part) & (before["round"] == number) & before["site"].isin(rows["site"])
        scores: pd.DataFrame = pd.concat([before[~replaced], rows], ignore_index=True)
        write_atomically(self.path / "scores.csv", as_csv(scores))
        of_round: pd.DataFrame = scores[(scores["part"] == part) & (scores["round"] == number)]
        return of_round

    def write_scores(self) -> pd.DataFrame:
        """Writes scores.csv and gives its rows."""
        tables = [self._scores[key] for key in sorted(self._scores, key=lambda key: (key[0], str(key[1])))]
        scores = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=SCORE_COLUMNS)
        write_atomically(self.path / "scores.csv", as_csv(scores))
        return scores

    def write_volumes(self, rows: pd.DataFrame) -> None:
        """Writes volumes.csv, the scores of volumes as wholes."""
        write_atomically(self.path / "volumes.csv", as_csv(rows))

    def require_unaltered(self) -> None:
        """Compares what a finished run holds with what its summary says.

        Rows of external hospitals, adapted or not, are left out: where an evaluation was killed they are newer.

        Raises:
            CheckpointError: A file was altered.
        """
        summary = self.summary()
        with understood(self.path / "summary.json"):
            expected = {**summary["files"], "scores.csv": summary["own_scores"]}
        self.config()  # which knows that a run may have moved to another device
        found = {**self._checksums(), "scores.csv": self._checksum_of_own_scores()}
        for name, checksum in expected.items():
            if name != "config.toml" and found.get(name) != checksum:
                raise CheckpointError(
                    f"{self.path / name}: was altered since the run was finished; restore it from a copy"
                )

    def _checksums(self) -> dict[str, str]:
        return {name: _hash((self.path / name).read_bytes()) for name in _REPORTED if (self.path / name).is_file()}

    def _checksum_of_own_scores(self) -> str:
        scores = read_scores(self.path / "scores.csv")
        own = without_empty_details(scores[~scores["part"].isin(ADDED)])
        return _hash(as_csv(own).encode())

    def spool(self) -> Spool:
        """Gives what holds the updates of a round until they are aggregated."""
        return Spool(self.path / "checkpoints")

    def commit(self, state: State, record: Mapping[str, Any], improved: Sequence[str]) -> None:
        """Keeps a finished round: tables, best checkpoints, and last the checkpoint that makes it count."""
        append(self.path / "rounds.jsonl", _line(record))
        if record["validation"] is not None:
            self.write_scores()
        self.keep(state, improved)

    def keep(self, state: State, improved: Sequence[str]) -> None:
        """Writes the checkpoints that a state improves, and last the one that makes it count."""
        last, previous = self.checkpoint("last"), self.checkpoint("previous")
        best = [self.checkpoint(name) for name in improved]
        if best:  # the same bytes under two or three names are made once
            checksum = self._save(best[0], state)
            for path in best[1:]:
                copy_atomically(best[0], path)
            copy_atomically(best[0], last, previous=previous)
        else:
            checksum = self._save(last, state, previous=previous)
        about = {"round": state.server.round, "checksum": checksum, "host": socket.gethostname()}
        for path in (*best, last):
            write_json(path.with_suffix(".json"), about | {"written": _now()}, durable=False)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, which marks the run as complete and knows the files that a report reads beside it."""
        known = {"files": self._checksums(), "own_scores": self._checksum_of_own_scores()}
        write_json(self.path / "summary.json", sealed({**summary, **known}))

    def log(self, message: str) -> None:
        """Adds a line with the time to log.txt."""
        append(self.path / "log.txt", f"{_now()} {message}\n", durable=False)

    def _identity(self) -> str:
        """Tells this run's checkpoints from those of runs with other settings or data; equal for a run made again."""
        environment = self.environment()
        with understood(self.path / "environment.json"):
            return _hash(f"{environment['settings']} {environment['data']}".encode())

    def _save(self, path: Path, state: State, *, previous: Path | None = None) -> str:
        """Writes a checkpoint and gives its checksum."""
        server = state.server
        sites = sorted(state.memories)
        tensors: dict[str, torch.Tensor] = {}
        for part in ("weights", "buffers", "extra", "state"):
            tensors |= {f"{part}/{key}": tensor for key, tensor in getattr(server, part).items()}
        for index, site in enumerate(sites):
            tensors |= {f"{_MEMORY}/{index}/{key}": tensor for key, tensor in state.memories[site].items()}
        best = {kind: {"round": best.round, "mean": best.mean} for kind, best in state.best.items()}
        description = {
            **{"format": 1, "run": self._identity(), "round": server.round, "best": best, "memory_sites": sites}
        }
        return save_tensors(path, tensors, description, previous=previous)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _checksum(config: RunConfig) -> str:
    """Tells settings apart; where data and device are may change while a run lasts."""
    return _hash(write_config(configure(config, data=None, device="any")).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refuse_foreign(path: Path) -> None:
    """Refuses a path whose content does not come from a run that never got to its first round."""
    known = {"checkpoints", "config.toml", "environment.json", "split.csv", "log.txt", "rounds.jsonl", "scores.csv"}
    known |= {LOCK_FILE}
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file; --out must name a new folder")
    foreign = [p.name for p in path.glob("*") if p.name not in known and not p.name.endswith(TEMPORARY_SUFFIX)]
    if foreign:
        raise ConfigError(f"{path}: is not a run folder, it holds '{min(foreign)}'; choose a new folder with --out")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describes machine and software, for environment.json."""
    import fedgs

    return {
        "fedgs": fedgs.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "started": _now(),
    }
