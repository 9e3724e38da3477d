"""The errors that fedgs raises on purpose; each message says what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

__all__ = [
    "AggregationError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "FedgsError",
    "MissingExtraError",
    "ShapeError",
    "TrainingError",
    "understood",
    "unknown_choice",
]


class FedgsError(Exception):
    """Base of all errors of this package; the command line prints its message alone."""


class ConfigError(FedgsError):
    """A setting, an argument or a combination of them cannot work."""


class DataError(FedgsError):
    """Files are missing, broken or not laid out as the adapter expects."""


class ShapeError(FedgsError):
    """An image size or tensor shape that the network cannot take."""


class AggregationError(FedgsError):
    """Updates of the sites do not fit together or do not fit the server's model."""


class TrainingError(FedgsError):
    """Training cannot go on, for instance because the loss is not finite."""


class CheckpointError(FedgsError):
    """A checkpoint is missing, damaged or belongs to another run."""


class ExportError(FedgsError):
    """A network cannot be written in some form, or what was written does not compute the same."""


class MissingExtraError(FedgsError):
    """An optional package is needed; the message names the extra that brings it."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the extra '{extra}'; install it with: pip install 'fedgs[{extra}]'")
        self.extra = extra


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turns whatever Python raises over the content of a file that fedgs wrote into the error of a damaged file.

    Raises:
        CheckpointError: The content is not what fedgs wrote.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: damaged or altered ({reason}); restore it from a copy") from error


def unknown_choice(kind: str, name: object, choices: Iterable[str]) -> ConfigError:
    """Makes the error for an unknown name: it lists the choices and guesses which one was meant.

    Args:
        kind: What is chosen, as a noun for the message, for instance "model".
        name: The name that came.
        choices: The names that exist.

    Returns:
        The error, to be raised by the caller.

    >>> unknown_choice("model", "utnett", ["unet", "utnet"]).args[0]
    "unknown model 'utnett'; did you mean 'utnet'? Choose one of: unet, utnet"
    """
    known = sorted(choices)
    nearest = get_close_matches(str(name), known, n=1, cutoff=0.5)
    guess = f"; did you mean '{nearest[0]}'?" if nearest else "."
    listing = f"Choose one of: {', '.join(known)}" if known else "There is none to choose."
    return ConfigError(f"unknown {kind} {name!r}{guess} {listing}")
