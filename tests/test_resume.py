"""A run that is killed and goes on ends in the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fedgs.models import OBJECTIVES
from runs import FLAGS, command, environment, fedgs, flags, make_phantom


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 12)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    fedgs("train", "--data", str(data), "--out", str(out), *flags(**FLAGS))
    return out


def last(run: Path) -> bytes:
    return (run / "checkpoints" / "last.safetensors").read_bytes()


def kill_when(run: Path, seen: str, arguments: list[str]) -> None:
    """Starts a run and kills it with SIGKILL as soon as its log says something."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log, deadline = run / "log.txt", time.monotonic() + 200
    try:
        while not (log.is_file() and seen in log.read_text()):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, f"the log never said {seen!r}"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "moment",
    [
        'RoundStarted {"round": 1',
        'SiteFinished {"round": 2, "site": "Alder"',
        'SiteFinished {"round": 3, "site": "Cedar"',
    ],
    ids=["before any round is done", "in the middle of a round", "at the end of the last round"],
)
def test_killed_and_resumed_is_byte_identical(moment: str, data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--data", str(data), "--out", str(out), *flags(**FLAGS)]
    kill_when(out, moment, arguments)
    assert not (out / "summary.json").exists()
    fedgs(*arguments, "--resume")
    assert last(out) == last(whole)
    for name in ("best", "scores.csv"):
        file = f"checkpoints/{name}.safetensors" if name == "best" else name
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    records = [[json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()] for run in (out, whole)]
    for ours, theirs in zip(*records, strict=True):
        assert ours["round"] == theirs["round"]
        assert ours["validation"] == theirs["validation"]
        for site in theirs["sites"]:
            assert ours["sites"][site]["loss"] == theirs["sites"][site]["loss"]
    assert not list(out.rglob(".*fedgs-part"))


def test_resume_needs_no_other_flag(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kill_when(out, 'RoundFinished {"round": 1', ["train", "--data", str(data), "--out", str(out), *flags(**FLAGS)])
    fedgs("train", "--out", str(out), "--resume")
    assert last(out) == last(whole)


def test_a_finished_run_stays_as_it_is(whole: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.rglob("*") if path.is_file()}
    done = fedgs("train", "--out", str(whole), "--resume")
    assert "finished already" in done.stdout
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.rglob("*") if path.is_file()}


def test_two_folders_of_one_command_hold_the_same_bytes(data: Path, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "another name"
    fedgs("train", "--data", str(data), "--out", str(other), *flags(**FLAGS))
    assert last(other) == last(whole)


def test_all_algorithms_see_the_same_batches(data: Path, tmp_path: Path) -> None:
    losses = []
    for algorithm in ("fedgs", "fedavg-published"):
        out = tmp_path / algorithm
        fedgs("train", "--data", str(data), "--out", str(out), *flags(**FLAGS | {"rounds": 1, "algorithm": algorithm}))
        record = json.loads((out / "rounds.jsonl").read_text())
        losses.append({site: values["loss"] for site, values in record["sites"].items()})
    assert losses[0] == losses[1]


def test_a_damaged_last_checkpoint_gives_way_to_the_round_before(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kill_when(out, 'RoundFinished {"round": 2', ["train", "--data", str(data), "--out", str(out), *flags(**FLAGS)])
    checkpoint = out / "checkpoints" / "last.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    fedgs("train", "--out", str(out), "--resume")
    assert "going on from the round before" in (out / "log.txt").read_text()
    assert last(out) == last(whole)


def test_what_a_crash_left_beyond_the_last_checkpoint_is_dropped(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kill_when(out, 'RoundFinished {"round": 2', ["train", "--data", str(data), "--out", str(out), *flags(**FLAGS)])
    rounds = out / "rounds.jsonl"
    lines = rounds.read_text().split("\n")
    with rounds.open("ab") as file:  # round 3 was told twice before its checkpoint was there, the second time in part
        file.write((lines[1].replace('"round": 2', '"round": 3') + "\n").encode())
        file.write('{"round": 3, "sites": {"病院'.encode()[:-1])  # cut inside a character
    fedgs("train", "--out", str(out), "--resume")
    assert [json.loads(line)["round"] for line in rounds.read_text().splitlines()] == [1, 2, 3]
    assert last(out) == last(whole)


SMALL = ("--model-option", "base_channels=4", "--model-option", "reduce_size=2")
VARIANTS = {
    "styles at home": ("--model", "sd_utnet", *SMALL),
    "styles handed on": ("--model", "sd_utnet", *SMALL, "--style-from", "2", "--share-style", "Birch=false"),
    "appearance at home": ("--model", "feddis", "--model-option", "base_channels=4", "--algorithm", "fedavg-published"),
    "nothing shared": ("--algorithm", "local"),
    "all together": ("--algorithm", "central"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_sites_keep_is_killed_and_resumed_byte_for_byte(variant: str, data: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", str(data), *flags(**FLAGS | {"local_steps": 2}), *VARIANTS[variant], "--out"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    fedgs(*arguments, str(whole))
    kill_when(out, 'SiteFinished {"round": 3, "site": "', [*arguments, str(out)])
    assert not (out / "summary.json").exists()
    fedgs("train", "--out", str(out), "--resume")
    for name in ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "scores.csv", "split.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


OTHER_OBJECTIVES = [name for name, kind in OBJECTIVES.items() if kind.for_any and name != "dice_batch"]


@pytest.mark.parametrize("objective", OTHER_OBJECTIVES)
def test_other_objectives_are_killed_and_go_on_to_the_same_bytes(objective: str, data: Path, tmp_path: Path) -> None:
    changes = {"rounds": 2, "local_steps": 2, "objective": objective}
    arguments = ["train", "--data", str(data), *flags(**FLAGS | changes), "--out"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    fedgs(*arguments, str(whole))
    kill_when(out, 'SiteFinished {"round": 2, "site": "', [*arguments, str(out)])
    assert not (out / "summary.json").exists()
    fedgs("train", "--out", str(out), "--resume")
    assert last(out) == last(whole)
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
