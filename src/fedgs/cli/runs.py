"""What is done with finished runs and checkpoints: fedgs evaluate, import-checkpoint, explain and report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from fedgs.cli.console import counting, make_console, print_table
from fedgs.cli.entry import cli
from fedgs.cli.indexing import rule_of, small_rule_options
from fedgs.errors import ConfigError


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Hospitals that the run never knew.")
@click.option("--adapter", help="Layout of the folder: folder, phantom or polypgen; guessed when left out.")
@click.option("--checkpoint", default="best", show_default=True, help="best, best_small or last.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …; need not be that of the run.")
@click.option(
    "--adapt",
    is_flag=True,
    help="First re-estimate batch statistics from each hospital's images; kept apart, as adapted.",
)
def evaluate(run: Path, data: Path, adapter: str | None, checkpoint: str, device: str, adapt: bool) -> None:
    """Score the run in RUN on other hospitals; adds to its scores.csv."""
    from fedgs import external
    from fedgs.events import Scoring
    from fedgs.report.records import ADAPTED_MARK
    from fedgs.report.tables import part_table

    console = make_console()
    with counting(console, "indexing") as on_indexing, counting(console, "scoring") as on_scoring:
        result = external.evaluate(
            run,
            data,
            adapter=adapter,
            checkpoint=checkpoint,
            device=device,
            adapt=adapt,
            on_indexing=on_indexing,
            listeners=[lambda event: on_scoring(event.done, event.cases) if isinstance(event, Scoring) else None],
        )
    part = "adapted" if adapt else "external"
    print_table(
        console,
        part_table(f"{run.resolve().name}, checkpoint {checkpoint} (round {result['round']}), {part}", result),
    )
    if adapt:
        click.echo(ADAPTED_MARK)
    if result["known_cases"]:
        found = f"{result['known_cases']} of these images, or near duplicates of them, were trained or selected on."
        click.echo(f"Careful: {found}")
    click.echo(f"The page shows them after: {shlex.join(('fedgs', 'report', str(run)))}")


@cli.command("import-checkpoint")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to make.")
@click.option("--size", type=int, help="Side of its images in pixels. [default: what it is made for, or 512]")
@click.option("--score-size", default="512", show_default=True, help="Where predictions are scored: 512 or native.")
@small_rule_options
def import_checkpoint(
    file: Path,
    out: Path,
    size: int | None,
    score_size: str,
    small_rule: str | None,
    small_fraction: str | None,
    base: float | None,
) -> None:
    """Make a run folder of the published checkpoint FILE (.pt, .pth), which 'evaluate' accepts.

    No code in the file is run. What had to be mended in it is told.
    """
    from fedgs import published_run

    summary = published_run.import_checkpoint(
        file,
        out,
        size=size,
        score_size=score_size,
        small_rule=rule_of(small_rule, small_fraction, base),
        careful=lambda message: click.echo(f"Careful: {message}"),
    )
    colours = {1: "grey", 3: "colour"}.get(channels := summary["data"]["channels"], f"{channels}-channel")
    side = summary["size"]
    click.echo(f"{summary['published']['form']} for {colours} images of {side} x {side} pixels")
    click.echo(f"Score it with: {shlex.join(('fedgs', 'evaluate', str(out), '--data'))} DIR")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Hospitals' images. [default: those of the run]")
@click.option("--adapter", help="Layout of the folder: folder, phantom or polypgen; guessed when left out.")
@click.option("--cases", multiple=True, metavar="[SITE/]CASE", help="A case to show; may be given several times.")
@click.option("--smallest", type=int, default=3, show_default=True, help="Without --cases: how many, by lesion size.")
@click.option("--checkpoint", default="best", show_default=True, help="best, best_small or last.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …; need not be that of the run.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder. [default: RUN/explain, shown in the report too]")
def explain(run: Path, cases: tuple[str, ...], **given: Any) -> None:
    """Draw what the network of RUN looks at: maps that explain single cases, their content and style.

    Without --cases it takes those with the smallest lesions, of images that the run was not trained on.
    """
    from fedgs import explain as explaining

    console = make_console()
    with counting(console, "indexing") as on_indexing, counting(console, "explaining") as on_case:
        page = explaining.explain(run, cases=cases, **given, on_indexing=on_indexing, on_case=on_case)
    click.echo(f"Page:   {page}")


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="HTML file. [default: report.html in the run or beside the runs]"
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the page about one run, or about several side by side, baseline first."""
    from fedgs.report.html import write_report

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out}: the page is an HTML file; give --out a name that ends in .html")
    beside = runs[0] if len(runs) == 1 else runs[0].resolve().parent
    click.echo(f"Page:   {write_report(list(runs), out or beside / 'report.html')}")
