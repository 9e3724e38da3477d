"""Run folders come back as records, and whatever is wrong with one is said with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from fedgs.errors import CheckpointError, DataError
from fedgs.files import sealed
from fedgs.metrics.table import STRATA, read_scores, summarise
from fedgs.report.html import write_report
from fedgs.report.reading import read_run
from fedgs.report.records import Adapted, External


def test_a_run_is_read_as_it_was_written(pair):
    run = read_run(pair[1])
    assert (run.name, run.algorithm, run.model, run.size, run.seed, run.fold) == ("fedgs", "fedgs", "unet", 128, 0, 0)
    assert (run.unseen_site, run.rounds, run.source, run.adapter) == ("C5", 12, "polypgen", "polypgen")
    assert run.small_rule.fraction == pytest.approx(1 / 150)
    assert [each.number for each in run.history] == list(range(1, 13))
    assert run.history[1].validation is None
    assert run.history[2].validation is not None
    assert set(run.history[0].sites) == {"C1", "C2", "C3", "C4"}
    assert run.sites["C1"].patients_known == run.sites["C1"].cases == 120
    assert run.patients_unknown == 360
    assert (run.best.round, run.best_small.round) == (11, 10)
    assert len(run.overlays) == 24
    assert run.config["training"]["batch_size"] == 4


def test_means_are_those_of_scores_csv(pair):
    run = read_run(pair[0])
    scores = read_scores(pair[0] / "scores.csv")
    for part in ("validation", "test_in", "test_out"):
        expected = summarise(scores[scores["part"] == part])
        for stratum in STRATA:
            assert (run.parts[part].pooled[stratum].mean, run.parts[part].pooled[stratum].n) == (
                expected[stratum]["mean"],
                expected[stratum]["n"],
            )
        assert list(run.parts[part].sites) == list(expected["sites"])


def test_records_are_frozen(pair):
    run = read_run(pair[0])
    with pytest.raises(FrozenInstanceError):
        run.seed = 3


def test_splits_are_told_apart_by_content_not_by_order(build_run):
    folder = build_run("run", rounds=1, overlays=False)
    before = read_run(folder).split
    lines = (folder / "split.csv").read_text().splitlines()
    (folder / "split.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    assert read_run(folder).split == before
    (folder / "split.csv").write_text("\n".join(lines).replace("test_in", "validation", 1) + "\n")
    assert read_run(folder).split != before


def test_a_run_without_overlays_and_unseen_site_is_read(build_run):
    run = read_run(build_run("run", overlays=False, unseen=None, rounds=1))
    assert run.overlays == ()
    assert run.unseen_site is None
    assert set(run.parts) == {"validation", "test_in"}


def test_external_scores_are_read_where_there_are_some(build_run):
    folder = build_run("run", rounds=1, overlays=False)
    summary = json.loads((folder / "summary.json").read_text())
    about = {"checkpoint": "best", "round": 1, "known_cases": 3, "known_cases_of_site": {}}
    (folder / "summary.json").write_text(json.dumps(sealed(summary | {"external": about | summary["test_out"]})))
    run = read_run(folder)
    assert run.parts["external"] == run.parts["test_out"]
    assert run.external == External("best", 1, 3)
    page = write_report([folder], folder / "report.html").read_text()
    assert "checkpoint best, round 1; 3 images known from training" in page


def test_adapted_scores_are_no_part_like_the_others(build_run):
    folder = build_run("run", rounds=1, overlays=False)
    assert read_run(folder).adapted is None
    summary, before = json.loads((folder / "summary.json").read_text()), read_run(folder).parts
    about = {"checkpoint": "best", "round": 1, "known_cases": 3, "known_cases_of_site": {}}
    (folder / "summary.json").write_text(json.dumps(sealed(summary | {"adapted": about | summary["test_out"]})))
    run = read_run(folder)
    assert run.adapted == Adapted(External("best", 1, 3), before["test_out"])
    assert (run.parts, run.external) == (before, None)


def test_names_that_look_like_numbers_or_nothing_stay_names(build_run):
    run = read_run(build_run("run", sites={"007": 0.4, "NA": 0.4}, unseen="NA", rounds=1))
    assert list(run.sites) == ["007", "NA"]
    assert {overlay.site for overlay in run.overlays} == {"007", "NA"}


def test_neither_reading_nor_writing_imports_torch(pair, tmp_path):
    code = (
        "import pathlib, sys, fedgs.report.html as html;"
        "html.write_report([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2]));"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(pair[0]), str(tmp_path / "page.html")]
    subprocess.run(command, check=True, timeout=120)


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"no such run folder; expected one that 'fedgs train --out' wrote"):
        read_run(tmp_path / "nothing")


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match=r"not a finished run, summary.json is missing; expected a folder that"):
        read_run(tmp_path)


def test_a_half_finished_run(build_run):
    folder = build_run("run", rounds=2, overlays=False)
    content = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(sealed(content | {"round": 1})))
    with pytest.raises(DataError, match=r"1 of 2 rounds are done; finish it with: fedgs train --out .*run --resume"):
        read_run(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(DataError, match=r"summary.json is missing; finish it with: fedgs train --out .*run --resume"):
        read_run(folder)


def test_another_format(build_run):
    folder = build_run("run", rounds=1, overlays=False)
    content = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(sealed(content | {"format": 2})))
    with pytest.raises(DataError, match="expected format 1, found 2"):
        read_run(folder)


@pytest.mark.parametrize("name", ["rounds.jsonl", "split.csv", "config.toml", "environment.json"])
def test_a_missing_file_is_named(build_run, name):
    folder = build_run("run", rounds=1, overlays=False)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing; expected it in a finished run folder"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("summary.json", '{"format": 1, "round": 1, "rounds": 1}'),
        ("rounds.jsonl", '{"round": 1'),
        ("rounds.jsonl", '{"round": 1, "seconds": 1, "sites": {"C1": {"steps": 1}}}'),
        ("rounds.jsonl", "3"),
        ("split.csv", "site,case\nC1,a\n"),
        ("split.csv", ""),
        ("config.toml", "a = = 1"),
        ("config.toml", "a = 1"),
        ("environment.json", "nonsense"),
        ("environment.json", b"\xff\xfe\x00"),
        ("overlays/cases.csv", "part,site\ntest_in,C1\n"),
        ("overlays/cases.csv", "part,site,case,is_tiny,lesion_area,dice,name\ntest_in,C1,a,True,50,0.5,zz\n"),
        ("overlays/cases.csv", "part,site,case,is_tiny,lesion_area,dice,name\ntest_in,C1,a,True,many,0.5,00\n"),
    ],
)
def test_a_broken_file_is_named(build_run, name, content):
    folder = build_run("run", rounds=1)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((CheckpointError, DataError), match=name):
        read_run(folder)


def test_a_mean_over_no_image_is_refused(build_run):
    folder = build_run("run", rounds=1, overlays=False)
    content = json.loads((folder / "summary.json").read_text())
    content["test_in"]["dice_s"] = {"mean": 0.0, "n": 0}
    (folder / "summary.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(DataError, match=r"a mean of 0\.0 over 0 images"):
        read_run(folder)


def test_a_picture_outside_its_folder_is_refused(build_run):
    folder = build_run("run", rounds=1)
    for suffix in ("image.jpg", "truth.png", "prediction.png"):
        (folder / "overlays" / f"00-{suffix}").rename(folder / f"00-{suffix}")
    table = folder / "overlays" / "cases.csv"
    table.write_text("part,site,case,is_tiny,lesion_area,dice,name\ntest_in,C1,a,True,50,0.5,../00\n")
    with pytest.raises(DataError, match="lacks a plain file name"):
        read_run(folder)
