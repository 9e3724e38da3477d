"""What a network looks at, as figures and as a page: what is shown, what is told of it, and what is refused."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bad_places import make_source, snapshot
from fedgs.data.index import open_data
from fedgs.errors import CheckpointError, ConfigError, DataError
from fedgs.experiment import train
from fedgs.explain import explain
from fedgs.files import require_intact, write_atomically
from fedgs.models import build, initialise, to_published
from fedgs.report.html import write_report
from fedgs.report.reading import read_figures
from runs import fedgs, make_phantom, tiny_config

QUICK = {"rounds": 1, "local_steps": 2, "size": 32, "device": "cpu"}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "sd_utnet": {"model": "sd_utnet", "model_options": {"base_channels": 4, "reduce_size": 2}},
    "unet": {"model": "unet"},
    "local": {"model": "unet", "algorithm": "local", "unseen_site": "Cedar"},
}
SITES = ("Alder", "Birch", "Cedar")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 12)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("finished")
    for name, settings in KINDS.items():
        train(tiny_config(data, **QUICK, **settings), folder / name)
    return {name: folder / name for name in KINDS}


@pytest.fixture(scope="module")
def explained(finished: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Copies of the runs, with figures of two cases each."""
    folder, done = tmp_path_factory.mktemp("explained"), {}
    for name, run in finished.items():
        done[name] = Path(shutil.copytree(run, folder / name))
        explain(done[name], smallest=2, device="cpu")
    return done


@pytest.fixture
def run(finished: Mapping[str, Path], tmp_path: Path) -> Path:
    """A run of one's own, of the network that is quickest."""
    return Path(shutil.copytree(finished["unet"], tmp_path / "run"))


def figures_in(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "figures.json").read_text())
    require_intact(folder / "figures.json", content)
    figures: list[dict[str, Any]] = content["figures"]
    return figures


def looks_in(folder: Path) -> list[dict[str, Any]]:
    return [figure for figure in figures_in(folder) if figure["kind"] == "look"]


def pictures_on(page: Path) -> list[bytes]:
    """The images of a page, whose sources are all data URIs."""
    sources = re.findall(r'<img src="([^"]*)"', page.read_text())
    start = "data:image/png;base64,"
    assert all(source.startswith(start) for source in sources)
    return [base64.b64decode(source.removeprefix(start), validate=True) for source in sources]


def text_of(page: Path) -> str:
    bare = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(bare))


