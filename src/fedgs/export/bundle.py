"""A network as a MONAI bundle: a folder that MONAI Label, MONAI Deploy and ``python -m monai.bundle`` take."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import verify_net_in_out
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

import fedgs
from fedgs.errors import ExportError
from fedgs.export.card import as_markdown, hashes_of
from fedgs.export.deployed import quiet, reason_of, require_parity
from fedgs.export.preprocessing import THRESHOLD, Preprocessing
from fedgs.export.sample import Sample
from fedgs.export.whole_image import scripted
from fedgs.files import write_atomically, write_json
from fedgs.models import segment

__all__ = ["METADATA_KEYS", "TENSOR_KEYS", "write_bundle"]

METADATA_KEYS = (
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
)
"""What MONAI's specification requires of metadata.json."""

TENSOR_KEYS = (
    "type",
    "format",
    "num_channels",
    "spatial_shape",
    "dtype",
    "value_range",
    "is_patch_data",
    "channel_def",
)
"""What it requires of each input and output of the network."""

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_VOLUMES = (".nii", ".nii.gz")
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def write_bundle(
    folder: Path,
    network: nn.Module,
    preprocessing: Preprocessing,
    sample: Sample,
    card: Mapping[str, Any],
    *,
    name: str,
    licence: str | None,
) -> dict[str, Any]:
    """Writes a bundle and checks it.

    Args:
        folder: An empty folder.
        network: The run's, with its weights.
        preprocessing: That of the run.
        sample: Images to compare it with the run's network on.
        card: The model card, without checks.
        name: Of the bundle.
        licence: Of the weights; LICENSE holds it if it is given.

    Returns:
        The card with what was checked.

    Raises:
        ExportError: The network cannot be written as a graph, or the bundle does not give the run's probabilities.
    """
    expected = [_probabilities(network, preprocessing, image) for image in sample.images]
    images = preprocessing.apply(sample.images)
    whole = _as_script(network, images, preprocessing)
    metadata, inference = _metadata(card, preprocessing, name), _inference()
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir()
    _save(whole, folder / "models" / "model.ts", metadata, inference)
    write_json(folder / "configs" / "metadata.json", metadata)
    write_json(folder / "configs" / "inference.json", inference)
    if licence:
        write_atomically(folder / "LICENSE", licence + "\n")
    found = [_run(folder / "models" / "model.ts", image) for image in sample.images]
    gap = max(require_parity(*pair, "TorchScript") for pair in zip(expected, found, strict=True))
    told = {"runtime": "TorchScript", "sample": sample.told, "largest_difference": gap}
    finished = {**card, "parity": told, "checks": _check(folder, metadata), "files": hashes_of(folder)}
    write_json(folder / "docs" / "model_card.json", finished)
    write_atomically(folder / "docs" / "README.md", as_markdown(finished) + _how_to(name))
    return finished


def _as_script(network: nn.Module, images: Tensor, preprocessing: Preprocessing) -> torch.jit.ScriptModule:
    try:
        return scripted(network, images, preprocessing)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"the network cannot be written as TorchScript ({reason_of(error)}); give --format torch-export or onnx, "
            "or train another --model"
        ) from error


def _probabilities(network: nn.Module, preprocessing: Preprocessing, image: NDArray[np.uint8]) -> Tensor:
    """What the run itself makes of an image, at the size of the image, (1, classes, H, W)."""
    with torch.no_grad():
        probabilities = segment(network, preprocessing.apply([image]))
        return interpolate(probabilities, image.shape[:2], mode="bilinear", align_corners=False)


def _run(path: Path, image: NDArray[np.uint8]) -> Tensor:
    with quiet(), torch.no_grad():
        loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        found: Tensor = loaded(torch.from_numpy(image.copy()).permute(2, 1, 0)[None].float())
    return found.transpose(2, 3)


def _save(whole: torch.jit.ScriptModule, path: Path, metadata: Mapping[str, Any], inference: Mapping[str, Any]) -> None:
    """Writes the network; MONAI Deploy takes this file alone, and looks for the two others inside it."""
    inside = {"metadata.json": json.dumps(metadata), "inference.json": json.dumps(inference)}
    with quiet():
        torch.jit.save(whole, str(path), _extra_files=inside)


