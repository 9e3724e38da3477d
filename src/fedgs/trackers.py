"""Runs told to TensorBoard and MLflow: settings, losses and scores of every round, final test scores."""

from __future__ import annotations

import datetime
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgs.errors import ConfigError, MissingExtraError
from fedgs.events import Event, Listener, RoundFinished, RunFinished
from fedgs.metrics.table import STRATA
from fedgs.report.provenance import without_paths
from fedgs.run_folder import RunFolder
from fedgs.summary import TESTS

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["mlflow", "tensorboard"]

_OF_SITES = ("loss", "mean_eta", "norm_ratio", "cosine", "direction_norm")
_ROUND = "seconds"
"""Metric of a round that is written last: where MLflow has it, it has the whole round."""

_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A server that does not answer would else hold up every round for minutes."""

_MOST_METRICS, _MOST_PARAMS = 1000, 100
"""What a server takes at once."""


def tensorboard(out: Path) -> Listener:
    """Gives a listener that writes for TensorBoard, into the folder ``tensorboard`` of a run.

    Args:
        out: The run folder.

    Raises:
        MissingExtraError: The extra ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "--tensorboard") from error
    writer: SummaryWriter | None = None

    def listen(event: Event) -> None:
        nonlocal writer
        if not isinstance(event, RoundFinished | RunFinished):
            return
        if writer is None:  # made late: until a run starts, its folder must not exist
            writer = SummaryWriter(str(out / "tensorboard"))
            rows = [f"| {name} | {value} |" for name, value in _settings(out).items()]
            writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]))
        if isinstance(event, RoundFinished):
            for name, value in _of_round(event.record).items():
                writer.add_scalar(name, value, event.round)
            writer.flush()
        else:
            writer.add_hparams(_settings(out), _of_tests(event.summary), run_name=".")
            writer.close()

    return listen


