"""What is done is not done again, and what was stopped at any instant goes on to the same masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import fedgs
from faults import WRITE, Instant
from faults import run as run_with_fault
from fedgs import PredictOptions
from fedgs.errors import CheckpointError, ConfigError
from predicted import of_all

PLAIN = PredictOptions(checkpoint="last")


def table_at(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.csv").drop(columns="seconds")


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.rglob("*.png")}


def test_a_second_call_does_nothing_anew(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = fedgs.predict(runs[1], some, out, PLAIN)
    before, table = times(out), (out / "predictions.csv").read_bytes()
    again = fedgs.predict(runs[1], some, out, PLAIN, resume=True)
    assert (first.skipped, again.skipped) == (0, 5)
    assert times(out) == before
    assert (out / "predictions.csv").read_bytes() == table


def test_what_is_new_missing_or_changed_is_made(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    out, images = tmp_path / "out", sorted(some.rglob("*.*"))
    held_back = images.pop()
    content = held_back.read_bytes()
    held_back.unlink()
    fedgs.predict(runs[1], some, out, PLAIN)
    before = times(out)
    Image.new("RGB", (50, 40)).save(images[0])
    (out / images[1].relative_to(some).with_suffix(".png")).unlink()
    held_back.write_bytes(content)
    again = fedgs.predict(runs[1], some, out, PLAIN, resume=True)
    assert again.skipped == 2
    changed = {name for name, time in times(out).items() if before.get(name) != time}
    assert changed == {path.with_suffix(".png").name for path in (*images[:2], held_back)}
    fedgs.predict(runs[1], some, tmp_path / "whole", PLAIN)
    pd.testing.assert_frame_equal(table_at(out), table_at(tmp_path / "whole"))


def test_pictures_that_were_not_wanted_before_are_added(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fedgs.predict(runs[1], some, out, PLAIN)
    more = PredictOptions(checkpoint="last", overlay=True)
    assert fedgs.predict(runs[1], some, out, more, resume=True).skipped == 0
    assert fedgs.predict(runs[1], some, out, more, resume=True).skipped == 5
    assert len(of_all(out, "overlays")) == 5


def test_masks_of_other_networks_or_options_are_not_mixed(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fedgs.predict(runs[1], some, out, PLAIN)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds predictions already; choose another --out, or add --resume"):
        fedgs.predict(runs[1], some, out, PLAIN)
    for members, options, says in (
        (runs[:1], PLAIN, "other networks"),
        (runs, PLAIN, "other networks"),
        (runs[1:], PredictOptions(checkpoint="last", precision="bf16"), "other networks"),
        (
            runs[1:],
            PredictOptions(checkpoint="last", threshold=0.4, tta=True),
            "threshold 0.5 rather than 0.4; tta False",
        ),
        (runs[1:], PredictOptions(checkpoint="last", min_lesion=3), "min_lesion 0 rather than 3"),
    ):
        with pytest.raises(ConfigError, match=says):
            fedgs.predict(members, some, out, options, resume=True)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    moved = shutil.copytree(runs[1], tmp_path / "moved")
    assert fedgs.predict(moved, some, out, PredictOptions(checkpoint="last", batch_size=2), resume=True).skipped == 5


def test_altered_books_are_refused(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fedgs.predict(runs[1], some, out, PLAIN)
    books = out / "predictions.json"
    books.write_text(books.read_text().replace("0.5", "0.6"))
    with pytest.raises(CheckpointError, match=r"predictions.json: its checksum does not match"):
        fedgs.predict(runs[1], some, out, PredictOptions(checkpoint="last", threshold=0.6), resume=True)


def test_an_input_that_failed_is_tried_again(some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    out, image = tmp_path / "out", sorted(some.rglob("*.png"))[0]
    content = image.read_bytes()
    image.write_bytes(content[:200])
    first = fedgs.predict(runs[1], some, out, PLAIN)
    assert [(each.source.path, "cut short or damaged" in each.reason) for each in first.failed] == [(image, True)]
    assert table_at(out)["problem"].notna().sum() == 1
    assert str(tmp_path) not in (out / "predictions.csv").read_text()
    image.write_bytes(content)
    again = fedgs.predict(runs[1], some, out, PLAIN, resume=True)
    assert (again.skipped, len(again.failed)) == (4, 0)
    assert table_at(out)["problem"].isna().all()


@pytest.mark.parametrize("fault", ["kill", "full"])
def test_a_fault_at_some_writes(fault: str, some: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return ["predict", str(runs[1]), str(some), "--out", str(out), "--overlay", "--checkpoint", "last", "--resume"]

    whole = run_with_fault(command(tmp_path / "whole"), tmp_path / "whole")
    assert whole.exitcode == 0, whole.output
    writes = whole.reached[WRITE]
    assert writes > 30
    stopped = 0
    for number in range(1, writes, 7 if fault == "kill" else 12):
        out = tmp_path / f"{fault}-{number}"
        ended = run_with_fault(command(out), out, Instant(WRITE, number), fault)
        stopped += ended.exitcode != 0
        if fault == "full" and ended.exitcode:
            assert ended.exitcode == 1, ended.output
            assert "File too large" in ended.output
            assert "Traceback" not in ended.output
        masks, expected = of_all(out), of_all(tmp_path / "whole")  # each that is there can be read
        assert all((mask == expected[name]).all() for name, mask in masks.items())
        again = run_with_fault(command(out), out)
        assert again.exitcode == 0, again.output
        for kind in ("", "overlays"):
            masks, expected = of_all(out, kind), of_all(tmp_path / "whole", kind)
            assert masks.keys() == expected.keys()
            assert all((mask == expected[name]).all() for name, mask in masks.items())
        pd.testing.assert_frame_equal(table_at(out), table_at(tmp_path / "whole"))
        assert not list(out.rglob("*.fedgs-part"))
    assert stopped
