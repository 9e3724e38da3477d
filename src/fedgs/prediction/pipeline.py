"""Inputs go through reading, networks and writing at the same time, and no more of them are in memory than that takes.

Threads read ahead and write behind; the networks run in the calling thread, over batches that may reach across inputs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedgs.errors import DataError
from fedgs.evaluation import at_size
from fedgs.files import write_atomically
from fedgs.prediction.kind import Probabilities, Reading, Source
from fedgs.prediction.lesions import confidence_of, find_lesions
from fedgs.prediction.networks import Networks
from fedgs.prediction.options import PredictOptions
from fedgs.prediction.overlay import draw_overlay

__all__ = ["Failed", "Predicted", "predict_sources"]

_READERS, _WRITERS = 2, 2
_MM3_PER_ML = 1000
_NO_NUMBER = (
    "expected a probability per pixel, the network gave what is no number; its training has diverged: take another "
    "checkpoint, or --precision fp32"
)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was found in an input; its files are written.

    Attributes:
        source: The input.
        lesions: Connected components of its mask.
        pixels: Of the mask, at the input's own size; voxels of a volume.
        area_mm2: The same in mm2; None where the spacing is not known, and for volumes.
        volume_ml: The same in ml; None where the spacing is not known, and for images.
        confidence: See `fedgs.prediction.lesions.confidence_of`.
        seconds: Time of reading, of its share of the networks, and of writing; inputs overlap, so these add up to more
            than the whole takes.
    """

    source: Source
    lesions: int
    pixels: int
    area_mm2: float | None
    volume_ml: float | None
    confidence: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """An input of which there is no mask.

    Attributes:
        source: The input.
        reason: What was expected and what came.
    """

    source: Source
    reason: str


@dataclass(slots=True)
class _Case:
    """An input on its way."""

    source: Source
    reading: Reading
    seconds: float
    probabilities: Probabilities = field(init=False)
    failure: Failed | None = None

    def __post_init__(self) -> None:
        self.probabilities = np.empty(self.reading.shape, dtype=np.float32)

    def frames(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Gives the slices with their numbers, until one cannot be read."""
        try:
            yield from enumerate(self.reading.frames())
        except DataError as error:
            self.failure = _failed(self.source, error)


def predict_sources(
    sources: Sequence[Source], networks: Networks, options: PredictOptions, out: Path
) -> Generator[Predicted | Failed, None, None]:
    """Makes the masks of inputs and writes them, one after the other.

    Args:
        sources: The inputs.
        networks: What looks at them.
        options: What becomes of the probabilities.
        out: The output folder; it exists.

    Returns:
        An iterator over what became of each, in order. Whatever is asked of it is written; closing it ends the threads.

    Raises:
        OSError: Something cannot be written, for instance because the disk is full; nothing is there by half.
    """
    read = _in_threads(partial(_read, networks), sources, threads=_READERS, ahead=_READERS + networks.batch_size)
    passed = _through(networks, read)
    # With fewer than a batch behind, the networks would wait for the disk whenever a batch comes out of them.
    return _in_threads(partial(_finish, options, out), passed, threads=_WRITERS, ahead=networks.batch_size)


def _in_threads(
    call: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, ahead: int
) -> Generator[_Result, None, None]:
    """Like `map`, but so many items are already being worked on, or are done, when the first result is asked for."""
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(call, item))
            del item  # it may be large
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(networks: Networks, source: Source) -> _Case | Failed:
    started = time.perf_counter()
    try:
        reading = source.kind.read(source.path, networks.size, networks.channels)
        return _Case(source, reading, time.perf_counter() - started)
    except DataError as error:
        return _failed(source, error)


def _through(networks: Networks, read: Iterable[_Case | Failed]) -> Iterator[_Case | Failed]:
    """Gives inputs on as soon as the networks have seen all their slices, in order."""
    under_way: deque[_Case | Failed] = deque()
    batch: list[tuple[_Case, int, NDArray[Any]]] = []
    for case in read:
        under_way.append(case)
        if isinstance(case, Failed):
            continue
        for number, frame in case.frames():
            batch.append((case, number, frame))
            if len(batch) == networks.batch_size:
                _look(networks, batch)
                batch.clear()
                yield from _all_but_last(under_way)
    if batch:
        _look(networks, batch)
    yield from under_way


def _all_but_last(under_way: deque[_Case | Failed]) -> Iterator[_Case | Failed]:
    """The last one may have more slices."""
    while len(under_way) > 1:
        yield under_way.popleft()


def _look(networks: Networks, batch: Sequence[tuple[_Case, int, NDArray[Any]]]) -> None:
    started = time.perf_counter()
    found = networks.probabilities([frame for _, _, frame in batch])
    for (case, number, _), probability in zip(batch, found, strict=True):
        if not probability.isfinite().all():
            case.failure = Failed(case.source, _NO_NUMBER)
        resized = at_size(probability, case.reading.shape[1:]).float().clamp(0, 1)
        case.probabilities[number] = resized.cpu().numpy()
    share = (time.perf_counter() - started) / len(batch)
    for case, _, _ in batch:
        case.seconds += share


def _finish(options: PredictOptions, out: Path, case: _Case | Failed) -> Predicted | Failed:
    """Turns probabilities into a mask, and writes what is wanted."""
    if isinstance(case, Failed):
        return case
    if case.failure is not None:
        return case.failure
    started = time.perf_counter()
    source, reading = case.source, case.reading
    lesions = find_lesions(
        case.probabilities,
        threshold=options.threshold,
        smallest=options.min_lesion,
        largest_only=options.largest_component,
    )
    if options.overlay:
        try:
            view = reading.view(lesions.mask)
        except DataError as error:  # it was there a moment ago
            return _failed(source, error)
        _write(out / source.overlay, draw_overlay(*view))
    if options.probabilities:
        _write(out / source.probabilities, source.kind.encode_probabilities(reading, case.probabilities))
    _write(out / source.mask, source.kind.encode_mask(reading, lesions.mask))
    area, volume = _measured(lesions.pixels, reading)
    confidence = confidence_of(case.probabilities, lesions.mask)
    seconds = case.seconds + time.perf_counter() - started
    return Predicted(source, lesions.count, lesions.pixels, area, volume, confidence, seconds)


def _failed(source: Source, error: DataError) -> Failed:
    """Keeps the reason without the path of the machine, since it goes into the table and on the page."""
    return Failed(source, str(error).removeprefix(f"{source.path}: "))


def _measured(pixels: int, reading: Reading) -> tuple[float | None, float | None]:
    """Area of an image in mm2, or volume in ml, where the spacing is known."""
    if reading.spacing_mm is None:
        return None, None
    between, down, across = reading.spacing_mm
    if reading.shape[0] == 1:
        return pixels * down * across, None
    return None, pixels * between * down * across / _MM3_PER_ML


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
