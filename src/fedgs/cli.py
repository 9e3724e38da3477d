"""The command line: reads arguments, calls the package, prints what a person wants to see."""

from __future__ import annotations

import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedgs.errors import ConfigError, FedgsError, MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedgs.config import RunConfig

__all__ = ["cli", "main"]

_F = TypeVar("_F", bound=Callable[..., Any])
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; errors of this package become one message, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        cli.main([argument for argument in given if argument != "--debug"], "fedgs", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo(
            "Interrupted; what is finished is kept. The same command goes on (fedgs train: add --resume).", err=True
        )
        sys.stdout.flush()
        # Not sys.exit: an interrupt inside an import makes Python end by the signal whatever the code.
        os._exit(_INTERRUPTED)
    except (FedgsError, OSError, MemoryError) as error:
        if debug:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fedgs", message="%(prog)s %(version)s")
def cli() -> None:
    """Federated segmentation in which optimizer steps on small, hard lesions count more (FedGS).

    An error is one message; --debug, anywhere, shows its traceback as well.
    """


def _run_settings(command: _F) -> _F:
    """Gives a command an option for every setting of a run; one that is not given stays None."""
    from fedgs.config import settings

    for _, name, kind, default, description in reversed(list(settings())):
        options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        plain = next((option for option in options if option in (int, float, str)), None)
        shown = f" [default: {default}]" if plain and default is not None else ""
        flag = f"--{name.replace('_', '-')}"
        if plain is None:
            command = click.option(flag.rstrip("s"), name, multiple=True, metavar="NAME=VALUE", help=description)(
                command
            )
        else:
            command = click.option(flag, name, type=plain, default=None, help=description + shown)(command)
    return command


@cli.command()
@_run_settings
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. [default: runs/ALGORITHM-MODEL-foldF-seedS]")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings; flags win over it.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out after its last finished round.")
@click.option("--tensorboard", is_flag=True, help="Also write for TensorBoard, into the run folder.")
def train(out: Path | None, file: Path | None, resume: bool, tensorboard: bool, **given: Any) -> None:
    """Train one algorithm on the hospitals of a folder, and score it.

    Everything can also stand in a TOML file (--config), as every run keeps one: RUN/config.toml.
    """
    config = _configured(out, file, resume, given)
    path = out or Path("runs") / _name_of(config)
    if resume and (path / "summary.json").is_file():
        click.echo(f"{path} is finished already; it stays as it is.")
    summary = _train(config, path, resume=resume, tensorboard=tensorboard)
    from fedgs.report.tables import scores_table

    console = _console()
    _print_table(console, scores_table([path]))
    leaks = summary["data"]["leaks"]
    if any(leaks.values()):
        found = f"{leaks['patients']} known patients and {leaks['duplicates']} duplicated images"
        console.print(f"Careful: {found} stand on more than one side of this split.", highlight=False)
    page = path / "report.html"
    console.print(
        f"Page:   {page}" if page.is_file() else "No page: it needs the extra 'report': pip install 'fedgs[report]'",
        highlight=False,
        markup=False,
    )


def _configured(out: Path | None, file: Path | None, resume: bool, given: dict[str, Any]) -> RunConfig:
    from fedgs.config import configure, read_config

    given = {name: value for name, value in given.items() if value not in (None, ())}
    if "model_options" in given:
        given["model_options"] = _options(given["model_options"])
    if resume and out is None:
        out = Path("runs") / _name_of(configure(read_config(file) if file else None, **given))
        if not out.is_dir():
            raise ConfigError(f"there is no {out} to resume; name the folder of the run with --out")
    stored = out / "config.toml" if out else None
    base = read_config(stored) if resume and stored and stored.is_file() else None
    return configure(read_config(file, base) if file else base, **given)


def _name_of(config: RunConfig) -> str:
    parts = (config.algorithm.algorithm, config.model.model, f"fold{config.data.fold}", f"seed{config.federation.seed}")
    return "-".join(parts)


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    import tomllib

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--model-option must be NAME=VALUE, such as norm=group; got '{pair}'")
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[name] = value
    return options


