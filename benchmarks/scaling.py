"""The scale of a batch of four 512 px masks."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measure import Row, paired
from benchmarks.plain.scaling import eta
from fedgs.scaling import scale_of_batch


def run(*, quick: bool) -> Iterator[Row]:
    """Measures a batch of which every image is small, the dearest case."""
    masks = torch.zeros(4, 512, 512, dtype=torch.bool)
    masks[:, 200:230, 100:140] = True
    is_small, floats = torch.ones(4, dtype=torch.bool), masks.float()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "flags.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("name", "is_small"), *((f"frame_{n}", n < 4) for n in range(300))])
        names = [f"frame_{n}" for n in range(4)]
        assert abs(eta(floats, names, table) - scale_of_batch(masks, is_small, base=100)) < 1e-6
        repeats = 50 if quick else 300
        between = paired(
            {
                "plain": lambda: eta(floats, names, table),
                "ours": lambda: scale_of_batch(masks, is_small, base=100),
            },
            repeats=repeats,
        )
    alone = paired({"": lambda: scale_of_batch(masks, is_small, base=100)}, repeats=repeats)
    yield _row("eta of four 512 px masks, all small", alone[""], between["plain"])
    yield _row("the same, caches cold from the plain path", between["ours"], between["plain"])
    lesion = paired({"": lambda: scale_of_batch(masks, is_small, base=100, difficulty="lesion")}, repeats=repeats)
    note = "labels components; not the default"
    yield Row("the same, difficulty=lesion", lesion[""], between["plain"], "ms", note=note)


def _row(what: str, ours: float, plain: float) -> Row:
    return Row(what, ours, plain, "ms", "<= 0.1 ms", ours <= 0.1)
