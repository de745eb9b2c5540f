"""``Sequential``: ``torch.nn.Sequential`` that runs binary layers block by block, with a bit for each number kept.

A block is binary weights, perhaps MaxPool2d, L1BatchNorm, and perhaps BinarySign with perhaps MaxPool2d after it. From
block to block signs travel in bits; Flatten, and Unflatten to maps of one place, keep them so. All other modules are
run as they are, on ordinary tensors. The numbers are those that the modules give one by one, but for rounding where
they are not whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from bnncore.nn.block import Block, Flow, run_block
from bnncore.nn.layers import BinaryConv2d, BinaryLinear, BinarySign, L1BatchNorm1d, L1BatchNorm2d

__all__ = ["Sequential", "pool_window"]

_NORMS = (L1BatchNorm1d, L1BatchNorm2d)


class Sequential(nn.Sequential):
    """``torch.nn.Sequential`` that keeps one bit for each number that its binary layers read.

    A module with hooks is run by itself, so that they are called. ``torch.compile`` leaves the whole of it as it is.

    Memory between forward and backward: numbers that binary layers read / 8 bytes; two bits for each number of a
    BinarySign that does not follow a norm; whatever other modules keep; and x itself, if the first layer reads it as
    it is.
    """

    @torch.compiler.disable
    def forward(self, x: Any) -> Any:
        """Run all modules in order."""
        modules, flow, position = list(self), Flow(x), 0
        while position < len(modules):
            module = modules[position]
            count, block = _find_block(modules, position)
            if block is not None:
                if module.training:
                    module.clip_weights()
                norm = next(m for m in modules[position:] if isinstance(m, _NORMS))
                flow = run_block(block, flow, module.weight, norm)
            elif _has_hooks(module):
                flow = Flow(module(flow.real()))
            elif isinstance(module, BinarySign):
                flow = flow if flow.bits is not None else Flow.of_signs(flow.x)
            elif flow.bits is not None and isinstance(module, nn.Flatten) and _flattens_samples(module, flow.x):
                flow = flow.flatten()
            elif flow.bits is not None and isinstance(module, nn.Unflatten) and _makes_points(module, flow.x):
                flow = flow.unflatten(flow.x.shape[1])
            else:
                flow = Flow(module(flow.real()))
            position += count
        return flow.real()


def pool_window(module: Any) -> tuple[int, int] | None:
    """Give the rows and columns of a max pool whose windows neither overlap nor leave gaps; None for other modules."""
    if type(module) is not nn.MaxPool2d:
        return None
    window = _pair(module.kernel_size)
    is_plain = _pair(module.stride) == window and _pair(module.padding) == (0, 0) and _pair(module.dilation) == (1, 1)
    return window if is_plain and not (module.ceil_mode or module.return_indices) else None


def _find_block(modules: list[Any], position: int) -> tuple[int, Block | None]:
    """Give how many modules from here on are a block, and which; one and None if they are none."""
    at = position

    def take(kinds: Any) -> Any:
        nonlocal at
        if at < len(modules) and isinstance(modules[at], kinds) and not _has_hooks(modules[at]):
            at += 1
            return modules[at - 1]
        return None

    def take_pool() -> tuple[int, int] | None:
        nonlocal at
        window = pool_window(modules[at]) if at < len(modules) and not _has_hooks(modules[at]) else None
        at += window is not None
        return window

    linear = take((BinaryConv2d, BinaryLinear))
    if linear is None:
        return 1, None
    is_conv = isinstance(linear, BinaryConv2d)
    window = take_pool() if is_conv else None
    if take(L1BatchNorm2d if is_conv else L1BatchNorm1d) is None:
        return 1, None
    is_signed = take(BinarySign) is not None
    pools_signs = False
    if is_signed and is_conv and window is None:
        window = take_pool()
        pools_signs = window is not None
    return at - position, Block(linear.geometry, window, pools_signs, is_signed)


def _has_hooks(module: Any) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _flattens_samples(module: Any, x: Any) -> bool:
    return module.start_dim == 1 and module.end_dim in (-1, x.dim() - 1)


def _makes_points(module: Any, x: Any) -> bool:
    return x.dim() == 2 and module.dim in (1, -1) and tuple(module.unflattened_size) == (x.shape[1], 1, 1)
