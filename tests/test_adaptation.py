"""Statistics of batch normalisation from a hospital's own images: what they are, what they need, and what stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedgs import configure, evaluate
from fedgs.adaptation import re_estimate, require_statistics
from fedgs.algorithms.fedbn import batch_norms_of
from fedgs.assembly import build_network, build_scorer
from fedgs.core import load
from fedgs.data import index as index_module
from fedgs.data.index import Index, open_data
from fedgs.errors import ConfigError, DataError
from fedgs.events import Event, Scoring
from fedgs.experiment import train
from fedgs.metrics.table import read_scores
from fedgs.run_folder import RunFolder
from fedgs.scoring import networks_for, score_state
from runs import make_phantom, tiny_config


class Unlabelled:
    """An index of one hospital that has images and nothing else."""

    gives_regions = False

    def __init__(self, cases: int, size: int = 8) -> None:
        self.size = size
        self.table = pd.DataFrame({"site": ["A"] * cases, "is_small": [False] * cases})
        self.frames = np.random.default_rng(cases).integers(0, 256, (cases, size, size, 1), np.uint8)

    def frame(self, row: int) -> np.ndarray:
        return self.frames[row]

    def mask(self, row: int) -> np.ndarray:
        raise AssertionError("a mask was read")

    regions = mask

    def images(self, rows: list[int] | slice) -> Tensor:
        """As networks get them, written down apart from the package."""
        grey = torch.from_numpy(self.frames[rows].astype(np.float32) / 255)
        return (grey.permute(0, 3, 1, 2) - 0.449) / 0.226


class Deep(nn.Module):
    """Two batch norms one after the other, dropout between them, and one that segmenting does not use."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, momentum=0.3)
        self.dropout = nn.Dropout(0.5)
        self.second, self.deeper = nn.Conv2d(3, 4, stride, stride), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)
        self.spare = nn.BatchNorm1d(5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.norm(self.first(images))))
        return self.head(torch.relu(self.deeper(self.second(hidden))))


def deep(stride: int = 1) -> Deep:
    """Any network whose statistics, scales and shifts are not those that it is built with."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Deep(stride)
        for norm in (model.norm, model.deeper, model.spare):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 2)
            norm.num_batches_tracked.fill_(7)
    return model.train()


def moments(model: Deep, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of what the norms see of one batch, where each works by those of the batch itself."""

    def normalised(norm: nn.BatchNorm2d, values: Tensor) -> Tensor:
        flat = values.transpose(0, 1).flatten(1)
        found[norm] = (flat.mean(1), flat.var(1, correction=1))
        mean, variance = (each[:, None, None] for each in (flat.mean(1), flat.var(1, correction=0)))
        scaled = (values - mean) / (variance + norm.eps).sqrt()
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]

    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        hidden = torch.relu(normalised(model.norm, model.first(images)))
        normalised(model.deeper, model.second(hidden))
    return {"norm": found[model.norm], "deeper": found[model.deeper]}


@pytest.mark.parametrize(
    ("cases", "batch_size", "parts"),
    [
        (1, 4, [[0]]),
        (3, 4, [[0, 1, 2]]),
        (4, 4, [[0, 1, 2, 3]]),
        (7, 4, [[0, 1, 2, 3, 4, 5, 6]]),
        (9, 4, [[0, 1, 2, 3, 4], [5, 6, 7, 8]]),
        (5, 1, [[0, 1, 2], [3, 4]]),
    ],
)
def test_statistics_are_the_mean_over_the_batches(cases: int, batch_size: int, parts: list[list[int]]) -> None:
    index, model = Unlabelled(cases), deep()
    expected = [moments(model, index.images(part)) for part in parts]
    re_estimate(model, index, range(cases), batch_size=batch_size)
    for name, norm in (("norm", model.norm), ("deeper", model.deeper)):
        for kind, found in enumerate((norm.running_mean, norm.running_var)):
            wanted = torch.stack([each[name][kind] for each in expected]).mean(0)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_with_one_batch_evaluation_is_training_but_for_the_correction_of_the_variance() -> None:
    index, model = Unlabelled(4), deep()
    with torch.no_grad():
        hidden = model.first(index.images(slice(4)))
        trained = nn.functional.batch_norm(hidden, None, None, model.norm.weight, model.norm.bias, training=True)
        re_estimate(model, index, range(4))
        outputs = model.norm(hidden)
    count = hidden.numel() // hidden.shape[1]
    variance = model.norm.running_var * (count - 1) / count
    correction = ((model.norm.running_var + model.norm.eps) / (variance + model.norm.eps)).sqrt()[:, None, None]
    shift = model.norm.bias[:, None, None]
    torch.testing.assert_close((outputs - shift) * correction + shift, trained, rtol=1e-4, atol=1e-5)
    assert not torch.equal(outputs, trained)


