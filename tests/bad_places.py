"""Where the rows of bad input happen: data and runs to spoil, a run that is busy, and bombs that are measured."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from bad_files import BOMBS, SIDE, SQUARE, encoded
from runs import command, environment, fedgs, flags

QUICK = {"size": 32, "rounds": 2, "local_steps": 1, "lr": 1e-3, "fold": 0}
SITES, CASES = ("north", "south"), 10
Measured = dict[str, dict[str, object]]


def make_source(folder: Path, sites: Sequence[str] = SITES, names: Sequence[str] = ()) -> Path:
    """Sites of noisy images, a square lesion in each, in the folder layout."""
    draw = np.random.default_rng(0)
    for site in sites:
        for name in names or [f"n{case}" for case in range(CASES)]:
            coarse = draw.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)  # nowhere near a duplicate
            for kind, pixels in (("images", coarse.repeat(8, 0).repeat(8, 1)), ("masks", SQUARE)):
                path = folder / site / kind / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


def interrupt(process: subprocess.Popen[str]) -> str:
    """Sends Ctrl-C; gives the one line that the command says."""
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    (line,) = errors.splitlines()
    return line


def start(*arguments: str, group: bool = False) -> subprocess.Popen[str]:
    """Starts the command; in a group of its own, as a terminal would, where that is asked for."""
    return subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0 if group else None,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def log_of(run: Path) -> str:
    return (run / "log.txt").read_text() if (run / "log.txt").is_file() else ""


class Busy:
    """A run that another process is in the middle of, stopped so that it holds still."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder, self.process = source, folder / "the run", None

    def start(self) -> subprocess.Popen[str]:
        if self.process is None:
            line = ("train", "--data", str(self.source), "--out", str(self.folder), *flags(**QUICK | {"rounds": 9_000}))
            self.process = start(*line)
            wait_for(lambda: 'RoundFinished {"round": 1,' in log_of(self.folder))
            self.process.send_signal(signal.SIGSTOP)
        return self.process

    def interrupt(self) -> str:
        """Sends Ctrl-C; gives the one line that the command says."""
        self.start().send_signal(signal.SIGCONT)
        process, self.process = self.start(), None
        return interrupt(process)


class Place:
    """Where a row happens: its own copies of the data, of a finished run and of one that can go on."""

    def __init__(self, tmp: Path, source: Path, finished: Path, busy: Busy, bombs: Callable[[], Measured]) -> None:
        self.tmp, self.busy, self.bombs = tmp, busy, bombs
        self.data = tmp / "data"
        self._finished = finished
        shutil.copytree(source, self.data)

    @cached_property
    def run(self) -> Path:
        return Path(shutil.copytree(self._finished, self.tmp / "run"))

    @cached_property
    def unfinished(self) -> Path:
        folder = Path(shutil.copytree(self._finished, self.tmp / "unfinished"))
        (folder / "summary.json").unlink()
        (folder / "report.html").unlink()
        return folder

    def image(self, kind: str = "images", case: str = "north/n3") -> Path:
        site, name = case.split("/")
        return self.data / site / kind / f"{name}.png"

    def train(self, *more: str, **settings: object) -> list[str]:
        return ["train", "--data", str(self.data), "--out", str(self.tmp / "out"), *flags(**QUICK | settings), *more]


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Content of every file that may be read; of the log, which grows, its first lines."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(PermissionError):
            if path.is_file():
                found[path] = path.read_bytes()[: 60 if path.name == "log.txt" else None]
    return found


def refuses(*arguments: str, place: Place, says: Sequence[str], may_write: Sequence[str] = ("index",)) -> str:
    """Runs a command that must fail with one clear message and leave everything as it was."""
    before = snapshot(place.tmp)
    done = fedgs(*arguments, check=False)
    told = " ".join(done.stderr.split())
    assert done.returncode not in (0, 130), done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [word for word in says if word not in told] == [], told
    after = snapshot(place.tmp)
    assert {path.relative_to(place.tmp): path in after for path in before if after.get(path) != before[path]} == {}
    made = {path.relative_to(place.tmp) for path in after.keys() - before.keys()}
    assert {path for path in made if path.parts[0] not in may_write} == set()
    return told


HOLD = "import sys, time; from pathlib import Path; from fedgs.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"


# Every command is run in a child of a process that has imported everything, and measured by itself.
MEASURE = """
import contextlib, io, json, os, resource, sys, time
from pathlib import Path
import rich.progress
from fedgs.cli import main
import fedgs.data.index, fedgs.data.summary, fedgs.progress

def measured(source):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    out, code, started = io.StringIO(), 0, time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(["index", source, "--out", source + "-index", "--size", "32"])
        except SystemExit as end:
            code = end.code
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - pages * resource.getpagesize() / 2**20
    return {"code": code, "seconds": time.perf_counter() - started, "megabytes": peak, "told": out.getvalue()}

for source in sys.argv[1:]:
    if os.fork() == 0:
        Path(source + ".json").write_text(json.dumps(measured(source)))
        os._exit(0)
    os.wait()
"""


def measure_bombs(folder: Path) -> Measured:
    sources = {}
    for number, (name, make) in enumerate(BOMBS.items()):
        content = make()
        for kind in ("images", "masks"):
            source = sources[f"{kind}/{name}"] = folder / f"{kind}-{number}"
            for other in ("images", "masks"):
                (source / "A" / other).mkdir(parents=True)
                (source / "A" / other / "bomb.png").write_bytes(content if other == kind else encoded(SQUARE))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, sources.values())],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: json.loads(Path(f"{source}.json").read_text()) for name, source in sources.items()}
