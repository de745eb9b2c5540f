"""Predictions from folded numbers in NumPy: what a runtime of the packed file has to do, in as few words as possible.

Not made for speed; ``bnncore.predictor.Predictor`` is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnncore.export.folded import (
    INPUT_MAX,
    FoldedChain,
    FoldedLogits,
    FoldedNorm,
    FoldedResidual,
    FoldedUnit,
    RealWeights,
)
from bnncore.layers import Conv2d
from bnncore.reference.fixed_point import average_pool
from bnncore.reference.fixed_point import max_pool as overlapping_max_pool
from bnncore.reference.maps import convolve, max_pool

__all__ = ["logits_of"]

Ints = NDArray[np.int64]


def logits_of(folded: FoldedChain | FoldedResidual, samples: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Give the logits [N, classes] of samples, uint8 [N, ...] with as many numbers each as the network takes."""
    x = 2 * samples.astype(np.int64).reshape(len(samples), -1) - INPUT_MAX
    return _chain(folded, x) if isinstance(folded, FoldedChain) else _residual(folded, x)


def _chain(folded: FoldedChain, x: Ints) -> NDArray[np.float32]:
    for part in folded.blocks:
        block, window = part.block, (part.block.pool_height, part.block.pool_width)
        x = x.reshape(len(x), block.in_height, block.in_width, block.in_channels)
        y = convolve(x, part.signs.astype(np.int64), block.stride, (block.pad_height, block.pad_width))
        if block.pool == "before_norm":
            y, _ = max_pool(y, window)
        if isinstance(part.end, FoldedLogits):
            logits = (y.reshape(len(y), -1) - part.end.mean) * part.end.inverse + part.end.beta
            return logits.astype(np.float32)
        x = np.where(y >= part.end, 1, -1)
        if block.pool == "after_sign":
            x, _ = max_pool(x, window)
    raise AssertionError("the last block of a chain makes the logits")


def _residual(folded: FoldedResidual, x: Ints) -> NDArray[np.float32]:
    stem, network = folded.stem, folded.spec.residual
    assert network is not None
    y = _real(stem.layers.conv, stem.weights, x.reshape(len(x), *stem.layers.conv.in_map))
    if stem.layers.pool is not None:
        y, _ = overlapping_max_pool(y, stem.layers.pool)
    s = _into_stream(y, stem.norm)
    if stem.second_norm is not None:
        s = _into_stream(s, stem.second_norm)
    for unit in folded.units:
        s = _unit(unit, s)
    features = (np.maximum(s, 0) if network.head.relu is not None else s).sum(axis=(1, 2)).astype(np.float32)
    products = (features * folded.unit)[:, None, :] * folded.weights
    logits: NDArray[np.float32] = np.cumsum(products, axis=2, dtype=np.float32)[:, :, -1] + folded.bias
    return logits


def _unit(unit: FoldedUnit, s: Ints) -> Ints:
    conv, way = unit.layers.conv, s
    x = np.where(s < 0, -1, 1)
    y = convolve(x, unit.signs.astype(np.int64), conv.stride, (conv.pad_height, conv.pad_width))
    if unit.shortcut is not None:
        pool = unit.shortcut.layers.pool
        pooled = s if pool is None else average_pool(s, (pool.pool_height, pool.pool_width))
        way = _into_stream(_real(unit.shortcut.layers.conv, unit.shortcut.weights, pooled), unit.shortcut.norm)
    return way + _into_stream(y, unit.norm)


def _real(conv: Conv2d, weights: RealWeights, x: Ints) -> Ints:
    y = convolve(x, weights.values.astype(np.int64), conv.stride, (conv.pad_height, conv.pad_width))
    shifted: Ints = y >> weights.shift
    return shifted


def _into_stream(y: Ints, norm: FoldedNorm) -> Ints:
    value = y.astype(np.float32) * norm.gain + norm.offset
    s: Ints = np.rint(np.clip(value, np.float32(norm.low), np.float32(norm.limit))).astype(np.int64)
    return s
