"""A study gets through its runs, whatever happens to single ones, and never mixes what cannot be compared."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from PIL import Image
from rich.console import Console

from bad_places import start
from fedgs.data.index import open_data
from fedgs.data.splits import split_cases
from fedgs.errors import CheckpointError, ConfigError
from fedgs.files import read_json, sealed
from fedgs.metrics.table import read_scores
from fedgs.study import estimate as estimating
from fedgs.study.estimate import Cost, estimate
from fedgs.study.folder import StudyFolder
from fedgs.study.plan import BASELINE, OUTCOMES, Cell, Trunk
from fedgs.study.reading import read_plan
from fedgs.study.runner import Status, run_study
from fedgs.study.table import cells_table, gain, is_converged, overview
from runs import command, environment, fedgs, make_phantom

PLAN: dict[str, Any] = {
    "primary": {"outcome": "dice_t", "contrasts": [["fedgs", "fedavg-published"]], "margin": 0.01},
    "settings": {"size": 32, "rounds": 2, "local_steps": 2, "model_options": {"norm": "instance"}},
    "arms": {"fedgs": {"tuned_as": "fedavg-published"}},
    "trunk": {"rounds": 2},
    "tune": {"fold": 1, "seed": 9, "rounds": 1, "search": {"fedavg-published": {"lr": [1e-5, 1e-3]}}},
    "cells": [
        {"arms": ["fedavg-published", "fedgs"], "unseen_sites": ["Cedar"]},
        {"arms": ["fedgs"], "unseen_sites": ["Cedar"], "from_trunk": False},
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 14)


def written(path: Path, **changes: Any) -> Path:
    path.write_text(tomli_w.dumps(PLAN | changes))
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    plan = written(folder / "plan.toml")
    done = fedgs("study", str(plan), "--data", str(data), "--out", str(folder / "study"), "--jobs", "2")
    assert "6 of 6 runs finished" in done.stdout
    return folder / "study"


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study."""
    return shutil.copytree(finished, tmp_path / "study")


