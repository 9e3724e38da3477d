"""What the documentation shows is what the package does."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from fedgs import algorithms, engine, models
from fedgs.core import run_round
from fedgs.errors import ConfigError, TrainingError
from nets import batches, tiny
from runs import FLAGS, command, environment, fedgs, flags, make_phantom

REPOSITORY = Path(__file__).resolve().parents[1]


def test_tables_of_results_are_what_the_runs_say() -> None:
    done = subprocess.run(
        [sys.executable, "docs/results/generate.py", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, after what its hidden remarks (`<!-- test: … -->`) change in it."""

    language: str
    text: str
    remarks: tuple[str, ...]

    def remark(self, start: str) -> str | None:
        return next((remark.removeprefix(start).strip() for remark in self.remarks if remark.startswith(start)), None)


def blocks_of(page: str) -> Iterator[Block]:
    text = (REPOSITORY / page).read_text()
    for hidden, language, body in re.findall(r"((?:<!-- test: .*? -->\n)*)```(\w+)\n(.*?)```", text, re.DOTALL):
        remarks = re.findall(r"<!-- test: (.*?) -->", hidden)
        for shown, run in (remark.split(" => ") for remark in remarks if " => " in remark):
            assert shown in body, f"{page}: {shown!r} is not in the block that it changes"
            body = body.replace(shown, run)
        yield Block(language, body, tuple(remarks))


