"""Volumes as images: cut the same way however they are stored, chosen by rule, and never divided by a split."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from fedgs.data import find_cases
from fedgs.data.index import Index, build_index, open_index
from fedgs.data.lesions import MASK_SIZE, resize_nearest
from fedgs.data.nifti import Space
from fedgs.data.phantom_volumes import SITES_FILE, generate_ct
from fedgs.data.slicing import slicing_of
from fedgs.data.splits import split_cases
from fedgs.data.volumes import SliceRules, diameters_mm, read_volume
from fedgs.errors import ConfigError, DataError
from runs import fedgs

ORIENTATIONS = [
    np.array(list(zip(order, signs, strict=True)))
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct") / "ct"
    generate_ct(folder, sites=2, volumes=5, size=48, seed=1)
    return folder


@pytest.fixture(scope="module")
def index(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index(source, tmp_path_factory.mktemp("index") / "index", size=32)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> None:
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code="scanner")
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)


def turned(voxels: np.ndarray, affine: np.ndarray, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes in another order and direction."""
    change = ornt_transform(io_orientation(affine), orientation)
    return apply_orientation(voxels, change), affine @ inv_ornt_aff(change, voxels.shape)


def in_world(path: Path) -> np.ndarray:
    """Values as slices, rows and columns, by nibabel alone: to the head, to the back, to the left."""
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    return np.transpose(np.asarray(canonical.dataobj), (2, 1, 0))[:, ::-1, ::-1]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda each: "".join(nibabel.orientations.ornt2axcodes(each)))
def test_a_volume_is_cut_the_same_way_however_it_is_stored(
    orientation: np.ndarray, source: Path, tmp_path: Path
) -> None:
    image, mask = (nibabel.load(source / f"{name}-1.nii.gz") for name in ("volume", "segmentation"))
    for name, each in (("image", image), ("mask", mask)):
        save(tmp_path / f"{name}.nii", *turned(np.asarray(each.dataobj), each.affine, orientation))
    volume = read_volume(tmp_path / "image.nii", tmp_path / "mask.nii", SliceRules(label=2))
    assert (volume.target == (in_world(source / "segmentation-1.nii.gz") == 2)).all()
    levels = np.clip(np.rint((in_world(source / "volume-1.nii.gz").astype(float) + 200) * 255 / 400), 0, 255)
    assert np.abs(np.stack(list(volume.frames()))[..., 0] - levels).max() <= 1  # a value half way between two levels
    assert volume.target.any()


@pytest.mark.parametrize("axis", ["axial", "largest-spacing"])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=str)
def test_slices_become_the_volume_again(orientation: np.ndarray, axis: str) -> None:
    voxels, affine = turned(np.arange(24).reshape(2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]), orientation)
    slicing = slicing_of(Space(voxels.shape, affine), axis)
    assert (slicing.join(slicing.cut(voxels)) == voxels).all()


@pytest.mark.parametrize(
    ("spacing", "codes"), [((4, 1, 1), "LIP"), ((1, 4, 1), "PIL"), ((1, 1, 4), "SPL"), ((1, 1, 1), "SPL")]
)
def test_other_data_are_cut_between_the_voxels_that_are_farthest_apart(spacing: tuple[int, ...], codes: str) -> None:
    shape = (5, 6, 7)
    world = np.stack(np.meshgrid(*(np.arange(count) for count in shape), indexing="ij"))
    slicing = slicing_of(Space(shape, np.diag([*spacing, 1.0])), "largest-spacing")
    for axis, code in enumerate(codes):
        along = np.moveaxis(
            slicing.cut(world["RAS".find(code)] if code in "RAS" else -world["LPI".find(code)]), axis, 0
        )
        assert (np.diff(along, axis=0) == 1).all()


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    hu = np.linspace(-1000, 1000, 4 * 4 * 3).reshape(4, 4, 3)
    save(tmp_path / "mask.nii", np.ones((4, 4, 3), np.uint8), np.eye(4))
    save(tmp_path / "plain.nii", hu.astype(np.float32), np.eye(4))
    save(tmp_path / "scaled.nii", hu.astype(np.float32), np.eye(4), 1.0, 0.0)
    image = nibabel.Nifti1Image(np.rint(hu + 1024).astype(np.uint16), np.eye(4))
    image.header.set_slope_inter(1, -1024)
    nibabel.save(image, tmp_path / "scaled.nii")
    rules = SliceRules(window=(-500, 700))
    ours, theirs = (read_volume(tmp_path / name, tmp_path / "mask.nii", rules) for name in ("plain.nii", "scaled.nii"))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(ours.frames(), theirs.frames(), strict=True))
    assert {0, 255} <= set(np.unique(np.stack(list(ours.frames()))))


