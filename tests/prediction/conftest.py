"""Two small trained runs, and frames of many sizes and forms that they are scored on at their own size."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fedgs.experiment import train
from runs import make_phantom, tiny_config

SIZES = ((96, 64), (64, 64), (61, 90), (150, 40))


def vary(folder: Path) -> None:
    """Gives frames other sizes and forms: grey, JPEG, and turned with a note of it."""
    for number, path in enumerate(sorted(folder.glob("*/images/*.png"))):
        mask_path = path.parents[1] / "masks" / path.name
        size = SIZES[number % len(SIZES)]
        image, mask = Image.open(path).resize(size), Image.open(mask_path).resize(size, Image.Resampling.NEAREST)
        mask.save(mask_path)
        path.unlink()
        if number % 5 == 1:
            image.convert("L").save(path)
        elif number % 5 == 2:
            image.save(path.with_suffix(".jpg"), quality=95)
        elif number % 5 == 3:
            note = Image.Exif()
            note[0x0112] = 6  # a viewer turns it by 90 degrees
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=note)
        else:
            image.save(path)


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_phantom(tmp_path_factory.mktemp("frames") / "phantom", 12)
    for name in ("phantom.json", "patients.csv"):
        (folder / name).unlink()
    vary(folder)
    return folder


@pytest.fixture(scope="session")
def runs(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of different weights, the first with batch norm that hospitals keep."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for seed, algorithm in ((1, "fedavg+fedbn"), (2, "fedavg")):
        changes = {"seed": seed, "algorithm": algorithm, "local_steps": 12, "lr": 3e-3, "score_size": "native"}
        norm = {"model_options": {"norm": "batch"}} if "fedbn" in algorithm else {}
        train(tiny_config(frames, adapter="folder", **changes, **norm), folder / algorithm)
        made.append(folder / algorithm)
    return made[0], made[1]


@pytest.fixture
def some(frames: Path, tmp_path: Path) -> Path:
    """Five frames in a folder and in one below it."""
    folder = tmp_path / "some"
    (folder / "deeper").mkdir(parents=True)
    for number, path in enumerate(sorted(frames.glob("*/images/*"))[:5]):
        (folder / ("deeper" if number % 2 else "") / path.name).write_bytes(path.read_bytes())
    return folder
