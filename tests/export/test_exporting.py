"""A run's network outside this package: the same probabilities, the same masks, and a card that tells what it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from fedgs import models
from fedgs.assembly import build_network
from fedgs.config import configure
from fedgs.core import load
from fedgs.data.images import read_image, resize_image
from fedgs.errors import ConfigError, ExportError, MissingExtraError
from fedgs.evaluation import Scorer
from fedgs.experiment import train
from fedgs.export import exporting
from fedgs.export.bundle import METADATA_KEYS, TENSOR_KEYS
from fedgs.export.deployed import TOLERANCE, exported, quiet
from fedgs.export.exporting import FORMATS, export_run
from fedgs.export.onnx_file import run_onnx, write_onnx
from fedgs.export.preprocessing import Preprocessing
from fedgs.export.program import run_program, write_program
from fedgs.export.resampling import reduces_tall_first, resize_like_pillow
from fedgs.export.sample import draw_sample
from fedgs.export.whole_image import scripted
from fedgs.models import segment
from fedgs.run_folder import RunFolder
from runs import environment, fedgs, make_phantom, tiny_config

QUICK = {"rounds": 1, "local_steps": 2, "size": 32, "device": "cpu"}
NAMES = {"onnx": "net.onnx", "torch-export": "net.pt2", "monai-bundle": "bundle"}
SMALL = {"base_channels": 4, "reduce_size": 2}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "unet": {},
    "unet, instance": {"norm": "instance"},
    "utnet": SMALL,
    "unet_sdnet": {"base_channels": 4},
    "sd_utnet": SMALL,
    "sd_utnet_server": SMALL,
    "sdnet": {"base_channels": 4},
    "feddis": {"base_channels": 4},
    "feddis_server": {"base_channels": 4},
    "monai:SegResNet": {},
    "monai:UNETR": {"hidden_size": 48, "mlp_dim": 64, "num_heads": 4},
    "monai:SwinUNETR": {"feature_size": 12},
}
SLOW = ("sd_utnet_server", "monai:UNETR", "monai:SwinUNETR")
WITHOUT_FEDGS = "import sys, runpy; sys.modules['fedgs'] = None; sys.argv = sys.argv[1:]\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", 8)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_config(data, **QUICK, score_size="native", unseen_site="Cedar"), folder)
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    export_run(run, out, form="monai-bundle", checkpoint="last", licence="CC BY 4.0")
    return out


def alone(*arguments: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code where fedgs cannot be imported and no host name can be looked up."""
    offline = "import socket; socket.getaddrinfo = None\n"
    place = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FEDGS + offline + code, *("x", *arguments)],
        env=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def network_of(name: str) -> nn.Module:
    kind = name.partition(",")[0]
    model = models.build(kind, in_channels=3, image_size=64, **NETWORKS[name])
    models.initialise(model, torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def test_every_network_is_tried() -> None:
    assert {name.partition(",")[0].partition(":")[0] for name in NETWORKS} == {
        name.partition(":")[0] for name in models.MODELS
    }


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NETWORKS])
def test_every_network_gives_the_same_probabilities_in_every_runtime(name: str, tmp_path: Path) -> None:
    """As many images as one likes, and as few."""
    network, preprocessing = network_of(name), Preprocessing(64, 3)
    sample = draw_sample(64, 3)
    images = preprocessing.apply(sample.images)
    with torch.no_grad():
        expected = segment(network, images)
    program = exported(network, images)
    whole = scripted(network, images, preprocessing)
    write_program(tmp_path / "net.pt2", program, {})
    write_onnx(tmp_path / "net.onnx", program, images, {})
    for pick in ([0, 1], [1], [1, 0, 1]):
        for run_file, path in ((run_program, "net.pt2"), (run_onnx, "net.onnx")):
            assert (run_file(tmp_path / path, images[pick]) - expected[pick]).abs().max() <= TOLERANCE
    frames = [torch.from_numpy(resize_image(image, 64).copy()).permute(2, 1, 0).float() for image in sample.images]
    for pick in ([0, 1], [1], [1, 0, 1]):
        found = whole(torch.stack([frames[number] for number in pick])).transpose(2, 3)
        assert (found - expected[pick]).abs().max() <= TOLERANCE


