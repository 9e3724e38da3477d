from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedgs.data.index import build_index
from fedgs.data.phantom import generate
from fedgs.summary import describe_data


def test_leaks_of_every_kind_are_told(tmp_path: Path) -> None:
    source = tmp_path / "source"
    generate(source, cases_per_site=3, size=64)
    images = sorted((source / "Alder" / "images").iterdir())
    Image.fromarray((np.asarray(Image.open(images[0])) * 0.9).astype(np.uint8)).save(images[1])
    index = build_index(source, tmp_path / "index", size=32)
    split = index.table[["site", "case"]].assign(part="train")
    split.loc[split["case"] == images[0].stem, "part"] = "test_in"
    assert describe_data(index, split)["leaks"]["near_duplicates"] == 1
    assert describe_data(index, split.assign(part="train"))["leaks"] == {
        **{"patients": 0, "duplicates": 0, "near_duplicates": 0}
    }