def _metadata(card: Mapping[str, Any], preprocessing: Preprocessing, name: str) -> dict[str, Any]:
    training, network = card["training"], card["network"]
    return {
        "schema": _SCHEMA,
        "version": fedgs.__version__,
        "changelog": {fedgs.__version__: "exported by fedgs"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.2.0", "pillow": "10.1.0"},
        "name": name,
        "task": "Segmentation of lesions in two-dimensional images",
        "description": f"{network['name']} trained by {training['algorithm']} at several hospitals; see README",
        "authors": "not stated",
        "copyright": card["licence_of_weights"],
        "intended_use": card["intended_use"],
        "network_data_format": {"inputs": {"image": _input(preprocessing)}, "outputs": {"pred": _output()}},
    }


def _input(preprocessing: Preprocessing) -> dict[str, Any]:
    colours = ("red", "green", "blue") if preprocessing.channels == 3 else ("grey",)
    return {
        **{"type": "image", "format": "magnitude", "modality": "n/a", "num_channels": preprocessing.channels},
        **{"spatial_shape": ["*", "*"], "dtype": "float32", "value_range": [0, 255], "is_patch_data": False},
        "channel_def": {str(number): colour for number, colour in enumerate(colours)},
    }


def _output() -> dict[str, Any]:
    return {
        **{"type": "image", "format": "segmentation", "num_channels": 2, "spatial_shape": ["*", "*"]},
        **{"dtype": "float32", "value_range": [0, 1], "is_patch_data": False},
        "channel_def": {"0": "background", "1": "lesion"},
    }


def _inference() -> dict[str, Any]:
    """What ``python -m monai.bundle run`` does: needs MONAI, nibabel and Pillow, and nothing of this package."""
    # Not by an import of the configuration: a reader that fails is passed over in silence, and then colours are lost.
    upright = (
        "$lambda picture: __import__('PIL.ImageOps').ImageOps.exif_transpose("
        "picture.convert('RGB') if picture.mode == 'P' else picture)"
    )
    readers = [{"_target_": "NibabelReader"}, {"_target_": "PILReader", "converter": upright}]
    return {
        "imports": ["$import pathlib"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "images": "$sorted(str(path) for path in pathlib.Path(@dataset_dir).rglob('*') "
        f"if path.name.lower().endswith({_PICTURES + _VOLUMES!r}))",
        "suffix": f"$'.png' if all(path.lower().endswith({_PICTURES!r}) for path in @images) else '.nii.gz'",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": readers, "image_only": True},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @images]",
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": _after()},
        "run": [
            "$[@postprocessing({'image': case['image'], 'pred': "
            "@inferer(case['image'][None].to(@device), @network_def)[0].cpu()}) for case in @dataset]"
        ],
    }


def _after() -> list[dict[str, Any]]:
    return [
        # It gives the answer the geometry of the image.
        {"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing"},
        {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda pred: (pred[1:] > {THRESHOLD}).to(torch.uint8)"},
        {
            **{"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_ext": "@suffix"},
            **{"output_postfix": "", "separate_folder": False, "resample": False, "output_dtype": "$numpy.uint8"},
            **{"scale": "$255 if @suffix == '.png' else None", "print_log": False, "data_root_dir": "@dataset_dir"},
        },
    ]


def _check(folder: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Checks what can be checked here; a check that needs the internet is not called passed."""
    lacking = [key for key in METADATA_KEYS if key not in metadata]
    tensors = {**metadata["network_data_format"]["inputs"], **metadata["network_data_format"]["outputs"]}
    lacking += [f"{name}.{key}" for name, told in tensors.items() for key in TENSOR_KEYS if key not in told]
    configs, root = folder / "configs", {"bundle_root": str(folder)}
    try:
        with quiet(), _without_log():
            verify_net_in_out(
                "network_def", str(configs / "metadata.json"), str(configs / "inference.json"), device="cpu", **root
            )
    except (RuntimeError, ValueError, KeyError) as error:
        lacking.append(f"verify_net_in_out: {reason_of(error)}")
    if lacking:
        raise ExportError(f"the bundle lacks what MONAI requires ({', '.join(lacking)}); install monai 1.5 or newer")
    return {
        "required metadata keys": "passed",
        "verify_net_in_out": "passed",
        "metadata schema": "not checked (it has to be downloaded: python -m monai.bundle verify_metadata)",
    }


@contextmanager
def _without_log() -> Iterator[None]:
    """Keeps MONAI from printing its arguments."""
    log = logging.getLogger("monai.bundle.scripts")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def _how_to(name: str) -> str:
    return f"""
## Use

    python -m pip install "monai[fire,nibabel]" pillow
    python -m monai.bundle run --config_file {name}/configs/inference.json --bundle_root {name} \\
        --dataset_dir images --output_dir masks

reads pictures and NIfTI files below `images`, as levels from 0 to 255, and writes their masks: PNG (0 and 255) where
all are pictures, else NIfTI (0 and 1). A volume is segmented slice by slice along its last axis. The network in
`models/model.ts` takes images of any size; resizing, scaling and the way back are inside it, as in the run.
"""
