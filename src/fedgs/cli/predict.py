"""fedgs predict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fedgs.cli.console import counting, make_console
from fedgs.cli.entry import InterruptedByUserError, cli

_FAILED = 3
_MOST_NAMED = 20
_GIVEN = "fedgs.cli.predict.given"


class _TakesSeveral(click.Command):
    """A command whose ``--ensemble`` takes all that follows up to the next option: ``--ensemble RUN RUN``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeats the flag before each of its values, as click wants it."""
        ctx.meta[_GIVEN] = list(args)
        repeated, of_ensemble = list[str](), False
        for argument, following in zip(args, [*args[1:], "-"], strict=True):
            if argument == "--ensemble" and following.startswith("-"):
                raise click.UsageError("--ensemble needs a run behind it, or several", ctx)
            if argument.startswith("-"):
                of_ensemble = argument == "--ensemble"
                repeated += [] if of_ensemble else [argument]
            else:
                repeated += ["--ensemble", argument] if of_ensemble else [argument]
        return super().parse_args(ctx, repeated)


@cli.command(cls=_TakesSeveral)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("inputs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for masks and predictions.csv.")
@click.option(
    "--ensemble",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="RUN...",
    help="Further runs, such as other folds; probabilities are averaged. Takes all names up to the next option.",
)
@click.option("--checkpoint", default="best", show_default=True, help="best, best_small or last.")
@click.option("--site", help="Hospital whose own parts of the network are taken, where hospitals keep some.")
@click.option("--tta", is_flag=True, help="Average over the image and its flips; takes four times as long.")
@click.option("--threshold", type=float, default=0.5, show_default=True, help="Lesion is what is more probable.")
@click.option("--min-lesion", type=int, default=0, metavar="PIXELS", help="Drop lesions of fewer pixels of the input.")
@click.option("--largest-component", is_flag=True, help="Keep the largest lesion of each input alone.")
@click.option("--precision", help="fp32 or bf16. [default: the run's]")
@click.option("--batch-size", type=int, help="Images at a time. [default: the run's]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …; need not be that of the run.")
@click.option("--overlay", is_flag=True, help="Also write pictures with outlines.")
@click.option("--probabilities", is_flag=True, help="Also write probabilities: PNGs of 16 bits, 65535 for 1.")
@click.option("--report", is_flag=True, help="Also write a page, report.html.")
@click.option("--resume", is_flag=True, help="Leave what is there, if the same weights and options made it.")
def predict(
    run: Path,
    inputs: tuple[Path, ...],
    out: Path,
    ensemble: tuple[Path, ...],
    report: bool,
    resume: bool,
    **given: Any,
) -> None:
    """Make masks of new images by the network of RUN.

    INPUT is an image, or a folder that is searched to its depth; masks lie in --out as the images lie in their folder.
    An image that cannot be segmented is named at the end and does not stop the others; the exit code is then 3.
    """
    from fedgs.prediction.options import PredictOptions
    from fedgs.prediction.predict import predict as predict_

    options, console = PredictOptions(**given), make_console()
    try:
        with counting(console, "predicting") as on_case:
            made = predict_([run, *ensemble], inputs, out, options, resume=resume, report=report, on_case=on_case)
    except KeyboardInterrupt as error:
        arguments = click.get_current_context().meta[_GIVEN]
        raise InterruptedByUserError("fedgs", "predict", *arguments, *(() if resume else ("--resume",))) from error
    if made.passed_over:
        _say(f"Careful: {len(made.passed_over)} other files were passed over, such as {made.passed_over[0]}")
    found = made.table["lesions"].dropna()
    click.echo(f"{len(found)} masks, {int((found > 0).sum())} with a lesion" + _were_there(made.skipped))
    click.echo(f"Masks:  {out}")
    click.echo(f"Table:  {out / 'predictions.csv'}")
    if made.page:
        click.echo(f"Page:   {made.page}")
    if made.failed:
        _name(made.failed)
        sys.exit(_FAILED)


def _were_there(skipped: int) -> str:
    return f"; {skipped} of them were there already" if skipped else ""


def _name(failed: Sequence[Any]) -> None:
    for each in failed[:_MOST_NAMED]:
        _say(f"Failed: {each.source.name}: {each.reason}")
    more = f", {len(failed) - _MOST_NAMED} of them only there" if len(failed) > _MOST_NAMED else ""
    have = "input has" if len(failed) == 1 else "inputs have"
    _say(f"{len(failed)} {have} no mask; predictions.csv tells why{more}.")


def _say(message: str) -> None:
    click.echo(message, err=True)
