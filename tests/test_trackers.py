"""What TensorBoard and MLflow are told of a run, read back with their own readers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.telemetry import get_telemetry_client
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bad_places import make_source
from fedgs import engine
from fedgs.core import run_round
from fedgs.errors import TrainingError
from fedgs.events import RoundFinished
from fedgs.files import read_json
from fedgs.trackers import mlflow
from runs import environment, fedgs, flags

SETTINGS = [*flags(size=32, rounds=3, local_steps=1, lr=1e-3), "--model-option", "norm=group"]
SITES = {"Nord (2)": "Nord _x28_2_x29_", "Süd": "Süd"}
"""Hospitals, and how they are written in names of MLflow."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("data") / "frames", [*SITES])


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    fedgs("train", "--data", str(data), "--out", str(out), "--tensorboard", *SETTINGS)
    return out


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def store(database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A local store with an experiment of the test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    return database


def tracked(store: str) -> Run:
    """The run that MLflow has; there must be one."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def history(store: str, run: Run, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient(store).get_metric_history(run.info.run_id, name)]


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def is_the_same(store: str, run: Run, out: Path) -> None:
    """MLflow has every number of rounds.jsonl once, and those of summary.json."""
    rounds, summary = records(out), read_json(out / "summary.json")
    expected: dict[str, list[tuple[int, float]]] = {"seconds": [(each["round"], each["seconds"]) for each in rounds]}
    for each in rounds:
        for site, values in each["sites"].items():
            for what in ("loss", "mean_eta", "norm_ratio", "cosine", "direction_norm"):
                expected.setdefault(f"{what}/{SITES[site]}", []).append((each["round"], values[what]))
        for what in ("dice", "dice_n", "dice_s", "dice_t", "dice_l"):
            if each["validation"][what]["n"]:
                expected.setdefault(f"validation/{what}", []).append((each["round"], each["validation"][what]["mean"]))
    for name, values in expected.items():
        assert history(store, run, name) == values, name
    test = summary["test_in"]["dice"]
    assert history(store, run, "test_in/dice") == [(3, test["mean"])]
    assert history(store, run, "test_in/dice_images") == [(3, test["n"])]
    assert "test_out/dice" not in run.data.metrics  # no hospital was left out
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == sum(round(1000 * each["seconds"]) for each in rounds)


def test_mlflow_has_what_the_run_folder_has(data: Path, finished: Path, store: str, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    fedgs("train", "--data", str(data), "--out", str(out), "--mlflow", *SETTINGS)
    run, about = tracked(store), read_json(out / "environment.json")
    is_the_same(store, run, out)
    assert run.info.run_name == "my run"
    assert run.data.tags["fedgs.version"] == about["fedgs"]
    assert run.data.tags["fedgs.data"] == about["data"]
    settings: dict[str, Any] = {}
    for table in tomllib.loads((out / "config.toml").read_text()).values():
        settings |= table
    assert settings.pop("model_options") == {"norm": "group"}
    assert settings["data"] == str(data)
    settings |= {"model_options.norm": "group", "data": data.name}  # not where it lies
    assert run.data.params == {name: str(value) for name, value in settings.items()}
    assert get_telemetry_client() is None
    last = "checkpoints/last.safetensors"
    assert (out / last).read_bytes() == (finished / last).read_bytes()  # nothing else has changed


def crashing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The second round stops with an error."""

    def crash(algorithm: Any, model: Any, state: Any, *others: Any) -> Any:
        if state.round:
            raise error
        return run_round(algorithm, model, state, *others)

    monkeypatch.setattr(engine, "run_round", crash)


@pytest.mark.parametrize("first", [["--mlflow"], []], ids=["begun with it", "begun without"])
def test_a_resumed_run_goes_on_in_the_same_run(
    first: list[str], data: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        crashing(patch, TrainingError("the power is gone"))
        fedgs("train", "--data", str(data), "--out", str(out), *first, *SETTINGS, check=False)
    if first:
        assert tracked(store).info.status == "FAILED"
        assert history(store, tracked(store), "seconds") == [(1, records(out)[0]["seconds"])]
    fedgs("train", "--out", str(out), "--resume", "--mlflow")
    is_the_same(store, tracked(store), out)


def test_a_run_that_is_interrupted_is_marked_as_killed(
    data: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)
    crashing(monkeypatch, KeyboardInterrupt())
    done = fedgs("train", "--data", str(data), "--out", str(tmp_path / "run"), "--mlflow", *SETTINGS, check=False)
    assert "--resume --mlflow" in done.stderr
    assert tracked(store).info.status == "KILLED"


def test_a_finished_run_can_be_sent_and_twice_is_harmless(finished: Path, store: str) -> None:
    for _ in range(2):
        fedgs("train", "--out", str(finished), "--resume", "--mlflow")
        is_the_same(store, tracked(store), finished)


def test_nothing_is_left_of_a_run_without_a_round(data: Path, store: str, tmp_path: Path) -> None:
    settings = [*SETTINGS, "--lr", "1e39"]
    fedgs("train", "--data", str(data), "--out", str(tmp_path / "run"), "--mlflow", *settings, check=False)
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    assert client.search_runs([experiment.experiment_id]) == []


def test_an_unreachable_server_is_told_before_anything_is_done(
    data: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
    done = fedgs("train", "--data", str(data), "--out", str(tmp_path / "run"), "--mlflow", *SETTINGS, check=False)
    assert done.returncode == 1
    assert "Error: MLflow cannot be used: " in done.stderr
    assert "Check MLFLOW_TRACKING_URI" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    done = fedgs("train", "--data", str(data), "--out", str(tmp_path / "run"), "--mlflow", *SETTINGS, check=False)
    assert "Error: MLflow cannot be used: " in done.stderr


def test_a_deleted_experiment_is_told(finished: Path, store: str) -> None:
    client, name = MlflowClient(store), os.environ["MLFLOW_EXPERIMENT_NAME"]
    client.delete_experiment(client.create_experiment(name))
    done = fedgs("train", "--out", str(finished), "--resume", "--mlflow", check=False)
    assert f"the experiment '{name}' was deleted; restore it" in done.stderr


class Failing(BaseHTTPRequestHandler):
    """A server that knows its experiment, and fails over everything else."""

    def do_GET(self) -> None:
        self.answer(200 if "/experiments/get-by-name" in self.path else 500)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(500)

    def answer(self, code: int) -> None:
        body = json.dumps({"experiment": {"experiment_id": "7", "name": "x", "lifecycle_stage": "active"}}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def failing() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_training_goes_on_when_the_server_fails_and_is_sent_later(
    data: Path, store: str, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", failing)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        done = fedgs("train", "--data", str(data), "--out", str(out), "--mlflow", *SETTINGS)
    assert done.stdout.count("Careful: MLflow failed: ") == 1
    assert f"fedgs train --out {out} --resume --mlflow" in done.stdout
    fedgs("train", "--out", str(out), "--resume", "--mlflow")
    is_the_same(store, tracked(store), out)


def test_rounds_that_were_missed_are_sent_once_the_store_works(
    finished: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = Path(shutil.copytree(finished, tmp_path / "run")), []
    (out / "summary.json").unlink()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    with mlflow(out, told.append) as listen:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", fail)
            for number in (1, 2):
                listen(RoundFinished(number, {}))
        assert len(told) == 1
        assert "no route to host; training goes on" in told[0]
        listen(RoundFinished(3, {}))
    assert history(store, tracked(store), "seconds") == [(each["round"], each["seconds"]) for each in records(out)]


def test_the_extras_are_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, extra in (("mlflow", "mlflow"), ("torch.utils.tensorboard", "tensorboard")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            line = ("train", "--data", str(data), "--out", str(tmp_path / "run"), f"--{extra}", *SETTINGS)
            assert f"pip install 'fedgs[{extra}]'" in fedgs(*line, check=False).stderr


def test_nobody_is_told_that_mlflow_is_used() -> None:
    """MONAI imports MLflow, whether it is asked for or not."""
    code = (
        "import fedgs.experiment, mlflow.telemetry as t; assert t.get_telemetry_client() is None; "
        "import os; print('mlflow' in os.listdir(os.environ['XDG_CONFIG_HOME']))"
    )
    env = {name: value for name, value in environment().items() if not name.startswith(("MLFLOW_", "DO_NOT", "PYTEST"))}
    folder = Path(os.environ["FEDGS_CACHE"]) / "config"
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"XDG_CONFIG_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_tensorboard_has_what_the_run_folder_has(finished: Path) -> None:
    read = EventAccumulator(str(finished / "tensorboard")).Reload()
    rounds, summary = records(finished), read_json(finished / "summary.json")
    for site in SITES:
        for what in ("loss", "mean_eta", "norm_ratio", "cosine", "direction_norm"):
            values = [(each.step, each.value) for each in read.Scalars(f"{what}/{site}")]
            assert values == [(each["round"], pytest.approx(each["sites"][site][what])) for each in rounds]
    assert [each.value for each in read.Scalars("validation/dice")] == [
        pytest.approx(each["validation"]["dice"]["mean"]) for each in rounds
    ]
    assert read.Scalars("test_in/dice")[0].value == pytest.approx(summary["test_in"]["dice"]["mean"])
    assert b"| model_options.norm | group |" in read.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    assert b"model_options.norm" in read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