def _train(config: RunConfig, out: Path, *, resume: bool = False, tensorboard: bool = False) -> dict[str, Any]:
    from fedgs import experiment, progress

    console = _console()
    bar = progress.show_progress(console)
    listeners: list[Any] = [bar]
    if tensorboard:
        listeners.append(progress.tensorboard(out / "tensorboard"))
    try:
        with _counting(console, "indexing") as on_indexing:
            return dict(experiment.train(config, out, resume=resume, listeners=listeners, on_indexing=on_indexing))
    finally:
        if isinstance(bar, progress.LiveBar):
            bar.close()


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--adapter", help="Layout of the folder: folder, phantom or polypgen; guessed when left out.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the index.")
@click.option("--size", type=int, default=256, show_default=True, help="Side of the cached frames in pixels.")
@click.option("--small-rule", help="components (polyps) or total (liver tumours). [default: components]")
@click.option(
    "--small-fraction", help="Largest share of the image that is small, such as 1/150. [default: by the rule]"
)
@click.option("--base", type=float, help="Base of the logarithm in the difficulty. [default: by the rule: 100 or 1000]")
def index(
    source: Path,
    adapter: str | None,
    out: Path,
    size: int,
    small_rule: str | None,
    small_fraction: str | None,
    base: float | None,
) -> None:
    """Read every case of SOURCE once: flags, areas, hashes and a cache that training reads from.

    What has not changed since the last time is kept; an interrupted indexing goes on.
    """
    from fedgs.data.index import build_index
    from fedgs.data.summary import summarise

    console = _console()
    with _counting(console, "indexing") as on_indexing:
        made = build_index(
            source,
            out,
            adapter=adapter,
            size=size,
            small_rule=_rule(small_rule, small_fraction, base),
            on_progress=on_indexing,
        )
    console.print(summarise(made).as_text(), highlight=False, markup=False, soft_wrap=True)
    console.print(f"Index:  {out}", highlight=False, markup=False)


def _rule(kind: str | None, fraction: str | None, base: float | None) -> Any:
    from dataclasses import replace

    from fedgs.data.lesions import SMALL_RULES
    from fedgs.errors import unknown_choice

    if kind is not None and kind not in SMALL_RULES:
        raise unknown_choice("small rule", kind, SMALL_RULES)
    changes: dict[str, Any] = {} if base is None else {"base": base}
    if fraction is not None:
        try:
            changes["fraction"] = float(Fraction(fraction))
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"--small-fraction must be a number such as 1/150 or 0.0067, got '{fraction}'") from error
    return replace(SMALL_RULES[kind or "components"], **changes)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Hospitals that the run never knew.")
@click.option("--adapter", help="Layout of the folder: folder, phantom or polypgen; guessed when left out.")
@click.option("--checkpoint", default="best", show_default=True, help="best, best_small or last.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …; need not be that of the run.")
def evaluate(run: Path, data: Path, adapter: str | None, checkpoint: str, device: str) -> None:
    """Score the run in RUN on other hospitals; adds to its scores.csv."""
    from fedgs import external
    from fedgs.events import Scoring
    from fedgs.report.tables import part_table

    console = _console()
    with _counting(console, "indexing") as on_indexing, _counting(console, "scoring") as on_scoring:
        result = external.evaluate(
            run,
            data,
            adapter=adapter,
            checkpoint=checkpoint,
            device=device,
            on_indexing=on_indexing,
            listeners=[lambda event: on_scoring(event.done, event.cases) if isinstance(event, Scoring) else None],
        )
    _print_table(
        console,
        part_table(f"{run.resolve().name}, checkpoint {checkpoint} (round {result['round']}), external", result),
    )
    if result["known_cases"]:
        console.print(f"Careful: {result['known_cases']} of these images were trained or selected on.", highlight=False)
    console.print(f"The page shows them after: fedgs report {run}", highlight=False, markup=False)


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="HTML file. [default: report.html in the run or beside the runs]"
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the page about one run, or about several side by side, baseline first."""
    from fedgs.report.html import write_report

    beside = runs[0] if len(runs) == 1 else runs[0].resolve().parent
    click.echo(f"Page:   {write_report(list(runs), out or beside / 'report.html')}")


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder.")
def demo(out: Path) -> None:
    """Train the published FedAvg baseline and FedGS on generated images of three hospitals; a few minutes.

    If it was interrupted, the same command goes on.
    """
    from fedgs.demo import DEMO_ALGORITHMS, demo_config
    from fedgs.report.html import write_report
    from fedgs.report.tables import scores_table

    console = _console()
    runs = [out / algorithm for algorithm in DEMO_ALGORITHMS]
    known = {"phantom", "report.html", *DEMO_ALGORITHMS}
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= known):
        raise ConfigError(f"{out}: holds something other than a demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for algorithm, run in zip(DEMO_ALGORITHMS, runs, strict=True):
        _train(demo_config(algorithm, out / "phantom"), run, resume=True)
    _print_table(console, scores_table(runs))
    try:
        console.print(f"Page:   {write_report(runs, out / 'report.html')}", highlight=False, markup=False)
    except MissingExtraError as error:
        console.print(f"No page: {error}", highlight=False, markup=False)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _print_table(console: Console, table: Table) -> None:
    """Prints a table; where there is no terminal, as wide as it needs, since a number must never be cut off."""
    if not console.is_terminal:
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table)


@contextmanager
def _counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many cases are done, once it takes longer than a moment."""
    from fedgs.progress import CountingBar

    bar = CountingBar(console, what)
    try:
        yield bar
    finally:
        bar.close()


if __name__ == "__main__":
    main()