def unknown_lesions(run: Path, data: Path) -> list[tuple[str, str]]:
    """Images with a lesion that were neither trained nor selected on, the smallest lesion first."""
    split = pd.read_csv(run / "split.csv").set_index(["site", "case"])["part"]
    table = open_data(data, adapter=None, size=32).table.set_index(["site", "case"])
    table = table.loc[split.index[split.isin(["test_in", "test_out"])]].query("lesion_area > 0").reset_index()
    table = table.sort_values(["lesion_area", "site", "case"])
    return list(zip(table["site"], table["case"], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_lesions_that_the_run_never_saw_are_drawn(
    kind: str, explained: Mapping[str, Path], data: Path
) -> None:
    folder = explained[kind] / "explain"
    looks = looks_in(folder)
    assert [(look["site"], look["case"]) for look in looks] == unknown_lesions(explained[kind], data)[:2]
    assert [look["known"] for look in looks] == [False, False]
    assert "used in training or selection" not in text_of(folder / "index.html")
    files = [figure["file"] for figure in figures_in(folder)]
    more = ["case-01-content.png", "case-02-content.png", "styles.png"] if kind == "sd_utnet" else []
    assert sorted(files) == sorted(["case-01.png", "case-02.png", *more])
    assert {path.name for path in folder.iterdir()} == {*files, "figures.json", "index.html"}
    assert files[-1] == ("styles.png" if kind == "sd_utnet" else "case-02.png")


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_a_picture_of_its_own(kind: str, explained: Mapping[str, Path]) -> None:
    folder, seen = explained[kind] / "explain", set()
    for figure in figures_in(folder):
        content = (folder / figure["file"]).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "PNG"
            width, height = image.size
            assert 400 < width < 3000
            assert 200 < height < 3000
            pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 10
        assert len(np.unique(pixels)) > 50
        assert b"matplotlib" not in content.lower()  # a version would change the bytes
        seen.add(content)
    assert len(seen) == len(figures_in(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_stands_alone_and_the_report_shows_the_same(kind: str, explained: Mapping[str, Path]) -> None:
    run = explained[kind]
    page, report = run / "explain" / "index.html", run / "report.html"
    expected = [(run / "explain" / figure["file"]).read_bytes() for figure in figures_in(run / "explain")]
    for path in (page, report):
        source = path.read_text()
        assert pictures_on(path) == expected
        assert 'id="look"' in source
        assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?!data:|#)[^"'\s>]""", source)
        assert not re.search(r"https?://|<script|<link|@import|url\((?!#)", re.sub(r"base64,[^\"]*", "", source))
        assert "default-src 'none'" in source
    assert source.count("<!DOCTYPE html>") == 1


def test_one_round_is_no_rounds(explained: Mapping[str, Path]) -> None:
    assert "1 round." in text_of(explained["unet"] / "explain" / "index.html")


@pytest.mark.parametrize("kind", KINDS)
def test_captions_tell_case_size_and_score(kind: str, explained: Mapping[str, Path], data: Path) -> None:
    run = explained[kind]
    areas = open_data(data, adapter=None, size=32).table.set_index(["site", "case"])["lesion_area"]
    for path in (run / "explain" / "index.html", run / "report.html"):
        text = text_of(path)
        assert "Checkpoint best (round 1), images of phantom." in text
        for look in looks_in(run / "explain"):
            area = int(areas[look["site"], look["case"]])
            assert look["lesion_area"] == area > 0
            size = f"lesion {100 * area / 512**2:.2f} % of the image ({area:,} of 262,144 pixels)"
            assert f"{look['site']}, {look['case']}: {size}; Dice {look['dice']:.2f}" in text
            assert f"Grad-CAM looks at the layer {look['layer']} ;" in text
            assert 0 <= look["dice"] <= 1
            assert look["region"] in text


def test_a_network_that_takes_images_apart_shows_every_hospital_in_every_style(
    explained: Mapping[str, Path],
) -> None:
    run = explained["sd_utnet"]
    (styles,) = (figure for figure in figures_in(run / "explain") if figure["kind"] == "styles")
    shown = {look["site"]: look["case"] for look in reversed(looks_in(run / "explain"))}
    assert list(styles["cases"]) == list(SITES)
    assert shown.items() <= styles["cases"].items()
    assert styles["own_styles"] == list(SITES)
    text = text_of(run / "explain" / "index.html")
    assert "Styles of Alder, Birch, Cedar by their own encoders and decoders." in text
    for site, case in styles["cases"].items():
        assert f"{site} {case}" in text
    for other in ("unet", "local"):
        assert {figure["kind"] for figure in figures_in(explained[other] / "explain")} == {"look"}
        assert "Content and style" not in text_of(explained[other] / "report.html")


def test_hospitals_that_share_nothing_are_named(
    finished: Mapping[str, Path], explained: Mapping[str, Path], data: Path, tmp_path: Path
) -> None:
    cases = ["Alder-0001", "Birch-0001", "Cedar-0001"]
    explain(finished["local"], cases=cases, device="cpu", out=tmp_path / "figures")
    looks = looks_in(tmp_path / "figures")
    assert [look["network"] for look in looks] == ["Alder", "Birch", "Alder"]  # nobody's own: the first of all
    text = text_of(tmp_path / "figures" / "index.html")
    assert text.count("Hospitals share nothing in this run: this is the network of Alder.") == 2
    assert text.count("this is the network of Birch.") == 1
    assert {look["network"] for look in looks_in(explained["unet"] / "explain")} == {""}
    assert "Hospitals share nothing" not in text_of(explained["unet"] / "explain" / "index.html")


def test_nothing_else_of_the_run_changes(finished: Mapping[str, Path], explained: Mapping[str, Path]) -> None:
    for kind, run in explained.items():
        before = {path.relative_to(finished[kind]): content for path, content in snapshot(finished[kind]).items()}
        after = {path.relative_to(run): content for path, content in snapshot(run).items()}
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        assert {path for path in changed if path.parts[0] != "explain"} == {Path("report.html")}


def test_the_same_again_gives_the_same_bytes(explained: Mapping[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(explained["sd_utnet"], tmp_path / "run"))
    explain(run, smallest=2, device="cpu")
    names = {path.name for path in (run / "explain").iterdir()} - {"index.html"}
    for name in names:  # the page holds the name of the run
        assert (run / "explain" / name).read_bytes() == (explained["sd_utnet"] / "explain" / name).read_bytes(), name


def test_another_choice_replaces_the_figures(explained: Mapping[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(explained["sd_utnet"], tmp_path / "run"))
    old = pictures_on(run / "report.html")
    done = fedgs("explain", str(run), "--cases", "Birch/Birch-0002", "--checkpoint", "last", "--device", "cpu")
    assert done.stdout.strip() == f"Page:   {run / 'explain' / 'index.html'}"
    names = {"case-01.png", "case-01-content.png", "styles.png"}
    assert {path.name for path in (run / "explain").iterdir()} == names | {"figures.json", "index.html"}
    assert [look["case"] for look in looks_in(run / "explain")] == ["Birch-0002"]
    assert "Checkpoint last (round 1)" in text_of(run / "explain" / "index.html")
    assert len(pictures_on(run / "report.html")) == 3
    assert not set(pictures_on(run / "report.html")) & set(old)


def test_who_stops_the_drawing_keeps_the_figures_that_were_there(explained: Mapping[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(explained["unet"], tmp_path / "run"))
    before = snapshot(run / "explain")

    def stop(done: int, cases: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain(run, smallest=2, device="cpu", on_case=stop)
    assert snapshot(run / "explain") == before
    explain(run, smallest=1, device="cpu")
    (picture,) = pictures_on(run / "report.html")
    assert picture == (explained["unet"] / "explain" / "case-01.png").read_bytes()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("writes", [1, 2])
def test_who_stops_the_writing_can_give_the_same_command_again(
    explained: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, again: bool
) -> None:
    run, place = explained["unet"], tmp_path / "figures"
    if again:
        explain(run, smallest=1, device="cpu", out=place)
    left = iter(range(writes))

    def stop(path: Path, *args: Any, **options: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write_atomically(path, *args, **options)

    monkeypatch.setattr("fedgs.explain.write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        explain(run, smallest=3, device="cpu", out=place)
    monkeypatch.undo()
    assert read_figures(place) is None
    assert explain(run, smallest=2, device="cpu", out=place).is_file()
    assert {path.name for path in place.iterdir()} == {"case-01.png", "case-02.png", "figures.json", "index.html"}


def test_cases_are_chosen_by_name_and_known_ones_are_marked(run: Path) -> None:
    split = pd.read_csv(run / "split.csv")
    trained, selected, tested = (
        split.loc[split["part"] == part].iloc[0] for part in ("train", "validation", "test_in")
    )
    wanted = [f"{trained['site']}/{trained['case']}", selected["case"], tested["case"], trained["case"]]
    line = [part for name in wanted for part in ("--cases", name)]
    fedgs("explain", str(run), *line, "--device", "cpu")
    looks = looks_in(run / "explain")
    assert [look["case"] for look in looks] == [row["case"] for row in (trained, selected, tested)]
    assert [look["known"] for look in looks] == [True, True, False]
    assert text_of(run / "report.html").count("This image was used in training or selection.") == 2


def test_where_every_image_is_known_the_smallest_are_shown_and_marked(run: Path, data: Path, tmp_path: Path) -> None:
    split = pd.read_csv(run / "split.csv").query("part == 'train'")
    areas = open_data(data, adapter=None, size=32).table.set_index(["site", "case"])["lesion_area"]
    for _, case in split.iterrows():
        for kind in ("images", "masks"):
            place = tmp_path / "copies" / f"Other {case['site']}" / kind
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / case["site"] / kind / f"{case['case']}.png", place / f"{case['case']}.png")
    explain(run, tmp_path / "copies", smallest=1, device="cpu")
    (look,) = looks_in(run / "explain")
    known = [areas[case["site"], case["case"]] for _, case in split.iterrows()]
    assert look["known"]
    assert look["lesion_area"] == min(area for area in known if area)


def test_images_of_other_hospitals(explained: Mapping[str, Path], tmp_path: Path) -> None:
    other = make_source(tmp_path / "elsewhere", names=["n1", "n2"])
    run = Path(shutil.copytree(explained["sd_utnet"], tmp_path / "run"))
    fedgs("explain", str(run), "--data", str(other), "--cases", "south/n2", "--device", "cpu")
    *_, styles = figures_in(run / "explain")
    assert [look["title"][:10] for look in looks_in(run / "explain")] == ["south, n2:"]
    assert list(styles["cases"]) == ["north", "south"]
    assert styles["cases"]["south"] == "n2"
    assert styles["own_styles"] == []
    text = text_of(run / "report.html")
    assert "images of elsewhere." in text
    assert "All styles by the same encoder and decoder." in text


def told_by(arguments: Sequence[str], kept: Path) -> str:
    """What a command says that must fail and change nothing in a folder."""
    before = snapshot(kept)
    done = fedgs(*arguments, check=False)
    assert done.returncode == 1, done.stdout
    assert snapshot(kept) == before
    return " ".join(done.stderr.split())


def test_a_name_that_is_in_several_hospitals_or_in_none_is_refused(
    explained: Mapping[str, Path], tmp_path: Path
) -> None:
    run = explained["unet"]
    other = make_source(tmp_path / "elsewhere", names=["n1", "n2"])
    told = told_by(["explain", str(run), "--data", str(other), "--cases", "n1"], run)
    assert "case 'n1' is in several hospitals; choose one of: north/n1, south/n1" in told
    for wrong in ("Alder/Alder-0010x", "Alder-010"):
        told = told_by(["explain", str(run), "--cases", "Alder-0001", "--cases", wrong], run)
        assert f"unknown case '{wrong}'; did you mean 'Alder/Alder-0010'?" in told


def test_many_names_are_not_all_listed(explained: Mapping[str, Path]) -> None:
    told = told_by(["explain", str(explained["unet"]), "--cases", "nothing like it"], explained["unet"])
    assert "unknown case 'nothing like it'" in told
    assert len(told) < 400


def test_without_a_lesion_there_is_nothing_to_choose(explained: Mapping[str, Path], tmp_path: Path) -> None:
    run = explained["unet"]
    other = make_source(tmp_path / "elsewhere", names=["n1", "n2"])
    for mask in other.glob("*/masks/*.png"):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(mask)
    told = told_by(["explain", str(run), "--data", str(other)], run)
    assert "none of the 4 images (north, south) shows a lesion" in told
    assert "--cases" in told
    explain(run, other, cases=["north/n1"], device="cpu", out=tmp_path / "figures")
    (look,) = looks_in(tmp_path / "figures")
    assert look["title"].startswith("north, n1: no lesion; Dice ")
    assert look["region"] in ("what the network marks", "the whole image")


def test_a_run_without_images_of_its_own_is_given_some(data: Path, tmp_path: Path) -> None:
    model = build("unet_sdnet", in_channels=3, base_channels=4)
    initialise(model, torch.Generator().manual_seed(0))
    torch.save(to_published(model), tmp_path / "published.pt")
    run = tmp_path / "run"
    fedgs("import-checkpoint", str(tmp_path / "published.pt"), "--out", str(run), "--size", "32")
    told = told_by(["explain", str(run)], run)
    assert "knows no data of its own; name a folder of images with --data" in told
    fedgs("explain", str(run), "--data", str(data), "--smallest", "1", "--device", "cpu")
    (look,) = looks_in(run / "explain")
    assert not look["known"]
    assert "Checkpoint best (round 0), images of phantom." in text_of(run / "report.html")
    assert "Published checkpoint" in text_of(run / "explain" / "index.html")
    fedgs("evaluate", str(run), "--data", str(data))
    fedgs("report", str(run))
    assert len(pictures_on(run / "report.html")) == 1


def test_images_that_are_gone_are_told(explained: Mapping[str, Path], data: Path) -> None:
    away = data.rename(data.with_name("away"))
    try:
        told = told_by(["explain", str(explained["unet"])], explained["unet"])
    finally:
        away.rename(data)
    assert f"{data}: no such folder" in told


def test_a_place_that_holds_something_else_is_refused_and_stays(
    explained: Mapping[str, Path], data: Path, tmp_path: Path
) -> None:
    run = explained["unet"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "case-01.png").write_bytes(b"ours by its name")
    (tmp_path / "mine" / "case-01.jpg").write_bytes(b"mine")
    (tmp_path / "file").write_text("mine")
    for place, says in {
        tmp_path / "mine": "holds 'case-01.jpg', which is no figure of fedgs; choose another --out",
        tmp_path / "file": "is a file; choose a folder with --out",
        run: "which is no figure of fedgs",
        data: "which is no figure of fedgs",
    }.items():
        before = snapshot(tmp_path) | snapshot(data)
        told = told_by(["explain", str(run), "--out", str(place)], run)
        assert f"{place}: " in told
        assert says in told
        assert snapshot(tmp_path) | snapshot(data) == before


def test_a_page_without_a_list_of_figures_beside_it_is_not_ours(explained: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    told = told_by(["explain", str(explained["unet"]), "--smallest", "1", "--out", str(tmp_path / "site")], tmp_path)
    assert f"{tmp_path / 'site'}: holds 'index.html'" in told


def test_nothing_is_written_into_the_images(explained: Mapping[str, Path], data: Path) -> None:
    place = data / "figures"
    try:
        told = told_by(["explain", str(explained["unet"]), "--smallest", "1", "--out", str(place)], data)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert "lies inside the data, to which nothing is written" in told


def test_figures_elsewhere_are_no_part_of_the_report(run: Path, tmp_path: Path) -> None:
    before = snapshot(run)
    place = tmp_path / "deep" / "figures"
    assert explain(run, smallest=1, device="cpu", out=place) == place / "index.html"
    assert snapshot(run) == before
    assert len(pictures_on(place / "index.html")) == 1


def test_a_report_never_shows_less_or_other_than_was_made(explained: Mapping[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(explained["unet"], tmp_path / "run"))
    listing = run / "explain" / "figures.json"
    content, picture = listing.read_text(), (run / "explain" / "case-02.png").read_bytes()
    write_report([run], run / "report.html")
    page = (run / "report.html").read_bytes()

    (run / "explain" / "case-02.png").unlink()
    told = told_by(["report", str(run)], run)
    assert f"{listing}: " in told
    assert "the picture case-02.png is missing" in told
    with pytest.raises(DataError, match=r"case-02\.png is missing"):
        write_report([run], tmp_path / "page.html")
    (run / "explain" / "case-02.png").write_bytes(picture)

    listing.write_text(content.replace('"known": false', '"known": true', 1))
    told = told_by(["report", str(run)], run)
    assert f"{listing}: its checksum does not match" in told
    with pytest.raises(CheckpointError, match="was altered"):
        write_report([run], tmp_path / "page.html")
    listing.write_text(content[: len(content) // 2])
    assert f"{listing}: " in told_by(["report", str(run)], run)

    listing.unlink()
    fedgs("report", str(run))
    assert 'id="look"' not in (run / "report.html").read_text()
    listing.write_text(content)
    fedgs("report", str(run))
    assert (run / "report.html").read_bytes() == page


def test_an_altered_run_is_refused(run: Path) -> None:
    checkpoint = run / "checkpoints" / "best.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-9] ^= 1
    checkpoint.write_bytes(content)
    assert "checksum does not match" in told_by(["explain", str(run)], run)


def test_choices_that_make_no_sense_are_refused(explained: Mapping[str, Path], tmp_path: Path) -> None:
    run = explained["unet"]
    for flags, says in {
        ("--smallest", "0"): "--smallest must be at least 1, got 0",
        ("--checkpoint", "bset"): "unknown checkpoint 'bset'; did you mean 'best'?",
        ("--device", "cuda:99"): "device 'cuda:99' cannot be used here",
        ("--data", str(tmp_path / "no")): "no: no such folder",
    }.items():
        assert says in told_by(["explain", str(run), *flags], run)
    with pytest.raises(ConfigError, match="is not a run folder"):
        explain(tmp_path)


@pytest.mark.parametrize("package", ["captum", "matplotlib", "jinja2"])
def test_the_extra_that_is_missing_is_named(
    package: str, explained: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    told = told_by(["explain", str(explained["unet"])], explained["unet"])
    assert told == "Error: 'fedgs explain' needs the extra 'explain'; install it with: pip install 'fedgs[explain]'"
