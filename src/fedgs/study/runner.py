"""Gets through a study: every run in its order, several at a time, whatever happens to single ones."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fedgs.assembly import (
    build_algorithm,
    build_network,
    build_objective,
    require_lesions,
    require_sharing,
    require_split,
    resolve,
    split_of,
    steps_of,
)
from fedgs.config import RunConfig, configure
from fedgs.data.index import Index, Progress, open_data
from fedgs.errors import ConfigError, DataError, FedgsError, ShapeError, unknown_choice
from fedgs.locks import locked
from fedgs.own import own_of
from fedgs.study.folder import StudyFolder, described
from fedgs.study.plan import Cell, Plan, Run, Trial, Trunk
from fedgs.study.reading import read_plan
from fedgs.study.table import write_table
from fedgs.study.worker import Failed, Progressed, Succeeded, work
from fedgs.summary import TESTS

__all__ = ["Board", "Status", "Watcher", "prepare", "run_study"]


@dataclass(frozen=True, slots=True)
class Status:
    """How far a study is.

    Attributes:
        runs: Runs in all: trials, trunks and cells.
        finished: How many are finished.
        failed: Those that failed in this session, by path, and why.
        running: Of those under way, by path, what they tell.
        seconds_left: Until the last one is done, at the pace so far; None before there is one.
    """

    runs: int
    finished: int
    failed: Mapping[str, str]
    running: Mapping[str, str]
    seconds_left: float | None


Watcher = Callable[[Status], None]


def run_study(
    plan_file: Path,
    out: Path,
    *,
    data: Path | None = None,
    jobs: int = 1,
    resume: bool = False,
    watch: Watcher = lambda status: None,
    on_indexing: Progress | None = None,
) -> StudyFolder:
    """Runs what is left of a study.

    Args:
        plan_file: The plan, see `read_plan`.
        out: Folder of the study; it must not exist or be empty, unless ``resume`` is set.
        data: Folder of the hospitals' images, or an index.
        jobs: How many runs at a time, each on as many cores as the plan says.
        resume: Go on with what is in the folder; the plan may have grown, but not changed.
        watch: Told now and then how far it is.
        on_indexing: Told of the indexing that comes first.

    Returns:
        The folder; a run that failed is not finished there, and its `StudyFolder.failure` tells why.

    Raises:
        ConfigError: The plan cannot be, the folder exists or is that of another plan, or another process writes to it.
        DataError: The data are missing or broken.
    """
    folder, plan = StudyFolder(out), read_plan(plan_file)
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    if not resume and not folder.is_new:
        raise ConfigError(f"{out}: exists already; choose another --out, or go on with it by --resume")
    index = prepare(plan, data, on_indexing)
    with locked(out):
        if not resume and not folder.is_new:
            raise ConfigError(f"{out}: exists already; choose another --out, or go on with it by --resume")
        folder.refuse_other_plan(plan)
        folder.refuse_other_data(plan, index)
        folder.begin(plan_file.read_text(encoding="utf-8-sig"))
        Board(plan, folder, str(index.folder), watch).get_through(jobs)
        write_table(plan, folder)
    return folder


def _processes() -> Any:
    """Gives what starts processes; where there can be one, a server that has imported all forks them in no time."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    return context


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Lets processes that are started here never hear Ctrl-C, which is for this one; not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started later, it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare(plan: Plan, data: Path | None, on_indexing: Progress | None) -> Index:
    """Opens the data of a study and makes sure that no run is refused later for what could be known now.

    Returns:
        The data at the size of the first cell; caches of the other sizes are there too.

    Raises:
        ConfigError: An arm cannot be: its network, objective, algorithm, or what they are together; or a hospital that
            is to be left out is not there.
        DataError: The data are missing or broken, too few for a run's batches, or without a lesion in one of its parts.
    """
    if data is None:
        raise ConfigError("no data: name the folder of the hospitals' images with --data (--data DIR)")
    alike = {str(configure(plan.config(run), unseen_site=None, fold=0, seed=0)): run for run in plan.runs()}
    for run in alike.values():
        try:
            _require_possible(plan.config(run))
        except (ConfigError, ShapeError) as error:
            raise type(error)(f"{run.path}: {error}") from error
    runs = list(plan.runs())
    configs = [plan.config(run) for run in runs]
    indexes = {
        config.data.size: open_data(data, adapter=config.data.adapter, size=config.data.size, on_progress=on_indexing)
        for config in {config.data.size: config for config in configs}.values()
    }
    index = indexes[plan.config(plan.cells()[0]).data.size]
    sites = set(index.table["site"])
    for config in configs:
        if config.data.unseen_site is not None and config.data.unseen_site not in sites:
            raise unknown_choice("hospital in unseen_sites", config.data.unseen_site, sites)
    parts = {str((config.data, config.training.batch_size)): run for run, config in zip(runs, configs, strict=True)}
    for run in (*alike.values(), *parts.values()):
        try:
            _require_cases(plan.config(run), index, together=run in alike.values())
        except (ConfigError, DataError) as error:
            raise type(error)(f"{run.path}: {error}") from error
    return index


