"""``Residual``: a layer that adds what its body gives to what it reads, or to what a shortcut makes of it.

The body of a binary residual network is BinarySign, BinaryConv2d, L1BatchNorm2d; its shortcut is empty, or perhaps
AvgPool2d, a 1 x 1 Conv2d and L1BatchNorm2d. Then what is added is in the engine's fixed point (``bnncore.nn.stream``),
and for the backward pass it keeps bits: of each number that it reads the sign and whether |x| <= 1. Where the sign's
gradient is "approx", which wants |x| itself, that takes 11 bits.

A run of such layers that share one stream is a *stage*; a shortcut starts the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from bnncore.nn.block import Block, Flow, run_block
from bnncore.nn.layers import BinaryConv2d, BinarySign, L1BatchNorm2d
from bnncore.nn.products import Geometry
from bnncore.nn.shortcut import run_shortcut
from bnncore.nn.stream import stream_limit

__all__ = ["Residual", "average_window", "conv_geometry", "has_hooks", "is_plain_conv", "terms_at"]


class Residual(nn.Module):
    """The sum of two ways through the same input.

    Args:
      body: modules in order, also by name; or a Sequential.
      shortcut: likewise; None: what it reads is added as it is.

    Shapes: x -> whatever body and shortcut both give.
    """

    def __init__(self, body: Any, shortcut: Any = None) -> None:
        super().__init__()
        self.body = _in_order(body)
        self.shortcut = None if shortcut is None else _in_order(shortcut)

    @torch.compiler.disable
    def forward(self, x: Any, terms: int = 2) -> Any:
        """Add both ways; ``terms`` says of how many numbers, this one's included, a sum of the stream consists."""
        limit = stream_limit(terms)
        way = x if self.shortcut is None else self._shortcut(x, limit)
        return way + self._body(x, limit)

    def _body(self, x: Any, limit: int) -> Any:
        modules = list(self.body)
        if not _are(modules, BinarySign, BinaryConv2d, L1BatchNorm2d) or has_hooks(self.body):
            return self.body(x)
        sign, conv, norm = modules
        if conv.training:
            conv.clip_weights()
        flow = Flow.of_signs(x, sign.gradient)
        return run_block(Block(conv.geometry, is_signed=False, limit=limit), flow, conv.weight, norm).x

    def _shortcut(self, x: Any, limit: int) -> Any:
        assert self.shortcut is not None
        modules, window = list(self.shortcut), (1, 1)
        if modules and average_window(modules[0]) is not None and not has_hooks(modules[0]):
            window = average_window(modules.pop(0)) or window
        is_point = _are(modules, nn.Conv2d, L1BatchNorm2d) and is_plain_conv(modules[0])
        is_point = is_point and (modules[0].kernel_size, modules[0].stride) == ((1, 1), (1, 1))
        is_point = is_point and modules[0].padding in ((0, 0), "valid", "same") and modules[1].affine
        if not is_point or has_hooks(self.shortcut):
            return self.shortcut(x)
        return run_shortcut(x, window, modules[0].weight, modules[1], limit)


def terms_at(modules: Sequence[Any], position: int) -> int:
    """Say of how many numbers the stream is a sum that the module at this position makes, or adds to."""

    def adds(at: int) -> bool:
        return 0 <= at < len(modules) and isinstance(modules[at], Residual) and modules[at].shortcut is None

    first = last = position
    while adds(first):  # back to what makes the stream
        first -= 1
    while adds(last + 1):
        last += 1
    return 1 + last - first + int(first >= 0 and isinstance(modules[first], Residual))


def average_window(module: Any) -> tuple[int, int] | None:
    """Give rows and columns of an average pool whose windows lie side by side; None for other modules."""
    if type(module) is not nn.AvgPool2d:
        return None
    window = _pair(module.kernel_size)
    is_plain = _pair(module.stride) == window and _pair(module.padding) == (0, 0)
    return window if is_plain and not module.ceil_mode and module.divisor_override is None else None


def is_plain_conv(module: Any) -> bool:
    """Say whether a module is a real convolution as a spec has it: no bias, one group, no dilation, zeros around."""
    return (
        type(module) is nn.Conv2d
        and module.bias is None
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and (module.padding != "same" or all(size % 2 for size in module.kernel_size))
    )


def conv_geometry(module: Any) -> Geometry:
    """How a real convolution moves."""
    padding = module.padding
    if isinstance(padding, str):
        rows, columns = module.kernel_size if padding == "same" else (1, 1)
        padding = (rows // 2, columns // 2)
    return Geometry(module.stride, tuple(padding), module.dilation, module.groups)


def has_hooks(module: Any) -> bool:
    """Say whether a module has hooks, and so must be called to call them."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _are(modules: Sequence[Any], *kinds: type) -> bool:
    return len(modules) == len(kinds) and all(
        isinstance(module, kind) and not has_hooks(module) for module, kind in zip(modules, kinds, strict=True)
    )


def _in_order(modules: Any) -> Any:
    if isinstance(modules, nn.Sequential):
        return modules
    return nn.Sequential(modules) if isinstance(modules, Mapping) else nn.Sequential(*modules)
