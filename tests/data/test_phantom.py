from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedgs.data import detect, find_cases
from fedgs.data.images import read_image, read_mask
from fedgs.data.lesions import find_lesions, is_small_by_components, resize_nearest
from fedgs.data.phantom import SITES, PhantomSite, generate
from fedgs.errors import ConfigError, DataError

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "new" / "folder"
    generate(folder, cases_per_site=12, size=64)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_equal_arguments_give_equal_bytes_and_another_seed_other_images(tmp_path: Path, phantom: Path) -> None:
    generate(tmp_path / "again", cases_per_site=12, size=64)
    assert contents(tmp_path / "again") == contents(phantom)
    generate(tmp_path / "other", seed=1, cases_per_site=12, size=64)
    images = {kind: {v for k, v in contents(tmp_path / kind).items() if "/images/" in k} for kind in ("again", "other")}
    assert not images["again"] & images["other"]


def test_a_site_does_not_depend_on_the_others(tmp_path: Path, phantom: Path) -> None:
    generate(tmp_path / "one", sites=SITES[1:2], cases_per_site=12, size=64)
    name = SITES[1].name
    assert contents(tmp_path / "one" / name) == contents(phantom / name)


def test_it_is_laid_out_as_a_folder_with_patients(phantom: Path) -> None:
    assert detect(phantom) == "phantom"
    cases = find_cases(phantom)
    assert cases == find_cases(phantom, "folder")
    assert len(cases) == 12 * len(SITES)
    assert {case.site for case in cases} == {site.name for site in SITES}
    per_patient = {(case.site, case.patient): 0 for case in cases}
    for case in cases:
        per_patient[case.site, case.patient] += 1
    assert all(patient for _, patient in per_patient)
    assert max(per_patient.values()) > 1
    assert len(per_patient) > 2 * len(SITES)


def test_lesion_sizes_and_colours_differ_by_site(tmp_path: Path) -> None:
    generate(tmp_path / "p", cases_per_site=40, size=64)
    small, empty, colours = {}, {}, {}
    for site in SITES:
        cases = find_cases(tmp_path / "p")
        masks = [resize_nearest(read_mask(case.mask)) for case in cases if case.site == site.name]
        small[site.name] = np.mean([is_small_by_components(mask) for mask in masks])
        empty[site.name] = np.mean([find_lesions(mask).count == 0 for mask in masks])
        frames = np.stack([read_image(case.image) for case in cases if case.site == site.name])
        colours[site.name] = frames.mean(axis=(0, 1, 2)) / frames.mean()
    assert small["Cedar"] > 0.25 > small["Birch"] + 0.1
    assert all(0 < share < 0.3 for share in empty.values())
    assert np.ptp(np.stack(list(colours.values())), axis=0).max() > 0.1


def test_a_lesion_is_not_its_colour_alone(tmp_path: Path) -> None:
    """The best threshold on redness, chosen with the truth at hand, is far from the truth."""
    generate(tmp_path / "p", cases_per_site=15, size=64)
    cases = find_cases(tmp_path / "p")
    truth = [read_mask(case.mask) for case in cases]
    frames = [read_image(case.image).astype(float) for case in cases]
    redness = [frame[:, :, 0] / (frame.sum(axis=2) + 1) for frame in frames]

    def dice(threshold: float) -> float:
        pairs = [(red > threshold, mask) for red, mask in zip(redness, truth, strict=True) if mask.any()]
        return float(np.mean([2 * (p & m).sum() / (p.sum() + m.sum()) for p, m in pairs]))

    assert max(dice(threshold) for threshold in np.linspace(0.3, 0.8, 26)) < 0.6


def test_the_adapter_fills_an_absent_or_empty_folder_once(
    tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def generate_few(folder: Path) -> None:
        calls.append(folder)
        generate(folder, sites=SITES[:1], cases_per_site=2, size=32)

    monkeypatch.setattr("fedgs.data.phantom.generate", generate_few)
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        cases = find_cases(tmp_path / name, "phantom")
        before = snapshot(tmp_path / name)
        assert find_cases(tmp_path / name, "phantom") == cases
        assert find_cases(tmp_path / name) == cases
        assert snapshot(tmp_path / name) == before
    assert calls == [tmp_path / "absent", tmp_path / "empty"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["absent", "empty"]


def test_a_folder_with_something_else_stays_as_it_is(tmp_path: Path, snapshot: Snapshot) -> None:
    (tmp_path / "thesis.txt").write_text("two years of work")
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=r"holds 'thesis.txt'; expected a phantom"):
        find_cases(tmp_path, "phantom")
    with pytest.raises(DataError, match="not empty"):
        generate(tmp_path)
    with pytest.raises(DataError, match="a file; expected a phantom"):
        find_cases(tmp_path / "thesis.txt", "phantom")
    assert snapshot(tmp_path) == before


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedgs.data.phantom.write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "p", cases_per_site=1, size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ("[]", "is damaged"), ('{"format": 9}', "format 9")]
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    generate(tmp_path / "p", sites=SITES[:1], cases_per_site=1, size=32)
    (tmp_path / "p" / "phantom.json").write_text(text)
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path / "p")


def test_the_manifest_tells_how_it_was_made(phantom: Path) -> None:
    manifest = json.loads((phantom / "phantom.json").read_text())
    assert (manifest["seed"], manifest["size"], manifest["cases_per_site"]) == (0, 64, 12)
    assert [PhantomSite(**site).name for site in manifest["sites"]] == [site.name for site in SITES]


@pytest.mark.parametrize("wrong", [{"sites": ()}, {"sites": SITES[:1] * 2}, {"cases_per_site": 0}, {"size": 31}])
def test_arguments_that_cannot_work_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected sites of different names"):
        generate(tmp_path / "p", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "p").exists()


def test_lesions_can_be_left_out(tmp_path: Path) -> None:
    site = dataclasses.replace(SITES[0], name="healthy", lesion_free=1.0, second_lesion=0.0)
    generate(tmp_path / "p", sites=[site], cases_per_site=3, size=32)
    assert not any(read_mask(case.mask).any() for case in find_cases(tmp_path / "p"))
