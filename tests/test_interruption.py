"""Nothing is lost: a process that is killed, or finds the disk full, goes on and ends in the same bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from faults import PLACES, WRITE, Ended, Instant, run
from runs import FLAGS, flags, make_phantom

COMPARED = {".safetensors", ".csv", ".toml", ".png", ".jpg"}
"""Suffixes of the files that hold no time of day and no duration."""


class Whole:
    """What a command leaves behind when nobody disturbs it, and how often it came to each place."""

    def __init__(self, folder: Path, command: Callable[[Path], list[str]], start: Path | None) -> None:
        self.command, self.start = command, start
        self.files, ended = self.end(folder / "whole")
        self.reached = ended.reached

    def end(self, out: Path, instant: Instant | None = None, fault: str = "kill") -> tuple[Mapping[str, bytes], Ended]:
        """Runs the command, with a fault if one is given, and then again until it is done; tells how that ended."""
        if self.start:
            shutil.copytree(self.start, out)
        out.mkdir(exist_ok=True)
        if instant is not None:
            ended = run(self.command(out), out, instant, fault)
            if fault == "kill":
                assert ended.exitcode == -9, f"was not killed: {ended.output}"
            elif ended.exitcode:  # else nothing was left to be written
                assert ended.exitcode == 1, ended.output
                assert "File too large" in ended.output
                assert "Traceback" not in ended.output
        done = run(self.command(out), out)
        assert done.exitcode == 0, done.output
        assert not list(out.glob("run/**/*.fedgs-part"))  # an index keeps them for an hour: another may be at work
        paths = [path for path in sorted(out.rglob("*")) if path.suffix in COMPARED]
        files = {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}
        return files, done if instant is None else ended


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 12)


@pytest.fixture(scope="module")
def wholes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Whole]:
    folder = tmp_path_factory.mktemp("wholes")
    (folder / "finished").mkdir()
    other, elsewhere = make_phantom(folder / "other", 4, seed=1), folder / "elsewhere"
    index = ["index", str(data), "--size", "32", "--out"]
    train = [
        "train",
        "--data",
        str(folder / "index"),
        "--resume",
        *flags(**FLAGS | {"rounds": 2, "local_steps": 2, "fraction_of_sites": 0.7}),
        "--out",
    ]
    assert run([*index, str(folder / "index")], folder).exitcode == 0
    assert run([*train, str(folder / "finished" / "run")], folder).exitcode == 0
    assert run(["index", str(other), "--size", "32", "--out", str(elsewhere)], folder).exitcode == 0

    def made(name: str, arguments: Callable[[Path], list[str]], start: Path | None = None) -> Whole:
        (folder / name).mkdir()
        return Whole(folder / name, arguments, start)

    return {
        "index": made("index command", lambda out: [*index, str(out / "index")]),
        "train": made("train command", lambda out: [*train, str(out / "run")]),
        "evaluate": made(
            "evaluate command",
            lambda out: ["evaluate", str(out / "run"), "--data", str(elsewhere)],
            folder / "finished",
        ),
    }


def instants(name: str, reached: Mapping[str, int], per_place: int, writes: int) -> Iterator[Instant]:
    """Draws instants of a command, equal for every machine."""
    for place in (WRITE, *PLACES):
        wanted, times = (writes if place == WRITE else per_place), reached.get(place, 0)
        drawn = random.Random(f"{name} {place}").sample(range(1, times + 1), min(wanted, times))
        yield from (Instant(place, number) for number in sorted(drawn))


def check(whole: Whole, fault: str, drawn: Iterable[Instant], folder: Path) -> None:
    """Lets the fault happen at each instant; afterwards nothing may be missing or differ."""
    stopped = 0
    for times, instant in enumerate(drawn, 1):
        files, ended = whole.end(folder / str(times), instant, fault)
        stopped += ended.exitcode != 0
        assert files.keys() == whole.files.keys(), f"{fault} at {instant}"
        for name in files:
            assert files[name] == whole.files[name], f"{fault} at {instant}: {name} differs"
        shutil.rmtree(folder / str(times))
    assert stopped  # not by every one: a disk that is full after the last write stops nobody


def test_every_place_is_reached(wholes: Mapping[str, Whole]) -> None:
    for name, places in (("index", {"indexing"}), ("train", set(PLACES) - {"indexing"}), ("evaluate", {"evaluation"})):
        assert places <= {place for place, times in wholes[name].reached.items() if times}
    assert "run/checkpoints/last.safetensors" in wholes["train"].files
    assert "run/checkpoints/best.safetensors" in wholes["train"].files
    assert "run/scores.csv" in wholes["evaluate"].files
    assert "index/index.csv" in wholes["index"].files


@pytest.mark.parametrize(("fault", "per_place", "writes"), [("kill", 2, 5), ("full", 0, 4)])
@pytest.mark.parametrize("name", ["index", "train", "evaluate"])
def test_a_fault_at_some_instants(
    name: str, fault: str, per_place: int, writes: int, wholes: Mapping[str, Whole], tmp_path: Path
) -> None:
    whole = wholes[name]
    check(whole, fault, instants(name, whole.reached, per_place, writes), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("fault", "per_place"), [("kill", 8), ("full", 0)])
@pytest.mark.parametrize("name", ["index", "train", "evaluate"])
def test_a_fault_at_every_write_and_many_instants(
    name: str, fault: str, per_place: int, wholes: Mapping[str, Whole], tmp_path: Path
) -> None:
    whole = wholes[name]
    check(whole, fault, instants(name, whole.reached, per_place, writes=whole.reached[WRITE]), tmp_path)