def test_pillow_is_matched_to_the_bit() -> None:
    draw, tall_first = np.random.default_rng(0), reduces_tall_first()
    for _ in range(150):
        height, width = draw.integers(1, 400, 2)
        size, channels = int(draw.choice([8, 32, 37, 100, 256])), int(draw.choice([1, 3]))
        image = draw.integers(0, 256, (height, width, channels), np.uint8)
        levels = torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.int32)
        found = resize_like_pillow(levels, size, tall_first)[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, resize_image(image, size), err_msg=f"{image.shape} -> {size}")


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_carries_a_card(form: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / NAMES[form]
    done = fedgs("export", str(run), "--format", form, "--out", str(out), "--licence", "CC BY 4.0")
    assert f"Written: {out}" in done.stdout
    assert "on 2 images of the run's data" in done.stdout
    where = (out / "docs" / "README.md", out / "docs" / "model_card.json")
    if form != "monai-bundle":
        where = tuple(out.with_name(f"{out.name}.card.{kind}") for kind in ("md", "json"))
    page, card = where[0].read_text(), json.loads(where[1].read_text())
    summary = RunFolder(run).summary()
    assert card["scores"]["test_out"]["dice_s"] == summary["best"]["test_out"]["dice_s"]
    assert card["data"]["Alder"]["train"] == summary["data"]["sites"]["Alder"]["train"]
    assert card["licence_of_weights"] == "CC BY 4.0"
    assert card["training"]["algorithm"] == "fedgs"
    for name, value in card["files"].items():
        path = out / name if form == "monai-bundle" else out
        assert hashlib.sha256(path.read_bytes()).hexdigest() == value
        assert value in page
    for word in ("test_out", "not a medical device", "CC BY 4.0", card["weights_sha256"], "Cedar"):
        assert word in page
    cases = RunFolder(run).split()["case"]
    for text in (page, where[1].read_text()):
        assert not [case for case in cases if case in text]
        assert str(run.parent) not in text
        assert socket.gethostname() not in text
    assert not list(tmp_path.glob(".*"))


def test_a_file_says_nothing_of_the_machine(run: Path, bundle: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "net.onnx", form="onnx")
    export_run(run, tmp_path / "net.pt2", form="torch-export")
    here = str(Path(exporting.__file__).parents[1]).encode()
    for path in (tmp_path / "net.onnx", tmp_path / "net.pt2", *(bundle / "configs").iterdir()):
        assert here not in path.read_bytes()


def test_the_metadata_of_onnx_is_enough_to_do_the_same(run: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_run(run, path, form="onnx", checkpoint="last")
    model = onnx.load(path)
    told = {entry.key: entry.value for entry in model.metadata_props}
    before = json.loads(told["preprocessing"])
    assert told["licence_of_weights"] == "not stated"
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == (
        before["input"]["shape"]
    )
    image = Image.open(next(data.glob("Alder/images/*.png")))
    small = np.asarray(image.resize((before["resize"]["width"], before["resize"]["height"]), Image.Resampling.BILINEAR))
    scale = before["scale"]
    values = (small / scale["divide_by"] - scale["then_subtract_mean"]) / scale["then_divide_by"]
    found = run_onnx(path, torch.from_numpy(values.transpose(2, 0, 1)[None].astype(np.float32)))
    network = trained(run)
    with torch.no_grad():
        expected = segment(network, Preprocessing(32, 3).apply([np.asarray(image)]))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def trained(run: Path) -> nn.Module:
    folder = RunFolder(run)
    network = build_network(configure(folder.config(), device="cpu"), 3)
    load(network, folder.load("last").server)
    return network.eval()


def test_a_program_is_opened_by_torch_alone(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "net.pt2", form="torch-export", checkpoint="last")
    images = torch.randn(3, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import torch, json\n"
        "more = {'fedgs.json': ''}\n"
        "net = torch.export.load(sys.argv[1], extra_files=more).module()\n"
        "torch.save(net(torch.load(sys.argv[2])), sys.argv[3])\n"
        "print(json.loads(more['fedgs.json'])['preprocessing']['mask']['threshold'])\n"
    )
    done = alone(*(str(tmp_path / name) for name in ("net.pt2", "images.pt", "found.pt")), code=code)
    assert done.stdout.strip() == "0.5"
    with torch.no_grad():
        expected = segment(trained(run), images)
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), expected, atol=TOLERANCE, rtol=0)


