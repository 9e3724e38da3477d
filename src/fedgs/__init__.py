"""FedGS: federated segmentation in which optimizer steps on small, hard lesions count more.

Names are imported when they are first used, so that ``import fedgs`` stays fast.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgs.algorithms.fedavg import fedavg, fedavg_published
    from fedgs.algorithms.fedgs import fedgs
    from fedgs.config import RunConfig, configure
    from fedgs.core import Algorithm, Global, LocalRule, Site, Update, global_of, load, run_round, train_locally
    from fedgs.data.index import Index, SmallRule, build_index, open_data, open_index
    from fedgs.data.lesions import is_small_by_components, is_small_by_total
    from fedgs.errors import FedgsError
    from fedgs.experiment import train
    from fedgs.external import evaluate
    from fedgs.prediction.options import PredictOptions
    from fedgs.prediction.predict import predict
    from fedgs.report.html import write_report
    from fedgs.scaled_update import ScaledUpdate
    from fedgs.scaling import difficulty_of_area, scale_of_batch

__version__ = "0.1.0"

# MONAI imports MLflow where that is installed, which would then tell its makers how it is used.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_HOMES = {
    "Algorithm": "core",
    "FedgsError": "errors",
    "Global": "core",
    "Index": "data.index",
    "LocalRule": "core",
    "PredictOptions": "prediction.options",
    "RunConfig": "config",
    "ScaledUpdate": "scaled_update",
    "Site": "core",
    "SmallRule": "data.index",
    "Update": "core",
    "build_index": "data.index",
    "configure": "config",
    "difficulty_of_area": "scaling",
    "evaluate": "external",
    "fedavg": "algorithms.fedavg",
    "fedavg_published": "algorithms.fedavg",
    "fedgs": "algorithms.fedgs",
    "global_of": "core",
    "is_small_by_components": "data.lesions",
    "is_small_by_total": "data.lesions",
    "load": "core",
    "open_data": "data.index",
    "open_index": "data.index",
    "predict": "prediction.predict",
    "run_round": "core",
    "scale_of_batch": "scaling",
    "train": "experiment",
    "train_locally": "core",
    "write_report": "report.html",
}

__all__ = [
    "Algorithm",
    "FedgsError",
    "Global",
    "Index",
    "LocalRule",
    "PredictOptions",
    "RunConfig",
    "ScaledUpdate",
    "Site",
    "SmallRule",
    "Update",
    "__version__",
    "build_index",
    "configure",
    "difficulty_of_area",
    "evaluate",
    "fedavg",
    "fedavg_published",
    "fedgs",
    "global_of",
    "is_small_by_components",
    "is_small_by_total",
    "load",
    "open_data",
    "open_index",
    "predict",
    "run_round",
    "scale_of_batch",
    "train",
    "train_locally",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"fedgs.{_HOMES[name]}"), name)
    try:
        return import_module(f"fedgs.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fedgs.{name}":
            raise
        raise AttributeError(f"module 'fedgs' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return __all__
