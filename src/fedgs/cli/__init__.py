"""The command line: reads arguments, calls the package, prints what a person wants to see."""

from fedgs.cli import compare, export, indexing, preflight, runs, study, training  # noqa: F401 - makes the commands known
from fedgs.cli.entry import cli, main

__all__ = ["cli", "main"]
