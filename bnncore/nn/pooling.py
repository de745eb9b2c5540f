"""Max pooling of maps whose channels lie last, without an index in 64 bits for every window.

Windows do not overlap, and what is left over at the right and below is dropped. Of equal largest numbers the first of
the window counts, row by row, as in PyTorch and in the native engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["arg_max", "max_pool", "unpool"]

Window = tuple[int, int]


def max_pool(y: Any, window: Window) -> Any:
    """Give the largest of each window: [B, H, W, C] -> [B, H // rows, W // columns, C]. Bool counts as 0 and 1."""
    parts = _parts(y, window)
    largest = next(parts).clone()
    for part in parts:
        torch.maximum(largest, part, out=largest)
    return largest


def arg_max(y: Any, window: Window) -> tuple[Any, Any]:
    """Give the largest of each window and its place in it, counted row by row: uint8, int32 in large windows."""
    parts = _parts(y, window)
    largest = next(parts).clone()
    choice = torch.zeros_like(largest, dtype=torch.uint8 if window[0] * window[1] <= 256 else torch.int32)
    for place, part in enumerate(parts, start=1):
        choice.masked_fill_(part > largest, place)
        torch.maximum(largest, part, out=largest)
    return largest, choice


def unpool(grad: Any, choice: Any, window: Window, size: tuple[int, int]) -> Any:
    """Route a gradient of windows to where each largest number was; size: rows and columns of the map before."""
    out = grad.new_zeros((len(grad), *size, grad.shape[3]))
    for place, part in enumerate(_parts(out, window)):
        torch.mul(grad, choice == place, out=part)
    return out


def _parts(y: Any, window: Window) -> Iterator[Any]:
    """For each place in a window the map of what lies there."""
    height, width = y.shape[1] // window[0] * window[0], y.shape[2] // window[1] * window[1]
    for row in range(window[0]):
        for column in range(window[1]):
            yield y[:, row : height : window[0], column : width : window[1]]
