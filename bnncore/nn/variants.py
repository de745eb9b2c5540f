"""The ways in which PyTorch can run the same training step; which one is fastest depends on network and machine."""

from __future__ import annotations

from dataclasses import dataclass

from bnncore.spec import ModelSpec

__all__ = ["VARIANTS", "Variant", "variants_for"]


@dataclass(frozen=True)
class Variant:
    """One way to run a step.

    Attributes:
      name: what reports call it.
      fused: Adam in one native loop a tensor (``torch.optim.Adam(fused=True)``).
      channels_last: maps stored with their channels together; makes a difference to convolutions only.
      compiled: forward and backward through ``torch.compile``, which needs a C++ compiler.
    """

    name: str
    fused: bool = False
    channels_last: bool = False
    compiled: bool = False


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("eager"),
        Variant("fused Adam", fused=True),
        Variant("channels_last", fused=True, channels_last=True),
        Variant("compiled", fused=True, compiled=True),
        Variant("compiled channels_last", fused=True, channels_last=True, compiled=True),
    )
}
"""By name. What proved faster alone is kept in the ones that follow."""


def variants_for(spec: ModelSpec) -> list[Variant]:
    """List the variants that can differ for a network."""
    has_maps = spec.residual is not None or any(block.is_conv for block in spec.blocks)
    return [variant for variant in VARIANTS.values() if has_maps or not variant.channels_last]
