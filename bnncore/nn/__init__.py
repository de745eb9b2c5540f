"""Networks in PyTorch: the only package that imports torch.

``import bnncore.nn`` alone does not, so that a machine without torch can say what is missing; ``standard`` and
``trainer`` do.
"""

from __future__ import annotations

from bnncore.nn.variants import VARIANTS, Variant, variants_for

__all__ = ["VARIANTS", "Variant", "variants_for"]
