"""Masks of new images are those that evaluation would score, wherever and however they are asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fedgs
from fedgs import PredictOptions
from fedgs.data.index import open_data
from fedgs.metrics.functional import confusion, dice
from fedgs.metrics.table import read_scores
from fedgs.run_folder import RunFolder
from predicted import levels_at, mask_at, of_all

LAST = PredictOptions(checkpoint="last")


def test_the_test_cases_of_a_run_are_scored_as_it_scored_them(frames: Path, runs: tuple[Path, ...], tmp_path: Path):
    run = runs[1]
    fedgs.predict(run, frames, tmp_path / "out", LAST)
    scores = read_scores(run / "scores.csv")
    tested = scores[(scores["part"] == "test_in") & (scores["round"] == scores["round"].max())]
    index = open_data(frames, adapter="folder", size=32)
    rows = {(site, case): row for row, (site, case) in enumerate(index.table[["site", "case"]].to_numpy().tolist())}
    assert len(tested) > 5
    assert (tested["dice"] < 1).any()
    assert tested["dice"].max() > 0.1
    seen = set()
    for case in tested.itertuples():
        image = Path(str(index.table["image"].iat[rows[case.site, case.case]]))
        mask = mask_at(tmp_path / "out" / image.with_suffix(".png"))
        found = dice(confusion(mask, index.native_mask(rows[case.site, case.case])))
        assert found == pytest.approx(case.dice, abs=1e-3), image
        seen.add(mask.shape)
    assert len(seen) > 2


def test_a_site_is_segmented_by_its_own_parts(frames: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    run = runs[0]
    scores = read_scores(run / "scores.csv")
    tested = scores[(scores["part"] == "test_in") & (scores["round"] == scores["round"].max())]
    index = open_data(frames, adapter="folder", size=32)
    rows = {(site, case): row for row, (site, case) in enumerate(index.table[["site", "case"]].to_numpy().tolist())}
    probabilities = {}
    for site in ("Alder", "Birch"):
        out = tmp_path / site
        fedgs.predict(run, frames, out, PredictOptions(checkpoint="last", site=site, probabilities=True))
        probabilities[site] = of_all(out, "probabilities")
        for case in tested[tested["site"] == site].itertuples():
            image = Path(str(index.table["image"].iat[rows[site, case.case]]))
            mask = mask_at(out / image.with_suffix(".png"))
            assert dice(confusion(mask, index.native_mask(rows[site, case.case]))) == pytest.approx(case.dice, abs=1e-3)
    one, other = probabilities.values()
    assert any((one[name] != other[name]).any() for name in one)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_lies_on_the_image_as_a_viewer_shows_it(
    orientation: int, some: Path, runs: tuple[Path, ...], tmp_path: Path
) -> None:
    upright = Image.open(next(some.glob("*.png"))).convert("RGB")
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of Image.Transpose, what the camera did to it
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    note = Image.Exif()
    note[0x0112] = orientation
    for name, image, exif in (("upright", upright, Image.Exif()), ("noted", stored, note)):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "x.png", exif=exif)
        fedgs.predict(runs[1], tmp_path / name, tmp_path / f"{name}-out", LAST)
    masks = [mask_at(tmp_path / f"{name}-out" / "x.png") for name in ("upright", "noted")]
    assert masks[0].shape == (upright.height, upright.width)
    assert np.array_equal(*masks)


def test_nothing_is_written_to_the_input_and_folders_are_kept(
    some: Path, runs: tuple[Path, ...], tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in some.rglob("*")}
    made = fedgs.predict(runs[1], some, tmp_path / "out", PredictOptions(overlay=True, probabilities=True), report=True)
    assert before == {path: path.stat().st_mtime_ns for path in some.rglob("*")}
    wanted = {path.relative_to(some).with_suffix(".png").as_posix() for path in some.rglob("*.*")}
    assert {*of_all(tmp_path / "out")} == wanted
    assert {*of_all(tmp_path / "out", "overlays")} == wanted
    assert {*of_all(tmp_path / "out", "probabilities")} == wanted
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file() and path.suffix != ".png"}
    assert files == {"predictions.json", "predictions.jsonl", "predictions.csv", "report.html"}
    assert made.table["mask"].tolist() == sorted(wanted)


def test_the_table_counts_what_is_in_the_masks(frames: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    from scipy import ndimage

    made = fedgs.predict(runs[1], frames, tmp_path / "out", PredictOptions(probabilities=True))
    assert (made.table["lesions"] > 0).any()
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    for row in table.itertuples():
        mask = mask_at(tmp_path / "out" / row.mask)
        certain = levels_at(tmp_path / "out" / "probabilities" / row.mask) / 65535
        assert row.lesion_pixels == mask.sum()
        assert row.lesions == ndimage.label(mask, np.ones((3, 3)))[1]
        assert row.confidence == pytest.approx(certain[mask].mean() if mask.any() else 1 - certain.max(), abs=2e-4)
        assert row.seconds > 0
    assert table[["lesion_area_mm2", "lesion_volume_ml", "problem"]].isna().all(axis=None)


def test_a_mask_is_where_the_probability_exceeds_the_threshold(
    some: Path, runs: tuple[Path, ...], tmp_path: Path
) -> None:
    masks = {}
    for threshold in (0.2, 0.5, 0.8):
        out = tmp_path / str(threshold)
        fedgs.predict(runs[1], some, out, PredictOptions(threshold=threshold, probabilities=True))
        masks[threshold], probabilities = of_all(out), of_all(out, "probabilities")
        for name, mask in masks[threshold].items():
            clear = np.abs(probabilities[name] - threshold * 65535) > 1
            assert np.array_equal((mask == 255)[clear], (probabilities[name] > threshold * 65535)[clear])
    for name in masks[0.5]:
        assert (masks[0.8][name] <= masks[0.5][name]).all()
        assert (masks[0.5][name] <= masks[0.2][name]).all()
    assert any((masks[0.8][name] < masks[0.2][name]).any() for name in masks[0.5])


def test_how_many_images_go_at_a_time_changes_nothing(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    made = []
    for batch_size in (1, 3, 50):
        fedgs.predict(
            runs[1], some, tmp_path / str(batch_size), PredictOptions(batch_size=batch_size, probabilities=True)
        )
        made.append(of_all(tmp_path / str(batch_size), "probabilities"))
    for name, one in made[0].items():
        assert all(np.abs(other[name] - one).max() <= 2 for other in made[1:])


def test_an_ensemble_is_the_mean_of_its_runs_in_any_order(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    options = PredictOptions(checkpoint="last", probabilities=True)
    one, other, both, turned, twice = (tmp_path / name for name in ("one", "other", "both", "turned", "twice"))
    copy = shutil.copytree(runs[1], tmp_path / "copy")
    for out, members in (
        (one, runs[:1]),
        (other, runs[1:]),
        (both, runs),
        (turned, runs[::-1]),
        (twice, (runs[1], copy)),
    ):
        fedgs.predict(members, some, out, options)
    found = {out: of_all(out, "probabilities") for out in (one, other, both, turned, twice)}
    for name, mean in found[both].items():
        assert np.abs(mean - (found[one][name] + found[other][name]) / 2).max() <= 2
        assert np.abs(mean - found[turned][name]).max() <= 1
        assert np.abs(found[twice][name] - found[other][name]).max() <= 1
    assert any((found[one][name] != found[other][name]).any() for name in found[one])


def test_with_tta_a_flipped_image_gets_the_flipped_mask(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "flipped").mkdir()
    image = Image.open(next(some.glob("*.png"))).convert("RGB").resize((80, 60))
    for name, flip in (("x", None), ("h", Image.Transpose.FLIP_LEFT_RIGHT), ("v", Image.Transpose.FLIP_TOP_BOTTOM)):
        (image.transpose(flip) if flip is not None else image).save(tmp_path / "flipped" / f"{name}.png")
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    for out, tta in ((plain, False), (averaged, True)):
        fedgs.predict(runs[1], tmp_path / "flipped", out, PredictOptions(tta=tta, probabilities=True))
    with_tta, without = of_all(averaged, "probabilities"), of_all(plain, "probabilities")
    apart = {"h.png": lambda one: one[:, ::-1], "v.png": lambda one: one[::-1]}
    for name, flipped in apart.items():
        assert np.abs(flipped(with_tta[name]) - with_tta["x.png"]).max() < 0.02 * 65535
    assert np.abs(without["h.png"][:, ::-1] - without["x.png"]).max() > 0.05 * 65535
    mean = sum((without["x.png"], without["h.png"][:, ::-1], without["v.png"][::-1]))
    assert np.abs(mean / 3 - without["x.png"]).max() > 0  # the flips do tell something


def test_small_and_second_lesions_are_dropped_where_that_is_asked_for(
    frames: Path, runs: tuple[Path, ...], tmp_path: Path
) -> None:
    def counted(**options: object) -> pd.DataFrame:
        out = tmp_path / repr(options)
        return fedgs.predict(runs[1], frames, out, PredictOptions(threshold=0.3, **options)).table.set_index("input")

    plain, few, one = counted(), counted(min_lesion=30), counted(largest_component=True)
    assert (plain["lesions"] > 1).any()
    assert (few["lesions"] <= plain["lesions"]).all()
    assert (few["lesions"] < plain["lesions"]).any()
    assert (few["lesion_pixels"] >= 30 * few["lesions"]).all()
    assert (one["lesions"] == plain["lesions"].clip(upper=1)).all()


def test_precision_is_the_runs_unless_another_is_asked_for(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        fedgs.predict(runs[1], some, tmp_path / precision, PredictOptions(precision=precision, probabilities=True))
    fedgs.predict(runs[1], some, tmp_path / "run", PredictOptions(probabilities=True))
    found = {name: of_all(tmp_path / name, "probabilities") for name in ("fp32", "bf16", "run")}
    assert RunFolder(runs[1]).config().training.precision == "fp32"
    for name, one in found["run"].items():
        assert np.array_equal(one, found["fp32"][name])
    gaps = [np.abs(one - found["bf16"][name]).max() for name, one in found["fp32"].items()]
    assert 0 < max(gaps) < 0.1 * 65535
