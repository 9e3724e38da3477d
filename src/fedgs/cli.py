"""The command line: reads arguments, calls the package, prints what a person wants to see."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedgs.errors import ConfigError, FedgsError, MissingExtraError, unknown_choice

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedgs.config import RunConfig

__all__ = ["cli", "main"]

_F = TypeVar("_F", bound=Callable[..., Any])
_INTERRUPTED = 130
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|Cannot allocate memory|not enough memory")  # of torch
_LOOP = re.compile("Symlink loop from (.*)")  # of pathlib
_ADVICE = {
    errno.EACCES: "check its permissions",
    errno.EROFS: "choose another place",
    errno.EFBIG: "raise the limit on the size of files, and give the command again (fedgs train: with --resume)",
    errno.ENOSPC: "make room, and give the command again (fedgs train: with --resume)",
    errno.EDQUOT: "make room, and give the command again (fedgs train: with --resume)",
}


class _InterruptedError(Exception):
    """Ctrl-C; holds the command that goes on, or nothing where it is the same again."""

    def __init__(self, *command: str) -> None:
        self.command = command


class _Commands(click.Group):
    """Commands whose mistakes list the choices."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that is meant."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(str(unknown_choice("command", args[0], self.commands)), ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; Ctrl-C is kept from click, which would print a line of its own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; errors of this package become one message, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        for argument in given:
            argument.encode()  # a name that is not UTF-8 could stand in no settings and on no page
        cli.main([argument for argument in given if argument != "--debug"], "fedgs", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        (_unknown_flag(error) if isinstance(error, click.NoSuchOption) else error).show()
        sys.exit(error.exit_code)
    except _InterruptedError as end:
        _say_how_to_go_on(end.command or ("fedgs", *given))
    except (KeyboardInterrupt, click.exceptions.Abort):
        _say_how_to_go_on(("fedgs", *given))
    except (FedgsError, OSError, MemoryError, RuntimeError, UnicodeEncodeError) as error:
        is_ours = not isinstance(error, RuntimeError) or _OUT_OF_MEMORY.search(str(error)) or _LOOP.match(str(error))
        if debug or not is_ours:
            raise
        click.echo(f"Error: {_in_words(error)}", err=True)
        sys.exit(1)


def _unknown_flag(error: click.NoSuchOption) -> click.UsageError:
    """Gives the error with all flags of the command; click alone names the nearest at most."""
    if error.ctx is None:
        return error
    known = [flag for option in error.ctx.command.get_params(error.ctx) for flag in option.opts if flag[:2] == "--"]
    kind = f"flag of '{error.ctx.command_path}'"
    return click.UsageError(str(unknown_choice(kind, error.option_name, [*known, "--debug"])), error.ctx)


def _say_how_to_go_on(command: Sequence[str]) -> typing.NoReturn:
    end = "\n" if sys.stderr.isatty() else ""  # behind the ^C of a terminal
    click.echo(f"{end}Interrupted; what is finished is kept. Go on with: {shlex.join(command)}", err=True)
    sys.stdout.flush()
    # Not sys.exit: an interrupt inside an import makes Python end by the signal whatever the code.
    os._exit(_INTERRUPTED)


def _in_words(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        name = ascii(error.object)[:200]
        return f"{name} cannot be written as {error.encoding}; rename it if it is not UTF-8, else set PYTHONUTF8=1"
    if loop := _LOOP.match(str(error)):
        return f"{loop[1]}: is a link that leads back to itself; give the folder itself"
    if isinstance(error, (MemoryError, RuntimeError)):
        return "there is not enough memory; choose a smaller --batch-size or --size, or close other programs"
    if isinstance(error, OSError) and error.strerror:
        parts = (error.filename, error.strerror)
        return "; ".join(filter(None, (": ".join(str(part) for part in parts if part), _ADVICE.get(error.errno or 0))))
    return str(error)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
        plain = next((option for option in options if option in (bool, int, float, str)), None)
        shown = f" [default: {default}]" if plain and default is not None and plain is not bool else ""
        flag = f"--{name.replace('_', '-')}"
        if plain is None:
            command = click.option(flag.rstrip("s"), name, multiple=True, metavar="NAME=VALUE", help=description)(
                command
            )
        else:
            how: dict[str, Any] = {"is_flag": True} if plain is bool else {"type": plain}
            command = click.option(flag, name, default=None, help=description + shown, **how)(command)
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
    try:
        summary = _train(config, path, resume=resume, tensorboard=tensorboard)
    except KeyboardInterrupt as error:
        if (path / "config.toml").is_file():
            # What was given to --resume, data that moved for instance, is needed again; the run knows the rest.
            more = ("--tensorboard",) if tensorboard else ()
            anew = () if resume else ("fedgs", "train", "--out", str(path), "--resume", *more)
            raise _InterruptedError(*anew) from error
        raise
    from fedgs.report.tables import scores_table

    console = _console()
    _print_table(console, scores_table([path]))
    leaks = summary["data"]["leaks"]
    if any(leaks.values()):
        found = (
            f"{leaks['patients']} known patients, {leaks['duplicates']} duplicated images and "
            f"{leaks.get('near_duplicates', 0)} groups of near duplicates"
        )
        click.echo(f"Careful: {found} stand on more than one side of this split.")
    page = path / "report.html"
    click.echo(
        f"Page:   {page}" if page.is_file() else "No page: it needs the extra 'report': pip install 'fedgs[report]'"
    )


def _configured(out: Path | None, file: Path | None, resume: bool, given: dict[str, Any]) -> RunConfig:
    from fedgs.config import configure, read_config, settings

    given = {name: value for name, value in given.items() if value not in (None, ())}
    for _, name, *_ in settings():
        if name in given and isinstance(given[name], tuple):
            given[name] = _options(name.removesuffix("s").replace("_", "-"), given[name])
    if resume and out is None:
        out = Path("runs") / _name_of(configure(read_config(file) if file else None, **given))
        if not out.is_dir():
            raise ConfigError(f"there is no {out} to resume; name the folder of the run with --out")
    stored = out / "config.toml" if out else None
    base = read_config(stored) if resume and stored and stored.is_file() else None
    config = configure(read_config(file, base) if file else base, **given)
    if resume and base is None and config.data.data is None:
        raise ConfigError(
            f"{out}: holds no run to go on with (no config.toml); name the folder of a run with --out, "
            "or begin one with --data"
        )
    return config


def _name_of(config: RunConfig) -> str:
    parts = (config.algorithm.algorithm, config.model.model, f"fold{config.data.fold}", f"seed{config.federation.seed}")
    return "-".join(parts)


def _options(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    import tomllib

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--{flag} must be NAME=VALUE, such as norm=group or kl=0.1; got '{pair}'")
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
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


def _small_rule(command: _F) -> _F:
    """Gives a command the options that say which lesions are small, see `_rule`."""
    for option in (
        click.option("--base", type=float, help="Base of the logarithm in the difficulty. [default: by the rule]"),
        click.option("--small-fraction", help="Largest share of the image that is small, such as 1/150."),
        click.option("--small-rule", help="components (polyps) or total (liver tumours). [default: components]"),
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--adapter", help="Layout of the folder: folder, phantom or polypgen; guessed when left out.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the index.")
@click.option("--size", type=int, default=256, show_default=True, help="Side of the cached frames in pixels.")
@_small_rule
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
    from fedgs.data.sheet import write_sheet
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
    click.echo(summarise(made).as_text())
    if sheet := write_sheet(made):
        click.echo(f"Sheet:  {out / sheet.name}")
    click.echo(f"Index:  {out}")


def _rule(kind: str | None, fraction: str | None, base: float | None) -> Any:
    from dataclasses import replace

    from fedgs.data.lesions import SMALL_RULES

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
        found = f"{result['known_cases']} of these images, or near duplicates of them, were trained or selected on."
        click.echo(f"Careful: {found}")
    click.echo(f"The page shows them after: {shlex.join(('fedgs', 'report', str(run)))}")


@cli.command("import-checkpoint")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to make.")
@click.option("--size", type=int, help="Side of its images in pixels. [default: what it is made for, or 512]")
@click.option("--score-size", default="512", show_default=True, help="Where predictions are scored: 512 or native.")
@_small_rule
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
        small_rule=_rule(small_rule, small_fraction, base),
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

    console = _console()
    with _counting(console, "indexing") as on_indexing, _counting(console, "explaining") as on_case:
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
        click.echo(f"Page:   {write_report(runs, out / 'report.html')}")
    except MissingExtraError as error:
        click.echo(f"No page: {error}")


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
