"""The two orders of a map: PyTorch's [B, C, H, W], and [B, H, W, C], in which bits and products lie."""

from __future__ import annotations

from typing import Any

from bnncore.spec import ModelSpec

__all__ = ["channels_last", "channels_second", "input_map"]


def channels_last(x: Any) -> Any:
    """View [B, C, H, W] as [B, H, W, C]; anything but a map as it is."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def channels_second(x: Any) -> Any:
    """View [B, H, W, C] as [B, C, H, W]; anything but a map as it is."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


def input_map(spec: ModelSpec) -> tuple[int, int, int] | None:
    """Give height, width and channels of what a network's first layer reads; None: plain numbers."""
    if spec.residual is not None:
        return spec.residual.stem.conv.in_map
    first = spec.blocks[0]
    return (first.in_height, first.in_width, first.in_channels) if first.is_conv else None
