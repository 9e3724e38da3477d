"""The page about predictions stands alone and stays small, whatever is on it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from fedgs.prediction.ledger import COLUMNS
from fedgs.report.predictions import Shown, write_predictions


def made_table(count: int, failed: int = 0) -> pd.DataFrame:
    rows = [
        {"input": f"C1/<b>frame</b> {number:05d}.jpg", "mask": f"{number}.png", "lesions": number % 3}
        | {"lesion_pixels": number, "confidence": number / max(count, 1), "seconds": 0.1, "problem": ""}
        for number in range(count)
    ]
    rows += [{"input": f"bad-{number}.png", "problem": "cut short & damaged"} for number in range(failed)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def noise(number: int) -> Shown:
    draw = np.random.default_rng(number)
    picture = draw.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    return Shown(f"C1/<b>frame</b> {number:05d}.jpg", picture, draw.random((240, 320)) > 0.5)


def test_many_inputs_that_compress_badly_stay_below_ten_megabytes(tmp_path: Path) -> None:
    shown = [noise(number) for number in range(60)]
    page = write_predictions(tmp_path / "report.html", ["run"], made_table(30_000, 5_000), shown)
    assert page.stat().st_size < 10 * 10**6
    text = page.read_text()
    assert "The first 2,000 of 30,000; all are in predictions.csv." in text
    assert "and 3,000 more, see predictions.csv" in text
    pictures = len(re.findall("<image ", text))
    assert 5 < pictures < 60
    assert f"The {pictures} of least confidence" in text


def test_it_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    text = write_predictions(
        tmp_path / "r.html", ["a & b"], made_table(3, 1), [noise(0), noise(1), noise(2)]
    ).read_text()
    assert "<b>frame" not in text
    assert text.count("C1/&lt;b&gt;frame&lt;/b&gt; 00001.jpg") >= 2
    assert "segmented by a &amp; b" in text
    assert "bad-0.png</b>: cut short &amp; damaged" in text
    assert set(re.findall(r'(?:href|src)="([^,"]*)', text)) == {"data:image/jpeg;base64"}
    assert "All of them" in text
    assert "<th>mm²</th>" not in text
    assert str(tmp_path) not in text


def test_areas_and_volumes_stand_in_it_where_they_are_known(tmp_path: Path) -> None:
    table = made_table(2).assign(lesion_area_mm2=[12.34, None], lesion_volume_ml=[None, 1.239])
    text = write_predictions(tmp_path / "r.html", ["run"], table, []).read_text()
    assert "<th>mm²</th><th>ml</th>" in text
    assert "<td>12.3</td><td></td>" in text
    assert "<td></td><td>1.24</td>" in text


def test_no_mask_at_all_is_a_page_too(tmp_path: Path) -> None:
    text = write_predictions(tmp_path / "r.html", ["run"], made_table(0, 2), []).read_text()
    assert "Without a mask" in text
    assert "<table>" not in text
