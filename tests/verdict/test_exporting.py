"""The table of a paper, against sums over images made by hand."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fedgs.errors import ConfigError
from fedgs.files import read_json
from fedgs.verdict.exporting import FORMS, export_table
from fedgs.verdict.observed import Observation, observe
from made_runs import write_run
from observed_runs import observed, study
from runs import fedgs

GAINS = {"fedavg-published": 0.0, "fedgs": 0.1}
STRATA = {"Dice": "dice", "Dice-S": "dice_s", "Dice-T": "dice_t", "Dice-L": "dice_l", "Dice-N": "dice_n"}
COUNTS = {
    "Dice": lambda t: t["dice"] >= 0,
    "Dice-S": lambda t: t["is_small"],
    "Dice-T": lambda t: t["is_tiny"],
    "Dice-L": lambda t: (t["lesion_area"] > 0) & ~t["is_small"],
    "Dice-N": lambda t: t["lesion_area"] > 0,
}


def read_markdown(text: str) -> dict[str, dict[str, str]]:
    """Cells by row and column, as a reader of Markdown shows them; marks of notes stay behind names."""
    cells: list[list[str]] = []
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            cells.append([])
        if before.type in ("th_open", "td_open"):
            cells[-1].append("".join(child.content for child in token.children))
    header, *rows = cells
    assert {len(row) for row in rows} == {len(header)}
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def read_latex(text: str) -> list[list[str]]:
    """Cells of a LaTeX table, a list a line; made sure that it could compile."""
    without_text = re.sub(r"\\[\\&%$#_{}]", "", text)
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([\w*]+)\}", without_text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    depth = np.cumsum([{"{": 1, "}": -1}.get(letter, 0) for letter in without_text])
    assert depth.min() >= 0
    assert depth[-1] == 0
    assert without_text.count("$") % 2 == 0
    assert not set("#_~^<>|") & set(without_text)
    head, *others = without_text.split("\n")
    assert head.startswith("%")
    assert "%" not in "".join(others)
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r" \\")]
    assert not [line for line in lines if line.startswith(("[", "*"))]  # would be arguments of the \\ before
    rows = [re.split(r"(?<!\\)&", line) for line in lines]
    columns = len(re.search(r"\{(lr+)\}", text)[1])
    spans = [sum(int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", line)) or None for line in lines]
    widths = {1 + span if span else len(row) for span, row in zip(spans, rows, strict=True)}
    assert widths == {columns}
    return [[cell.strip() for cell in row] for row in rows]


def by_hand(runs: Observation, arm: str, part: str, stratum: str, seeds: Sequence[int]) -> tuple[float, int]:
    of_case: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in runs.of(arm):
        rows = run.scores[(run.scores["part"] == part) & COUNTS[stratum](run.scores)]
        for site, case, dice in zip(rows["site"], rows["case"], rows["dice"], strict=True):
            if run.seed in seeds:
                of_case.setdefault((site, case), {}).setdefault(run.fold, []).append(dice)
    of_folds = [[np.mean(dice) for dice in folds.values()] for folds in of_case.values()]
    return float(np.mean([np.mean(each) for each in of_folds])), len(of_case)


def test_every_image_counts_once_by_folds_and_the_sd_is_over_seeds() -> None:
    runs = study(GAINS, seeds=(0, 1, 2), sites=("C1", "C4"))
    twice = [replace(run, fold=1, scores=run.scores.assign(dice=run.scores["dice"] ** 2)) for run in runs.runs[:2]]
    runs = replace(runs, runs=[*runs.runs, *twice])  # cases that are scored in two folds by one seed
    plain = replace(runs, runs=runs.runs[:-2])
    for observation, has_sd in ((plain, True), (runs, False)):
        table = read_markdown(export_table(observation, "markdown"))
        assert list(table) == list(GAINS)
        for arm, cells in table.items():
            assert list(cells) == [f"out-test {name}" for name in STRATA]
            for name in STRATA:
                mean, count = by_hand(observation, arm, "test_out", name, (0, 1, 2))
                sd = np.std([by_hand(observation, arm, "test_out", name, [seed])[0] for seed in range(3)], ddof=1)
                shown = f"{mean:.3f} ± {sd:.3f}" if has_sd else f"{mean:.3f}"
                images = f"{count}/0" if name == "Dice-S" else f"{count}"
                assert cells[f"out-test {name}"] == f"{shown} ({images})"
    assert "standard deviation over seeds" in export_table(plain, "markdown")
    assert "standard deviation" not in export_table(runs, "markdown")


def test_an_image_that_several_networks_scored_counts_once_in_each_run() -> None:
    run = observed("local", None)
    others = [run.scores.assign(network=name, dice=run.scores["dice"] * share) for name, share in (("A", 1), ("B", 0))]
    table = export_table(Observation("", [replace(run, scores=pd.concat(others, ignore_index=True))]), "markdown")
    assert read_markdown(table)["local"]["in-test Dice"] == f"{run.scores['dice'].mean() / 2:.3f} ({len(run.scores)})"


def test_both_forms_show_the_same() -> None:
    runs = study(GAINS, sites=("C1",))
    runs = replace(runs, runs=[*runs.runs, observed("local", None)], missing=["cells/a"])
    head, titles, *lines = read_latex(export_table(runs, "latex"))
    assert [cell for cell in head if cell] == [rf"\multicolumn{{5}}{{c}}{{{part}}}" for part in ("in-test", "out-test")]
    assert titles == ["", *STRATA, *STRATA]
    table = read_markdown(export_table(runs, "markdown"))
    for (arm, cells), means, images in zip(table.items(), lines[::2], lines[1::2], strict=True):
        assert re.sub(r"\\textsuperscript\{(.*)\}", r"<sup>\1</sup>", means[0]) == arm
        shown = [f"{mean} {count}" for mean, count in zip(means[1:], images[1:], strict=True)]
        assert [cell.replace(r"$\pm$", "±") for cell in shown] == list(cells.values())
    assert table["fedgs"]["in-test Dice"] == "- (0)"
    for form in FORMS:
        told = export_table(runs, form)
        assert "5 hospitals (1 of them left out), 168 test images, 2 seeds." in told
        assert "1 run of the plan is not there." in told


def test_arms_with_other_runs_than_the_first_one_are_marked() -> None:
    runs = study(GAINS, sites=("C4", "C5"))
    more = [
        observed("other-site", "C3"),
        observed("fewer", "C4", 1),
        *(observed("longer", site, seed, settings={"rounds": 60}) for site in ("C4", "C5") for seed in (0, 1)),
        *(observed("uneven", site, seed) for site, seed in (("C4", 0), ("C5", 0), ("C5", 1))),
    ]
    told = export_table(replace(runs, runs=[*runs.runs, *more]), "markdown")
    assert [name for name in read_markdown(told) if "<sup>" not in name] == list(GAINS)
    table = {name.partition("<")[0]: cells for name, cells in read_markdown(told).items()}
    reference = "which has left-out hospitals C4, C5, fold 0, seeds 0, 1; this arm has"
    assert f"{reference} left-out hospital C3, fold 0, seed 0." in told
    assert f"{reference} left-out hospital C4, fold 0, seed 1." in told
    assert f"{reference} without C4, fold 0, seed 0; without C5, fold 0, seeds 0, 1." in told
    assert "Not comparable with fedavg-published: the runs differ in " in told
    assert "rounds: 60 for longer, 30 for fedavg-published" in told
    assert "±" in table["longer"]["out-test Dice"]
    assert "±" not in table["uneven"]["out-test Dice"]  # its seeds differ in hospitals, too


@settings(max_examples=30)
@given(st.text(alphabet=st.sampled_from("a1&%$#_{}~^\\|[]*<>`±é\n \x00(-"), min_size=1))
def test_names_cannot_break_the_table(name: str) -> None:
    arm = f"x{name}x"
    runs = Observation("", [observed(arm, "C5"), observed(f"{name}y", "C4")])
    shown = "".join(letter if letter.isprintable() else "?" for letter in arm)
    names = [*read_markdown(export_table(runs, "markdown"))]
    assert names[0] == shown
    assert names[1].endswith("y<sup>1</sup>")
    assert len(read_latex(export_table(runs, "latex"))) == 6


def test_a_table_of_run_folders_and_of_one_alone(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, algorithm=name, rounds=2, overlays=False) for name in GAINS]
    for number in (1, 2):
        done = fedgs("export-table", *map(str, runs[:number]), "--markdown")
        table = read_markdown(done.stdout)
        assert [*table] == [*GAINS][:number]
        for run, cells in zip(runs, table.values(), strict=False):
            summary = read_json(run / "summary.json")
            for part, name in (("test_in", "in-test"), ("test_out", "out-test")):
                for stratum, key in STRATA.items():
                    mean, count = summary[part][key]["mean"], str(summary[part][key]["n"])
                    count += f"/{summary[part]['dice_m']['n']}" if key == "dice_s" else ""
                    assert cells[f"{name} {stratum}"] == f"{mean:.3f} ({count})"
    out = tmp_path / "table.tex"
    done = fedgs("export-table", *map(str, runs), "--latex", "--out", str(out))
    assert done.stdout == f"Written: {out}\n"
    assert out.read_text() == export_table(observe(runs), "latex")
    assert len(read_latex(out.read_text())) == 6


def test_bad_input_gives_one_message_and_writes_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=2, overlays=False, per_site=40)
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    rows = {
        f"{run}": "give one of --latex and --markdown",
        f"{run} --latex --markdown": "give one of --latex and --markdown",
        f"{tmp_path}/no --latex": "no such run folder",
        f"{unfinished} --latex": "not a finished run",
        f"{run} {run} --latex": "the same run folder twice",
        f"{run} --latex --out {run}": f"{run}: is a folder; --out names a file, such as {run}/table.tex",
        f"{run} --latex --out {tmp_path}/no/t.tex": f"{tmp_path}/no: no such folder; make it",
        f"{run} --latex --out {run}/scores.csv": "the table is latex; give --out a name that ends in .tex",
        f"{run} --markdown --out {tmp_path}/t.tex": "ends in .md",
    }
    for line, says in rows.items():
        done = fedgs("export-table", *line.split(), check=False)
        assert (done.returncode, done.stdout) == (1, ""), line
        assert says in " ".join(done.stderr.split()), line
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ConfigError, match="unknown form of a table 'html'"):
        export_table(study(GAINS), "html")
