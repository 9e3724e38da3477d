"""The command line as a newcomer meets it, mistakes included."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fedgs import cli as fedgs_cli
from fedgs.data.index import open_data
from fedgs.errors import DataError
from fedgs.files import sealed
from fedgs.metrics.catalogue import other_scores
from fedgs.metrics.table import DETAILS, read_scores
from fedgs.run_folder import RunFolder
from fedgs.tables import as_csv
from runs import FLAGS, command, environment, fedgs, flags, make_phantom


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 12)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    fedgs("train", "--data", str(data), "--out", str(out), *flags(**FLAGS | {"unseen_site": "Cedar"}))
    return out


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(*arguments: str) -> str:
    """Runs a command that must fail with one clear message, and gives the message."""
    done = fedgs(*arguments, check=False)
    assert done.returncode not in (0, 130)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.strip()
    return " ".join(done.stderr.split())


def test_help_is_quick_and_needs_no_torch() -> None:
    code = "import sys, fedgs.cli; fedgs.cli.cli(['--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment())


@pytest.mark.parametrize("name", ["train", "index", "evaluate", "report", "demo"])
def test_every_command_explains_itself(name: str) -> None:
    assert "Usage: fedgs " + name in fedgs(name, "--help").stdout


def test_a_run_folder_holds_what_is_promised(finished: Path) -> None:
    wanted = ["config.toml", "environment.json", "split.csv", "rounds.jsonl", "scores.csv", "summary.json", "log.txt"]
    wanted += [f"checkpoints/{name}.{kind}" for name in ("last", "best") for kind in ("safetensors", "json")]
    wanted += ["report.html", "overlays/cases.csv"]
    assert [name for name in wanted if not (finished / name).is_file()] == []
    summary = json.loads((finished / "summary.json").read_text())
    for part in ("validation", "test_in", "test_out"):
        for stratum in ("dice", "dice_n", "dice_s", "dice_t", "dice_l"):
            assert set(summary[part][stratum]) == {"mean", "n"}
            for means in summary[part]["sites"].values():
                assert set(means[stratum]) == {"mean", "n"}
    assert summary["test_out"]["sites"].keys() == {"Cedar"}
    assert summary["test_out"]["dice"]["n"] == 12
    records = [json.loads(line) for line in (finished / "rounds.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [1, 2, 3]
    assert set(records[0]["sites"]) == {"Alder", "Birch"}
    checkpoint = json.loads((finished / "checkpoints" / "last.json").read_text())
    assert {"round", "checksum", "host", "written"} <= checkpoint.keys()


def test_test_images_are_scored_in_every_way_and_validation_by_pixels(finished: Path, data: Path) -> None:
    scores, summary = read_scores(finished / "scores.csv"), json.loads((finished / "summary.json").read_text())
    may_lack = ("hd95", "assd", "surface_dice", "ece", "size_quartile")
    computed = [name for name in DETAILS if name not in ("is_mixed", *may_lack)]
    tested = scores["part"].isin(("test_in", "test_out"))
    assert scores.loc[tested, computed].notna().all(axis=None)
    assert scores.loc[~tested, computed].isna().all(axis=None)
    assert scores["is_mixed"].notna().all()  # known of the mask alone
    split = pd.read_csv(finished / "split.csv")
    train = split[split["part"] == "train"]
    areas = open_data(data, size=32).table.merge(train, on=["site", "case"])["lesion_area"]
    assert summary["data"]["size_quartiles"] == pytest.approx(areas[areas > 0].quantile([0.25, 0.5, 0.75]).tolist())
    for row in scores.itertuples():
        above = [row.lesion_area > threshold for threshold in summary["data"]["size_quartiles"]]
        assert row.size_quartile == (1 + sum(above) if row.lesion_area else 0)
    rows = scores[(scores["round"] == 3) & (scores["part"] == "test_out")]
    assert summary["test_out"]["other"] == other_scores(rows)
    assert {"hd95_missed", "lesion_sensitivity_small_10", "false_lesions_50"} <= summary["test_out"]["other"][
        "pooled"
    ].keys()
    assert "hd95_missed" not in summary["validation"]["other"]["pooled"]


def test_a_run_of_an_earlier_version_is_read_reported_and_evaluated(finished: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    folder, scores = RunFolder(run), read_scores(run / "scores.csv")
    (run / "scores.csv").write_text(as_csv(scores.drop(columns=[*DETAILS])))
    summary = {name: value for name, value in folder.summary().items() if name not in ("files", "own_scores")}
    del summary["data"]["size_quartiles"]
    for part in (summary, summary["best"]):
        for name in ("validation", "test_in", "test_out"):
            del part[name]["other"]
    folder.finish(summary)
    folder.require_unaltered()
    fedgs("report", str(run))
    assert read_scores(run / "scores.csv")[[*DETAILS]].isna().all(axis=None)
    fedgs("evaluate", str(run), "--data", str(data))
    folder.require_unaltered()
    after = read_scores(run / "scores.csv")
    external = after["part"] == "external"
    assert after.loc[external, "diagonal"].notna().all()
    assert after.loc[external, "size_quartile"].isna().all()
    assert after.loc[~external, [*DETAILS]].isna().all(axis=None)
    fedgs("report", str(run))


def test_scores_average_to_the_summary(finished: Path) -> None:
    scores, summary = pd.read_csv(finished / "scores.csv"), json.loads((finished / "summary.json").read_text())
    rows = scores[(scores["round"] == 3) & (scores["part"] == "test_in")]
    assert summary["test_in"]["dice"]["mean"] == pytest.approx(rows["dice"].mean())
    again = (2 * rows["tp"] / (2 * rows["tp"] + rows["fp"] + rows["fn"])).fillna(1.0)
    assert again.tolist() == pytest.approx(rows["dice"].tolist())


def test_evaluate_adds_external_scores_and_repeating_replaces_them(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    other = make_phantom(tmp_path / "other", 5, seed=1)
    before = pd.read_csv(run / "scores.csv")
    for _ in range(2):
        done = fedgs("evaluate", str(run), "--data", str(other), "--checkpoint", "last")
        assert "external" in done.stdout
        after = pd.read_csv(run / "scores.csv")
        assert len(after) == len(before) + 15
        assert (after["part"] == "external").sum() == 15
        pd.testing.assert_frame_equal(after[: len(before)], before)
    external = json.loads((run / "summary.json").read_text())["external"]
    assert (external["checkpoint"], external["round"], external["dice"]["n"]) == ("last", 3, 15)
    assert external["known_cases"] == 0
    fedgs("report", str(run))


def test_adapted_scores_are_marked_wherever_they_are_shown(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    other = make_phantom(tmp_path / "other", 5, seed=1)
    mark = "adapted: statistics re-estimated from the hospital's own unlabelled images; not comparable with the others"
    plain = fedgs("evaluate", str(run), "--data", str(other), "--checkpoint", "last")
    fedgs("report", str(run))
    page = (run / "report.html").read_text()
    assert "re-estimated" not in plain.stdout + page
    done = fedgs("evaluate", str(run), "--data", str(other), "--checkpoint", "last", "--adapt")
    assert mark in done.stdout.splitlines()
    assert ", adapted: mean (images)" in done.stdout
    assert ", external: mean (images)" not in done.stdout
    assert read_scores(run / "scores.csv")["part"].value_counts()[["external", "adapted"]].tolist() == [15, 15]
    fedgs("report", str(run))
    assert mark.replace("'", "&#39;") in (run / "report.html").read_text()


def test_evaluating_on_known_images_is_said(finished: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert "trained or selected on" in fedgs("evaluate", str(run), "--data", str(data)).stdout


def test_near_duplicates_of_what_a_run_was_trained_on_are_known(finished: Path, data: Path, tmp_path: Path) -> None:
    run, others = tmp_path / "run", tmp_path / "others"
    shutil.copytree(finished, run)
    names = {part: sorted(rows["case"]) for part, rows in pd.read_csv(run / "split.csv", dtype=str).groupby("part")}
    for site, cases in (("Seen", names["train"][:3]), ("New", names["test_out"][:4])):
        for case in cases:
            (image,) = data.glob(f"*/images/{case}.png")
            copy = others / site / "images" / f"{case}.png"
            for folder in ("images", "masks"):
                (others / site / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(image.parents[1] / "masks" / image.name, others / site / "masks")
            Image.fromarray((np.asarray(Image.open(image)) * 0.9).astype(np.uint8)).save(copy)
    done = fedgs("evaluate", str(run), "--data", str(others), "--checkpoint", "last")
    assert "Careful: 3 of these images, or near duplicates of them" in done.stdout
    external = json.loads((run / "summary.json").read_text())["external"]
    assert external["known_cases_of_site"] == {"New": 0, "Seen": 3}


@pytest.mark.parametrize("name", ["config.toml", "environment.json", "rounds.jsonl", "scores.csv", "split.csv"])
def test_a_report_refuses_what_was_altered(name: str, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    text = (run / name).read_text()
    assert "1" in text
    (run / name).write_text("2".join(text.rsplit("1", 1)))
    message = refused("report", str(run))
    assert f"{name}: was altered" in message
    assert "restore it from a copy" in message


def test_memory_that_torch_cannot_have_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(error: Exception) -> None:
        def invoke(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(fedgs_cli.cli, "main", invoke)
        fedgs_cli.main([])

    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**55)
    with pytest.raises(SystemExit):
        raises(of_torch.value)
    assert capsys.readouterr().err == (
        "Error: there is not enough memory; choose a smaller --batch-size or --size, or close other programs\n"
    )
    with pytest.raises(RuntimeError, match="a fault of our own"):
        raises(RuntimeError("a fault of our own"))


def test_evaluations_of_several_hospitals_are_kept_apart(finished: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    other = make_phantom(tmp_path / "other", 5, seed=1)
    (other / "Alder").rename(other / "Zoo")
    (other / "patients.csv").unlink()
    (other / "phantom.json").unlink()
    fedgs("evaluate", str(run), "--data", str(data), "--checkpoint", "last")
    done = fedgs("evaluate", str(run), "--data", str(other), "--checkpoint", "last")
    assert "Zoo" in done.stdout
    assert "Alder" not in done.stdout  # of the first evaluation
    assert "Careful" not in done.stdout
    external = json.loads((run / "summary.json").read_text())["external"]
    assert set(external["sites"]) == {"Alder", "Birch", "Cedar", "Zoo"}
    assert external["known_cases"] == external["known_cases_of_site"]["Alder"] > 0  # Birch and Cedar were replaced
    fedgs("report", str(run))
    assert "known from training" in (run / "report.html").read_text()


def test_a_run_may_be_evaluated_where_it_was_not_trained(finished: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('device = "cpu"', 'device = "cuda:7"'))
    fedgs("evaluate", str(run), "--data", str(data))


def test_grey_images_are_scored_by_a_network_for_colour(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    other = make_phantom(tmp_path / "other", 4, seed=1)
    for path in other.glob("*/images/*"):
        with Image.open(path) as image:
            grey = image.convert("L")
        grey.save(path)
    assert "external" in fedgs("evaluate", str(run), "--data", str(other)).stdout


def test_server_momentum_works_through_a_run(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = flags(**FLAGS | {"rounds": 2, "server_momentum": 0.5})
    fedgs("train", "--data", str(data), "--out", str(out), *settings)
    plain = tmp_path / "plain"
    fedgs("train", "--data", str(data), "--out", str(plain), *flags(**FLAGS | {"rounds": 2}))
    name = "checkpoints/last.safetensors"
    assert (out / name).read_bytes() != (plain / name).read_bytes()
    assert "(0, 1)" in refused(*f"train --data {data} --server-momentum 1.0 --out {tmp_path / 'no'}".split())


def test_a_finished_run_without_its_page_gets_one(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "report.html").unlink()
    fedgs("train", "--out", str(run), "--resume")
    assert (run / "report.html").is_file()


def test_resume_finds_the_folder_that_it_chose_itself(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--data", str(data), *flags(**FLAGS | {"rounds": 1})]
    fedgs(*arguments)
    assert (tmp_path / "runs" / "fedgs-unet-fold0-seed1" / "summary.json").is_file()
    assert "finished already" in fedgs(*arguments, "--resume").stdout


def test_a_stored_split_decides_which_hospital_is_unseen(finished: Path, data: Path, tmp_path: Path) -> None:
    common = ["train", "--data", str(data), "--split", str(finished / "split.csv"), *flags(**FLAGS | {"rounds": 1})]
    assert "Cedar" in refused(*common, "--unseen-site", "Birch", "--out", str(tmp_path / "no"))
    fedgs(*common, "--out", str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unseen_site"] == "Cedar"


def test_resume_with_another_base_is_refused(data: Path, tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "run"
    fedgs("index", str(data), "--out", str(index), "--size", "32")
    fedgs("train", "--data", str(index), "--out", str(out), *flags(**FLAGS | {"rounds": 1}))
    (out / "summary.json").unlink()
    fedgs("index", str(data), "--out", str(index), "--size", "32", "--base", "1000")
    assert "not those that it began with" in refused("train", "--out", str(out), "--resume")


def test_data_that_moved_can_be_gone_on_with(data: Path, tmp_path: Path) -> None:
    mine, moved, out = tmp_path / "data", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(data, mine)
    fedgs("train", "--data", str(mine), "--out", str(out), *flags(**FLAGS | {"rounds": 1}))
    (out / "summary.json").unlink()
    mine.rename(moved)
    fedgs("train", "--out", str(out), "--resume", "--data", str(moved))
    assert (out / "summary.json").is_file()


@pytest.mark.parametrize("place", ["cache", "out"])
def test_nothing_is_written_into_the_data(
    place: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    before = sorted(mine.rglob("*"))
    if place == "cache":
        monkeypatch.setenv("FEDGS_CACHE", str(mine / "cache"))
        assert "FEDGS_CACHE" in refused("train", "--data", str(mine), "--out", str(tmp_path / "out"))
    else:
        assert "inside the data" in refused("train", "--data", str(mine), "--out", str(mine / "run"))
    assert sorted(mine.rglob("*")) == before


def test_tables_never_cut_a_number_off(tmp_path: Path) -> None:
    from rich.console import Console

    from fedgs.cli.console import print_table
    from fedgs.report.tables import part_table, scores_table

    means = {name: {"mean": 0.123, "n": 123456} for name in ("dice", "dice_s", "dice_l", "dice_t", "dice_n")}
    part = means | {"sites": {"[red]Hôpital & <b>x</b>[/red]" * 3: means}}
    (tmp_path / "summary.json").write_text(
        json.dumps(sealed({"algorithm": "fedavg-published", "test_in": part, "test_out": part, "validation": part}))
    )
    for table in (scores_table([tmp_path]), part_table("title", part)):
        console = Console(file=io.StringIO(), width=80)
        print_table(console, table)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert printed.count("0.123 (123456)") % 5 == 0
        assert "…" not in printed
    assert "[red]" in printed
    assert "large lesion too" not in printed
    part["dice_m"] = {"mean": 0.1, "n": 6}
    console = Console(file=io.StringIO(), width=80)
    print_table(console, part_table("title", part))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.123 (123456/6)" in printed
    assert "of the n images, m hold a large lesion too" in " ".join(printed.split())


def test_report_of_two_runs_stands_beside_them(finished: Path, data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(finished, tmp_path / name)
    done = fedgs("report", str(tmp_path / "one"), str(tmp_path / "two"))
    assert (tmp_path / "report.html").is_file()
    assert "report.html" in done.stdout


def test_a_stored_split_can_be_given_to_another_run(finished: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = FLAGS | {"rounds": 1, "split": finished / "split.csv", "fold": 3}
    fedgs("train", "--data", str(data), "--out", str(out), *flags(**settings))
    assert (out / "split.csv").read_bytes() == (finished / "split.csv").read_bytes()


def test_settings_may_stand_in_a_file_and_flags_win(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[data]\ndata = "{data}"\nsize = 32\n[federation]\nrounds = 5\n[training]\nlocal_steps = 1\n')
    out = tmp_path / "run"
    fedgs("train", "--config", str(file), "--rounds", "1", "--out", str(out))
    stored = (out / "config.toml").read_text()
    assert "rounds = 1" in stored
    assert "local_steps = 1" in stored
    assert 'device = "cpu"' in stored or 'device = "cuda"' in stored


def test_index_prints_a_summary_and_a_source_is_indexed_only_once(data: Path, tmp_path: Path) -> None:
    done = fedgs("index", str(data), "--out", str(tmp_path / "index"), "--size", "32")
    assert "Alder" in done.stdout
    assert "empty masks" in done.stdout
    before = snapshot(data)
    fedgs("index", str(data), "--out", str(tmp_path / "index"), "--small-rule", "total", "--small-fraction", "1/50")
    assert snapshot(data) == before
    about = json.loads((tmp_path / "index" / "index.json").read_text())
    assert about["small_rule"]["kind"] == "total"


TRAIN = "train --data {data} --out {tmp}/out"
MISTAKES = {
    "wrong path": ("train --data {tmp}/nowhere --out {tmp}/out", "nowhere"),
    "no data": ("train --out {tmp}/out", "--data"),
    "empty folder": ("train --data {tmp}/empty --out {tmp}/out", "expected"),
    "wrong layout": ("train --data {tmp}/flat --out {tmp}/out", "images"),
    "adapter of another layout": (f"{TRAIN} --adapter polypgen", "data_SITE"),
    "unknown adapter": (f"{TRAIN} --adapter polipgen", "did you mean 'polypgen'"),
    "unknown algorithm": (f"{TRAIN} --algorithm fedsg", "did you mean 'fedgs'"),
    "unknown model": (f"{TRAIN} --model unett", "did you mean"),
    "unknown model option": (f"{TRAIN} --model-option nrm=group", "did you mean 'norm'"),
    "unknown objective": (f"{TRAIN} --objective dice", "dice_batch"),
    "unknown site": (f"{TRAIN} --unseen-site Cedr", "did you mean 'Cedar'"),
    "unknown flag": (f"{TRAIN} --round 3", "--rounds"),
    "unknown command": ("trian", "did you mean 'train'"),
    "not a number": (f"{TRAIN} --rounds many", "--rounds"),
    "size the network cannot take": (f"{TRAIN} --size 40", "48"),
    "size of utnet": (f"{TRAIN} --model utnet --size 200", "256"),
    "option of another algorithm": (f"{TRAIN} --algorithm fedavg --server-momentum 0.9", "server_momentum"),
    "device that is not there": (f"{TRAIN} --device cuda:9", "--device cpu"),
    "batch larger than a site": (f"{TRAIN} --batch-size 64", "batch"),
    "folder that exists": ("train --data {data} --out {finished}", "--resume"),
    "resume with other settings": ("train --out {copy} --resume --lr 0.1 --rounds 4", "lr: 0.001 -> 0.1"),
    "finished run with other settings": ("train --out {finished} --resume --rounds 7", "rounds: 3 -> 7"),
    "resume with another split": ("train --out {copy} --resume --split published", "split: 'grouped' -> 'published'"),
    "resume of nothing": ("train --resume --seed 77", "--out"),
    "evaluate what is no run": ("evaluate {tmp}/empty --data {data}", "not a run folder"),
    "unknown checkpoint": ("evaluate {finished} --data {data} --checkpoint first", "best_small"),
    "report of what is no run": ("report {tmp}/empty", "empty"),
    "bad fraction": ("index {data} --out {tmp}/out --small-fraction 1/0", "1/150"),
    "bad rule": ("index {data} --out {tmp}/out --small-rule component", "did you mean 'components'"),
    "demo where something is": ("demo --out {finished}", "--out"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_clear_message(mistake: str, data: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "flat" / "a.png")
    copy = tmp_path / "copy"
    if "{copy}" in MISTAKES[mistake][0]:
        shutil.copytree(finished, copy)
        (copy / "summary.json").unlink()
    places = {"tmp": tmp_path, "data": data, "finished": finished, "copy": copy}
    before = snapshot(finished) | snapshot(data) | snapshot(tmp_path)
    arguments, says = MISTAKES[mistake]
    assert says in refused(*(part.format(**places) for part in arguments.split()))
    assert snapshot(finished) | snapshot(data) | snapshot(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_resume_on_changed_data_is_refused(data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    out = tmp_path / "run"
    fedgs("train", "--data", str(mine), "--out", str(out), *flags(**FLAGS | {"rounds": 1}))
    (out / "summary.json").unlink()
    victim = next((mine / "Alder" / "images").iterdir())
    Image.new("RGB", (64, 64)).save(victim)
    assert "the images" in refused("train", "--out", str(out), "--resume")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fedgs("train", "--data", str(tmp_path / "nowhere"), "--debug")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_is_there(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    message = refused("train", "--data", str(data), "--out", str(out), *flags(**FLAGS | {"lr": 1e30, "rounds": 2}))
    assert "not finite" in message or "the loss is" in message
    assert "site" in message or "updates of" in message


def test_ctrl_c_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command("train", "--data", str(data), "--out", str(out), *flags(**FLAGS | {"rounds": 500})),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 100
    while not (out / "log.txt").is_file() or "RoundStarted" not in (out / "log.txt").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors


def test_without_the_report_extra_training_works_and_the_extra_is_named(data: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("jinja2", "matplotlib"):
        (blocked / f"{name}.py").write_text("raise ImportError('not installed')\n")
    env = environment() | {"PYTHONPATH": os.pathsep.join([str(blocked), os.environ.get("PYTHONPATH", "")])}
    out = tmp_path / "run"
    arguments = ["train", "--data", str(data), "--out", str(out), *flags(**FLAGS | {"rounds": 1})]
    done = subprocess.run(command(*arguments), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Scores" in done.stdout
    assert "fedgs[report]" in done.stdout
    assert not (out / "report.html").exists()
    refusal = subprocess.run(command("report", str(out)), env=env, capture_output=True, text=True, check=False)
    assert refusal.returncode == 1
    assert "fedgs[report]" in refusal.stderr
