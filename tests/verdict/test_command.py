"""fedgs compare, on run folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from faults import WRITE, Instant, run
from fedgs.errors import CheckpointError, ConfigError, DataError
from fedgs.files import read_json
from fedgs.verdict.observed import observe
from made_runs import write_run
from runs import fedgs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for site in ("C4", "C5"):
        for algorithm in ("fedgs", "fedavg-published"):
            write_run(folder / f"{algorithm}-{site}", algorithm=algorithm, unseen=site, rounds=2, overlays=False)
    return folder


def test_runs_are_compared_and_the_verdict_is_written(runs: Path, tmp_path: Path) -> None:
    done = fedgs("compare", *map(str, sorted(runs.iterdir())), "--out", str(tmp_path / "out"))
    assert done.stdout.startswith("On 2 hospitals left out once each, FedGS changes Dice-T by +0.0")
    assert "against FedAvg as published" in done.stdout
    told = read_json(tmp_path / "out" / "comparison.json")
    assert told["contrast"] == ["fedgs", "fedavg-published"]
    assert (told["metric"], told["part"], told["seeds"], told["n_sites"]) == ("dice_t", "test_out", [0], 2)
    assert told["interval"][0] <= told["difference"] <= told["interval"][1]
    again = fedgs("compare", *map(str, sorted(runs.iterdir())), "--out", str(tmp_path / "out"))
    assert again.stdout == done.stdout
    assert read_json(tmp_path / "out" / "comparison.json") == told


def test_a_killed_compare_leaves_no_half_written_report(runs: Path, tmp_path: Path) -> None:
    command = ["compare", str(runs / "fedgs-C5"), str(runs / "fedavg-published-C5"), "--out"]
    whole = tmp_path / "whole" / "out"
    done = run([*command, str(whole)], tmp_path / "whole")
    assert done.exitcode == 0, done.output
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert set(expected) == {"index.html", "comparison.json"}
    for number in range(1, done.reached[WRITE] + 1, 3):
        out = tmp_path / str(number) / "out"
        out.mkdir(parents=True)
        for name in expected:
            (out / name).write_bytes(b"of an earlier comparison")
        assert run([*command, str(out)], out.parent, Instant(WRITE, number)).exitcode == -9
        left = {path.name: path.read_bytes() for path in out.iterdir() if path.name in expected}
        assert left.get("index.html") in (b"of an earlier comparison", expected["index.html"])
        if left.get("comparison.json") == b"of an earlier comparison":
            assert left["index.html"] == b"of an earlier comparison"
        assert run([*command, str(out)], out.parent).exitcode == 0
        assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


def test_without_the_extra_there_is_a_verdict_and_no_page(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = fedgs("compare", *map(str, sorted(runs.iterdir())), "--out", str(tmp_path / "out"))
    assert "No page: " in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["comparison.json"]


def test_a_run_beside_a_copy_of_itself_is_undecided(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fedgs-C5", tmp_path / "copy")
    fedgs("compare", str(runs / "fedgs-C5"), str(tmp_path / "copy"), "--out", str(tmp_path / "out"))
    told = read_json(tmp_path / "out" / "comparison.json")
    assert (told["verdict"], told["difference"], told["interval"]) == ("undecided", 0.0, [0.0, 0.0])
    assert told["contrast"] == ["fedgs (copy)", "fedgs (fedgs-C5)"]


def test_folders_of_one_name_are_told_apart_by_where_they_are(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fedgs-C5", tmp_path / "other" / "fedgs-C5")
    found = observe([runs / "fedgs-C5", tmp_path / "other" / "fedgs-C5"])
    assert found.arms == [f"fedgs ({runs.name})", "fedgs (other)"]


def test_settings_that_differ_by_hospital_make_no_arm_of_their_own(runs: Path, tmp_path: Path) -> None:
    paths = []
    for name in ("fedgs-C4", "fedgs-C5", "fedavg-published-C4", "fedavg-published-C5"):
        paths.append(shutil.copytree(runs / name, tmp_path / name))
        if name.endswith("C5"):
            config = (paths[-1] / "config.toml").read_text()
            (paths[-1] / "config.toml").write_text(config.replace("lr = 0.0001", "lr = 0.001"))
    assert observe(paths).arms == ["fedgs", "fedavg-published"]


def test_what_cannot_be_compared_is_refused(runs: Path, tmp_path: Path) -> None:
    one = runs / "fedgs-C5"
    with pytest.raises(ConfigError, match="needs two runs or the folder of a study"):
        observe([one])
    with pytest.raises(ConfigError, match="the same run folder twice"):
        observe([one, one])
    with pytest.raises(DataError, match="no such run folder"):
        observe([one, tmp_path / "none"])
    unfinished = shutil.copytree(runs / "fedavg-published-C5", tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    with pytest.raises(DataError, match="not a finished run"):
        observe([one, unfinished])
    altered = shutil.copytree(runs / "fedavg-published-C5", tmp_path / "altered")
    summary = json.loads((altered / "summary.json").read_text())
    (altered / "summary.json").write_text(json.dumps(summary | {"seed": 5}))
    with pytest.raises(CheckpointError, match="was altered"):
        observe([one, altered])
    (tmp_path / "file").write_text("")
    done = fedgs("compare", str(one), str(runs / "fedavg-published-C5"), "--out", str(tmp_path / "file"), check=False)
    assert (done.returncode, "names a folder" in done.stderr) == (1, True)
    other = fedgs("compare", str(one), str(runs / "fedavg-published-C4"), "--out", str(tmp_path / "out"), check=False)
    assert "compare runs that share them" in " ".join(other.stderr.split())
    assert not (tmp_path / "out").exists()
