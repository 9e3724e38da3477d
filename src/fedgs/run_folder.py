"""A run on disk: everything that reports, later evaluations and a resumed run read.

After every round the tables are written first and ``checkpoints/last.safetensors`` last; that file is what makes a
round count. Opening a folder drops whatever the tables hold beyond it, so a killed run goes on from its last finished
round.
"""

from __future__ import annotations

import datetime
import json
import platform
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fedgs.checkpoint import load_tensors, save_tensors
from fedgs.config import RunConfig, read_config
from fedgs.core import Global
from fedgs.engine import Best, State
from fedgs.errors import CheckpointError, ConfigError
from fedgs.files import TEMPORARY_SUFFIX, write_atomically, write_json
from fedgs.metrics.table import SCORE_COLUMNS, read_scores

__all__ = ["CHECKPOINTS", "RunFolder", "describe_machine"]

CHECKPOINTS = ("last", "best", "best_small")
_MEMORY = "memory"


class RunFolder:
    """One run's folder, see the module.

    Args:
        path: The folder; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: list[dict[str, Any]] = []
        self._scores: dict[tuple[int, str], pd.DataFrame] = {}

    @property
    def is_started(self) -> bool:
        """Whether a finished round is there."""
        return self.checkpoint("last").is_file() or self.checkpoint("previous").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / "summary.json").is_file()

    def checkpoint(self, name: str) -> Path:
        """Gives the path of a checkpoint's tensors; they need not exist."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def config(self) -> RunConfig:
        """Reads the settings of the run.

        Raises:
            ConfigError: The folder is not that of a run.
        """
        if not (self.path / "config.toml").is_file():
            raise ConfigError(
                f"{self.path}: is not a run folder, it has no config.toml; name what 'fedgs train --out' wrote"
            )
        return read_config(self.path / "config.toml")

    def environment(self) -> Mapping[str, Any]:
        """Reads environment.json."""
        return _read_json(self.path / "environment.json")

    def split(self) -> pd.DataFrame:
        """Reads split.csv; names stay text."""
        return pd.read_csv(self.path / "split.csv", dtype=str, keep_default_na=False)

    def summary(self) -> Mapping[str, Any]:
        """Reads summary.json.

        Raises:
            ConfigError: The run is not finished.
        """
        if not self.is_finished:
            raise ConfigError(
                f"{self.path}: the run is not finished; finish it with: fedgs train --out {self.path} --resume"
            )
        return _read_json(self.path / "summary.json")

    def create(self, config: str, environment: Mapping[str, Any], split: pd.DataFrame) -> None:
        """Makes the folder of a run that starts from the beginning.

        Raises:
            ConfigError: The path is a file, or a folder that holds something that is not of a run.
        """
        refuse_foreign(self.path)
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        for stale in self.path.rglob(f".*{TEMPORARY_SUFFIX}"):
            stale.unlink()
        write_json(self.path / "environment.json", environment)
        write_atomically(self.path / "split.csv", split.to_csv(index=False))
        write_atomically(self.path / "config.toml", config)

    def restore(self) -> State:
        """Gives the state after the last finished round, and forgets what the tables hold beyond it.

        A damaged ``last`` gives way to the round before.

        Raises:
            CheckpointError: No intact checkpoint is there.
        """
        try:
            state = self.load("last")
        except CheckpointError as error:
            if not self.checkpoint("previous").is_file():
                raise
            damaged = self.checkpoint("last")
            self.log(f"{error if damaged.is_file() else 'killed between two files'}; going on from the round before")
            state = self.load("previous")
            damaged.unlink(missing_ok=True)  # the next round must not put it in the place of the intact one
        finished = state.server.round
        lines = (self.path / "rounds.jsonl").read_text().splitlines() if finished else []
        self._records = [record for line in lines if (record := json.loads(line))["round"] <= finished]
        if (self.path / "scores.csv").is_file():
            scores = read_scores(self.path / "scores.csv")
            self.keep_scores(scores[scores["round"] <= finished])
        return state

    def load(self, name: str) -> State:
        """Reads the state that a checkpoint holds.

        Raises:
            CheckpointError: It is missing or damaged; no other one is taken instead.
        """
        if not self.checkpoint(name).is_file():
            raise CheckpointError(
                f"{self.path}: keeps no checkpoint '{name}'; 'best' needs validation images, 'best_small' small ones "
                "among them, and 'last' is always there"
            )
        tensors, description = load_tensors(self.checkpoint(name))
        if description.get("format") != 1:
            raise CheckpointError(f"{self.checkpoint(name)}: format {description.get('format')}, this version reads 1")
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
        return State(Global(**parts, round=description["round"]), memories, best)

    def keep_scores(self, rows: pd.DataFrame) -> None:
        """Holds score rows, in place of those of the same round and part, until they are written."""
        for (number, part), group in rows.groupby(["round", "part"], sort=False):
            self._scores[int(str(number)), str(part)] = group

    def keep_external(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Writes rows of hospitals that the run never knew, in place of those of the same site and round.

        Returns:
            All external rows of that round.
        """
        before = read_scores(self.path / "scores.csv")
        external, number = before["part"] == "external", rows["round"].iloc[0]
        replaced = external & (before["round"] == number) & before["site"].isin(rows["site"])
        scores: pd.DataFrame = pd.concat([before[~replaced], rows], ignore_index=True)
        write_atomically(self.path / "scores.csv", scores.to_csv(index=False))
        of_round: pd.DataFrame = scores[(scores["part"] == "external") & (scores["round"] == number)]
        return of_round

    def write_scores(self) -> pd.DataFrame:
        """Writes scores.csv and gives its rows."""
        tables = [self._scores[key] for key in sorted(self._scores, key=lambda key: (key[0], str(key[1])))]
        scores = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=SCORE_COLUMNS)
        write_atomically(self.path / "scores.csv", scores.to_csv(index=False))
        return scores

    def commit(self, state: State, record: Mapping[str, Any], improved: Sequence[str]) -> None:
        """Keeps a finished round: tables, best checkpoints, and last the checkpoint that makes it count."""
        self._records.append(dict(record))
        lines = (json.dumps(line, allow_nan=False, ensure_ascii=False) for line in self._records)
        write_atomically(self.path / "rounds.jsonl", "".join(f"{line}\n" for line in lines))
        if record["validation"] is not None:
            self.write_scores()
        for name in improved:
            self._save(name, state)
        self._save("last", state, keep_previous=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, which marks the run as complete."""
        write_json(self.path / "summary.json", summary)

    def log(self, message: str) -> None:
        """Adds a line with the time to log.txt."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{now} {message}\n")

    def _save(self, name: str, state: State, *, keep_previous: bool = False) -> None:
        server = state.server
        sites = sorted(state.memories)
        tensors: dict[str, torch.Tensor] = {}
        for part in ("weights", "buffers", "extra", "state"):
            tensors |= {f"{part}/{key}": tensor for key, tensor in getattr(server, part).items()}
        for index, site in enumerate(sites):
            tensors |= {f"{_MEMORY}/{index}/{key}": tensor for key, tensor in state.memories[site].items()}
        best = {kind: {"round": best.round, "mean": best.mean} for kind, best in state.best.items()}
        description = {"format": 1, "round": server.round, "best": best, "memory_sites": sites}
        path = self.checkpoint(name)
        if keep_previous and path.is_file():
            path.replace(self.checkpoint("previous"))
        checksum = save_tensors(path, tensors, description)
        about = {"round": server.round, "checksum": checksum, "best": best, "host": socket.gethostname()}
        write_json(path.with_suffix(".json"), about | {"written": datetime.datetime.now(datetime.UTC).isoformat()})


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it from a copy, or train again") from error
    return content


def refuse_foreign(path: Path) -> None:
    """Refuses a path whose content does not come from a run that never got to its first round."""
    known = {"checkpoints", "config.toml", "environment.json", "split.csv", "log.txt", "rounds.jsonl", "scores.csv"}
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
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
