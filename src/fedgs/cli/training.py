"""fedgs train and fedgs demo."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedgs.cli.console import counting, make_console, print_table
from fedgs.cli.entry import InterruptedByUserError, cli
from fedgs.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from fedgs.config import RunConfig

_F = TypeVar("_F", bound=Callable[..., Any])


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
@click.option("--mlflow", is_flag=True, help="Also track the run with MLflow, where MLFLOW_TRACKING_URI says.")
def train(out: Path | None, file: Path | None, resume: bool, tensorboard: bool, mlflow: bool, **given: Any) -> None:
    """Train one algorithm on the hospitals of a folder, and score it.

    Everything can also stand in a TOML file (--config), as every run keeps one: RUN/config.toml.
    """
    config = _configured(out, file, resume, given)
    path = out or Path("runs") / _name_of(config)
    if resume and (path / "summary.json").is_file():
        click.echo(f"{path} is finished already; it stays as it is.")
    try:
        summary = _train(config, path, resume=resume, tensorboard=tensorboard, mlflow=mlflow)
    except KeyboardInterrupt as error:
        if (path / "config.toml").is_file():
            # What was given to --resume, data that moved for instance, is needed again; the run knows the rest.
            more = [flag for flag, given in (("--tensorboard", tensorboard), ("--mlflow", mlflow)) if given]
            anew = () if resume else ("fedgs", "train", "--out", str(path), "--resume", *more)
            raise InterruptedByUserError(*anew) from error
        raise
    from fedgs.report.tables import scores_table

    console = make_console()
    print_table(console, scores_table([path]))
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


def _train(
    config: RunConfig, out: Path, *, resume: bool = False, tensorboard: bool = False, mlflow: bool = False
) -> dict[str, Any]:
    from fedgs import experiment, progress, trackers
    from fedgs.events import Careful

    console = make_console()
    bar = progress.show_progress(console)
    listeners: list[Any] = [bar]
    with ExitStack() as stack:
        if isinstance(bar, progress.LiveBar):
            stack.callback(bar.close)
        if tensorboard:
            listeners.append(trackers.tensorboard(out))
        if mlflow:
            listeners.append(stack.enter_context(trackers.mlflow(out, lambda message: bar(Careful(message)))))
        on_indexing = stack.enter_context(counting(console, "indexing"))
        return dict(experiment.train(config, out, resume=resume, listeners=listeners, on_indexing=on_indexing))


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder.")
def demo(out: Path) -> None:
    """Train the published FedAvg baseline and FedGS on generated images of three hospitals; a few minutes.

    If it was interrupted, the same command goes on.
    """
    from fedgs.demo import DEMO_ALGORITHMS, demo_config
    from fedgs.report.html import write_report
    from fedgs.report.tables import scores_table

    console = make_console()
    runs = [out / algorithm for algorithm in DEMO_ALGORITHMS]
    known = {"phantom", "report.html", *DEMO_ALGORITHMS}
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= known):
        raise ConfigError(f"{out}: holds something other than a demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for algorithm, run in zip(DEMO_ALGORITHMS, runs, strict=True):
        _train(demo_config(algorithm, out / "phantom"), run, resume=True)
    print_table(console, scores_table(runs))
    try:
        click.echo(f"Page:   {write_report(runs, out / 'report.html')}")
    except MissingExtraError as error:
        click.echo(f"No page: {error}")
