"""fedgs index, and the options that say which lesions are small."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import click

from fedgs.cli.console import counting, make_console
from fedgs.cli.entry import cli
from fedgs.errors import ConfigError, unknown_choice

__all__ = ["rule_of", "small_rule_options"]

_F = TypeVar("_F", bound=Callable[..., Any])


def small_rule_options(command: _F) -> _F:
    """Gives a command the options that say which lesions are small, see `rule_of`."""
    for option in (
        click.option("--base", type=float, help="Base of the logarithm in the difficulty. [default: by the rule]"),
        click.option("--small-fraction", help="Largest share of the image that is small, such as 1/150."),
        click.option("--small-rule", help="components (polyps) or total (liver tumours). [default: by the data]"),
    ):
        command = option(command)
    return command


def rule_of(kind: str | None, fraction: str | None, base: float | None, usual: str = "components") -> Any:
    """Gives the rule of the data that the options name, a `SmallRule`; what they leave open is as for the usual kind.

    Raises:
        ConfigError: An unknown rule, or a fraction that is no number.
    """
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
    return replace(SMALL_RULES[kind or usual], **changes)


def slice_options(command: _F) -> _F:
    """Gives a command the options that say how volumes become images, see `slices_of`."""
    for option in (
        click.option("--empty-share", type=float, help="Volumes: share of used slices without target. [default: 0]"),
        click.option("--least-pixels", type=int, help="Volumes: a used slice has more of the target. [default: 50]"),
        click.option("--slices", help="Volumes: slices that are used, target or all. [default: target]"),
        click.option("--axis", help="Volumes: axial or largest-spacing. [default: axial]"),
        click.option(
            "--window", type=float, nargs=2, help="Volumes: values that become black and white. [default: -200 200]"
        ),
        click.option("--label", type=int, help="Volumes: label of the target. [default: by the adapter]"),
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--adapter", help="Layout of the folder: folder, phantom, polypgen or lits; guessed when left out.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the index.")
@click.option("--size", type=int, default=256, show_default=True, help="Side of the cached frames in pixels.")
@click.option(
    "--sites", type=click.Path(path_type=Path), help="Volumes: table with the columns case, site and maybe patient."
)
@click.option("--workers", type=int, help="Files read at once; a volume takes twice its memory. [default: processors]")
@slice_options
@small_rule_options
def index(
    source: Path,
    adapter: str | None,
    out: Path,
    size: int,
    sites: Path | None,
    workers: int | None,
    small_rule: str | None,
    small_fraction: str | None,
    base: float | None,
    **rules: Any,
) -> None:
    """Read every case of SOURCE once: flags, areas, hashes and a cache that training reads from.

    What has not changed since the last time is kept; an interrupted indexing goes on.
    """
    from fedgs.data import WITH_SITES, detect
    from fedgs.data.index import build_index
    from fedgs.data.sheet import write_sheet
    from fedgs.data.summary import summarise

    console, adapter = make_console(), adapter or detect(source)
    rule = rule_of(small_rule, small_fraction, base, "total" if adapter in WITH_SITES else "components")
    with counting(console, "indexing") as on_indexing:
        made = build_index(
            source,
            out,
            adapter=adapter,
            size=size,
            small_rule=rule,
            slices={name: value for name, value in rules.items() if value is not None},
            sites=sites,
            workers=workers,
            on_progress=on_indexing,
        )
    click.echo(summarise(made).as_text())
    if sheet := write_sheet(made):
        click.echo(f"Sheet:  {out / sheet.name}")
    click.echo(f"Index:  {out}")
