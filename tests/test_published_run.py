"""A published checkpoint as a run folder: scored as it stands, told on the page, and refused where it cannot be."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bad_places import snapshot
from fedgs.data.index import open_data
from fedgs.engine import State
from fedgs.errors import CheckpointError, ConfigError, ShapeError
from fedgs.evaluation import Scorer
from fedgs.metrics.table import read_scores, summarise
from fedgs.models import load_published, segment
from fedgs.models.published import FORMS
from fedgs.published_run import import_checkpoint
from fedgs.run_folder import RunFolder
from fedgs.tensors import Tensors
from runs import fedgs, make_phantom

SIZE = 32
UTNET = {"base_channels": 4, "reduce_size": 2}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "UTNet": UTNET,
    "U-Net of SDNet": {"base_channels": 4},
    "SD-UTNet": UTNET | {"image_size": (SIZE, SIZE)},
    "SD-UTNet of a site": UTNET | {"image_size": (SIZE, SIZE)},
    "SD-UTNet of the server": UTNET,
    "SDNet": {"base_channels": 4, "image_size": (SIZE, SIZE)},
    "FedDis of a site": {"base_channels": 8},
    "FedDis of the server": {"base_channels": 8},
}
MODELS = {
    "UTNet": "utnet",
    "U-Net of SDNet": "unet_sdnet",
    "SD-UTNet": "sd_utnet",
    "SD-UTNet of the server": "sd_utnet_server",
    "FedDis of a site": "feddis",
    "FedDis of the server": "feddis_server",
}


@cache
def published(title: str, **sizes: int) -> dict[str, Tensor]:
    """A state dict with random weights and running statistics of their own; it marks about half of an image."""
    (form,) = (form for form in FORMS if form.title == title)
    torch.manual_seed(1)
    model = form.network(**{"in_channels": 3, **SIZES[title], **sizes}).train()
    coarse = torch.randn(4, sizes.get("in_channels", 3), 8, 8)
    images = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    with torch.no_grad():
        for _ in range(5):
            model(images)
        lesion = segment(model.eval(), images)[:, 1]
        head = getattr(getattr(model, "segmentor", model), "head", None)  # FedDis normalises behind its last layer
        if head is not None:
            head.bias[1] -= lesion.logit().median()
    state = model.state_dict()
    return {theirs: state[ours].clone() for ours, theirs in form.published(model).items()}


def saved(folder: Path, title: str, **sizes: int) -> Path:
    torch.save(published(title, **sizes), folder / "published.pt")
    return folder / "published.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 4)


@pytest.fixture(scope="module")
def utnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("utnet"), "UTNet")


@pytest.fixture(scope="module")
def imported(utnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "run"
    import_checkpoint(utnet, out, size=SIZE, careful=pytest.fail)
    return out


def tensors(state: State) -> dict[str, Tensor]:
    assert not state.memories
    return {**state.server.weights, **state.server.buffers}


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_hand(model: nn.Module, data: Path) -> pd.DataFrame:
    index = open_data(data, adapter=None, size=SIZE)
    scorer = Scorer(batch_size=4, detailed=True)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return scorer.score(model, index, range(len(index)), part="external", number=0)


@pytest.mark.parametrize("title", MODELS)
def test_an_imported_file_scores_as_its_network_does(title: str, data: Path, tmp_path: Path) -> None:
    file, run = saved(tmp_path, title), tmp_path / "run"
    size = () if title == "SD-UTNet" else ("--size", str(SIZE))
    done = fedgs("import-checkpoint", str(file), "--out", str(run), *size)
    assert f"{title} for colour images of {SIZE} x {SIZE} pixels" in done.stdout
    assert "Careful" not in done.stdout
    assert json.loads((run / "summary.json").read_text())["model"] == MODELS[title]
    fedgs("evaluate", str(run), "--data", str(data))
    ours = read_scores(run / "scores.csv")
    theirs = by_hand(load_published(file), data)
    pd.testing.assert_frame_equal(ours, theirs[ours.columns], check_dtype=False)
    assert ((ours["tp"] > 0) & (ours["fn"] > 0)).any(), (
        "all or nothing is marked, by which networks cannot be told apart"
    )
    external = json.loads((run / "summary.json").read_text())["external"]
    assert summarise(ours).items() <= external.items()
    assert (external["checkpoint"], external["round"], external["known_cases"]) == ("best", 0, 0)


def text_of(page: Path) -> str:
    return html.unescape(
        re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL))
    )


def test_the_page_tells_of_file_and_form_before_and_after_an_evaluation(
    utnet: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    summary = import_checkpoint(utnet, run, size=SIZE)
    checksum = summary["published"]["sha256"]
    for scored in (False, True):
        if scored:
            fedgs("evaluate", str(run), "--data", str(data))
        fedgs("report", str(run))
        page = text_of(run / "report.html")
        assert "what was published: UTNet (file published.pt)" in page
        assert f"UTNet, file published.pt , SHA-256 {checksum}." in page
        assert f"fedgs import-checkpoint published.pt --size {SIZE} " in page
        assert "This was not trained here." in page
        assert ("There are none yet" in page) is not scored
        assert ("External hospitals" in page) is scored
        assert ("Alder" in page) is scored
        for absent in ("One seed proves nothing", "Nothing was scaled", "Cases to look at", "nan", "None"):
            assert absent not in page
    before = run.with_name("other")
    import_checkpoint(utnet, before, size=SIZE)
    both = tmp_path / "both.html"
    fedgs("report", str(before), str(run), "--out", str(both))
    assert "published.pt" in text_of(both)


def test_an_import_leaves_all_files_of_a_finished_run(imported: Path, utnet: Path) -> None:
    folder = RunFolder(imported)
    folder.require_unaltered()
    assert {"config.toml", "environment.json", "rounds.jsonl", "scores.csv", "split.csv"} <= {
        path.name for path in imported.iterdir()
    }
    assert equal(tensors(folder.load("best")), load_published(utnet).state_dict())
    assert equal(tensors(folder.load("last")), load_published(utnet).state_dict())
    assert read_scores(imported / "scores.csv").empty
    config = folder.config()
    assert (config.data.size, dict(config.model.model_options), config.model.init_from) == (SIZE, UTNET, None)
    assert folder.environment()["published"]["file"] == "published.pt"


def test_importing_again_gives_the_same_bytes(imported: Path, utnet: Path, tmp_path: Path) -> None:
    moved = tmp_path / "published.pt"
    moved.write_bytes(utnet.read_bytes())
    (tmp_path / "empty").mkdir()
    import_checkpoint(str(moved), str(tmp_path / "empty"), size=SIZE)
    for name in ("checkpoints/best.safetensors", "checkpoints/last.safetensors", "split.csv"):
        assert (tmp_path / "empty" / name).read_bytes() == (imported / name).read_bytes()


def test_resuming_what_was_imported_leaves_it_as_it_is(imported: Path) -> None:
    before = snapshot(imported)
    done = fedgs("train", "--out", str(imported), "--resume")
    assert "is finished already; it stays as it is" in done.stdout
    after = snapshot(imported)
    assert {path.name for path in after.keys() - before.keys()} <= {"report.html"}
    assert {path: after[path] for path in before} == before


def test_it_is_given_images_as_large_as_published_unless_made_for_others(utnet: Path, tmp_path: Path) -> None:
    assert import_checkpoint(utnet, tmp_path / "utnet")["size"] == 512
    for name, size in (("free", None), ("told", SIZE)):
        assert import_checkpoint(saved(tmp_path, "SD-UTNet of a site"), tmp_path / name, size=size)["size"] == SIZE


@pytest.mark.parametrize(
    ("title", "size", "says"),
    [
        ("UTNet", 100, "UTNet takes .* got 100 x 100; the nearest size that works is 96 x 96"),
        ("SD-UTNet of the server", 70, "got 70 x 70; the nearest size that works is 64 x 64"),
        ("FedDis of the server", 30, "got 30 x 30; the nearest size that works is 32 x 32"),
        ("U-Net of SDNet", 8, "got 8 x 8; the nearest size that works is 16 x 16"),
        ("SD-UTNet", 128, f"takes images of {SIZE} x {SIZE} pixels only, got a size of 128; leave the size out"),
        ("UTNet", 0, "got 0 x 0; the nearest size that works is 32 x 32"),
        ("UTNet", -64, "got -64 x -64; the nearest size that works is 32 x 32"),
    ],
)
def test_a_size_that_cannot_be_is_refused(title: str, size: int, says: str, tmp_path: Path) -> None:
    with pytest.raises((ShapeError, ConfigError), match=says):
        import_checkpoint(saved(tmp_path, title), tmp_path / "run", size=size)
    assert not (tmp_path / "run").exists()


def test_a_place_that_holds_something_is_refused_and_stays(imported: Path, utnet: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "folder", tmp_path / "file", imported):
        before = snapshot(tmp_path) | snapshot(imported)
        done = fedgs("import-checkpoint", str(utnet), "--out", str(place), check=False)
        assert done.returncode == 1
        assert f"{place}: exists already; choose another --out" in done.stderr
        assert snapshot(tmp_path) | snapshot(imported) == before


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"state_dict": Code()}, "would run code; it is not opened"),
        ({"fc.weight": torch.ones(2)}, "no known network"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_no_folder(
    content: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "spoilt.pt")
    done = fedgs("import-checkpoint", "spoilt.pt", "--out", "deep/run", check=False)
    assert done.returncode == 1
    assert says in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt.pt"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such file"):
        import_checkpoint(tmp_path / "absent.pt", tmp_path / "run")


def test_more_classes_than_lesion_and_background_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"published\.pt: tells 3 classes apart; expected 2"):
        import_checkpoint(saved(tmp_path, "U-Net of SDNet", num_classes=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_for_grey_images_is_told_and_takes_no_colours(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = fedgs("import-checkpoint", str(saved(tmp_path, "UTNet", in_channels=1)), "--out", str(run), "--size", "32")
    assert "UTNet for grey images of 32 x 32 pixels" in done.stdout
    refused = fedgs("evaluate", str(run), "--data", str(data), check=False)
    assert refused.returncode == 1
    assert "the run's network takes grey ones" in refused.stderr


def test_tables_that_were_averaged_are_told(tmp_path: Path) -> None:
    state = dict(published("UTNet"))
    for name in state:
        if name.endswith("relative_position_index"):
            state[name] = state[name] - 1
    torch.save(state, tmp_path / "averaged.pt")
    run = tmp_path / "run"
    done = fedgs("import-checkpoint", str(tmp_path / "averaged.pt"), "--out", str(run), "--size", str(SIZE))
    lines = done.stdout.splitlines()
    (told,) = (line for line in lines if line.startswith("Careful: "))
    assert re.fullmatch(r"Careful: ([\d,]+) of \1 entries of the relative-position tables were off; they .* anew", told)
    assert equal(tensors(RunFolder(run).load("best")), load_published(published("UTNet")).state_dict())


def test_what_is_small_and_where_it_is_scored_is_chosen_with_the_import(
    data: Path, utnet: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rule = ("--small-rule", "total", "--small-fraction", "1/10", "--base", "1000")
    fedgs("import-checkpoint", str(utnet), "--out", str(run), "--size", "32", "--score-size", "native", *rule)
    assert RunFolder(run).summary()["data"]["small_rule"] == {"kind": "total", "fraction": 0.1, "base": 1000.0}
    fedgs("evaluate", str(run), "--data", str(data))
    scores = read_scores(run / "scores.csv")
    assert set(scores["pixels"]) == {64 * 64}
    lesions = scores[scores["lesion_area"] > 0]
    assert (lesions["is_small"] == (lesions["lesion_area"] <= 512 * 512 / 10)).all()
    fedgs("report", str(run))
    shown = re.search(r"<code>fedgs (import-checkpoint .*?)</code>", (run / "report.html").read_text(), re.DOTALL)
    assert shown
    command, _, *line, out = shlex.split(html.unescape(shown[1]).replace("\\\n", " "))
    assert out == "run"
    again = tmp_path / "again"
    fedgs(command, str(utnet), *line, str(again))
    assert (again / "config.toml").read_text() == (run / "config.toml").read_text()
    assert RunFolder(again).summary()["data"] == RunFolder(run).summary()["data"]
