"""fedgs preflight."""

from __future__ import annotations

from pathlib import Path

import click

from fedgs.cli.console import counting, make_console, print_table
from fedgs.cli.entry import cli
from fedgs.cli.indexing import rule_of, small_rule_options
from fedgs.errors import ConfigError


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DATA | merge COUNTS...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for what is found.")
@click.option("--adapter", help="Layout of the folder: folder, phantom or polypgen; guessed when left out.")
@click.option("--size", type=int, help="Side of the training images in pixels. [default: that of the index, or 256]")
@click.option("--batch-size", type=click.IntRange(min=1), default=4, show_default=True, help="Images per step.")
@click.option("--suppress", is_flag=True, help="Leave counts from 1 to 4 out of counts.json.")
@small_rule_options
def preflight(
    paths: tuple[Path, ...],
    out: Path,
    adapter: str | None,
    size: int | None,
    batch_size: int,
    suppress: bool,
    small_rule: str | None,
    small_fraction: str | None,
    base: float | None,
) -> None:
    """Say whether FedGS is for some hospitals, before anything is trained.

    DATA is a folder of hospitals' images, or an index. Hospitals can run it apart and exchange counts.json, which names
    no case; 'fedgs preflight merge A.json B.json --out DIR' comes to the advice that one run over all would give.
    """
    from fedgs.preflight.advice import advise
    from fedgs.preflight.exchange import merge, read_counts, suppressed, write_counts
    from fedgs.preflight.showing import overview, write_picture, write_vanished

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; --out names a folder")
    console = make_console()
    if paths[0] == Path("merge"):
        if len(paths) < 2:
            raise ConfigError("merge needs the counts of at least one hospital, files that 'fedgs preflight' wrote")
        if size or adapter or small_rule or small_fraction or base:
            raise ConfigError("merge takes sizes and rules from the counts; leave --size, --adapter and rules out")
        found = merge([(path, read_counts(path)) for path in paths[1:]])
    elif len(paths) > 1:
        raise ConfigError("preflight takes one folder of images; to join counts: fedgs preflight merge A.json B.json")
    else:
        from fedgs.data.index import open_data
        from fedgs.data.summary import summarise
        from fedgs.data.table import is_index, read_settings
        from fedgs.preflight.counts import count

        rule = rule_of(small_rule, small_fraction, base) if small_rule or small_fraction or base else None
        with counting(console, "indexing") as on_indexing, counting(console, "counting") as on_counting:
            # Masks do not depend on the size of the frames, so an index is opened at its own.
            known = read_settings(paths[0]).size if is_index(paths[0]) else size or 256
            index = open_data(paths[0], adapter=adapter, size=known, small_rule=rule, on_progress=on_indexing)
            found = count(index, size=size or known, batch_size=batch_size, watch=on_counting)
        click.echo(summarise(index).as_text())
    out.mkdir(parents=True, exist_ok=True)
    print_table(console, overview(found))
    click.echo(advise(found).sentence)
    write_counts(suppressed(found) if suppress else found, out / "counts.json")
    click.echo(f"Counts: {out / 'counts.json'}")
    (out / "vanished.csv").unlink(missing_ok=True)  # of an earlier call
    if found.vanished:
        click.echo(f"Lesions without a pixel at {found.size} pixels: {write_vanished(found, out / 'vanished.csv')}")
    click.echo(f"Sizes:  {write_picture(found, out / 'sizes.png')}")