def volume_with(areas: list[int], tmp_path: Path, **rules: object) -> list[int]:
    """Slices that are used of a volume whose slices have these many pixels of target, at 512 x 512."""
    labels = np.zeros((512, 512, len(areas)), np.uint8)
    for number, area in enumerate(areas):
        labels.reshape(-1, len(areas))[:area, number] = 1
    save(tmp_path / "image.nii", np.zeros_like(labels), np.eye(4))
    save(tmp_path / "mask.nii", labels, np.eye(4))
    return read_volume(tmp_path / "image.nii", tmp_path / "mask.nii", SliceRules(**rules)).used()


def test_slices_with_more_than_fifty_pixels_are_used_unless_another_rule_is_named(tmp_path: Path) -> None:
    areas = [0, 50, 51, 0, 400, 3, 0, 0]
    assert volume_with(areas, tmp_path) == [2, 4]
    assert volume_with(areas, tmp_path, least_pixels=0) == [1, 2, 4]  # three pixels are a speck
    assert volume_with(areas, tmp_path, slices="all") == list(range(8))
    half = volume_with(areas, tmp_path, empty_share=0.5)
    assert {2, 4} < set(half)
    assert [areas[number] for number in half if number not in (2, 4)] == [0, 0]
    assert len(volume_with([0] * 8, tmp_path, empty_share=0.25)) == 2
    assert volume_with([0] * 8, tmp_path) == []


def test_a_slice_knows_the_largest_lesion_that_it_cuts() -> None:
    at = np.stack(np.meshgrid(*(np.arange(count) for count in (20, 60, 60)), indexing="ij")).astype(float)
    spacing = (3.0, 1.0, 1.0)
    large = ((at[0] - 8) * 3) ** 2 + (at[1] - 30) ** 2 + (at[2] - 30) ** 2 <= 12**2
    small = ((at[0] - 16) * 3) ** 2 + (at[1] - 10) ** 2 + (at[2] - 10) ** 2 <= 4**2
    found = diameters_mm(large | small, spacing)
    assert found[8] == pytest.approx(24, abs=0.5)
    assert found[16] == pytest.approx(8, abs=0.5)
    assert (found > 0).tolist() == (large | small).any(axis=(1, 2)).tolist()
    assert not diameters_mm(np.zeros((3, 4, 4), bool), spacing).any()


def test_an_index_holds_the_slices_that_are_used(index: Index, source: Path) -> None:
    table = index.table
    assert index.channels == 1
    assert index.small_rule.kind == "total"
    assert index.small_rule.base == 1000
    assert set(table["site"]) == {"CT1", "CT2"}
    assert not table["image_hash"].duplicated().any()
    for row in range(0, len(table), 7):
        about = table.iloc[row]
        number = about["volume"].removeprefix("volume-")
        target = in_world(source / f"segmentation-{number}.nii.gz")[about["slice"]] == 2
        assert (index.mask(row) == resize_nearest(target)).all()
        assert about["lesion_area"] == resize_nearest(target, MASK_SIZE).sum() > 50
        assert index.frame(row).shape == (32, 32, 1)
        assert about["case"] == f"{about['volume']}_{about['slice']:04d}"
    frames = np.stack([index.frame(row) for row in range(len(table))])
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) == len(frames)


def test_every_volume_is_known_also_one_without_target(index: Index, source: Path) -> None:
    found = index.volumes.set_index("volume")
    assert len(found) == 10
    assert (
        found.loc[["volume-4", "volume-9"], ["used", "with_target", "target_ml"]].to_numpy().tolist() == [[0, 0, 0]] * 2
    )
    for name, about in found.iterrows():
        mask = nibabel.load(source / f"segmentation-{name.removeprefix('volume-')}.nii.gz")
        voxels = int((np.asarray(mask.dataobj) == 2).sum())
        assert about["target_ml"] == pytest.approx(voxels * abs(np.linalg.det(mask.affine[:3, :3])) / 1000, rel=1e-5)
        assert sorted((about["slices"], about["rows"], about["columns"])) == sorted(mask.shape)
        assert about["slice_mm"] == pytest.approx({"CT1": 2.5, "CT2": 5.0}[about["site"]], rel=1e-4)


def test_slices_of_a_volume_never_straddle_a_split(index: Index) -> None:
    for fold in range(5):
        split = split_cases(index.table, fold=fold)
        parts = split.assign(volume=index.table["volume"]).groupby(["site", "volume"])["part"].nunique()
        assert (parts == 1).all()