class Reader:
    """Does what a page says, block by block, in the working folder.

    Args:
        page: The page, relative to the repository.
        scope: Names that its Python may use.
        checkout: A copy of the repository, where the page changes the package; its commands are then processes.
    """

    def __init__(self, page: str, scope: dict[str, Any] | None = None, checkout: Path | None = None) -> None:
        self.page, self.scope, self.checkout = page, {} if scope is None else scope, checkout
        self.printed = ""

    def follow(self, before: Callable[[Block], None] = lambda block: None) -> None:
        for block in blocks_of(self.page):
            if "not run" in block.remarks:
                continue
            before(block)
            if name := block.remark("file "):
                file = (self.checkout or Path()) / name
                assert not file.exists(), f"{self.page}: {name} is there already"
                file.write_text(block.text)
            elif block.language == "python":
                exec(compile(block.text, self.page, "exec"), self.scope)
            elif block.language == "diff":
                self.change(block.text)
            elif block.language == "sh":
                for line in block.text.replace("\\\n", " ").splitlines():
                    self.run(*shlex.split(line, comments=True), fails="crashes in round 2" in block.remarks)
            elif "printed" in block.remarks:
                assert block.text in self.printed, f"{self.page} shows\n{block.text}\nprinted was\n{self.printed}"

    def run(self, program: str, *arguments: str, fails: bool = False) -> None:
        if self.checkout:
            programs = {".venv/bin/fedgs": command(), ".venv/bin/python": [sys.executable]}
            done = subprocess.run(
                [*programs[program], *arguments],
                cwd=self.checkout,
                env=environment() | {"PYTHONPATH": str(self.checkout / "src")},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            self.printed = done.stdout
        elif program == "python":
            runpy.run_path(*arguments)
        else:
            assert program == "fedgs"
            done = fedgs(*arguments, check=not fails)
            assert (done.returncode != 0) is fails
            self.printed = done.stdout

    def change(self, diff: str) -> None:
        """Applies a diff whose hunks have no line numbers; what a hunk replaces must stand in the file once."""
        assert self.checkout
        name, hunks = re.fullmatch(r"--- (\S+)\n(.*)", diff, re.DOTALL).groups()
        file = self.checkout / name
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))
            assert file.read_text().count(old) == 1, f"{self.page}: not in {name}:\n{old}"
            file.write_text(file.read_text().replace(old, new))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("src", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_readme(here: Path) -> None:
    make_phantom(here / "frames", 8)
    make_phantom(here / "elsewhere", 4, seed=1)
    model, batch = tiny(), next(batches(1, 0))
    scope = {
        "model": model,
        "server": tiny(),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "masks": batch.masks,
        "is_small": batch.is_small,
        "n": 4,
    }
    Reader("README.md", scope).follow()
    assert scope["update"].num_steps == 1
    assert (here / "runs" / "report.html").is_file()


def test_the_tutorial(here: Path) -> None:
    Reader("docs/tutorial.md").follow()
    page = (here / "runs" / "report.html").read_text()
    assert all(heading in page for heading in ("Before you read the numbers", "External hospitals", "Reproduce"))
    assert (here / "index" / "near-duplicates.png").is_file()
    assert words_of(here / "index", here / "runs" / "fedgs") <= set(
        re.findall(r"`([^`]+)`", (REPOSITORY / "docs" / "reference" / "run-folder.md").read_text())
    )


def words_of(index: Path, run: Path) -> set[str]:
    """Gives the names of files and columns that an index and a run consist of."""
    files = {entry.name + "/" * entry.is_dir() for entry in run.iterdir()} - {"checkpoints/"}
    tables = (index / "index.csv", run / "scores.csv", run / "split.csv")
    columns = {column for table in tables for column in table.read_text().splitlines()[0].split(",")}
    line = json.loads((run / "rounds.jsonl").read_text().splitlines()[0])
    summary = json.loads((run / "summary.json").read_text())["test_out"]
    return files | columns | set(line) | set(line["sites"]["Birch"]) | set(summary)


def test_the_how_to_for_an_own_loop(here: Path) -> None:
    scope: dict[str, Any] = {}
    Reader("docs/how-to/drop-in.md", scope).follow()
    assert scope["state"].round == 3
    assert 1 < scope["updates"]["C1"].metrics["mean_eta"] < 3


def test_the_how_to_for_resuming(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_phantom(here / "hospitals", 12)

    def crash(algorithm: Any, model: Any, state: Any, *others: Any) -> Any:
        if state.server.round if hasattr(state, "server") else state.round:
            raise TrainingError("the power is gone")
        return run_round(algorithm, model, state, *others)

    def before(block: Block) -> None:
        monkeypatch.setattr(engine, "run_round", crash if "crashes in round 2" in block.remarks else run_round)

    Reader("docs/how-to/resume.md").follow(before)
    lasts = [here / "runs" / name / "checkpoints" / "last.safetensors" for name in ("fedgs", "cluster")]
    assert lasts[0].read_bytes() == lasts[1].read_bytes()


def test_the_how_to_for_a_study(here: Path) -> None:
    make_phantom(here / "hospitals", 12)
    printed: list[str] = []
    reader = Reader("docs/how-to/run-a-study.md")
    reader.follow(lambda block: printed.append(reader.printed))
    assert "3 of 3 runs finished" in "".join(printed)
    assert "\n| matched-site | " in reader.printed
    told = (REPOSITORY / "docs/how-to/run-a-study.md").read_text()
    for entry in (here / "runs" / "study").iterdir():
        assert f"| `{entry.name}" in told, entry
    for entry in (here / "runs/study/cells/from-scratch/without-Cedar-fold0-seed0/fedgs").iterdir():
        assert f"`cells/…/{entry.name}" in told, entry


def test_the_how_to_for_trackers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_phantom(here / "hospitals", 12)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    Reader("docs/how-to/track-runs.md").follow()
    assert list((here / "runs" / "fedgs" / "tensorboard").glob("events*"))
    assert (here / "mlflow.db").is_file()


def test_the_how_to_for_volumes(here: Path) -> None:
    Reader("docs/how-to/volumes.md").follow()
    volumes = pd.read_csv(here / "ct-fedgs" / "volumes.csv")
    assert set(volumes["site"]) == {"CT1", "CT2", "CT3"}
    assert (
        (here / "ct" / "sites.csv").read_text().startswith("case,site,patient\nvolume-0,CT1,P000\nvolume-1,CT1,P001\n")
    )


def test_the_how_to_for_preflight(here: Path) -> None:
    make_phantom(here / "frames", 12)
    reader = Reader("docs/how-to/preflight.md")
    reader.follow()
    assert "FedGS is" in reader.printed or "Raise the image size first" in reader.printed
    told = (REPOSITORY / "docs/how-to/preflight.md").read_text()
    counts = json.loads((here / "preflight" / "counts.json").read_text())
    for key in {*counts, *counts["sites"]["Alder"], *counts["sites"]["Alder"]["sizes"]["32"]}:
        assert f"`{key}`" in told, key


def test_the_how_to_for_predicting(here: Path) -> None:
    make_phantom(here / "hospitals", 12)
    for fold, name in enumerate(("fedgs", "fold1")):
        more = flags(**FLAGS | {"rounds": 1, "fold": fold})
        fedgs("train", "--data", "hospitals", "--out", f"runs/{name}", *more)
    for image in (here / "hospitals").glob("*/images/*.png"):
        frame = here / "frames" / image.parents[1].name / image.name
        frame.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, frame)
    scope: dict[str, Any] = {}
    Reader("docs/how-to/predict.md", scope).follow()
    table = (here / "masks" / "predictions.csv").read_text()
    assert table.count("\n") == 1 + 36
    told = (REPOSITORY / "docs/how-to/predict.md").read_text()
    for column in table.partition("\n")[0].split(","):
        assert f"`{column}`" in told, column
    reference = (REPOSITORY / "docs/reference/run-folder.md").read_text()
    for entry in (*(here / "looked-at").iterdir(), here / "masks" / "probabilities"):
        assert entry.name in ("Alder", "Birch", "Cedar") or f"`{entry.name}" in reference, entry
    assert len(list((here / "together").rglob("*.png"))) == 36
    assert not scope["made"].failed


def test_the_how_to_for_published_checkpoints(here: Path) -> None:
    make_phantom(here / "hospitals", 12)
    model = models.build("sd_utnet", in_channels=3, image_size=64, base_channels=8, reduce_size=4)
    models.initialise(model, torch.Generator().manual_seed(0))
    torch.save(models.to_published(model), here / "published.pt")
    scope: dict[str, Any] = {}
    Reader("docs/how-to/published-checkpoints.md", scope).follow()
    assert all(torch.equal(scope["state"][name], tensor) for name, tensor in models.to_published(model).items())
    assert "What the network looks at" in (here / "runs" / "published" / "report.html").read_text()
    assert "tensors are taken; it lacks" in (here / "runs" / "partly" / "log.txt").read_text()


def test_the_how_to_for_exports(here: Path) -> None:
    make_phantom(here / "hospitals", 8)
    shutil.copy(next((here / "hospitals").glob("*/images/*.png")), here / "frame.png")
    Reader("docs/how-to/export.md").follow()
    assert (here / "bundle" / "models" / "model.ts").is_file()


def test_the_how_to_for_an_algorithm(checkout: Path) -> None:
    make_phantom(checkout / "runs" / "phantom", 8)
    Reader("docs/how-to/add-an-algorithm.md", checkout=checkout).follow()
    rounds = (checkout / "runs" / "bounded" / "rounds.jsonl").read_text()
    assert 0 < max(site["direction_norm"] for site in json.loads(rounds)["sites"].values()) <= 0.5001


def test_the_how_to_for_an_adapter(checkout: Path) -> None:
    reader = Reader("docs/how-to/add-an-adapter.md", checkout=checkout)

    def before(block: Block) -> None:
        if "needs archive" in block.remarks:
            (checkout / "archive" / "2023").mkdir(parents=True)
            for name in ("17.png", "17-outline.png"):
                Image.new("L", (40, 30)).save(checkout / "archive" / "2023" / name)
            (checkout / "archive" / "cases.csv").write_text(
                "site,image,mask,patient\nAlder,2023/17.png,2023/17-outline.png,P4\n"
            )

    reader.follow(before)
    assert json.loads((checkout / "index" / "index.json").read_text())["adapter"] == "listed"


def test_the_layers_that_contributing_shows_are_those_that_the_linter_checks() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert "\n".join(["```", *contracts[0]["layers"], "```"]) in (REPOSITORY / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize(
    "page",
    [
        str(p)
        for p in (page.relative_to(REPOSITORY) for page in REPOSITORY.rglob("*.md"))
        if not {".venv", "build", "runs"} & set(p.parts)
    ],
)
def test_links_inside_the_documentation_lead_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((REPOSITORY / page).parent / target).exists(), f"{page}: {target}"


def test_an_algorithm_is_added_in_under_40_lines() -> None:
    page = (REPOSITORY / "docs/how-to/add-an-algorithm.md").read_text()
    source = page.partition("<!-- test: file src/fedgs/algorithms/bounded.py -->")[2].partition("```python\n")[2]
    entered = [line for block in re.findall(r"```diff\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    added = [line for line in entered if line.startswith("+")]
    assert len(source.partition("```")[0].splitlines()) + len(added) < 40


def test_the_table_of_combinations_is_what_is_refused() -> None:
    page = (REPOSITORY / "docs/explanation/algorithms.md").read_text()
    header, _, *rows = page.partition("<!-- combinations -->\n")[2].partition("<!-- end -->")[0].strip().splitlines()
    columns = [cell.strip() for cell in header.strip("|").split("|")][1:]
    scaling = [name for name, make in algorithms.ALGORITHMS.items() if "scaled steps" in make().traits]
    assert all(f"`{name}`" in page.partition("stands for")[2].partition("Numbers")[0] for name in scaling)
    seen = set()
    for row in rows:
        extension, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        for column, cell in zip(columns, cells, strict=True):
            for other in scaling if column == "scaling" else [column]:
                if not cell:
                    continue
                seen.add(frozenset({extension, other}))
                if cell == "yes":
                    algorithms.build(f"{other}+{extension}", known={})
                else:
                    assert f"\n{cell}. " in page
                    with pytest.raises(ConfigError, match="cannot be combined"):
                        algorithms.build(f"{other}+{extension}", known={})
    extensions = [*algorithms.EXTENSIONS]
    assert seen == {frozenset({a, b}) for a in [*scaling, *extensions] for b in extensions if a != b}


def test_the_algorithms_beside_the_table_go_with_what_the_page_says() -> None:
    page = " ".join((REPOSITORY / "docs/explanation/algorithms.md").read_text().split())
    told = page.partition("Of the others, ")[2].partition(", whose personal network")[0]
    with_all, _, but = told.partition(" go with every extension; ")
    but_name, but_extension = re.fullmatch("`(.*)` goes with all but `(.*)`", but).groups()
    names = re.findall("`(.*?)`", with_all)
    refused = {(but_name, but_extension)}
    for name in (*names, but_name):
        for extension in algorithms.EXTENSIONS:
            if (name, extension) in refused:
                with pytest.raises(ConfigError, match="cannot be combined"):
                    algorithms.build(f"{name}+{extension}", known={})
            else:
                algorithms.build(f"{name}+{extension}", known={})
    assert re.search("Nothing goes with `local`, .* or with `central`", page)
    in_table = {name for name, make in algorithms.ALGORITHMS.items() if "scaled steps" in make().traits}
    assert sorted([*names, but_name, "local", "central", *in_table]) == sorted(algorithms.ALGORITHMS)
