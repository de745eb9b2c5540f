"""``Sequential``: ``torch.nn.Sequential`` that runs binary layers block by block, with a bit for each number kept.

A block is binary weights, perhaps MaxPool2d, L1BatchNorm, and perhaps BinarySign with perhaps MaxPool2d after it. From
block to block signs travel in bits; Flatten, and Unflatten to maps of one place, keep them so. In front of Residual
layers a real convolution with its norm and what follows is one function too, and behind them the mean of each channel.
All other modules are run as they are, on ordinary tensors. The numbers are those that the modules give one by one, but
for rounding: of what is not whole, and of a residual network's stream (``bnncore.nn.stream``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from bnncore.nn.block import Block, Flow, run_block
from bnncore.nn.layers import BinaryConv2d, BinaryLinear, BinarySign, L1BatchNorm1d, L1BatchNorm2d
from bnncore.nn.residual import Residual, average_window, conv_geometry, has_hooks, is_plain_conv, terms_at
from bnncore.nn.shortcut import channel_means
from bnncore.nn.stem import Pool, Stem, run_stem
from bnncore.nn.stream import stream_limit

__all__ = ["Sequential", "is_usual_pool", "pool_window"]

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
            stem = _find_stem(modules, position)
            if stem is not None:
                count, flow = len(stem), Flow(_run_stem(stem, terms_at(modules, position + len(stem) - 1), flow.real()))
            elif isinstance(module, Residual) and not has_hooks(module):
                flow = Flow(module(flow.real(), terms_at(modules, position)))
            elif (head := _find_means(modules, position, flow)) is not None:
                count, flow = len(head), Flow(channel_means(flow.real(), is_positive=len(head) > 1))
            elif block is not None:
                if module.training:
                    module.clip_weights()
                norm = next(m for m in modules[position:] if isinstance(m, _NORMS))
                flow = run_block(block, flow, module.weight, norm)
            elif has_hooks(module):
                flow = Flow(module(flow.real()))
            elif isinstance(module, BinarySign):
                flow = flow if flow.bits is not None else _signs_of(flow.x, module)
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


def is_usual_pool(module: Any) -> bool:
    """Say whether a module is a max pool of whole windows, which may overlap or be padded."""
    return (
        type(module) is nn.MaxPool2d
        and _pair(module.dilation) == (1, 1)
        and not (module.ceil_mode or module.return_indices)
    )


def _find_block(modules: list[Any], position: int) -> tuple[int, Block | None]:
    """Give how many modules from here on are a block, and which; one and None if they are none."""
    at = position

    def take(kinds: Any) -> Any:
        nonlocal at
        if at < len(modules) and isinstance(modules[at], kinds) and not has_hooks(modules[at]):
            at += 1
            return modules[at - 1]
        return None

    def take_pool() -> tuple[int, int] | None:
        nonlocal at
        window = pool_window(modules[at]) if at < len(modules) and not has_hooks(modules[at]) else None
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


def _signs_of(x: Any, module: Any) -> Flow:
    """Take the sign of floats that are no stream: ApproxSign then keeps them as they are."""
    return Flow.of_signs(x) if module.gradient == "clip" else Flow(module(x)).with_bits()


def _find_stem(modules: list[Any], position: int) -> list[Any] | None:
    """Give the modules from here on that make a stream for a Residual behind them; None if there are none."""
    found: list[Any] = []

    def take(kind: Any) -> bool:
        at = position + len(found)
        if at < len(modules) and isinstance(modules[at], kind) and not has_hooks(modules[at]):
            found.append(modules[at])
            return True
        return False

    if not (take(nn.Conv2d) and is_plain_conv(found[0]) and take(L1BatchNorm2d)):
        return None
    take(nn.ReLU)
    if take(nn.MaxPool2d) and not is_usual_pool(found[-1]):
        return None
    take(L1BatchNorm2d)
    after = position + len(found)
    has_stream = after < len(modules) and isinstance(modules[after], Residual)
    return found if has_stream and all(m.affine for m in found if isinstance(m, L1BatchNorm2d)) else None


def _run_stem(found: list[Any], terms: int, x: Any) -> Any:
    conv, norm, *rest = found
    pools = [module for module in rest if isinstance(module, nn.MaxPool2d)]
    norms = [module for module in rest if isinstance(module, L1BatchNorm2d)]
    sizes = [(_pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)) for pool in pools]
    has_relu = any(isinstance(module, nn.ReLU) for module in rest)
    stem = Stem(conv_geometry(conv), has_relu, Pool(*sizes[0]) if sizes else None, stream_limit(terms))
    return run_stem(stem, x, conv.weight, norm, norms[0] if norms else None)


def _find_means(modules: list[Any], position: int, flow: Flow) -> list[Any] | None:
    """Give the modules from here on that take the mean of each channel of a stream; None if there are none."""
    previous = modules[position - 1] if position else None
    if not isinstance(previous, Residual) or flow.x.dim() != 4:
        return None
    found = modules[position : position + 2] if isinstance(modules[position], nn.ReLU) else [modules[position]]
    is_whole = average_window(found[-1]) == tuple(flow.x.shape[2:])
    return found if is_whole and not any(has_hooks(module) for module in found) else None


def _flattens_samples(module: Any, x: Any) -> bool:
    return module.start_dim == 1 and module.end_dim in (-1, x.dim() - 1)


def _makes_points(module: Any, x: Any) -> bool:
    return x.dim() == 2 and module.dim in (1, -1) and tuple(module.unflattened_size) == (x.shape[1], 1, 1)
