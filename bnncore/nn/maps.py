"""The two orders of a map: PyTorch's [B, C, H, W], and [B, H, W, C], in which bits and products lie."""

from __future__ import annotations

from typing import Any

__all__ = ["channels_last", "channels_second"]


def channels_last(x: Any) -> Any:
    """View [B, C, H, W] as [B, H, W, C]; anything but a map as it is."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def channels_second(x: Any) -> Any:
    """View [B, H, W, C] as [B, C, H, W]; anything but a map as it is."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x
