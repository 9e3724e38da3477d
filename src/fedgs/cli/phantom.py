"""fedgs phantom: generated hospitals to try everything on."""

from __future__ import annotations

from pathlib import Path

import click

from fedgs.cli.entry import cli


@cli.group()
def phantom() -> None:
    """Generate hospitals whose lesions differ in size, to try everything on."""


@phantom.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--cases", type=int, default=50, show_default=True, help="Frames per site.")
@click.option("--size", type=int, default=256, show_default=True, help="Side of the frames in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds give equal bytes.")
def frames(out: Path, cases: int, size: int, seed: int) -> None:
    """Frames like those of a colonoscopy of three sites, as PNG."""
    from fedgs.data.phantom import generate

    generate(out, seed=seed, cases_per_site=cases, size=size)
    click.echo(f"Written: {out}")


@phantom.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option(
    "--sites", type=int, default=3, show_default=True, help="Hospitals; the last one has the smallest tumours."
)
@click.option("--volumes", type=int, default=5, show_default=True, help="Volumes per site.")
@click.option("--size", type=int, default=128, show_default=True, help="Side of an axial slice in voxels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds give equal bytes.")
def ct(out: Path, sites: int, volumes: int, size: int, seed: int) -> None:
    """CT of the abdomen with tumours of the liver, as NIfTI in the layout of LiTS."""
    from fedgs.data.phantom_volumes import generate_ct

    generate_ct(out, sites=sites, volumes=volumes, size=size, seed=seed)
    click.echo(f"Written: {out}")
