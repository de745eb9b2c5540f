"""The sizes of a network in a table of numbers, for runtimes that read no JSON: a row a block, unit, stem or head.

The first twelve columns of all rows but the head's: kind (1 block, 2 stem, 3 unit, 4 head); height, width and channels
of the map that is read; output channels; kernel height and width, stride, rows and columns of padding; height and width
of the products. Then

==========  ========================================================================================================
1 block     pool (0 none, 1 before the norm, 2 after the sign), its height and width, whether it is the last
2 stem      whether it pools; height and width of the window, strides, padding, the pooled map; whether it has a second
            norm
3 unit      whether it has a shortcut, whether that pools, height and width of the window
==========  ========================================================================================================

4 head: height, width and channels of the stream's map, classes, whether there is a relu. What is left over is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnncore.blocks import Block
from bnncore.layers import BinaryConv2d, Conv2d
from bnncore.residual import Head, Stem, Unit
from bnncore.spec import ModelSpec

__all__ = ["PLAN_COLUMNS", "plan_of"]

PLAN_COLUMNS = 24
_POOLS = {"none": 0, "before_norm": 1, "after_sign": 2}


def plan_of(spec: ModelSpec) -> NDArray[np.int32]:
    """Return the table of a network, int32 [rows, 24]."""
    if spec.residual is None:
        rows = [_block(block) for block in spec.blocks]
    else:
        network = spec.residual
        rows = [_stem(network.stem), *(_unit(unit) for unit in network.units), _head(network.head)]
    return np.array([row + [0] * (PLAN_COLUMNS - len(row)) for row in rows], "<i4")


def _block(block: Block) -> list[int]:
    return [
        *(1, block.in_height, block.in_width, block.in_channels, block.out_channels),
        *(block.kernel_height, block.kernel_width, block.stride, block.pad_height, block.pad_width),
        *(block.conv_height, block.conv_width),
        *(_POOLS[block.pool], block.pool_height, block.pool_width, int(block.is_last)),
    ]


def _convolution(kind: int, conv: BinaryConv2d | Conv2d) -> list[int]:
    sizes = [conv.kernel_height, conv.kernel_width, conv.stride, conv.pad_height, conv.pad_width]
    return [kind, *conv.in_map, conv.out_channels, *sizes, conv.out_height, conv.out_width]


def _stem(stem: Stem) -> list[int]:
    pool, has_second = stem.pool, int(stem.second_norm is not None)
    if pool is None:
        return [*_convolution(2, stem.conv), *[0] * 9, has_second]
    window = [1, pool.pool_height, pool.pool_width, *pool.strides, *pool.pads, *pool.out_map[:2]]
    return [*_convolution(2, stem.conv), *window, has_second]


def _unit(unit: Unit) -> list[int]:
    if unit.shortcut is None:
        return _convolution(3, unit.conv)
    pool = unit.shortcut.pool
    window = [0, 1, 1] if pool is None else [1, pool.pool_height, pool.pool_width]
    return [*_convolution(3, unit.conv), 1, *window]


def _head(head: Head) -> list[int]:
    return [4, *head.pool.in_map, head.dense.out_features, int(head.relu is not None)]