def test_nothing_else_of_the_network_changes() -> None:
    index, model = Unlabelled(6), deep()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    momenta = {name: norm.momentum for name, norm in batch_norms_of(model).items()}
    re_estimate(model, index, range(6), batch_size=2)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{norm}.running_{kind}" for norm in ("norm", "deeper") for kind in ("mean", "var")}
    assert {name: norm.momentum for name, norm in batch_norms_of(model).items()} == momenta
    assert not any(module.training for module in model.modules())
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


def test_what_there_was_before_has_no_say_and_again_is_the_same() -> None:
    index, model = Unlabelled(6), deep()
    re_estimate(model, index, range(6), batch_size=2)
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for norm in (model.norm, model.deeper):
            norm.running_mean.add_(9)
            norm.running_var.mul_(9)
    re_estimate(model, index, range(6), batch_size=2)
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())


def test_a_single_image_with_a_single_value_has_no_statistics() -> None:
    index, model = Unlabelled(2), deep(stride=8)
    re_estimate(model, index, [0, 1], batch_size=1)  # never one by one
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" not in name}
    with pytest.raises(DataError, match=r"site 'A': of its single image .* give it another image, or score it without"):
        re_estimate(model, index, [1])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not model.training


def test_an_error_of_the_network_itself_is_not_taken_for_a_lack_of_images() -> None:
    class Broken(Deep):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("a fault of its own")

    with pytest.raises(ValueError, match="a fault of its own"):
        re_estimate(Broken(), Unlabelled(2), [0, 1])


@pytest.mark.parametrize(
    "norm",
    [nn.InstanceNorm2d(3, track_running_stats=True), nn.GroupNorm(1, 3), nn.BatchNorm2d(3, track_running_stats=False)],
)
def test_a_network_without_such_statistics_is_refused(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), norm, nn.Conv2d(3, 2, 1))
    for refused in (require_statistics, lambda model: re_estimate(model, Unlabelled(2), [0, 1])):
        with pytest.raises(ConfigError, match=r"this Sequential has none .* without adapting, or choose"):
            refused(model)


ALGORITHMS = ("fedavg", "fedbn", "silobn", "ditto", "local")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals that no run knows."""
    folder = make_phantom(tmp_path_factory.mktemp("elsewhere") / "phantom", 3, seed=1)
    for name in ("patients.csv", "phantom.json"):
        (folder / name).unlink()
    for old, new in (("Alder", "Yew"), ("Birch", "Zelkova"), ("Cedar", "Willow")):
        (folder / old).rename(folder / new)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Finished runs by algorithm, made once; read only."""
    place = tmp_path_factory.mktemp("trained")
    data = make_phantom(place / "phantom", 12)

    def make(algorithm: str) -> Path:
        if not (place / algorithm).exists():
            train(tiny_config(data, algorithm=algorithm, rounds=2, local_steps=2), place / algorithm)
        return place / algorithm

    return make


def rows_of(run: Path, part: str) -> pd.DataFrame:
    scores = read_scores(run / "scores.csv")
    return scores[scores["part"] == part].reset_index(drop=True)