def resume(study: Path, data: Path, plan: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return fedgs("study", str(plan), "--data", str(data), "--out", str(study), "--resume", *more, check=False)


def refused(study: Path, data: Path, plan: Path) -> str:
    done = resume(study, data, plan)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def contents(folder: Path) -> dict[str, Any]:
    """What runs left, without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "rounds.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "summary.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in _TIMED}
        elif path.is_file() and path.name != "environment.json":
            found[name] = path.read_bytes()
    return found


_TIMED = {"seconds", "checksum", "files"}


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    sites = {name: {k: v for k, v in site.items() if k != "seconds"} for name, site in record["sites"].items()}
    return {name: value for name, value in record.items() if name != "seconds"} | {"sites": sites}


CELL = "cells/from-trunk/without-Cedar-fold0-seed0/fedgs"
TRUNK = "trunks/without-Cedar-fold0-seed0"


def test_a_finished_cell_is_small_and_whole(finished: Path) -> None:
    cell = finished / CELL
    names = {path.name for path in cell.iterdir()}
    assert names == {"summary.json", "scores.csv", "rounds.jsonl", "masks"}
    scores, summary = read_scores(cell / "scores.csv"), read_json(cell / "summary.json")
    assert set(scores["round"]) == {2}
    assert summary["test_out"]["dice"]["n"] == (scores["part"] == "test_out").sum() == 14
    assert len((cell / "rounds.jsonl").read_text().splitlines()) == 2
    assert summary["study"]["primary"] == PLAN["primary"]
    assert not (finished / "work").exists() or not any((finished / "work").rglob("*.json"))
    assert (finished / TRUNK / "checkpoints" / "last.safetensors").is_file()


def test_a_cell_has_no_page_of_its_own_and_says_where_its_scores_stand(finished: Path) -> None:
    done = fedgs("report", str(finished / CELL), check=False)
    assert done.returncode == 1
    assert "is a run of a study, of which only scores are kept" in " ".join(done.stderr.split())


def test_the_masks_are_those_that_were_scored(finished: Path, data: Path) -> None:
    cell = finished / CELL
    kept = pd.read_csv(cell / "masks" / "cases.csv").set_index(["site", "case"])
    scores = read_scores(cell / "scores.csv").set_index(["site", "case"])
    tests = scores[scores["part"].str.startswith("test") & scores["is_small"]]
    assert set(kept.index) == set(tests.index)
    assert len(kept) > 0
    index = open_data(data, size=32)
    rows = index.table.reset_index().set_index(["site", "case"])["index"]
    for case, row in kept.iterrows():
        image = Image.open(cell / "masks" / row["name"])
        assert image.mode == "1"
        mask, truth = np.asarray(image), index.mask(int(rows.loc[case]))  # type: ignore[call-overload]
        assert mask.shape == truth.shape
        found = [(mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum()]
        assert found == scores.loc[case, ["tp", "fp", "fn"]].to_list()  # type: ignore[index]
        assert row["part"] == scores.loc[case, "part"]  # type: ignore[index]


def test_the_choice_of_the_tuning_is_that_of_validation_and_is_marked(finished: Path) -> None:
    folder, plan = StudyFolder(finished), read_plan(finished / "plan.toml")
    means = {trial.choice: folder.result(trial).validation("dice_n")[1] for trial in plan.trials("fedavg-published")}
    best = dict(max(means, key=lambda choice: means[choice]))
    assert folder.chosen(plan) == {"fedavg-published": best}
    for cell in plan.cells():
        told = folder.result(cell).told
        assert told["settings"]["lr"] == best["lr"]
        assert told["tuned"] is True
    assert (
        folder.result(next(run for run in plan.runs() if isinstance(run, Trunk))).told["settings"]["lr"] == best["lr"]
    )


def test_a_trial_is_judged_by_the_last_quarter_of_its_rounds(study: Path) -> None:
    folder, plan = StudyFolder(study), read_plan(study / "plan.toml")
    first, second = plan.trials("fedavg-published")
    with_curve(study / first.path, [*np.linspace(0.9, 0.4, 6), 0.41, 0.41])
    with_curve(study / second.path, [*np.linspace(0.1, 0.3, 6), 0.5, 0.45])
    assert folder.chosen(plan) == {"fedavg-published": dict(second.choice)}
    with_curve(study / second.path, [*np.linspace(0.1, 0.9, 6), 0.3, 0.5])
    assert folder.chosen(plan) == {"fedavg-published": dict(first.choice)}


def test_cells_of_a_trunk_start_from_its_last_weights_and_are_what_training_gives(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    folder, plan = StudyFolder(finished), read_plan(finished / "plan.toml")
    branched = [cell for cell in plan.cells() if cell.trunk]
    trunk = branched[0].trunk
    assert trunk is not None
    assert {folder.result(cell).told["start"] for cell in branched} == {folder.result(trunk).told["weights"]}
    settings = folder.result(branched[1]).told["settings"]
    lr, out = str(settings["lr"]), tmp_path / "run"
    fedgs(
        *("train", "--data", str(data), "--out", str(out), "--algorithm", "fedgs", "--lr", lr, "--rounds", "2"),
        *("--local-steps", "2", "--size", "32", "--unseen-site", "Cedar", "--model-option", "norm=instance"),
        *("--init-from", str(finished / TRUNK), "--init-checkpoint", "last"),
    )
    ours = [_timeless(record) for record in map(dict, folder.result(branched[1]).rounds)]
    assert ours == [_timeless(json.loads(line)) for line in (out / "rounds.jsonl").read_text().splitlines()]
    losses = [folder.result(cell).rounds[0]["sites"]["Alder"]["loss"] for cell in plan.cells()]
    assert losses[0] == losses[1] != losses[2]  # the first steps of arms that only scale are equal


def test_the_table_has_a_row_per_cell(finished: Path) -> None:
    table = pd.read_csv(finished / "study.csv", keep_default_na=False)
    assert table["state"].tolist() == ["finished"] * 3
    assert table["arm"].tolist() == ["fedavg-published", "fedgs", "fedgs"]
    assert table["start"].tolist() == ["trunk", "trunk", "scratch"]
    assert table["converged"].tolist() == ["", "", ""]  # two and two rounds tell nothing
    summary = read_json(finished / CELL / "summary.json")
    for outcome in OUTCOMES:
        means = summary["test_out"][outcome]
        assert table[f"test_out_{outcome}_images"][1] == means["n"]
        assert float(table[f"test_out_{outcome}"][1]) == means["mean"]


def test_the_overview_tells_how_many_images_of_dice_s_hold_a_large_lesion(finished: Path) -> None:
    plan, folder = read_plan(finished / "plan.toml"), StudyFolder(finished)
    console = Console(width=400, record=True, file=io.StringIO())
    for table in overview(plan, cells_table(plan, folder)):
        console.print(table)
    text = console.export_text()
    summaries = [folder.result(cell).summary["test_out"] for cell in plan.cells()]
    small, mixed = (summaries[0][name]["n"] for name in ("dice_s", "dice_m"))
    assert small > mixed > 0
    row = next(line for line in text.splitlines() if line.strip().startswith("fedavg-published"))
    assert f"{summaries[0]['dice_s']['mean']:.3f} ({small}/{mixed})" in row
    assert f"{summaries[0]['dice_n']['mean']:.3f} ({summaries[0]['dice_n']['n']})" in row
    assert "judged by Dice-T" in text


def test_going_on_with_a_finished_study_changes_nothing(study: Path, data: Path) -> None:
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert resume(study, data, study / "plan.toml").returncode == 0
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def test_a_study_goes_on_elsewhere_from_what_is_committed_and_its_plan_may_grow(
    study: Path, data: Path, tmp_path: Path
) -> None:
    (study / TRUNK / "checkpoints" / "last.safetensors").unlink()
    before = contents(study / "cells")
    grown = {**PLAN["cells"][0], "arms": ["fedavg-published", "fedgs", "matched-site"]}
    plan = written(tmp_path / "grown.toml", cells=[grown, PLAN["cells"][1]])
    done = resume(study, data, plan)
    assert done.returncode == 0, done.stderr
    after = contents(study / "cells")
    assert {name: after[name] for name in before} == before
    added = [name for name in after if name not in before]
    assert {Path(name).parts[2] for name in added} == {"matched-site"}
    assert "matched-site" in done.stdout


def test_a_trunk_tells_nothing_of_the_machine_and_is_the_same_where_the_data_lie_elsewhere(
    study: Path, data: Path, tmp_path: Path
) -> None:
    for path in (study / TRUNK).rglob("*"):
        if path.suffix in (".json", ".toml", ".csv", ".jsonl"):
            text = path.read_text()
            assert str(data) not in text
            assert socket.gethostname() not in text.replace("-", " ").split()
    assert "host" not in read_json(study / TRUNK / "environment.json")
    (study / TRUNK / "checkpoints" / "last.safetensors").unlink()
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    grown = {**PLAN["cells"][0], "arms": ["fedavg-published", "fedgs", "matched-site"]}
    done = resume(study, elsewhere, written(tmp_path / "grown.toml", cells=[grown, PLAN["cells"][1]]))
    assert done.returncode == 0, done.stderr
    assert (study / Path(CELL).with_name("matched-site")).exists()


def test_earlier_plans_are_kept_and_a_folder_may_be_described(study: Path, data: Path, tmp_path: Path) -> None:
    (study / "README.md").write_text("About this study")
    first = (study / "plan.toml").read_text()
    texts = [first]
    for name in ("once", "twice"):
        plan = written(tmp_path / f"{name}.toml", name=name)
        assert resume(study, data, plan).returncode == 0
        texts.append(plan.read_text())
    assert (study / "plan.toml").read_text() == texts[2]
    assert [(study / "earlier-plans" / f"{number}.toml").read_text() for number in (1, 2)] == texts[:2]


def test_a_run_under_way_that_was_damaged_fails_alone(study: Path, data: Path, tmp_path: Path) -> None:
    work = study / "work" / Path(CELL).with_name("matched-site")
    (work / "checkpoints").mkdir(parents=True)
    for name in ("config.toml", "checkpoints/last.safetensors"):
        (work / name).write_text("\x00 nonsense")
    arms = ["fedavg-published", "fedgs", "matched-site", "matched-global"]
    grown = written(tmp_path / "grown.toml", cells=[PLAN["cells"][0] | {"arms": arms}, PLAN["cells"][1]])
    done = resume(study, data, grown)
    assert done.returncode == 1
    assert f"or delete {work} to have it start over" in " ".join(done.stderr.split())
    table = pd.read_csv(study / "study.csv")
    assert table["state"].tolist() == ["finished", "finished", "failed", "finished", "finished"]


def test_cells_that_went_on_from_another_trunk_are_not_mixed(study: Path, data: Path, tmp_path: Path) -> None:
    path = study / CELL / "summary.json"
    summary = dict(read_json(path))
    summary["study"] = {**summary["study"], "start": "0" * 64}
    path.write_text(json.dumps(sealed(summary)))
    grown = {**PLAN["cells"][0], "arms": ["fedavg-published", "fedgs", "matched-site"]}
    done = resume(study, data, written(tmp_path / "grown.toml", cells=[grown, PLAN["cells"][1]]))
    assert done.returncode == 1
    assert "its trunk was made again" in done.stderr
    assert not (study / Path(CELL).with_name("matched-site")).exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"primary": PLAN["primary"] | {"outcome": "dice_s"}}, "outcome: 'dice_t' -> 'dice_s'"),
        ({"primary": PLAN["primary"] | {"margin": 0.02}}, "margin: 0.01 -> 0.02"),
        ({"primary": PLAN["primary"] | {"contrasts": [["fedavg-published", "fedgs"]]}}, "contrasts:"),
        ({"settings": PLAN["settings"] | {"rounds": 3}}, "rounds: 2 -> 3"),
        ({"threads": 2}, "threads: 1 -> 2"),
        ({"trunk": {"rounds": 3}}, f"in '{TRUNK}', rounds: 2 -> 3"),
        ({"cells": PLAN["cells"][:1]}, "is the study of another plan: it has 'cells/from-scratch"),
    ],
)
def test_a_folder_of_another_plan_is_refused(
    changes: dict[str, Any], said: str, study: Path, data: Path, tmp_path: Path
) -> None:
    before = contents(study)
    assert said in refused(study, data, written(tmp_path / "other.toml", **changes))
    assert contents(study) == before


def test_other_data_are_refused(study: Path, data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "other")
    image = next((other / "Birch" / "images").iterdir())
    Image.new("RGB", (64, 64)).save(image)
    assert "are not those that" in refused(study, other, study / "plan.toml")


def test_the_primary_outcome_is_fixed_even_where_the_plan_in_the_folder_was_edited(study: Path, data: Path) -> None:
    written(study / "plan.toml", primary=PLAN["primary"] | {"outcome": "dice"})
    assert "declared before the first run" in refused(study, data, study / "plan.toml")


def test_an_existing_folder_needs_resume_and_a_foreign_one_is_refused(study: Path, data: Path, tmp_path: Path) -> None:
    plan = study / "plan.toml"
    done = fedgs("study", str(plan), "--data", str(data), "--out", str(study), check=False)
    assert "exists already" in done.stderr
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("Dear")
    assert "holds 'letter.txt'" in refused(tmp_path / "foreign", data, plan)


@pytest.mark.parametrize("name", ["summary.json", "scores.csv", "rounds.jsonl", "masks/cases.csv", "masks/*.png"])
def test_an_altered_cell_is_refused(name: str, study: Path) -> None:
    path = min((study / CELL).glob(name))
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    plan = read_plan(study / "plan.toml")
    cell = next(cell for cell in plan.cells() if cell.path == CELL)
    with pytest.raises(CheckpointError, match=name.partition("/")[0]):
        StudyFolder(study).result(cell).require_whole()


def test_a_missing_cell_is_run_again_and_nothing_else(study: Path, data: Path) -> None:
    before = contents(study)
    shutil.rmtree(study / CELL)
    plan = read_plan(study / "plan.toml")
    assert cells_table(plan, StudyFolder(study))["state"].tolist() == ["finished", "missing", "finished"]
    assert resume(study, data, study / "plan.toml").returncode == 0
    assert {k: v for k, v in contents(study).items() if k != "study.csv"} == {
        k: v for k, v in before.items() if k != "study.csv"
    }


def test_a_failed_cell_does_not_stop_the_rest_and_is_shown(data: Path, tmp_path: Path) -> None:
    arms = {"hot": {"algorithm": "fedavg-published", "lr": 1e30}}
    cells = [{"arms": ["hot", "fedavg-published", "fedgs"], "unseen_sites": ["Cedar"]}]
    plan = {name: PLAN[name] for name in ("primary", "settings")} | {"arms": arms, "cells": cells}
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan))
    out = tmp_path / "study"
    done = fedgs("study", str(tmp_path / "plan.toml"), "--data", str(data), "--out", str(out), check=False)
    assert done.returncode == 1
    assert "1 of 3 runs are not finished" in done.stderr
    table = pd.read_csv(out / "study.csv", keep_default_na=False)
    assert table["state"].tolist() == ["failed", "finished", "finished"]
    assert "the loss is nan" in table["reason"][0]
    assert "0 of 1, 1 failed" in done.stdout
    assert table["tuned"].tolist() == [False] * 3


def test_what_needs_a_failed_run_fails_with_it(data: Path, tmp_path: Path) -> None:
    trunk = {"rounds": 1, "lr": 1e30}
    cells = [{"arms": ["fedgs", "fedavg-published"], "unseen_sites": ["Cedar"]}]
    plan = {name: PLAN[name] for name in ("primary", "settings")} | {"trunk": trunk, "cells": cells}
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan))
    out = tmp_path / "study"
    done = fedgs("study", str(tmp_path / "plan.toml"), "--data", str(data), "--out", str(out), check=False)
    assert done.returncode == 1
    assert f"'{TRUNK}', which it needs, failed" in done.stderr
    assert set(pd.read_csv(out / "study.csv")["state"]) == {"failed"}


def test_a_run_whose_process_is_killed_fails_alone_and_goes_on_later(data: Path, study: Path) -> None:
    plan = study / "plan.toml"
    before = contents(study / "cells")
    for cell in ("fedgs", "fedavg-published"):
        shutil.rmtree(study / Path(CELL).with_name(cell))

    def kill_one(status: Status) -> None:
        if not status.failed and len(status.running) == 1:
            for process in multiprocessing.active_children():
                process.kill()

    folder = run_study(plan, study, data=data, resume=True, watch=kill_one)
    cells = read_plan(plan).cells()
    assert [folder.is_finished(cell) for cell in cells].count(False) == 1
    (lost,) = (cell for cell in cells if not folder.is_finished(cell))
    assert "ended by signal 9" in str(folder.failure(lost))
    assert resume(study, data, plan).returncode == 0
    assert contents(study / "cells") == before


def wait_for_file(folder: Path, pattern: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 200
    while not list(folder.glob(pattern)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_study_goes_on_to_the_same_results(finished: Path, data: Path, tmp_path: Path) -> None:
    plan, out = written(tmp_path / "plan.toml"), tmp_path / "study"
    arguments = ["study", str(plan), "--data", str(data), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_file(out, "work/trunks/*/rounds.jsonl", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = fedgs(*arguments, "--resume")
    assert "6 of 6 runs finished" in done.stdout
    assert contents(out / "cells") == contents(finished / "cells")


def test_ctrl_c_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    plan, out = written(tmp_path / "plan.toml"), tmp_path / "study"
    arguments = ["study", str(plan), "--data", str(data), "--out", str(out)]
    process = start(*arguments)
    wait_for_file(out, "work/tune/*/*/config.toml", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"fedgs study {plan} --data {data} --out {out} --jobs 1 --resume" in errors
    assert "Traceback" not in errors


def test_ctrl_c_in_a_terminal_is_heard_by_the_study_alone_even_while_it_starts(data: Path, tmp_path: Path) -> None:
    plan, out = written(tmp_path / "plan.toml"), tmp_path / "study"
    process = start("study", str(plan), "--data", str(data), "--out", str(out), group=True)
    wait_for_file(out, "plan.toml", process)  # the first process is being started now
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Interrupted" in errors


def test_two_studies_do_not_write_to_one_folder(study: Path, data: Path) -> None:
    from fedgs.locks import locked

    with locked(study):
        holder = f"process {os.getpid()}"
        with pytest.raises(ConfigError, match=holder):
            run_study(study / "plan.toml", study, data=data, resume=True)


@pytest.mark.parametrize(
    ("cells", "settings", "said"),
    [
        (
            {"arms": ["fedbn"]},
            {"model_options": {"norm": "instance"}},
            "cells/from-scratch/all-sites-fold0-seed0/fedbn: ",
        ),
        ({"arms": ["fedgs+matched-site"]}, {}, "both say how a hospital's steps count"),
        (
            {"arms": ["fedgs"], "unseen_sites": ["Sedar"]},
            {},
            "unknown hospital in unseen_sites 'Sedar'; did you mean 'Cedar'",
        ),
        ({"arms": ["fedgs"]}, {"model": "unett"}, "unknown model 'unett'"),
        ({"arms": ["fedgs"]}, {"size": 33}, "multiple"),
        ({"arms": ["fedgs"]}, {"batch_size": 64}, "fewer than one batch of 64"),
        ({"arms": ["fedgs"]}, {"mu": 0.1}, "'mu' is no option of algorithm 'fedgs'"),
        ({"arms": ["fedgs+fedprox"]}, {"mu": -0.1}, "mu"),
        ({"arms": ["fedgs"]}, {"style_from": 3}, "cells/from-scratch/all-sites-fold0-seed0/fedgs: "),
        ({"arms": ["local"]}, {"fraction_of_sites": 0.5}, "leave out fraction_of_sites"),
        ({"arms": ["fedgs"]}, {"share_style": {"X": False}}, "unknown hospital in share_style 'X'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(
    cells: dict[str, Any], settings: dict[str, Any], said: str, data: Path, tmp_path: Path
) -> None:
    arms = [*cells["arms"], "fedavg-published"]
    plan = {"primary": PLAN["primary"] | {"contrasts": [arms]}, "settings": settings, "cells": [cells | {"arms": arms}]}
    if "mu" in settings:
        plan |= {"settings": {}, "arms": {arms[0]: settings}}
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan))
    done = fedgs("study", str(tmp_path / "plan.toml"), "--data", str(data), "--out", str(tmp_path / "s"), check=False)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "s").exists()


def test_it_needs_data_and_a_number_of_jobs(data: Path, tmp_path: Path) -> None:
    plan = written(tmp_path / "plan.toml")
    with pytest.raises(ConfigError, match="--data DIR"):
        run_study(plan, tmp_path / "study")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        run_study(plan, tmp_path / "study", data=data, jobs=0)


def test_a_dry_run_tells_the_grid_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    done = fedgs(
        "study", str(written(tmp_path / "plan.toml")), "--data", str(data), "--out", str(tmp_path / "s"), "--dry-run"
    )
    assert not (tmp_path / "s").exists()
    rows = {tuple(line.split()[:4]) for line in done.stdout.splitlines() if line.split()}
    assert {("trunk", "Cedar", "1", "0"), ("fedavg-published", "Cedar", "1", "0"), ("fedgs", "Cedar", "2", "0")} <= rows
    assert ("fedavg-published,", "tuning", "none", "2") in rows
    assert "6 of 6 runs are left, about" in done.stdout


def test_a_dry_run_leaves_out_what_is_finished(study: Path, data: Path) -> None:
    before = contents(study)
    done = fedgs("study", str(study / "plan.toml"), "--data", str(data), "--out", str(study), "--dry-run")
    assert "0 of 6 runs are left, about 0s" in done.stdout
    assert contents(study) == before


def test_an_estimate_adds_up_what_a_run_does(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, index = read_plan(written(tmp_path / "plan.toml")), open_data(data, size=32)
    monkeypatch.setattr(
        estimating, "measure", lambda config: Cost(step_s=2.0, validation_s=0.1, test_s=0.01, start_s=5)
    )
    found = estimate(plan, index).set_index("path")
    parts = split_cases(index.table, unseen_site="Cedar")["part"].value_counts()
    tested = 2 * 0.01 * (parts["test_in"] + parts["test_out"])
    sites = index.table["site"].nunique() - 1
    seconds = 5 + 2 * (2 * sites * 2.0 + 0.1 * parts["validation"]) + tested
    assert found.loc[CELL, ["rounds", "steps", "unseen_site"]].tolist() == [2, 2 * sites, "Cedar"]
    assert found.loc[CELL, "seconds"] == pytest.approx(seconds)
    half = read_plan(written(tmp_path / "half.toml", settings=PLAN["settings"] | {"fraction_of_sites": 0.5}))
    assert estimate(half, index).set_index("path").loc[CELL, "steps"] == 2 * round(0.5 * sites)


def test_gain_tells_a_curve_that_rises_from_one_that_does_not() -> None:
    rounds = np.arange(40)
    rising, flat = 0.4 + 0.005 * rounds, 0.6 - 0.3 * np.exp(-rounds / 5)
    assert gain(numbered(rising)) == pytest.approx(0.005 * 9)
    settled = gain(numbered(flat))
    assert settled is not None
    assert 0 < settled < 0.01
    assert gain(numbered([0.5] * 15)) is None
    noise = np.random.default_rng(0).normal(0, 0.01, (200, 148))
    errors = np.array([gain(numbered(0.6 + row)) for row in noise])
    assert errors.std() == pytest.approx(0.006, abs=0.001)


def test_gain_is_per_round_however_seldom_validation_is_scored() -> None:
    seldom = {number: value for number, value in numbered(0.4 + 0.005 * np.arange(160)).items() if number % 10 == 0}
    assert gain(seldom) == pytest.approx(0.005 * 39)
    trunk_often = {number: 0.4 + 0.002 * number for number in [*range(1, 81), *range(85, 121, 5)]}
    assert gain(trunk_often) == pytest.approx(0.002 * 29)


def test_a_rise_and_a_collapse_are_not_convergence() -> None:
    rises = [0.0099, 0.0101, -0.02, -0.6, None]
    assert [is_converged(rise) for rise in rises] == [True, False, True, False, None]


def numbered(curve: Any) -> dict[int, float]:
    return {number: float(value) for number, value in enumerate(curve, 1)}


def with_curve(run: Path, curve: Any) -> None:
    """Lets a run have had other validation Dice, and as many rounds."""
    record = json.loads((run / "rounds.jsonl").read_text().splitlines()[0])
    lines = []
    for number, mean in numbered(curve).items():
        record["validation"]["dice_n"]["mean"] = mean
        lines.append(json.dumps(record | {"round": number}) + "\n")
    (run / "rounds.jsonl").write_text("".join(lines))
    summary = dict(read_json(run / "summary.json"))
    digest = hashlib.sha256((run / "rounds.jsonl").read_bytes()).hexdigest()
    summary |= {"files": {**summary["files"], "rounds.jsonl": digest}, "rounds": len(lines)}
    (run / "summary.json").write_text(json.dumps(sealed(summary)))


def test_cells_are_judged_by_the_curve_of_trunk_and_baseline(study: Path) -> None:
    plan, folder, baseline = read_plan(study / "plan.toml"), StudyFolder(study), study / Path(CELL).with_name(BASELINE)
    with_curve(study / TRUNK, [0.5] * 8)
    with_curve(baseline, [0.5] * 8)
    table = cells_table(plan, folder)
    assert table["gain"].tolist()[:2] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert table["converged"].tolist() == ["True", "True", ""]
    with_curve(baseline, np.linspace(0.5, 0.6, 8))
    assert cells_table(plan, folder)["converged"].tolist() == ["False", "False", ""]
    shutil.rmtree(baseline)  # the trunk's curve alone says nothing of what came after it
    assert cells_table(plan, folder)["converged"].tolist() == ["", "", ""]
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(next(overview(plan, cells_table(plan, folder))))
    assert "not known" in next(line for line in console.export_text().splitlines() if line.strip().startswith("fedgs"))


def test_only_the_baseline_itself_tells_of_convergence(study: Path, data: Path, tmp_path: Path) -> None:
    arms = PLAN["arms"] | {"hot": {"algorithm": BASELINE, "lr": 1e-3}}
    cells = [{**PLAN["cells"][0], "arms": ["hot", *PLAN["cells"][0]["arms"]]}, PLAN["cells"][1]]
    plan, folder = read_plan(written(tmp_path / "hot.toml", arms=arms, cells=cells)), StudyFolder(study)
    hot = study / Path(CELL).with_name("hot")
    shutil.copytree(study / CELL, hot)
    with_curve(study / TRUNK, [0.5] * 8)
    with_curve(hot, [0.5] * 8)
    with_curve(study / Path(CELL).with_name(BASELINE), np.linspace(0.5, 0.6, 8))
    assert cells_table(plan, folder)["converged"].tolist() == ["False"] * 3 + [""]


def test_a_cell_is_a_value() -> None:
    assert Cell("fedgs", None, 0, 1) == Cell("fedgs", None, 0, 1) != Cell("fedgs", "None", 0, 1)
    assert Cell("fedgs", None, 0, 1).path != Cell("fedgs", "all-sites", 0, 1).path
