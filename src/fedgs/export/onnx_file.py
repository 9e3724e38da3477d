"""A network as an ONNX file that says what to do with images before it and with its answer after it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fedgs.errors import ExportError, MissingExtraError
from fedgs.export.deployed import quiet

__all__ = ["OPSET", "require_onnx", "run_onnx", "write_onnx"]

OPSET = 18
"""The operators' version: that which torch writes by itself, which onnxruntime runs since 1.14."""


def require_onnx() -> None:
    """Raises MissingExtraError unless everything is there that ONNX needs."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("export", "'fedgs export --format onnx'") from error


def write_onnx(path: Path, program: ExportedProgram, images: Tensor, described: Mapping[str, Any]) -> None:
    """Writes one file, weights included.

    Args:
        path: The file.
        program: The network.
        images: An example.
        described: Goes into the file's metadata; what is no text as JSON.

    Raises:
        ExportError: ONNX has no operator for something that the network does.
    """
    import onnx

    try:
        with quiet(), _without_remarks():
            made = torch.onnx.export(
                program,
                (images,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                external_data=False,
                input_names=["images"],
                output_names=["probabilities"],
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"the network does something that ONNX (operators of version {OPSET}) cannot express: {_culprit(error)}; "
            "give --format torch-export or monai-bundle, or train another --model"
        ) from error
    assert made is not None
    model = made.model_proto
    _name_batch(model)
    _forget_sources(model)
    for name, value in described.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Gives the probabilities that onnxruntime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": images.contiguous().numpy()})
    return torch.from_numpy(probabilities)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keeps the exporter from remarking that torchvision is not there."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _culprit(error: BaseException) -> str:
    """Finds the operator in what the exporter says, which is many lines long."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        told += str(cause).splitlines()
        cause = cause.__cause__
    named = [line.strip() for line in told if "aten." in line or "No ONNX function" in line]
    return (named or told or [type(error).__name__])[-1].strip()[:200]


def _name_batch(model: Any) -> None:
    """Calls the number of images what it is."""
    (symbol,) = {dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim if dim.dim_param}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if symbol in dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, "batch")


def _forget_sources(model: Any) -> None:
    """Removes where each step stands in the sources of the machine that it was written on."""
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
