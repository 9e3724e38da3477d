"""fedgs study."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedgs.cli.console import counting, make_console, print_table
from fedgs.cli.entry import InterruptedByUserError, cli

if TYPE_CHECKING:
    from rich.console import Console

    from fedgs.study.runner import Watcher


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Folder with the hospitals' images, or an index of them.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the study. [default: runs/NAME of the plan's file]"
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at a time, one per core for instance.",
)
@click.option("--resume", is_flag=True, help="Go on with the study in --out; its plan may have grown, not changed.")
@click.option(
    "--dry-run", is_flag=True, help="Print the runs with an estimate of their time, from a few measured steps."
)
def study(plan: Path, data: Path | None, out: Path | None, jobs: int, resume: bool, dry_run: bool) -> None:
    """Run the grid of algorithms, seeds, folds and unseen hospitals that PLAN (TOML) tells.

    A run that fails does not stop the others; --resume tries it again.
    """
    path = out or Path("runs") / plan.stem
    if dry_run:
        _estimate(plan, data, jobs, path)
        return
    from fedgs.study.reading import read_plan
    from fedgs.study.runner import run_study
    from fedgs.study.table import cells_table, overview

    console = make_console()
    try:
        with counting(console, "indexing") as on_indexing, _watching(console) as watch:
            folder = run_study(plan, path, data=data, jobs=jobs, resume=resume, watch=watch, on_indexing=on_indexing)
    except KeyboardInterrupt as error:
        if not (path / "plan.toml").is_file():
            raise
        given = ("--data", str(data)) if data else ()
        raise InterruptedByUserError(
            "fedgs", "study", str(plan), *given, "--out", str(path), "--jobs", str(jobs), "--resume"
        ) from error
    told = read_plan(plan)
    cells = cells_table(told, folder)
    for table in overview(told, cells):
        print_table(console, table)
    click.echo(f"Cells:  {path / 'study.csv'}")
    missing = [run for run in told.runs() if not folder.is_finished(run)]
    for run in missing:
        if (reason := folder.failure(run)) is not None:
            click.echo(f"Failed: {run.path}: {reason.strip().splitlines()[-1]}", err=True)
    if missing:
        click.echo(
            f"{len(missing)} of {len(list(told.runs()))} runs are not finished; try them again by --resume.", err=True
        )
        sys.exit(1)


def _estimate(plan: Path, data: Path | None, jobs: int, out: Path) -> None:
    from rich import box
    from rich.table import Table

    from fedgs.progress import duration
    from fedgs.study.estimate import estimate
    from fedgs.study.folder import StudyFolder
    from fedgs.study.reading import read_plan
    from fedgs.study.runner import prepare

    console = make_console()
    told = read_plan(plan)
    with counting(console, "indexing") as on_indexing:
        index = prepare(told, data, on_indexing)
    runs = estimate(told, index, lambda what: console.print(f"measuring {what}", highlight=False))
    folder = StudyFolder(out)
    finished = {run.path for run in told.runs() if folder.is_finished(run)}
    runs["seconds"] = runs["seconds"].where(~runs["path"].isin(finished), 0.0)
    table = Table(
        "what", "left out", "runs", "finished", "rounds", "steps per round", "each", "together", box=box.SIMPLE
    )
    for (_, what, site, rounds), rows in runs.groupby(["kind", "what", "unseen_site", "rounds"], sort=False):
        done, steps = int(rows["path"].isin(finished).sum()), sorted(set(rows["steps"]))
        left, counts = rows["seconds"].sum(), f"{steps[0]}-{steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
        each = duration(left / (len(rows) - done)) if done < len(rows) else "-"
        table.add_row(
            str(what), str(site) or "none", str(len(rows)), str(done), str(rounds), counts, each, duration(left)
        )
    print_table(console, table)
    together = duration(runs["seconds"].sum() / jobs)
    click.echo(
        f"{len(runs) - len(finished)} of {len(runs)} runs are left, about {together} with --jobs {jobs} "
        f"(this machine has {os.cpu_count()} cores; a run uses {told.threads}). Each was measured alone: "
        "side by side, runs take longer."
    )


@contextmanager
def _watching(console: Console) -> Iterator[Watcher]:
    """Shows how far a study is: bars in a terminal, a line every half minute elsewhere."""
    from fedgs.study.board import show_study

    shown = show_study(console)
    try:
        yield shown
    finally:
        shown.close()
