"""Slices of any kind of input come back to where they were, and few inputs are in memory at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgs import PredictOptions
from fedgs.errors import DataError
from fedgs.prediction import pipeline
from fedgs.prediction.kind import Found, Kind, Mask, Source
from fedgs.prediction.networks import Networks
from fedgs.prediction.pipeline import Failed, Predicted, predict_sources


class Stack:
    """A volume whose number, and the number of each slice, stand in its pixels; the slice `breaks_at` is damaged."""

    def __init__(self, number: int, slices: int, breaks_at: int | None = None) -> None:
        self.number, self.breaks_at = number, breaks_at
        self.shape = (slices, 6, 8)
        self.spacing_mm = (5.0, 0.5, 0.25)

    def frames(self) -> Iterator[np.ndarray]:
        for place in range(self.shape[0]):
            if place == self.breaks_at:
                raise DataError(f"{self.number}.stack: cut short at slice {place}")
            yield np.full((4, 4, 1), (self.number * 10 + place) / 255, np.float32)

    def view(self, mask: Mask) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((6, 8, 3), np.uint8), mask[0]


def kind(slices: Sequence[int], breaks: dict[int, int]) -> Kind:
    def read(path: Path, size: int, channels: int) -> Stack:
        assert (size, channels) == (4, 1)
        number = int(path.stem)
        return Stack(number, slices[number], breaks.get(number))

    return Kind(
        name="stacks",
        suffixes=(".stack",),
        mask_suffix=".mask",
        probability_suffix=".values",
        find=lambda files: [Found(path, (path,), path.stem) for path in files],
        read=read,
        encode_mask=lambda reading, mask: np.packbits(mask).tobytes(),
        encode_probabilities=lambda reading, probabilities: probabilities.tobytes(),
        decode_mask=lambda path: np.unpackbits(np.frombuffer(path.read_bytes(), np.uint8)).view(bool),
    )


class Echo(Networks):
    """Gives the pixels themselves as probabilities, and notes how many images it saw at a time."""

    seen: list[int] = []  # noqa: RUF012

    def probabilities(self, frames: Sequence[np.ndarray]) -> Tensor:
        self.seen.append(len(frames))
        return torch.from_numpy(np.stack(frames))[..., 0]


def echo(batch_size: int) -> Echo:
    Echo.seen = []
    return Echo([], size=4, channels=1, batch_size=batch_size, device=torch.device("cpu"), tta=False)


def sources_of(made: Kind, count: int) -> list[Source]:
    paths = [Path(f"{number}.stack") for number in range(count)]
    return [Source(made, path, (path,), path.name, PurePath(path.stem)) for path in paths]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_every_slice_comes_back_to_its_place(batch_size: int, tmp_path: Path) -> None:
    slices, networks = (1, 3, 5, 1, 7), echo(batch_size)
    made = sources_of(kind(slices, {}), len(slices))
    options = PredictOptions(threshold=12.5 / 255, probabilities=True)
    outcomes = list(predict_sources(made, networks, options, tmp_path))
    assert [outcome.source for outcome in outcomes] == made
    assert networks.seen == [batch_size] * (17 // batch_size) + [17 % batch_size] * bool(17 % batch_size)
    for number, outcome in enumerate(outcomes):
        values = np.frombuffer((tmp_path / f"probabilities/{number}.values").read_bytes(), np.float32)
        expected = (number * 10 + np.arange(slices[number])) / 255
        assert values.reshape(slices[number], -1) == pytest.approx(np.repeat(expected[:, None], 48, 1), abs=1e-6)
        pixels = 48 * int((expected > 12.5 / 255).sum())
        assert isinstance(outcome, Predicted)
        assert outcome.pixels == pixels
        assert outcome.lesions == (pixels > 0)
        if slices[number] == 1:
            assert (outcome.area_mm2, outcome.volume_ml) == (pytest.approx(pixels * 0.125), None)
        else:
            assert (outcome.area_mm2, outcome.volume_ml) == (None, pytest.approx(pixels * 0.625 / 1000))


def test_an_input_that_breaks_in_the_middle_does_not_harm_the_others(tmp_path: Path) -> None:
    slices = (3, 3, 3, 3)
    made = sources_of(kind(slices, {1: 2, 3: 0}), 4)
    outcomes = list(predict_sources(made, echo(2), PredictOptions(), tmp_path))
    reasons = [outcome.reason if isinstance(outcome, Failed) else None for outcome in outcomes]
    assert reasons == [None, "cut short at slice 2", None, "cut short at slice 0"]
    assert {path.name for path in tmp_path.iterdir()} == {"0.mask", "2.mask"}


def test_what_is_no_number_is_named(tmp_path: Path) -> None:
    class Diverged(Echo):
        def probabilities(self, frames: Sequence[np.ndarray]) -> Tensor:
            found = torch.from_numpy(np.stack(frames))[..., 0].clone()
            found[0, 0, 0] = torch.nan
            return found

    networks = Diverged([], size=4, channels=1, batch_size=1, device=torch.device("cpu"), tta=False)
    (outcome,) = predict_sources(sources_of(kind((1,), {}), 1), networks, PredictOptions(), tmp_path)
    assert isinstance(outcome, Failed)
    assert "what is no number; its training has diverged: take another checkpoint" in outcome.reason
    assert list(tmp_path.iterdir()) == []


def test_few_inputs_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, opened, written, most = threading.Lock(), 0, 0, 0
    made = kind([1] * 200, {})

    def count_opened(*arguments: Any) -> Any:
        nonlocal opened, most
        with lock:
            opened += 1
            most = max(most, opened - written)
        return made.read(*arguments)

    counting = Kind(**{name: getattr(made, name) for name in Kind.__dataclass_fields__} | {"read": count_opened})
    for _ in predict_sources(sources_of(counting, 200), echo(4), PredictOptions(), tmp_path):
        written += 1
    assert opened == 200
    assert most <= 4 * 4 + 8


def test_a_disk_that_is_full_stops_everything_and_leaves_nothing_by_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == "3.mask":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    write = pipeline.write_atomically
    monkeypatch.setattr(pipeline, "write_atomically", full)
    before = threading.active_count()
    done = []
    with pytest.raises(OSError, match="No space left"):
        done += predict_sources(sources_of(kind([1] * 50, {}), 50), echo(4), PredictOptions(), tmp_path)
    assert threading.active_count() == before
    assert len(list(tmp_path.iterdir())) < 20
