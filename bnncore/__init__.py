"""bnncore: binary neural networks trained in a few megabytes.

The names below are loaded when they are first used: ``import bnncore`` alone imports neither NumPy nor the native
engine, so a small process can use ``bnncore.errors`` and pay for nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnncore.checkpoint import Checkpoint as Checkpoint
    from bnncore.checkpoint import load_checkpoint as load_checkpoint
    from bnncore.checkpoint import save_checkpoint as save_checkpoint
    from bnncore.codec import get_codec as get_codec
    from bnncore.data import open_dataset as open_dataset
    from bnncore.engine import Engine as Engine
    from bnncore.errors import BitfleetError as BitfleetError
    from bnncore.optimizer import OptimizerConfig as OptimizerConfig
    from bnncore.optimizer import resolve_preset as resolve_preset
    from bnncore.plan import plan_memory as plan_memory
    from bnncore.predictor import Predictor as Predictor
    from bnncore.spec import ModelSpec as ModelSpec
    from bnncore.training import evaluate as evaluate
    from bnncore.training import train as train
    from bnncore.zoo import build as build
    from bnncore.zoo import mlp as mlp

__all__ = [
    "BitfleetError",
    "Checkpoint",
    "Engine",
    "ModelSpec",
    "OptimizerConfig",
    "Predictor",
    "build",
    "evaluate",
    "get_codec",
    "load_checkpoint",
    "mlp",
    "open_dataset",
    "plan_memory",
    "resolve_preset",
    "save_checkpoint",
    "train",
]

_HOME = {
    "BitfleetError": "errors",
    "Checkpoint": "checkpoint",
    "Engine": "engine",
    "ModelSpec": "spec",
    "OptimizerConfig": "optimizer",
    "Predictor": "predictor",
    "build": "zoo",
    "evaluate": "training",
    "get_codec": "codec",
    "load_checkpoint": "checkpoint",
    "mlp": "zoo",
    "open_dataset": "data",
    "plan_memory": "plan",
    "resolve_preset": "optimizer",
    "save_checkpoint": "checkpoint",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bitfleet")
    if name not in _HOME:
        raise AttributeError(f"module 'bnncore' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bnncore.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