def checkpoints(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_has_adapted_scores_beside_its_others(
    algorithm: str, trained: Callable[[str], Path], elsewhere: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained(algorithm), tmp_path / "run"))
    own, files = read_scores(run / "scores.csv"), checkpoints(run)
    summary = json.loads((run / "summary.json").read_text())
    plain = evaluate(run, elsewhere, checkpoint="last")
    external = rows_of(run, "external")
    told: list[Event] = []
    adapted = evaluate(run, elsewhere, checkpoint="last", adapt=True, listeners=[told.append])
    assert {event.part for event in told if isinstance(event, Scoring)} == {"adapted"}

    found = rows_of(run, "adapted")
    key = ["site", "case", "network", "round", "lesion_area"]
    pd.testing.assert_frame_equal(found[key], external[key])
    assert (found["tp"] + found["fp"] != external["tp"] + external["fp"]).any()
    pd.testing.assert_frame_equal(rows_of(run, "external"), external)
    pd.testing.assert_frame_equal(read_scores(run / "scores.csv")[: len(own)], own)
    assert checkpoints(run) == files

    after = json.loads((run / "summary.json").read_text())
    assert (after["external"]["dice"], after["adapted"]["dice"]) == (plain["dice"], adapted["dice"])
    assert (after["adapted"]["checkpoint"], after["adapted"]["round"]) == ("last", 2)
    added = ("external", "adapted", "files", "checksum")
    assert {name: value for name, value in after.items() if name not in added} == {
        name: value for name, value in summary.items() if name not in added
    }
    RunFolder(run).require_unaltered()

    table = (run / "scores.csv").read_bytes()
    evaluate(run, elsewhere, checkpoint="last", adapt=True)
    assert (run / "scores.csv").read_bytes() == table
    evaluate(run, elsewhere, checkpoint="last")
    pd.testing.assert_frame_equal(rows_of(run, "adapted"), found)


def opened(run: Path, data: Path) -> tuple[Index, nn.Module]:
    config = RunFolder(run).config()
    index = open_data(data, size=config.data.size)
    return index, build_network(config, index.channels)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn"])
def test_adapting_starts_from_what_the_hospital_would_get_anyway(
    algorithm: str, trained: Callable[[str], Path], elsewhere: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained(algorithm), tmp_path / "run"))
    evaluate(run, elsewhere, checkpoint="last", adapt=True)
    found, state = rows_of(run, "adapted"), RunFolder(run).load("last")
    (index, model), scorer = opened(run, elsewhere), build_scorer(configure(RunFolder(run).config(), device="cpu"))
    for site in ("Willow", "Yew", "Zelkova"):
        rows = index.table.index[index.table["site"] == site].tolist()
        load(model, state.server, networks_for(state, site)[""])
        re_estimate(model, index, rows, batch_size=scorer.batch_size)
        expected = scorer.score(model, index, rows, part="adapted", number=2)["dice"]
        assert found.loc[found["site"] == site, "dice"].tolist() == expected.tolist()


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn"])
def test_hospitals_do_not_see_each_other(algorithm: str, trained: Callable[[str], Path], elsewhere: Path) -> None:
    run = trained(algorithm)
    state, (index, model) = RunFolder(run).load("last"), opened(run, elsewhere)
    scorer = build_scorer(RunFolder(run).config())

    def dice(rows: list[int]) -> dict[tuple[str, str], float]:
        scores = score_state(scorer, model, state, index, rows, part="adapted", adapt=True)
        return {(str(row.site), str(row.case)): float(row.dice) for row in scores.itertuples()}

    together = dice(list(range(len(index))))
    alone = [dice(rows.index.tolist()) for _, rows in reversed(list(index.table.groupby("site")))]
    assert len(alone) == 3
    assert {case: value for site in alone for case, value in site.items()} == together


def test_masks_are_not_read_for_it(
    trained: Callable[[str], Path], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, model = opened(trained("fedavg"), elsewhere)
    load(model, RunFolder(trained("fedavg")).load("last").server)
    norm = next(iter(batch_norms_of(model).values()))
    before = norm.running_mean.clone()

    def unreadable(*_: object) -> None:
        raise AssertionError("a mask was read")

    for name in ("unpack_mask", "unpack_regions", "read_mask"):
        monkeypatch.setattr(index_module, name, unreadable)
    with pytest.raises(AssertionError, match="a mask was read"):
        index.mask(0)
    re_estimate(model, index, range(len(index)))
    assert not torch.equal(norm.running_mean, before)


def test_known_images_are_counted_for_each_kind_of_scores(
    trained: Callable[[str], Path], elsewhere: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained("fedavg"), tmp_path / "run"))
    evaluate(run, trained("fedavg").parent / "phantom", checkpoint="last")
    evaluate(run, elsewhere, checkpoint="last", adapt=True)
    summary = RunFolder(run).summary()
    assert summary["external"]["known_cases"] > 0
    assert summary["adapted"]["known_cases"] == 0
    assert set(summary["adapted"]["known_cases_of_site"]) == {"Willow", "Yew", "Zelkova"}
