"""Networks in PyTorch: the only package that imports torch.

Layers under PyTorch's names that keep bits where PyTorch keeps floats (``Sequential`` of ``BinaryConv2d``,
``BinaryLinear``, ``L1BatchNorm1d/2d``, ``BinarySign``), and the published algorithms in plain PyTorch (``standard``).

``import bnncore.nn`` alone does not import torch: the first use of a layer does, and says what to install where it is
missing.
"""

from __future__ import annotations

import importlib
from typing import Any

from bnncore.errors import ConfigurationError
from bnncore.nn.variants import VARIANTS, Variant, variants_for

_HOMES = {
    "BinaryConv2d": "layers",
    "BinaryLinear": "layers",
    "BinarySign": "layers",
    "L1BatchNorm1d": "layers",
    "L1BatchNorm2d": "layers",
    "Sequential": "sequential",
    "update_in_backward": "updating",
}

__all__ = [
    "VARIANTS",
    "BinaryConv2d",
    "BinaryLinear",
    "BinarySign",
    "L1BatchNorm1d",
    "L1BatchNorm2d",
    "Sequential",
    "Variant",
    "update_in_backward",
    "variants_for",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"bnncore.nn.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigurationError(
            f"bnncore.nn.{name} needs PyTorch, which is not installed. Install it with: pip install 'bitfleet[torch]'"
        ) from error
    return getattr(module, name)
