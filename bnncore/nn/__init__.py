"""Networks in PyTorch: the only package that imports torch.

``import bnncore.nn`` alone does not, so that a machine without torch can say what is missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnncore.nn.variants import VARIANTS, Variant, variants_for

if TYPE_CHECKING:
    from bnncore.nn.standard import StandardNetwork as StandardNetwork
    from bnncore.nn.trainer import StandardTrainer as StandardTrainer

__all__ = ["VARIANTS", "StandardNetwork", "StandardTrainer", "Variant", "variants_for"]

_HOME = {"StandardNetwork": "standard", "StandardTrainer": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnncore.nn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bnncore.nn.{_HOME[name]}"), name)
    globals()[name] = value
    return value
