"""What ``make demo`` promises: it learns, within memory, and says how far it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedgs import models
from fedgs.demo import DEMO_ALGORITHMS, demo_config
from fedgs.evaluation import Scorer
from fedgs.metrics.table import summarise
from fedgs.run_folder import RunFolder
from fedgs.seeds import generator
from runs import command, environment

MEASURED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss))
os._exit(os.waitstatus_to_exitcode(status))
"""
"""A small process between: a child's peak begins with what its parent holds, and these tests may hold much."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    out, log, peak = folder / "demo", folder / "log.txt", folder / "peak.txt"
    measured = [sys.executable, "-c", MEASURED, str(peak), *command("demo", "--out", str(out))]
    with log.open("w") as file:
        done = subprocess.run(measured, env=environment(), stdout=file, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, log.read_text()
    assert 1e5 < int(peak.read_text()) < 2e6, "the demo took more than 2 GB"
    return out, log.read_text()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", DEMO_ALGORITHMS)
def test_both_algorithms_learn(algorithm: str, demo: tuple[Path, str]) -> None:
    summary = json.loads((demo[0] / algorithm / "summary.json").read_text())
    assert summary["test_in"]["dice_n"]["n"] >= 20
    assert summary["test_in"]["dice_n"]["mean"] >= 0.7


def test_an_untrained_network_does_not(demo: tuple[Path, str]) -> None:
    from fedgs.data.index import open_data

    config = demo_config("fedgs", demo[0] / "phantom")
    index = open_data(demo[0] / "phantom", adapter="phantom", size=config.data.size)
    model = models.build("unet", in_channels=3, **config.model.model_options)
    models.initialise(model, generator(config.federation.seed, "network", config.data.fold))
    split = RunFolder(demo[0] / "fedgs").split()
    rows = split.index[split["part"] == "test_in"].tolist()
    scores = Scorer().score(model, index, rows, part="test_in", number=0)
    untrained = summarise(scores)["dice_n"]
    assert untrained["mean"] is not None
    assert untrained["mean"] < 0.2


def test_it_prints_progress_a_table_with_counts_and_the_page(demo: tuple[Path, str]) -> None:
    out, printed = demo
    assert "ETA" in printed
    assert "Dice all" in printed
    assert "small" in printed
    assert "large" in printed
    assert "report.html" in printed
    page = (out / "report.html").read_text()
    assert "FedGS" in page
    assert (out / "report.html").stat().st_size < 5e6
