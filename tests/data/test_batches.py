"""Batches: every case once an epoch, equal for equal seeds, aligned with their table, and never all in memory."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from fedgs.data.augment import Augmentation
from fedgs.data.batches import count_steps, scoring_batches, training_batches
from fedgs.data.case import Batch
from fedgs.errors import ConfigError, DataError


class MadeFrames:
    """Frames whose every value tells their row; reading is counted."""

    def __init__(self, cases: int, size: int = 16, channels: int = 3) -> None:
        self.size, self.channels, self.read, self.gives_regions = size, channels, 0, False
        self.table = pd.DataFrame({"site": ["C1"] * cases, "is_small": [row % 3 == 0 for row in range(cases)]})

    def frame(self, row: int) -> npt.NDArray[np.uint8]:
        self.read += 1
        frame = np.full((self.size, self.size, self.channels), row, dtype=np.uint8)
        frame.flags.writeable = False  # As memory-mapped files are.
        return frame

    def regions(self, row: int) -> npt.NDArray[np.uint8]:
        self.read += 1
        regions = np.ones((512, 512), dtype=np.uint8)
        regions[:, row * 2 :] = 2
        regions.flags.writeable = False
        return regions

    def mask(self, row: int) -> npt.NDArray[np.bool_]:
        mask = np.zeros((512, 512), dtype=bool)
        mask[:, : row * 4] = True
        mask.flags.writeable = False
        return mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(images: torch.Tensor) -> list[int]:
    mean, deviation = (0.485, 0.229) if images.shape[1] == 3 else (0.449, 0.226)
    return [round(value) for value in ((images[:, 0, 8, 8] * deviation + mean) * 255).tolist()]


def test_cases_are_drawn_as_often_as_their_weights_say_and_as_many_as_else() -> None:
    frames, rows, weights = MadeFrames(40), [3, 5, 7, 11], np.array([1.0, 2.0, 3.0, 2.0])
    batches = list(
        training_batches(
            frames,
            rows,
            batch_size=4,
            augmentation=Augmentation.none(),
            generator=generator(),
            steps=2000,
            case_weights=weights,
        )
    )
    drawn = [row for batch in batches for row in rows_of(batch.images)]
    assert len(batches) == 2000
    shares = [drawn.count(row) / len(drawn) for row in rows]
    assert shares == pytest.approx((weights / weights.sum()).tolist(), abs=0.02)  # 0.02 is 3.6 standard errors


def test_an_epoch_gives_each_case_at_most_once_and_only_full_batches() -> None:
    frames, rows = MadeFrames(40), [3, 5, 7, 11, 13, 17, 19, 23, 29, 31]
    steps = count_steps(len(rows), 4, epochs=3)
    batches = list(
        training_batches(
            frames, rows, batch_size=4, steps=steps, augmentation=Augmentation.none(), generator=generator()
        )
    )
    assert len(batches) == steps == 6
    orders = []
    for epoch in range(3):
        seen = [row for batch in batches[2 * epoch : 2 * epoch + 2] for row in rows_of(batch.images)]
        assert len(seen) == len(set(seen)) == 8
        assert set(seen) <= set(rows)
        orders.append(tuple(seen))
    assert len(set(orders)) == 3


def test_image_mask_and_flag_belong_together() -> None:
    frames = MadeFrames(100)
    for batch in training_batches(
        frames, range(100), batch_size=5, steps=20, augmentation=Augmentation.none(), generator=generator()
    ):
        rows = rows_of(batch.images)
        assert batch.is_small.tolist() == [row % 3 == 0 for row in rows]
        assert batch.masks.shape == (5, 16, 16)
        assert batch.masks.dtype == batch.is_small.dtype == torch.bool
        width = 512 // 16
        assert batch.masks[:, 0].sum(1).tolist() == [(row * 4 + width // 2 - 1) // width for row in rows]


def test_steps_go_on_through_reshuffled_epochs_and_more_of_them_begin_alike() -> None:
    def images(steps: int) -> list[torch.Tensor]:
        given = training_batches(
            MadeFrames(10), range(10), batch_size=4, steps=steps, augmentation=Augmentation(), generator=generator(1)
        )
        return [batch.images for batch in given]

    more, fewer = images(6), images(5)
    assert (len(more), len(fewer)) == (6, 5)
    assert all(torch.equal(a, b) for a, b in zip(more, fewer, strict=False))


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    frames = MadeFrames(12)

    def taken(seed: int) -> list[torch.Tensor]:
        given = training_batches(
            frames, range(12), batch_size=4, steps=6, augmentation=Augmentation(), generator=generator(seed)
        )
        return [tensor for batch in given for tensor in batch if tensor is not None]

    first, again, other = taken(5), taken(5), taken(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_order_does_not_depend_on_the_augmentation() -> None:
    frames = MadeFrames(12)
    orders = [
        [
            row
            for batch in training_batches(
                frames, range(12), batch_size=4, steps=6, augmentation=settings, generator=generator()
            )
            for row in rows_of(batch.images)
        ]
        for settings in (Augmentation.none(), Augmentation(jitter=0))
    ]
    assert orders[0] == orders[1]


def test_cases_are_read_when_their_batch_is_taken() -> None:
    frames = MadeFrames(100)
    given = training_batches(
        frames, range(100), batch_size=4, steps=25, augmentation=Augmentation(), generator=generator()
    )
    assert frames.read == 0
    next(given)
    assert frames.read == 4


def test_memory_does_not_grow_with_the_cases() -> None:
    def peak(cases: int) -> int:
        frames = MadeFrames(cases, size=128)
        gc.collect()
        tracemalloc.start()
        for _ in training_batches(
            frames,
            range(cases),
            batch_size=4,
            steps=cases // 4,
            augmentation=Augmentation.none(),
            generator=generator(),
        ):
            pass
        for _ in scoring_batches(frames, range(cases), batch_size=4):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(100) < peak(8) + 200_000


def test_grey_frames() -> None:
    frames = MadeFrames(8, channels=1)
    (batch,) = training_batches(
        frames, range(8), batch_size=8, steps=1, augmentation=Augmentation.none(), generator=generator()
    )
    assert batch.images.shape == (8, 1, 16, 16)
    assert sorted(rows_of(batch.images)) == list(range(8))


def test_scoring_keeps_order_and_gives_the_rest() -> None:
    rows = [9, 2, 4, 30, 1]
    given = list(scoring_batches(MadeFrames(40), rows, batch_size=2))
    assert [taken for _, taken in given] == [[9, 2], [4, 30], [1]]
    assert [row for images, _ in given for row in rows_of(images)] == rows
    assert all(images.dtype == torch.float32 and images.is_contiguous() for images, _ in given)
    assert list(scoring_batches(MadeFrames(4), [], batch_size=2)) == []


def test_too_few_cases_name_the_site_and_both_numbers() -> None:
    settings = Augmentation()
    with pytest.raises(DataError, match=r"site 'C1': 3 training cases, but a batch takes 4; choose a smaller"):
        training_batches(MadeFrames(9), [0, 1, 2], batch_size=4, steps=1, augmentation=settings, generator=generator())
    with pytest.raises(DataError, match="0 training cases"):
        training_batches(MadeFrames(9), [], batch_size=4, steps=1, augmentation=settings, generator=generator())
    with pytest.raises(DataError, match="3 training cases"):
        count_steps(3, 4, epochs=1)


@pytest.mark.parametrize(
    ("batch_size", "epochs", "steps", "message"),
    [
        (2, None, None, "either epochs or steps"),
        (2, 1, 1, "either epochs or steps"),
        (2, 0, None, "epochs: expected a whole number of at least 1, got 0"),
        (2, None, -1, "steps: expected a whole number of at least 1, got -1"),
        (0, None, 1, "batch size: expected a whole number of at least 1, got 0"),
    ],
)
def test_lengths_that_make_no_sense_are_refused_at_once(
    batch_size: int, epochs: int | None, steps: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        count_steps(4, batch_size, epochs=epochs, steps=steps)
    if steps is not None and epochs is None:
        with pytest.raises(ConfigError, match=message):
            training_batches(
                MadeFrames(4),
                range(4),
                batch_size=batch_size,
                steps=steps,
                augmentation=Augmentation(),
                generator=generator(),
            )


def test_scoring_needs_a_batch_size() -> None:
    with pytest.raises(ConfigError, match="batch size"):
        scoring_batches(MadeFrames(4), range(4), batch_size=0)


def test_regions_are_read_only_where_they_are_asked_for_and_change_nothing_else() -> None:
    def taken(gives_regions: bool) -> tuple[list[Batch], int]:
        frames = MadeFrames(12)
        frames.gives_regions = gives_regions
        given = training_batches(
            frames, range(12), batch_size=4, steps=6, augmentation=Augmentation(), generator=generator(3)
        )
        return list(given), frames.read

    (plain, read), (with_regions, read_more) = taken(False), taken(True)
    assert (read, read_more) == (24, 48)
    for one, other in zip(plain, with_regions, strict=True):
        assert one.regions is one.weights is other.weights is None
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "masks", "is_small"))
        assert (other.regions.dtype, other.regions.shape) == (torch.uint8, other.masks.shape)


def test_regions_belong_to_their_masks() -> None:
    frames = MadeFrames(100)
    frames.gives_regions = True
    width = 512 // 16
    for batch in training_batches(
        frames, range(100), batch_size=5, steps=20, augmentation=Augmentation.none(), generator=generator()
    ):
        assert (batch.regions == 1)[:, 0].sum(1).tolist() == [
            (row * 2 + width // 2 - 1) // width for row in rows_of(batch.images)
        ]