def test_another_size_and_the_same_again(
    index: Index, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index.folder, folder)
    other = open_index(folder, size=24)
    assert other.frame(3).shape == (24, 24, 1)
    assert (other.mask(3) == index.mask(3)).all()
    monkeypatch.setattr("fedgs.data.cache.read_volume", lambda *_: pytest.fail("read again"))
    again = build_index(source, folder, size=32)
    assert again.table.equals(index.table)
    assert again.volumes.equals(index.volumes)


def test_other_rules_are_read_anew(index: Index, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index.folder, folder)
    liver = build_index(source, folder, size=32, slices={"label": 1, "window": (-100.0, 300.0)})
    assert len(liver) > len(index)
    assert open_index(folder).slices == SliceRules(label=1, window=(-100.0, 300.0))
    assert (liver.volumes["used"] > 0).all()


def test_what_is_interrupted_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def stopping(image: Path, mask: Path, rules: SliceRules) -> object:
        read.append(image.name)
        if len(read) == 4:
            raise KeyboardInterrupt
        return read_volume(image, mask, rules)

    monkeypatch.setattr("fedgs.data.cache.read_volume", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_index(source, tmp_path / "index", size=32, workers=1)
    with pytest.raises(DataError, match="goes on from there"):
        open_index(tmp_path / "index")
    done, begun = len(list((tmp_path / "index" / "cache-32").iterdir())), len(read)
    assert done >= 3
    build_index(source, tmp_path / "index", size=32, workers=1)
    assert len(read) == begun + 10 - done


def test_indexing_holds_two_volumes_at_most(tmp_path: Path) -> None:
    shape, folder = (256, 256, 128), tmp_path / "source"
    folder.mkdir()
    voxels, labels = np.random.default_rng(0).integers(-900, 900, shape).astype(np.int16), np.zeros(shape, np.uint8)
    labels[20:40, 20:40, 40:60] = 2
    save(folder / "volume-0.nii.gz", voxels, np.eye(4))
    save(folder / "segmentation-0.nii.gz", labels, np.eye(4))
    for number in (1, 2):
        for name in ("volume", "segmentation"):
            shutil.copy(folder / f"{name}-0.nii.gz", folder / f"{name}-{number}.nii.gz")
    tracemalloc.start()
    build_index(folder, tmp_path / "index", size=64, workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * voxels.nbytes, f"{peak / voxels.nbytes:.2f} volumes"


def copied(source: Path, folder: Path, *, volumes: int = 4) -> Path:
    folder.mkdir()
    for number in range(volumes):
        for name in ("volume", "segmentation"):
            shutil.copy(source / f"{name}-{number}.nii.gz", folder)
    return folder


def test_centres_go_by_number_unless_a_table_says_otherwise(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lits"
    folder.mkdir()
    bounds = [0, 29, 30, 59, 60, 89, 90, 119, 120, 130]
    for number in bounds:
        for name in ("volume", "segmentation"):
            shutil.copy(source / f"{name}-1.nii.gz", folder / f"{name}-{number}.nii.gz")
    found = {case.name: (case.site, case.patient) for case in find_cases(folder)}
    assert [found[f"volume-{number}"][0] for number in bounds] == [f"centre-{1 + place // 2}" for place in range(10)]
    table = tmp_path / "mine.csv"
    table.write_text("case;site;patient\n" + "".join(f"{number};S{number % 2};p\n" for number in bounds))
    assert {case.site for case in find_cases(folder, sites=table)} == {"S0", "S1"}
    (folder / SITES_FILE).write_text("Case,Site\n" + "".join(f"volume-{number}.nii.gz,A\n" for number in bounds))
    assert {(case.site, case.patient) for case in find_cases(folder)} == {("A", None)}
    assert {case.site for case in find_cases(folder, sites=table)} == {"S0", "S1"}


def test_the_decathlon_has_the_same_volumes_in_its_own_folders(source: Path, tmp_path: Path) -> None:
    for name, folder in (("volume", "imagesTr"), ("segmentation", "labelsTr")):
        (tmp_path / "task" / folder).mkdir(parents=True)
        for number in range(3):
            shutil.copy(source / f"{name}-{number}.nii.gz", tmp_path / "task" / folder / f"liver_{number}.nii.gz")
    (tmp_path / "task" / "dataset.json").write_text("{}")
    cases = find_cases(tmp_path / "task")
    assert [case.name for case in cases] == ["liver_0", "liver_1", "liver_2"]
    assert cases[0].slices == SliceRules(label=2)


def without_labels(folder: Path) -> None:
    (folder / "segmentation-1.nii.gz").unlink()


def twice(folder: Path) -> None:
    (folder / "more").mkdir()
    shutil.copy(folder / "volume-1.nii.gz", folder / "more")


def beyond(folder: Path) -> None:
    for name in ("volume", "segmentation"):
        (folder / f"{name}-1.nii.gz").rename(folder / f"{name}-131.nii.gz")


def sites(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / SITES_FILE).write_text(text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_labels, "'volume-1.nii.gz' has no labels"),
        (twice, "have one number"),
        (beyond, "volumes beyond 130 have no centre in the publication"),
        (sites("case,site\n0,A\n1,A\n"), "has no line for 2 of 4 volumes: volume-2, volume-3"),
        (sites("case,site\n0,A\n1,A\n2,A\n3,A\n9,B\n"), "line 6: case '9' is not among the volumes"),
        (sites("case,site\n0,A\n1,A\n2,A\n3,\n"), "line 5: case '3' has no site"),
        (sites("case,site\n0,A\n0,B\n1,A\n2,A\n3,A\n"), "line 3: case '0' has a second line"),
        (sites("case,hospital\n0,A\n"), "expected case and site, and optionally patient"),
    ],
    ids=["without labels", "twice", "beyond", "lacking", "unknown", "no site", "contradicting", "columns"],
)
def test_a_layout_that_does_not_fit_is_refused(
    change: Callable[[Path], None], told: str, source: Path, tmp_path: Path
) -> None:
    change(copied(source, tmp_path / "lits"))
    with pytest.raises(DataError, match=told):
        find_cases(tmp_path / "lits")


def other_shape(folder: Path) -> None:
    image = nibabel.load(folder / "segmentation-1.nii.gz")
    save(folder / "segmentation-1.nii.gz", np.asarray(image.dataobj)[:-1], image.affine)


def elsewhere(folder: Path) -> None:
    image = nibabel.load(folder / "segmentation-1.nii.gz")
    save(folder / "segmentation-1.nii.gz", np.asarray(image.dataobj), image.affine @ np.diag([1, 1, -1, 1]))


def one_slice(folder: Path) -> None:
    for name in ("volume", "segmentation"):
        save(folder / f"{name}-1.nii.gz", np.zeros((9, 9, 1), np.uint8), np.eye(4))


@pytest.mark.parametrize(
    ("change", "told"),
    [(other_shape, "voxels, its image"), (elsewhere, "lies elsewhere than its image"), (one_slice, "has one slice")],
)
def test_what_does_not_belong_together_is_refused(
    change: Callable[[Path], None], told: str, source: Path, tmp_path: Path
) -> None:
    change(copied(source, tmp_path / "lits"))
    with pytest.raises(DataError, match=told) as caught:
        build_index(tmp_path / "lits", tmp_path / "index", size=32)
    assert "-1.nii.gz" in str(caught.value)


def test_a_target_that_never_occurs_is_told(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 4 volumes has a slice with enough of label 7"):
        build_index(copied(source, tmp_path / "lits"), tmp_path / "index", size=32, slices={"label": 7})


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"label": 0}, "0 is the background"),
        ({"label": 256}, "from 1 to 255"),
        ({"window": (200, -200)}, "the lower one first"),
        ({"axis": "coronal"}, "axial, largest-spacing"),
        ({"slices": "some"}, "all, target"),
        ({"least_pixels": -1}, "0 or more"),
        ({"empty_share": 1.0}, "below 1"),
    ],
    ids=str,
)
def test_rules_that_cannot_be_are_refused(rules: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SliceRules(**rules)


def test_the_command_says_what_became_of_the_volumes(source: Path, tmp_path: Path) -> None:
    said = fedgs("index", str(source), "--out", str(tmp_path / "index"), "--size", "32", "--window", "-150", "250")
    assert "10 volumes of" in said.stdout
    assert "-150 to 250 are shown as black to white" in said.stdout
    assert "2 volumes have no slice that is used" in said.stdout
    assert "cut a lesion of more than 20 mm" in " ".join(said.stdout.split())
    assert open_index(tmp_path / "index").slices == SliceRules(label=2, window=(-150, 250))
    image = fedgs("phantom", "frames", "--out", str(tmp_path / "frames"), "--cases", "4", "--size", "32")
    assert image.returncode == 0
    refused = fedgs("index", str(tmp_path / "frames"), "--out", str(tmp_path / "no"), "--label", "1", check=False)
    assert refused.returncode == 1
    assert "label is for volumes" in refused.stderr
