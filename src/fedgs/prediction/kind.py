"""What every kind of input has in common: it is found, read as slices, and its mask goes back into its geometry.

A kind is one module with a `Kind` that is entered in `fedgs.prediction.sources.KINDS`; nothing else knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedgs.prediction.options import PredictOptions

__all__ = ["Found", "Kind", "Mask", "Probabilities", "Reading", "Source"]

Mask = NDArray[np.bool_]
"""(slices, rows, columns), at the input's own size and in the order of its slices; an image is one slice."""

Probabilities = NDArray[np.float32]
"""The same, in [0, 1]."""


class Found(NamedTuple):
    """An input among the files of one folder.

    Attributes:
        path: The file, or the folder of a series.
        files: All files that it consists of.
        stem: Its name without suffix, which its mask gets too.
    """

    path: Path
    files: tuple[Path, ...]
    stem: str


class Reading(Protocol):
    """An input that was opened."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns of the input itself."""

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance of slices, rows and columns; None where it is not known. An area needs the last two alone."""

    def frames(self) -> Iterator[NDArray[np.uint8] | NDArray[np.float32]]:
        """Gives each slice as the network was trained on it, (size, size, channels), uint8, or float32 in [0, 1].

        Raises:
            DataError: It turns out to be damaged.
        """

    def view(self, mask: Mask) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Gives what a person should look at: a picture, (height, width, 3), and what is marked in it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of input.

    Attributes:
        name: In the plural, for messages.
        suffixes: Of its files, in lower case, for messages.
        mask_suffix: Of the mask.
        probability_suffix: Of the probabilities.
        find: Gives the inputs among the files of one folder; the others are left to other kinds.
        read: Opens an input for a network of a size and a number of channels; one that is large should be read by
            `Reading.frames`, for several inputs are open at a time. Raises DataError.
        encode_mask: Gives the file of a mask in the geometry of the input that was read.
        encode_probabilities: The same of probabilities.
        decode_mask: Reads a mask that was written.
    """

    name: str
    suffixes: tuple[str, ...]
    mask_suffix: str
    probability_suffix: str
    find: Callable[[Sequence[Path]], Sequence[Found]]
    read: Callable[[Path, int, int], Reading]
    encode_mask: Callable[[Reading, Mask], bytes]
    encode_probabilities: Callable[[Reading, Probabilities], bytes]
    decode_mask: Callable[[Path], Mask]


@dataclass(frozen=True, slots=True)
class Source:
    """An input, and where what is made of it goes below the output folder.

    Attributes:
        kind: What it is.
        path: The file, or the folder of a series.
        files: All files that it consists of.
        name: Its path below the folder that was given, with forward slashes.
        place: The same without suffix.
    """

    kind: Kind
    path: Path
    files: tuple[Path, ...]
    name: str
    place: PurePath

    @property
    def mask(self) -> PurePath:
        """Where its mask goes."""
        return self._named(self.place, self.kind.mask_suffix)

    @property
    def overlay(self) -> PurePath:
        """Where its picture goes."""
        return self._named("overlays" / self.place, ".png")

    @property
    def probabilities(self) -> PurePath:
        """Where its probabilities go."""
        return self._named("probabilities" / self.place, self.kind.probability_suffix)

    def places(self, options: PredictOptions) -> tuple[PurePath, ...]:
        """Where everything goes that is wanted of it."""
        wanted = ((True, self.mask), (options.overlay, self.overlay), (options.probabilities, self.probabilities))
        return tuple(place for is_wanted, place in wanted if is_wanted)

    @staticmethod
    def _named(place: PurePath, suffix: str) -> PurePath:
        return place.with_name(place.name + suffix)  # not with_suffix: a stem may have dots
