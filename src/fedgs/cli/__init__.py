"""The command line: reads arguments, calls the package, prints what a person wants to see."""

from fedgs.cli import (  # noqa: F401 - makes the commands known
    compare,
    export,
    indexing,
    phantom,
    predict,
    preflight,
    runs,
    study,
    training,
)
from fedgs.cli.entry import cli, main

__all__ = ["cli", "main"]
