"""fedgs export and fedgs export-table."""

from __future__ import annotations

from pathlib import Path

import click

from fedgs.cli.entry import cli
from fedgs.errors import ConfigError

_SUFFIX = {"latex": ".tex", "markdown": ".md"}


@cli.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "form", required=True, help="onnx, torch-export or monai-bundle.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File (.onnx, .pt2), or the bundle's folder; new."
)
@click.option("--checkpoint", default="best", show_default=True, help="best, best_small or last.")
@click.option("--site", help="Whose network, where the algorithm leaves every hospital one of its own.")
@click.option("--licence", metavar="TEXT", help="Licence of the weights, for the model card. [default: not stated]")
@click.option(
    "--comparison", type=click.Path(path_type=Path), help="comparison.json of the run's study: intervals for the card."
)
def export(
    run: Path, form: str, out: Path, checkpoint: str, site: str | None, licence: str | None, comparison: Path | None
) -> None:
    """Write the network of RUN for use without fedgs, with a model card.

    What was written is compared with the network on two images before it gets its name.
    """
    from fedgs.export.exporting import export_run

    card = export_run(run, out, form=form, checkpoint=checkpoint, site=site, licence=licence, comparison=comparison)
    parity = card["parity"]
    click.echo(f"Written: {out}")
    click.echo(
        f"Checked: {parity['runtime']} on {parity['sample']}, largest difference {parity['largest_difference']:.2g}"
    )
    for check, result in card.get("checks", {}).items():
        click.echo(f"{check}: {result}")


@cli.command("export-table")
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN... | STUDY")
@click.option("--latex", is_flag=True, help="For a paper; needs the package booktabs.")
@click.option("--markdown", is_flag=True, help="For a web page.")
@click.option("--out", type=click.Path(path_type=Path), help="File, .tex or .md. [default: the standard output]")
def export_table(paths: tuple[Path, ...], latex: bool, markdown: bool, out: Path | None) -> None:
    """Write the table of a paper: mean Dice of every algorithm, in-test and out-test, all images and by lesion size.

    RUN... are finished runs, STUDY is the folder of a study. Runs of one algorithm are a row; the standard deviation
    over seeds stands where there are several. Whether a difference is more than chance says fedgs compare.
    """
    if latex == markdown:
        raise ConfigError("give one of --latex and --markdown: the form of the table")
    form = "latex" if latex else "markdown"
    _require_place(out, form)
    from fedgs.files import write_atomically
    from fedgs.verdict.exporting import export_table as export
    from fedgs.verdict.observed import observe

    table = export(observe(paths, fewest=1), form)
    if out is None:
        click.echo(table, nl=False)
    else:
        write_atomically(out, table)
        click.echo(f"Written: {out}")


def _require_place(out: Path | None, form: str) -> None:
    if out is None:
        return
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; --out names a file, such as {out / ('table' + _SUFFIX[form])}")
    if out.suffix.lower() != _SUFFIX[form]:
        raise ConfigError(f"{out}: the table is {form}; give --out a name that ends in {_SUFFIX[form]}")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder; make it, or choose another --out")
