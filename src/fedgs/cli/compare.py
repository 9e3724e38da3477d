"""fedgs compare."""

from __future__ import annotations

from pathlib import Path

import click

from fedgs.cli.console import counting, make_console
from fedgs.cli.entry import cli
from fedgs.errors import MissingExtraError


@cli.command()
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN... | STUDY")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the page and comparison.json.")
@click.option("--baseline", help="Arm that all others are compared with. [default: what the plan declares]")
@click.option("--metric", help="Primary outcome. [default: what the plan declares, else dice_t]")
@click.option("--anyway", is_flag=True, help="Compare also runs that should not be compared; the verdict says so.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Images of the hospitals, or their index, for pictures.",
)
def compare(
    paths: tuple[Path, ...], out: Path, baseline: str | None, metric: str | None, anyway: bool, data: Path | None
) -> None:
    """Say whether one algorithm helps small lesions, with an interval: helps, hurts or undecided.

    RUN... are finished runs, paired by left-out hospital, fold and seed; STUDY is the folder of a study.
    """
    from fedgs.data.index import open_data
    from fedgs.report.rendering import require_extra
    from fedgs.verdict.judging import compare as judge
    from fedgs.verdict.observed import observe
    from fedgs.verdict.telling import remarks, sentence
    from fedgs.verdict.writing import write_comparison

    console = make_console()
    observation = observe(paths)
    with counting(console, "comparing") as watch:
        comparison = judge(observation, baseline=baseline, metric=metric, anyway=anyway, watch=watch)
    try:
        require_extra()
        no_page = None
    except MissingExtraError as error:
        no_page = error
    index = None
    if data is not None and no_page is None:
        with counting(console, "indexing") as on_indexing:
            index = open_data(data, size=int(observation.runs[0].settings["size"]), on_progress=on_indexing)
    written = write_comparison(comparison, out, with_page=no_page is None, index=index)
    for number in range(len(comparison.primary)):
        click.echo(sentence(comparison, number))
        for remark in remarks(comparison, number):
            click.echo(f"  {remark}")
    for path in written:
        click.echo(f"Written: {path}")
    if no_page:
        click.echo(f"No page: {no_page}")
