"""`fedgs predict` as its user meets it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from bad_places import interrupt, start, wait_for
from fedgs.cli import predict as command_module
from predicted import levels_at, of_all
from runs import fedgs


@pytest.fixture
def spoilt(some: Path) -> Path:
    """A folder of which one image is damaged, one is too large, and one is no image."""
    content = sorted(some.rglob("*.png"))[0].read_bytes()
    (some / "cut.png").write_bytes(content[:300])
    Image.new("1", (5000, 5000)).save(some / "deeper" / "large.png")
    (some / "=notes.txt").touch()
    return some


def test_what_fails_is_named_and_the_rest_is_done(spoilt: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = fedgs("predict", str(runs[1]), str(spoilt), "--out", str(out), "--report", check=False)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "Failed: cut.png: cut short or damaged" in done.stderr
    assert "Failed: deeper/large.png: declares 5000 x 5000 pixels" in done.stderr
    assert "2 inputs have no mask; predictions.csv tells why." in done.stderr
    assert f"Careful: 1 other files were passed over, such as {spoilt / '=notes.txt'}" in done.stderr
    assert "5 masks, " in done.stdout
    assert len(of_all(out)) == 5
    table = pd.read_csv(out / "predictions.csv").set_index("input")
    assert len(table) == 7
    assert table.loc[["cut.png", "deeper/large.png"], "mask"].isna().all()
    page = (out / "report.html").read_text()
    assert "<b>cut.png</b>: cut short or damaged" in page
    assert str(tmp_path) not in page + (out / "predictions.csv").read_text()


def test_everything_that_fails_is_in_the_table_and_few_are_printed(
    some: Path, runs: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "_MOST_NAMED", 2)
    for path in some.rglob("*.*"):
        path.write_bytes(b"no image")
    done = fedgs("predict", str(runs[1]), str(some), "--out", str(tmp_path / "out"), check=False)
    assert done.returncode == 3
    assert done.stderr.count("Failed: ") == 2
    assert "5 inputs have no mask; predictions.csv tells why, 3 of them only there." in done.stderr
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["problem"].notna().sum() == 5


def test_an_ensemble_takes_all_runs_up_to_the_next_option(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    third = shutil.copytree(runs[0], tmp_path / "third")
    together, apart = tmp_path / "together", tmp_path / "apart"
    rest = ("--checkpoint", "last", "--probabilities")
    one, other = (str(run) for run in runs)
    fedgs("predict", one, str(some), "--ensemble", other, str(third), "--out", str(together), *rest)
    fedgs(
        *("predict", one, "--ensemble", other, "--out", str(apart), str(some), f"--ensemble={third}"),
        *rest,
    )
    found = [of_all(out, "probabilities") for out in (together, apart)]
    assert all(np.array_equal(levels, found[1][name]) for name, levels in found[0].items())


def test_an_ensemble_without_a_run_is_refused(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    done = fedgs("predict", str(runs[0]), str(some), "--ensemble", "--out", str(tmp_path / "out"), check=False)
    assert done.returncode == 2
    assert "--ensemble needs a run behind it, or several" in done.stderr


def test_ctrl_c_tells_the_command_that_goes_on(frames: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    many, out = tmp_path / "many of them", tmp_path / "out"
    many.mkdir()
    image = Image.open(next(frames.glob("*/images/*.png"))).convert("RGB").resize((1200, 900))
    image.save(many / "0.jpg")
    for number in range(1, 400):
        (many / f"{number}.jpg").hardlink_to(many / "0.jpg")
    process = start("predict", str(runs[1]), str(many), "--out", str(out), "--overlay")
    wait_for(lambda: (out / "predictions.jsonl").is_file())
    told = interrupt(process)
    assert f"predict {runs[1]} '{many}' --out {out} --overlay --resume" in told
    done = len((out / "predictions.jsonl").read_text().splitlines())
    assert 0 < done < 400
    for path in out.glob("*.png"):
        assert levels_at(path).shape == (900, 1200)
    for path in list(many.iterdir())[:-3]:
        if not (out / path.with_suffix(".png").name).is_file():
            path.unlink()
    again = fedgs("predict", str(runs[1]), str(many), "--out", str(out), "--overlay", "--resume")
    assert f"{done} of them were there already" in again.stdout


def test_colour_is_refused_by_a_network_of_grey_images_and_grey_is_not(tmp_path: Path, frames: Path) -> None:
    grey, mixed = tmp_path / "grey", tmp_path / "mixed"
    for path in sorted(frames.glob("*/*/*")):
        target = grey / path.relative_to(frames).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.exif_transpose(Image.open(path)).convert("L").save(target)
    fedgs(
        *("train", "--data", str(grey), "--adapter", "folder", "--size", "32", "--rounds", "1", "--local-steps", "1"),
        *("--out", str(tmp_path / "run")),
    )
    mixed.mkdir()
    image = Image.open(next(grey.glob("*/images/*.png")))
    image.save(mixed / "grey.png")
    image.convert("RGB").save(mixed / "colour.png")
    done = fedgs("predict", str(tmp_path / "run"), str(mixed), "--out", str(tmp_path / "out"), check=False)
    assert done.returncode == 3
    assert "Failed: colour.png: is a colour image, the run's network takes grey ones; convert it" in done.stderr
    assert {*of_all(tmp_path / "out")} == {"grey.png"}


def test_the_page_needs_the_extra_before_anything_is_computed(
    some: Path, runs: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    line = ("predict", str(runs[1]), str(some), "--out", str(tmp_path / "out"))
    done = fedgs(*line, "--report", check=False)
    assert done.returncode == 1
    assert "pip install 'fedgs[report]'" in done.stderr
    assert not (tmp_path / "out").exists()
    fedgs(*line, "--overlay")
