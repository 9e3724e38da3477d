"""The benchmarks say what they find as they find it, and the page shows what they wrote."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from runs import environment

REPOSITORY = Path(__file__).resolve().parents[1]


def test_a_row_is_printed_before_the_next_one_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks.measure import Row, announce, run_alone

    printed, made = [], types.ModuleType("benchmarks.made")

    def run(*, quick: bool) -> Iterator[Row]:
        announce("the first")
        printed.append(capsys.readouterr().out)
        yield Row("one", 3.0, 2.0, "ms")
        printed.append(capsys.readouterr().out)
        yield Row("other", 1.0, None, "MiB")

    made.run = run
    monkeypatch.setitem(sys.modules, "benchmarks.made", made)
    assert [row.what for row in run_alone("made", quick=True, threads=0)] == ["one", "other"]
    assert printed == ["  the first ...\n", "  one: 3 ms, compared with 2 ms: 1.50\n"]
    assert capsys.readouterr().out == "  other: 1 MiB\n"


def test_the_rows_of_a_benchmark_are_printed_in_the_table_too(tmp_path: Path) -> None:
    out = tmp_path / "benchmarks.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "scaling", "--quick", "--threads", "1", "--out", str(out)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]["scaling"]
    assert len(rows) == 3
    before, _, table = done.stdout.partition("compared with  ratio")
    assert all(row["what"] in before and row["what"] in table for row in rows)


def test_the_page_shows_the_rows_that_lie_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks.__main__ import BENCHMARKS, markdown
    from benchmarks.measure import Row

    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    found = json.loads((REPOSITORY / "docs" / "benchmarks.json").read_text())["rows"]
    assert set(found) == set(BENCHMARKS)
    for name, rows in found.items():
        ratios = [row.pop("ratio") for row in rows]
        made = [Row(**row) for row in rows]
        assert [row.ratio for row in made] == ratios
        _, _, body = markdown(made).split("\n", 2)
        assert body in page, name