@contextmanager
def mlflow(out: Path, careful: Callable[[str], None]) -> Iterator[Listener]:
    """Gives a listener that keeps a run of MLflow the same as a run folder, for as long as the run is trained.

    Server, experiment and credentials are those of MLflow's environment variables (``MLFLOW_TRACKING_URI``,
    ``MLFLOW_EXPERIMENT_NAME``, …). The run appears once its first round is finished. Whatever the folder has and MLflow
    lacks is sent after every round, so nothing is lost while a server is away, a run that is resumed goes on in the run
    that it has there, and one that is finished can be sent afterwards.

    Args:
        out: The run folder; it need not exist yet.
        careful: Told once, should MLflow fail later on; training goes on.

    Raises:
        MissingExtraError: The extra ``mlflow`` is not installed.
        ConfigError: MLflow cannot be used.
    """
    for name, value in _IMPATIENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.telemetry import set_telemetry_client
    except ImportError as error:
        raise MissingExtraError("mlflow", "--mlflow") from error
    set_telemetry_client()  # `fedgs` turned it off, but someone may have imported MLflow before
    run = _Mlflow(RunFolder(out), MlflowClient, careful)

    def listen(event: Event) -> None:
        if isinstance(event, RoundFinished | RunFinished):
            run.update()

    try:
        yield listen
        if not run.is_complete:  # it was finished before, without MLflow
            run.update()
    except BaseException as error:
        run.stop("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


class _Mlflow:
    """A run of MLflow that belongs to a run folder."""

    def __init__(self, folder: RunFolder, client: Callable[[], MlflowClient], careful: Callable[[str], None]) -> None:
        self._folder, self._careful = folder, careful
        self._run: str | None = None
        self._sent: set[int] = set()
        self._has_failed = self.is_complete = False
        try:
            self._client = client()
            self._experiment = _experiment_of(self._client)
        except Exception as error:  # of MLflow, of what it stores with, or of the network
            raise ConfigError(
                f"MLflow cannot be used: {_in_words(error)}. Check MLFLOW_TRACKING_URI and that its server runs, or "
                "train without --mlflow"
            ) from error

    def update(self) -> None:
        """Sends what the folder has and MLflow lacks; says so once if that fails, and tries again the next time."""
        try:
            self._update()
        except Exception as error:  # whatever is wrong with a tracker, training must go on
            if not self._has_failed:
                self._careful(
                    f"MLflow failed: {_in_words(error)}; training goes on, and what is missing is sent as soon as "
                    f"MLflow works, at the latest by: fedgs train --out {self._folder.path} --resume --mlflow"
                )
            self._has_failed = True

    def stop(self, status: str) -> None:
        """Marks a run that did not get to its end."""
        try:
            if self._run is not None and not self.is_complete:
                self._client.set_terminated(self._run, status)
        except Exception as error:  # why it did not get there matters more
            self._careful(f"MLflow failed: {_in_words(error)}")

    def _update(self) -> None:
        if not self._folder.is_started:
            return
        from mlflow.entities import Metric

        started = datetime.datetime.fromisoformat(self._folder.environment()["started"])
        now = first = round(1000 * started.timestamp())
        if self._run is None:
            self._run = self._open(first)
        metrics: list[Metric] = []
        for record in _records(self._folder):
            # The time of a round follows from its record: what is sent twice is the same, and MLflow keeps one.
            now += round(1000 * record[_ROUND])
            if record["round"] not in self._sent:
                values = {**_of_round(record), _ROUND: record[_ROUND]}
                metrics += [Metric(_key(name), value, now, record["round"]) for name, value in values.items()]
        summary = self._folder.summary() if self._folder.is_finished else None
        if summary:
            metrics += [Metric(name, value, now, summary["round"]) for name, value in _of_tests(summary).items()]
        for some in _portions(metrics, _MOST_METRICS):
            self._client.log_batch(self._run, metrics=some)
        self._sent |= {metric.step for metric in metrics}
        if summary:
            self._client.set_terminated(self._run, "FINISHED", now)
            self.is_complete = True

    def _open(self, started: int) -> str:
        """Finds the run in MLflow by the fingerprint of its folder, or makes it."""
        from mlflow.entities import Param

        about = self._folder.environment()
        mark = f"tags.`fedgs.run` = '{about['checksum']}'"
        if known := self._client.search_runs([self._experiment], mark, max_results=1):
            run = str(known[0].info.run_id)
            self._client.update_run(run, status="RUNNING")
            self._sent = {metric.step for metric in self._client.get_metric_history(run, _ROUND)}
        else:
            tags = {
                "fedgs.run": about["checksum"],
                "fedgs.version": about["fedgs"],
                "fedgs.data": about.get("data", ""),
            }
            name = self._folder.path.resolve().name
            run = str(self._client.create_run(self._experiment, started, tags, name).info.run_id)
        settings = _settings(self._folder.path)
        for some in _portions([Param(_key(name), str(value)) for name, value in settings.items()], _MOST_PARAMS):
            self._client.log_batch(run, params=some)
        return run


def _experiment_of(client: MlflowClient) -> str:
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        experiment = client.get_experiment(number)
    else:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        experiment = client.get_experiment_by_name(name) or client.get_experiment(client.create_experiment(name))
    if experiment.lifecycle_stage != "active":
        raise ConfigError(f"the experiment '{experiment.name}' was deleted; restore it, or name another one")
    return str(experiment.experiment_id)


def _records(folder: RunFolder) -> list[Mapping[str, Any]]:
    lines = (folder.path / "rounds.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def _of_round(record: Mapping[str, Any]) -> dict[str, float]:
    """Gives the numbers of a line of rounds.jsonl by name; what has no value is left out."""
    sites = {f"{what}/{site}": values.get(what) for site, values in record["sites"].items() for what in _OF_SITES}
    validation = record["validation"] or {}
    means = {f"validation/{name}": validation[name]["mean"] for name in STRATA if name in validation}
    return {name: value for name, value in (sites | means).items() if value is not None}


def _of_tests(summary: Mapping[str, Any]) -> dict[str, float]:
    """Gives the final test scores by name, each mean with its number of images."""
    found: dict[str, float] = {}
    for part in TESTS:
        for name in STRATA:
            mean = summary[part].get(name, {"mean": None})
            if mean["mean"] is not None:
                found |= {f"{part}/{name}": mean["mean"], f"{part}/{name}_images": mean["n"]}
    return found


def _settings(out: Path) -> dict[str, str | int | float | bool]:
    """Gives the settings of a run by name, those inside a table by both names; places are told without their path."""
    flat: dict[str, Any] = {}
    for table in tomllib.loads((out / "config.toml").read_text(encoding="utf-8")).values():
        for name, value in table.items():
            inner = value if isinstance(value, dict) else {}
            flat |= {f"{name}.{key}": each for key, each in inner.items()} or {name: value}
    return {
        name: value if isinstance(value, int | float) else without_paths(str(value)) for name, value in flat.items()
    }


def _key(name: str) -> str:
    """Writes what MLflow does not take in a name by its number, so that different names stay different."""
    return re.sub(r"[^\w\-. :/]", lambda found: f"_x{ord(found[0]):x}_", name)


def _portions(things: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(things), most):
        yield things[start : start + most]


def _in_words(error: Exception) -> str:
    """Gives an error in one line, without a password that an address may hold."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"//[^/@\s]+@", "//", text).rstrip(".")