def masks_of_the_run(run: Path, paths: list[Path]) -> list[np.ndarray]:
    """By the run's own scorer, at the images' own sizes."""

    class Frames:
        table = pd.DataFrame({"site": ["A"] * len(paths), "case": [path.stem for path in paths], "is_small": False})
        size, gives_regions = 32, False

        def frame(self, row: int) -> Any:
            return np.broadcast_to(resize_image(read_image(paths[row]), 32), (32, 32, 3))

        def native_mask(self, row: int) -> Any:
            return np.zeros(read_image(paths[row]).shape[:2], np.bool_)

    scorer = Scorer("native", batch_size=1)
    return [prediction.mask for prediction in scorer.predict(trained(run), Frames(), range(len(paths)))]


def run_monai(*arguments: str) -> subprocess.CompletedProcess[str]:
    return alone(*arguments, code="runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)\n")


def run_bundle(bundle: Path, images: Path, out: Path) -> None:
    config = str(bundle / "configs" / "inference.json")
    places = ("--bundle_root", str(bundle), "--dataset_dir", str(images), "--output_dir", str(out))
    run_monai("run", "--config_file", config, *places)


def test_a_bundle_gives_pictures_the_masks_of_the_run(bundle: Path, run: Path, tmp_path: Path) -> None:
    """Wide, tall, grey and with a palette; masks lie on their images."""
    draw, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for name, shape in {"wide": (50, 90, 3), "tall": (120, 40, 3), "grey": (64, 64), "small": (20, 21, 3)}.items():
        coarse = draw.integers(0, 256, (-(-shape[0] // 8), -(-shape[1] // 8), *shape[2:]), np.uint8)
        Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]]).save(folder / f"{name}.png")
    Image.open(folder / "wide.png").quantize(16).save(folder / "palette.png")
    run_bundle(bundle, folder, tmp_path / "masks")
    paths = sorted(folder.iterdir())
    expected = masks_of_the_run(run, paths)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [path.name for path in paths]
    for path, mask in zip(paths, expected, strict=True):
        found = np.asarray(Image.open(tmp_path / "masks" / path.name))
        assert found.shape == mask.shape
        assert set(np.unique(found)) <= {0, 255}
        np.testing.assert_array_equal(found > 0, mask, err_msg=path.name)
    assert any(mask.any() and not mask.all() for mask in expected)


