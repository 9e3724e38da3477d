"""A run on volumes: scored by slices as published, and by volumes over every slice, also those that were not used."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedgs.core import Global
from fedgs.data.index import Index, build_index
from fedgs.data.phantom_volumes import generate_ct
from fedgs.data.splits import parts_of_volumes, split_cases
from fedgs.engine import State
from fedgs.evaluation import Scorer
from fedgs.experiment import train
from fedgs.run_folder import RunFolder
from fedgs.volumes import score_volumes
from runs import fedgs, tiny_config

SIZE = 48
DARK, LIGHT = 185, 200
"""Levels of grey that the network below takes for tumour; between liver and muscle."""


class Brightness(nn.Module):
    """A network that anyone can compute by hand: tumour is what lies between two levels of grey."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        levels = (images[:, :1] * 0.226 + 0.449) * 255
        inside = torch.minimum(levels - DARK, LIGHT - levels)
        return torch.cat([-inside, inside], dim=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct") / "ct"
    generate_ct(folder, sites=3, volumes=5, size=SIZE, seed=2)
    return folder


@pytest.fixture(scope="module")
def index(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index(source, tmp_path_factory.mktemp("index") / "index", size=SIZE)


@pytest.fixture(scope="module")
def run(index: Index, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(index.folder, size=SIZE, unseen_site="CT3"), out)
    return RunFolder(out)


def test_scores_of_volumes_are_those_of_every_slice_in_the_geometry_of_the_file(index: Index, source: Path) -> None:
    parts = pd.Series(["test_in"] * 14 + ["train"])
    state = State(Global({"unused": torch.zeros(1)}, {}, round=4))
    scores = score_volumes(Scorer(batch_size=5), Brightness(), state, index, parts)
    assert len(scores) == 14
    assert set(scores["round"]) == {4}
    for row in scores.to_dict("records"):
        number = row["volume"].removeprefix("volume-")
        image, mask = (nibabel.load(source / f"{name}-{number}.nii.gz") for name in ("volume", "segmentation"))
        levels = np.clip(np.rint((np.asarray(image.dataobj, float) + 200) * 255 / 400), 0, 255)
        predicted, truth = (levels > DARK) & (levels < LIGHT), np.asarray(mask.dataobj) == 2
        common = int((predicted & truth).sum())
        assert row["tp"] == pytest.approx(common, abs=3)  # a voxel half way between two levels
        assert row["fp"] + row["tp"] == pytest.approx(int(predicted.sum()), rel=2e-3)
        assert row["fn"] + row["tp"] == int(truth.sum())
        assert row["dice"] == pytest.approx(2 * common / (predicted.sum() + truth.sum()), abs=1e-3)
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        assert row["true_ml"] == pytest.approx(truth.sum() * voxel_ml, rel=1e-5)
        assert row["free_slices"] <= row["slices"] in mask.shape


def test_volumes_are_scored_in_the_part_of_their_slices_and_those_without_in_turn(index: Index) -> None:
    tested: list[tuple[str, str]] = []
    for fold in range(5):
        split = split_cases(index.table, fold=fold, unseen_site="CT3")
        parts = parts_of_volumes(index.volumes, index.table, split, fold=fold, unseen_site="CT3")
        found = index.volumes.assign(part=parts)
        of_slices = index.table.assign(part=split["part"]).drop_duplicates(["site", "volume"])
        both = found.merge(of_slices, on=["site", "volume"], suffixes=("", "_of_slices"))
        assert (both["part"] == both["part_of_slices"]).all()
        assert (found.loc[found["site"] == "CT3", "part"] == "test_out").all()
        free = found[(found["used"] == 0) & (found["part"] == "test_in")]
        tested += zip(free["site"], free["volume"], strict=True)
    assert sorted(tested) == [("CT1", "volume-4"), ("CT2", "volume-9")]


def test_a_volume_without_target_stays_with_its_patient(index: Index) -> None:
    volumes = index.volumes.assign(patient=index.volumes["patient"].replace({"P004": "P001"}))
    split = split_cases(index.table, fold=0)
    parts = volumes.assign(part=parts_of_volumes(volumes, index.table, split, fold=0, unseen_site=None))
    of = parts.set_index("volume")["part"]
    assert of["volume-4"] == of["volume-1"]


def test_a_run_tells_of_slices_and_of_volumes(run: RunFolder, index: Index) -> None:
    summary, volumes = run.summary(), pd.read_csv(run.path / "volumes.csv")
    assert set(volumes["part"]) == {"test_in", "test_out"}
    assert set(volumes.loc[volumes["part"] == "test_out", "volume"]) == {f"volume-{n}" for n in range(10, 15)}
    out = summary["volumes"]["test_out"]
    assert (out["volumes"], out["with_target"], out["without_target"]) == (5, 4, 1)
    has_target = volumes[(volumes["part"] == "test_out") & (volumes["true_ml"] > 0)]
    assert out["dice"] == pytest.approx(has_target["dice"].mean())
    counts = index.table[index.table["site"] == "CT3"]
    assert summary["test_out"]["dice"]["n"] == len(counts)
    strata = out["lesions"]
    assert sum(each["lesions"] for each in strata.values()) == sum(
        volumes.loc[volumes["part"] == "test_out", f"lesions_{name}"].sum() for name in strata
    )


def test_volumes_csv_is_guarded_like_the_other_tables(run: RunFolder) -> None:
    run.require_unaltered()
    path = run.path / "volumes.csv"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"test_in", b"test_im", 1))
    with pytest.raises(Exception, match=r"volumes\.csv: was altered"):
        run.require_unaltered()
    path.write_bytes(content)


def test_what_knows_images_alone_refuses_a_run_on_volumes(run: RunFolder, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    for arguments in (
        ("predict", str(run.path), str(tmp_path / "a.png"), "--out", str(tmp_path / "masks")),
        ("export", str(run.path), "--format", "torch-export", "--out", str(tmp_path / "net.pt2")),
    ):
        refused = fedgs(*arguments, check=False)
        assert refused.returncode == 1
        assert "was trained on slices of volumes" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_finished_run_is_the_same_again(run: RunFolder, index: Index, tmp_path: Path) -> None:
    train(tiny_config(index.folder, size=SIZE, unseen_site="CT3"), tmp_path / "again")
    for name in ("volumes.csv", "scores.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (run.path / name).read_bytes()
