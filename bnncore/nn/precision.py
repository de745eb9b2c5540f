"""The types that gradients and norms are computed in, whatever automatic mixed precision says."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["autocast_off", "compute_dtype", "travel_dtype"]


def autocast_off(x: Any) -> Any:
    """Give the context in which automatic mixed precision leaves types alone, on x's device."""
    return torch.autocast(x.device.type, enabled=False)


def compute_dtype(x: Any) -> Any:
    """Give float64 for float64 and float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def travel_dtype(x: Any) -> Any:
    """Give the type that signs of x, and so their gradients, have between blocks: autocast's, where that is on."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return compute_dtype(x)