def _require_cases(config: RunConfig, index: Index, *, together: bool) -> None:
    """Makes sure that hospitals have what a run needs of them, and, if asked, that they can share what they should."""
    config = resolve(config)
    split = split_of(config, index, None)
    trained = split.loc[split["part"] == "train", "site"].value_counts()
    for site, cases in trained.items():
        steps_of(config, str(site), int(cases))
    for part in ("train", "validation", *TESTS):
        require_lesions(part, index.table[(split["part"] == part).to_numpy()])
    if together:
        algorithm, model = build_algorithm(config, base=index.small_rule.base), build_network(config, index.channels)
        require_sharing(config, algorithm, model, {str(site) for site in trained.index})


def _require_possible(config: RunConfig) -> None:
    config = resolve(config)
    require_split(config)
    algorithm, model = build_algorithm(config, base=100.0), build_network(config, channels=3)
    build_objective(config)
    own_of(model, algorithm.keeps(model))


@dataclass(slots=True)
class _Task:
    """A run under way."""

    run: Run
    config: RunConfig
    process: BaseProcess
    rounds: float | None = None
    status: str = "starting"
    ended: Succeeded | Failed | None = None


@dataclass(slots=True)
class Board:
    """Which runs of a plan are finished, under way, failed and still to come.

    Attributes:
        plan: The plan.
        folder: Where finished runs go.
        data: The index that all share.
        watch: Told now and then how far it is.
    """

    plan: Plan
    folder: StudyFolder
    data: str
    watch: Watcher
    _rounds: dict[str, int] = field(init=False)
    _finished: set[str] = field(default_factory=set)
    _failed: dict[str, str] = field(default_factory=dict)
    _tasks: dict[Connection, _Task] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _rounds_done: float = 0.0

    def __post_init__(self) -> None:
        """Finds out what is finished already."""
        self._rounds = {run.path: self.plan.config(run).federation.rounds for run in self.plan.runs()}
        self._finished = {run.path for run in self.plan.runs() if self._is_done(run)}

    def get_through(self, jobs: int) -> None:
        """Finishes every run of the plan that is left, or finds out why not; so many at a time."""
        waiting = [run for run in self.plan.runs() if not self._is_done(run)]
        for run in self.plan.runs():
            (self.folder.forget_failure if run in waiting else self.folder.tidy)(run)
        try:
            while waiting or self._tasks:
                while len(self._tasks) < jobs and (ready := self._next(waiting)) is not None:
                    waiting.remove(ready)
                    self._start(ready)
                self._listen()
                self.watch(self._status())
        finally:
            for task in self._tasks.values():
                task.process.kill()  # a run survives that

    def _is_done(self, run: Run) -> bool:
        """Whether nothing is left to do; the weights of a trunk are needed as long as one of its cells is missing."""
        if not isinstance(run, Trunk) or self.folder.weights(run):
            return self.folder.is_finished(run)
        needed = any(cell.trunk == run and not self.folder.is_finished(cell) for cell in self.plan.cells())
        return self.folder.is_finished(run) and not needed

    def _next(self, waiting: list[Run]) -> Run | None:
        """The first run that can start now; one that needs a run which has failed, fails too."""
        for run in list(waiting):
            missing = [needed for needed in self.plan.needs(run) if not self._is_done(needed)]
            if not missing:
                return run
            if lost := next((needed for needed in missing if needed.path in self._failed), None):
                waiting.remove(run)
                self._fail(run, f"'{lost.path}', which it needs, failed")
        return None

    def _start(self, run: Run) -> None:
        try:
            self._begin(run)
        except FedgsError as error:
            self._fail(run, f"{error}; or delete {self.folder.work(run)} to have it start over")

    def _begin(self, run: Run) -> None:
        config = configure(self.plan.config(run, self.folder.chosen(self.plan)), data=self.data)
        begun = self.folder.begun(run)
        if isinstance(run, Cell) and run.trunk:
            if other := self._cell_of_another_trunk(run):
                self._fail(
                    run,
                    "its trunk was made again, on another machine or with another version, and differs from the one "
                    f"that '{other.path}' went on from: the two cannot be compared. Restore that trunk, or delete the "
                    "finished cells that went on from it to have them made again",
                )
                return
            trunk = self.folder.place(run.trunk).resolve()
            # The folder may have moved since; a run that has begun needs no start.
            start = begun.model.init_from if begun else str(trunk)
            config = configure(config, init_from=start, init_checkpoint="last")
        context = _processes()
        ours, theirs = context.Pipe(duplex=False)
        arguments = (config, self.folder.work(run), self.plan.threads, theirs)
        process = context.Process(target=work, args=arguments, daemon=True)
        with _deaf_children():
            process.start()
        theirs.close()
        self._tasks[ours] = _Task(run, config, process)

    def _cell_of_another_trunk(self, run: Cell) -> Cell | None:
        """A finished cell that it would be compared with, although that went on from other weights."""
        assert run.trunk is not None, "asked of cells with a trunk only"
        weights = self.folder.result(run.trunk).told["weights"]
        beside = (cell for cell in self.plan.cells() if cell.trunk == run.trunk and self.folder.is_finished(cell))
        return next((cell for cell in beside if self.folder.result(cell).told["start"] != weights), None)

    def _listen(self) -> None:
        if not self._tasks:
            return
        for pipe in wait(list(self._tasks), timeout=1.0):
            assert isinstance(pipe, Connection), "nothing else was waited for"
            task = self._tasks[pipe]
            try:
                match told := pipe.recv():
                    case Progressed():
                        self._rounds_done += 0.0 if task.rounds is None else told.rounds - task.rounds
                        task.rounds, task.status = told.rounds, told.status
                    case _:
                        task.ended = told
            except EOFError:
                del self._tasks[pipe]
                task.process.join()
                self._end(task)

    def _end(self, task: _Task) -> None:
        code = task.process.exitcode
        match task.ended:
            case Succeeded() if self._is_another_trunk(task.run, resolve(task.config)):
                self._fail(
                    task.run,
                    "was made again, on another machine or with another version, and differs from the one that its "
                    "cells went on from. Restore that one's weights, or delete it and its cells to have all made again",
                )
            case Succeeded():
                self.folder.keep(task.run, resolve(task.config), self._about(task.run))
                self._finished.add(task.run.path)
                if isinstance(task.run, Trial):
                    self.folder.refuse_other_plan(self.plan)  # what it chose may not be what was run before
            case Failed(message):
                self._fail(task.run, message)
            case None:
                killed = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
                self._fail(task.run, f"its process ended {killed}; was there enough memory? Try fewer --jobs")
        write_table(self.plan, self.folder)

    def _is_another_trunk(self, run: Run, config: RunConfig) -> bool:
        """Whether a trunk, made again for its weights, differs from the one that was there."""
        if not isinstance(run, Trunk) or not self.folder.is_finished(run):
            return False
        return bool(self.folder.result(run).told["weights"] != self.folder.weights_in_work(run, config))

    def _about(self, run: Run) -> dict[str, Any]:
        about: dict[str, Any] = {"primary": described(self.plan.primary)}
        match run:
            case Cell():
                trunk = run.trunk.path if run.trunk else None
                about |= {"arm": run.arm, "tuned": self.plan.search_of(run) is not None, "trunk": trunk}
            case Trial():
                about |= {"search": run.search, "choice": dict(run.choice)}
        return about

    def _fail(self, run: Run, message: str) -> None:
        self.folder.fail(run, message)
        self._failed[run.path] = message

    def _status(self) -> Status:
        over = self._finished | self._failed.keys()
        left = sum(rounds for path, rounds in self._rounds.items() if path not in over)
        begun = sum(task.rounds or 0.0 for task in self._tasks.values())
        running = {task.run.path: task.status for task in self._tasks.values()}
        eta = seconds_left(left - begun, self._rounds_done, time.monotonic() - self._started)
        return Status(len(self._rounds), len(self._finished), self._failed, running, eta)


def seconds_left(rounds: float, done: float, seconds: float) -> float | None:
    """Tells how long some rounds will take, at the pace so far; None before there is one, or when none are left.

    Args:
        rounds: That are left, over all runs.
        done: In the time since.
        seconds: That time.

    >>> seconds_left(30, 4, 60)
    450.0
    """
    return rounds * seconds / done if done > 0 and rounds > 0 else None