def test_a_bundle_gives_volumes_the_masks_of_their_slices(bundle: Path, run: Path, tmp_path: Path) -> None:
    """A NIfTI holds x before y; its mask has its shape and affine."""
    draw = np.random.default_rng(1)
    voxels = draw.integers(0, 256, (7, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    affine = np.array([[0, 0.7, 0, 4], [-0.7, 0, 0, 5], [0, 0, 3.0, 6], [0, 0, 0, 1]])
    for folder, content in (("volumes", voxels), ("flat", voxels[:, :, 1])):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(content, affine), tmp_path / folder / "a.nii.gz")
        run_bundle(bundle, tmp_path / folder, tmp_path / f"{folder} masks")
    for number in range(3):
        Image.fromarray(voxels[:, :, number].T).save(tmp_path / f"{number}.png")
    expected = masks_of_the_run(run, [tmp_path / f"{number}.png" for number in range(3)])
    found = nibabel.load(tmp_path / "volumes masks" / "a.nii.gz")
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.stack([mask.T for mask in expected], 2))
    flat = np.asarray(nibabel.load(tmp_path / "flat masks" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(flat.reshape(56, 72), expected[1].T)


def test_a_bundle_is_what_monai_asks_for(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert set(METADATA_KEYS) <= metadata.keys()
    for tensors in metadata["network_data_format"].values():
        assert all(set(TENSOR_KEYS) <= told.keys() for told in tensors.values())
    files = (str(bundle / "configs" / name) for name in ("metadata.json", "inference.json"))
    places = (part for pair in zip(("--meta_file", "--config_file"), files, strict=True) for part in pair)
    run_monai("verify_net_in_out", "network_def", *places, "--bundle_root", str(bundle), "--device", "cpu")
    assert (bundle / "LICENSE").read_text() == "CC BY 4.0\n"
    card = json.loads((bundle / "docs" / "model_card.json").read_text())
    assert card["checks"]["metadata schema"].startswith("not checked")
    assert "metadata schema: not checked" in (bundle / "docs" / "README.md").read_text()


def test_levels_that_cannot_be_are_refused_by_the_bundle(bundle: Path) -> None:
    with quiet():
        network = torch.jit.load(str(bundle / "models" / "model.ts"))
    for value in (-1.0, 256.0, float("nan")):
        with pytest.raises(torch.jit.Error, match="expected levels from 0 to 255"):
            network(torch.full((1, 3, 8, 8), value))
    with pytest.raises(torch.jit.Error, match="expected images of 1 or 3 channels, got 4"):
        network(torch.zeros(1, 4, 8, 8))


def test_a_network_of_ones_own_needs_its_hospital(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, **QUICK, algorithm="fedgs+fedbn"), tmp_path / "run")
    with pytest.raises(ConfigError, match="say whose with --site: Alder, Birch, Cedar"):
        export_run(tmp_path / "run", tmp_path / "net.pt2", form="torch-export")
    with pytest.raises(ConfigError, match="unknown site 'Aldr'; did you mean 'Alder'"):
        export_run(tmp_path / "run", tmp_path / "net.pt2", form="torch-export", site="Aldr")
    sums = {}
    for site in ("Alder", "Birch"):
        card = export_run(tmp_path / "run", tmp_path / f"{site}.pt2", form="torch-export", site=site)
        sums[site] = card["weights_sha256"]
        assert f"the network of hospital {site}" in (tmp_path / f"{site}.pt2.card.md").read_text()
    assert len(set(sums.values())) == 2


def test_a_network_that_keeps_only_styles_apart_needs_no_hospital(data: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "model": "sd_utnet", "model_options": SMALL}
    train(tiny_config(data, **settings), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "net.pt2", form="torch-export")
    with pytest.raises(ConfigError, match="segment by one network; leave --site out"):
        export_run(tmp_path / "run", tmp_path / "other.pt2", form="torch-export", site="Alder")


def test_without_the_data_a_generated_sample_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    monkeypatch.setattr(
        exporting, "read_sample", lambda config, split, channels: draw_sample(config.data.size, channels)
    )
    card = export_run(moved, tmp_path / "net.pt2", form="torch-export")
    assert "generated images" in card["parity"]["sample"]
    assert "generated images" in (tmp_path / "net.pt2.card.md").read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_what_computes_something_else_is_not_left_behind(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedgs.export import bundle as bundles

    place, name = {
        "onnx": (exporting, "run_onnx"),
        "torch-export": (exporting, "run_program"),
        "monai-bundle": (bundles, "_run"),
    }[form]
    right = getattr(place, name)
    monkeypatch.setattr(place, name, lambda path, images: right(path, images) + 2e-4)
    with pytest.raises(ExportError, match="gives other probabilities than the network"):
        export_run(run, tmp_path / NAMES[form], form=form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_export_leaves_nothing(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedgs.export.bundle.as_markdown", interrupt)
    monkeypatch.setattr(exporting, "as_markdown", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, tmp_path / NAMES[form], form=form)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedgs\[export\]'"):
        export_run(run, tmp_path / "net.onnx", form="onnx")


def test_the_run_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    export_run(run, tmp_path / "net.pt2", form="torch-export")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_intervals_of_a_study_stand_on_the_card(run: Path, tmp_path: Path) -> None:
    study = Path(__file__).parents[2] / "docs/results/polypgen-study/comparison.json"
    card = export_run(run, tmp_path / "net.pt2", form="torch-export", comparison=study)
    told = json.loads(study.read_text())
    assert card["intervals"]["contrasts"][0]["interval"] == told["primary"][0]["interval"]
    assert told["sentence"] in (tmp_path / "net.pt2.card.md").read_text()
