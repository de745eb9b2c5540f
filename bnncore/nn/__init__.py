"""Networks in PyTorch: the only package that imports torch.

Layers under PyTorch's names that keep bits where PyTorch keeps floats (``Sequential`` of ``BinaryConv2d``,
``BinaryLinear``, ``L1BatchNorm1d/2d``, ``BinarySign``, ``Residual``), the networks of the zoo (``zoo``), conversion to
and from the native engine (``convert``), and the published algorithms in plain PyTorch (``standard``,
``standard_residual``).

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
    "Residual": "residual",
    "Sequential": "sequential",
    "update_in_backward": "updating",
}
_MODULES = ("convert", "zoo")

__all__ = [
    "VARIANTS",
    "BinaryConv2d",
    "BinaryLinear",
    "BinarySign",
    "L1BatchNorm1d",
    "L1BatchNorm2d",
    "Residual",
    "Sequential",
    "Variant",
    "convert",
    "update_in_backward",
    "variants_for",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"bnncore.nn.{_HOMES.get(name, name)}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigurationError(
            f"bnncore.nn.{name} needs PyTorch, which is not installed. Install it with: pip install 'bitfleet[torch]'"
        ) from error
    return module if name in _MODULES else getattr(module, name)
