"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # whatever imports it first
torch.set_num_threads(1)  # the tests' tensors are tiny; waking a second thread costs more than it brings
hypothesis.settings.register_profile("fedgs", deadline=None)  # timings are never asserted
hypothesis.settings.load_profile("fedgs")

REPOSITORY = Path(__file__).resolve().parents[1]
MISSING_GPU = "no GPU"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden numbers and real frames that lies beside a checkout."""
    folder = Path(os.environ.get("FEDGS_TEST_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"golden numbers and real frames are not at {folder}; set FEDGS_TEST_SHARED")
    return folder


@pytest.fixture(autouse=True)
def cache_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tests out of the user's cache."""
    monkeypatch.setenv("FEDGS_CACHE", str(tmp_path_factory.getbasetemp() / "fedgs-cache"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skip into a failure where everything must be there, a GPU apart."""
    report = yield
    if os.environ.get("FEDGS_REQUIRE_ALL") and report.skipped and MISSING_GPU not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped although FEDGS_REQUIRE_ALL is set: {report.longrepr}"
    return report
