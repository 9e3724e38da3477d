"""Outlines against the pixels that they enclose; windows that hide nothing."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from PIL import Image

from fedgs.errors import DataError
from fedgs.report.pictures import outline, picture_of_case
from fedgs.report.reading import read_run


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Even-odd fill at the pixels' centres."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(x.size, bool)
    for piece in re.findall(r"M([^Z]*)Z", path):
        points = [tuple(map(float, point.split())) for point in piece.split("L")]
        inside ^= Polygon([*points, points[0]]).contains_points(np.column_stack([x.ravel(), y.ravel()]))
    return inside.reshape(shape)


@pytest.mark.parametrize("seed", range(4))
def test_an_outline_encloses_exactly_its_mask(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((8, 8)) > 0.6, np.ones((4, 4))).astype(bool)
    assert np.array_equal(filled(outline(mask), mask.shape), mask)


def test_a_mask_at_the_border_and_a_single_pixel_are_outlined():
    assert np.array_equal(filled(outline(np.ones((5, 7), bool)), (5, 7)), np.ones((5, 7), bool))
    speck = np.zeros((5, 7), bool)
    speck[2, 3] = True
    assert np.array_equal(filled(outline(speck), (5, 7)), speck)
    assert outline(np.zeros((5, 7), bool)) == ""


def test_the_outline_of_noise_stays_small():
    noise = np.random.default_rng(0).random((256, 256)) > 0.5
    assert 1000 < len(outline(noise)) < 60_000


def test_a_window_holds_every_outline(pair):
    runs = [read_run(folder) for folder in pair]
    for overlays in zip(*(run.overlays for run in runs), strict=True):
        picture = picture_of_case(overlays)
        window = picture.window
        paths = " ".join([picture.truth, *picture.predictions])
        numbers = np.array([[float(n) for n in xy] for xy in re.findall(r"(-?[\d.]+) (-?[\d.]+)", paths)])
        low, high = (window.left, window.top), (window.left + window.side, window.top + window.side)
        assert (numbers >= low).all()
        assert (numbers <= high).all()
        assert 0 <= min(low) < max(high) <= 256


def test_pictures_travel_without_their_metadata(pair, tmp_path):
    overlay = read_run(pair[0]).overlays[0]
    exif = Image.Exif()
    exif[0x010E] = "patient name"
    with Image.open(overlay.image) as image:
        image.save(tmp_path / "x.jpg", exif=exif, comment=b"patient name")
    assert b"patient name" in (tmp_path / "x.jpg").read_bytes()
    carried = type(overlay)(
        **{name: getattr(overlay, name) for name in overlay.__slots__} | {"image": tmp_path / "x.jpg"}
    )
    data = base64.b64decode(picture_of_case([carried]).image.partition(",")[2])
    assert b"patient name" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (256, 256)


def test_a_broken_picture_is_named(build_run):
    folder = build_run("run", rounds=1)
    (folder / "overlays" / "00-truth.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"00-truth\.png: not a picture that can be read"):
        picture_of_case([next(o for o in read_run(folder).overlays if o.truth.name == "00-truth.png")])
