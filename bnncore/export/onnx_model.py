"""A trained network as an ONNX model that gives the engines' logits, bit for bit; needs the extra ``[onnx]``.

Input ``samples``, uint8 [N, ...] as the spec says; outputs ``logits``, float32 [N, classes], and ``label``, int64 [N].
The rule x = 2 u - 255 is in the graph.

Why nothing is rounded differently, whichever way a runtime adds up:

* Products are of whole numbers in float32, and no sum goes beyond 2^24, up to which float32 holds every whole number:
  the order of the additions and fused multiplications change nothing. Weights of a real-valued stem are cut into digits
  small enough for that, whose sums are put together in float64 (below 2^53).
* Signs come of comparisons with whole numbers.
* The few operations on real numbers are element by element in the engines' order and precision. The logits of a chain
  are made in float64 and rounded once. The norms of a residual network are a product and a sum in float32, kept apart
  from the convolution by a rounding that changes nothing, so that no optimiser multiplies the factor into the weights.
  Its last layer adds float32 products in the order of the channels, by a cumulative sum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from bnncore.blocks import Block
from bnncore.export.folded import (
    INPUT_MAX,
    FoldedBlock,
    FoldedChain,
    FoldedLogits,
    FoldedNorm,
    FoldedResidual,
    FoldedShortcut,
    FoldedUnit,
    RealWeights,
    fold,
)
from bnncore.export.onnx_graph import Graph
from bnncore.layers import BinaryConv2d, Conv2d
from bnncore.spec import ModelSpec
from bnncore.state import State, weights_digest

__all__ = ["onnx_model"]

_EXACT = 1 << 24
"""Whole numbers up to here are exact in float32. The engines take no layer whose sums go beyond."""


def onnx_model(
    spec: ModelSpec, state: State, *, classes: Sequence[str] = (), properties: Mapping[str, str] | None = None
) -> ModelProto:
    """Build the ONNX model of a trained network.

    Args:
      spec: the network.
      state: its tensors, running statistics included.
      classes: their names, kept as a property of the model.
      properties: more to keep.

    Raises:
      ShapeError, PayloadError: the state is not one of this network, or has no statistics.
    """
    folded = fold(spec, state)
    graph = Graph(spec.name)
    x = graph.scalar("Sub", graph.scalar("Mul", graph.cast("samples", np.float32), 2), INPUT_MAX)
    logits = _chain(graph, folded, x) if isinstance(folded, FoldedChain) else _residual(graph, folded, x)
    graph.node("Identity", logits, called="logits")
    graph.node("ArgMax", logits, called="label", axis=1, keepdims=0)
    told = {
        "model": spec.name,
        "spec_digest": spec.digest,
        "weights_digest": weights_digest(spec, state),
        **({"classes": json.dumps(list(classes), ensure_ascii=False)} if classes else {}),
        **(properties or {}),
    }
    return graph.model(
        {"samples": (np.uint8, spec.input_shape)},
        {"logits": (np.float32, [spec.classes]), "label": (np.int64, [])},
        told,
    )


def _chain(graph: Graph, folded: FoldedChain, x: str) -> str:
    is_map = False
    for part in folded.blocks:
        block = part.block
        if block.is_conv:
            if block.is_first:
                x = _channels_first(graph, x, (block.in_height, block.in_width, block.in_channels))
            elif not is_map:
                x = graph.reshape(x, (block.in_channels, block.in_height, block.in_width))
            x, is_map = _conv_block(graph, part, x), True
        else:
            x = _dense_block(graph, part, x, is_map=is_map)
            is_map = False
    return x


def _channels_first(graph: Graph, x: str, shape: tuple[int, int, int]) -> str:
    return graph.node("Transpose", graph.reshape(x, shape), perm=[0, 3, 1, 2])


def _conv_block(graph: Graph, part: FoldedBlock, x: str) -> str:
    block = part.block
    weights = graph.floats(part.signs.transpose(0, 3, 1, 2))
    pads, strides = [block.pad_height, block.pad_width] * 2, [block.stride] * 2
    y = graph.node("Conv", x, weights, pads=pads, strides=strides)
    window = [block.pool_height, block.pool_width]
    if block.pool == "before_norm":
        y = graph.node("MaxPool", y, kernel_shape=window, strides=window)
    assert not isinstance(part.end, FoldedLogits)  # a chain ends in a dense layer
    y = _sign(graph, part.end.reshape(-1, 1, 1), y, block)
    if block.pool == "after_sign":
        y = graph.node("MaxPool", y, kernel_shape=window, strides=window)
    return y


def _dense_block(graph: Graph, part: FoldedBlock, x: str, *, is_map: bool) -> str:
    """Multiply; of a map the columns are put in the order in which it lies, channel by channel."""
    block, signs = part.block, part.signs
    if is_map or block.is_first:
        x = graph.reshape(x, [block.in_features])
    columns = signs.transpose(0, 3, 1, 2) if is_map else signs
    y = graph.node("MatMul", x, graph.floats(columns.reshape(block.out_channels, -1).T))
    if not isinstance(part.end, FoldedLogits):
        return _sign(graph, part.end, y, block)
    y = graph.node("Sub", graph.cast(y, np.float64), graph.constant(part.end.mean))
    y = graph.node("Add", graph.node("Mul", y, graph.constant(part.end.inverse)), graph.constant(part.end.beta))
    return graph.cast(y, np.float32)


def _sign(graph: Graph, sign_from: NDArray[np.int32], y: str, block: Block) -> str:
    """Compare with thresholds; those beyond the largest sum are infinite, as float32 does not hold them exactly."""
    largest = block.fan_in * (INPUT_MAX if block.is_first else 1)
    near = np.maximum(sign_from.astype(np.int64), -largest)
    thresholds = np.where(near > largest, np.inf, near).astype(np.float32)
    return _where(graph, graph.node("GreaterOrEqual", y, graph.constant(thresholds)))


def _where(graph: Graph, condition: str) -> str:
    one, minus_one = (graph.constant(np.array(number, np.float32)) for number in (1, -1))
    return graph.node("Where", condition, one, minus_one)


def _residual(graph: Graph, folded: FoldedResidual, x: str) -> str:
    stem = folded.stem
    x = _channels_first(graph, x, stem.layers.conv.in_map)
    y = graph.cast(_shifted(graph, _stem_products(graph, stem.layers.conv, stem.weights, x), stem.weights), np.float32)
    if (pool := stem.layers.pool) is not None:
        window, strides = [pool.pool_height, pool.pool_width], list(pool.strides)
        y = graph.node("MaxPool", y, kernel_shape=window, strides=strides, pads=list(pool.pads) * 2)
    s = _into_stream(graph, y, stem.norm)
    if stem.second_norm is not None:
        s = _into_stream(graph, s, stem.second_norm)
    for unit in folded.units:
        s = _unit(graph, unit, s)
    return _head(graph, folded, s)


def _stem_products(graph: Graph, conv: Conv2d, weights: RealWeights, x: str) -> str:
    """Convolve digit by digit; gives float64."""
    bits = next(b for b in count(14, -1) if INPUT_MAX * (1 << b) * conv.fan_in <= _EXACT) + 1
    left, total, place = weights.values.astype(np.int64), "", 0
    while not total or left.any():
        digit = ((left + (1 << bits - 1)) & ((1 << bits) - 1)) - (1 << bits - 1)
        left = left - digit >> bits
        kernel = graph.floats(digit.transpose(0, 3, 1, 2))
        y = graph.cast(_conv(graph, conv, kernel, x), np.float64)
        y = graph.scalar("Mul", y, float(1 << place), np.float64)
        total, place = graph.node("Add", total, y) if total else y, place + bits
    return total


def _conv(graph: Graph, conv: BinaryConv2d | Conv2d, kernel: str, x: str) -> str:
    return graph.node("Conv", x, kernel, pads=[conv.pad_height, conv.pad_width] * 2, strides=[conv.stride] * 2)


def _shifted(graph: Graph, y: str, weights: RealWeights) -> str:
    """Shift float64 right, rounding down."""
    return graph.node("Floor", graph.scalar("Mul", y, 2.0**-weights.shift, np.float64))


def _into_stream(graph: Graph, y: str, norm: FoldedNorm) -> str:
    gain, offset = (graph.constant(values.reshape(-1, 1, 1)) for values in (norm.gain, norm.offset))
    value = graph.node("Add", graph.node("Mul", graph.node("Round", y), gain), offset)
    low, high = (graph.constant(np.array(limit, np.float32)) for limit in (norm.low, norm.limit))
    return graph.node("Round", graph.node("Clip", value, low, high))


def _unit(graph: Graph, unit: FoldedUnit, s: str) -> str:
    x = _where(graph, graph.node("GreaterOrEqual", s, graph.constant(np.array(0, np.float32))))
    y = _conv(graph, unit.layers.conv, graph.floats(unit.signs.transpose(0, 3, 1, 2)), x)
    way = s if unit.shortcut is None else _shortcut(graph, unit.shortcut, s)
    return graph.node("Add", way, _into_stream(graph, y, unit.norm))


def _shortcut(graph: Graph, shortcut: FoldedShortcut, s: str) -> str:
    """Take means of windows, halves rounded up, and multiply in float64, which holds sums below 2^53."""
    if (pool := shortcut.layers.pool) is not None:
        window, size = [pool.pool_height, pool.pool_width], pool.pool_height * pool.pool_width
        ones = graph.constant(np.ones((pool.channels, 1, *window), np.float32))
        s = graph.cast(graph.node("Conv", s, ones, strides=window, group=pool.channels), np.float64)
        s = graph.scalar("Add", graph.scalar("Mul", s, 2.0, np.float64), float(size), np.float64)
        s = graph.node("Floor", graph.scalar("Div", s, 2.0 * size, np.float64))
    else:
        s = graph.cast(s, np.float64)
    matrix = shortcut.weights.values.reshape(len(shortcut.weights.values), -1).T.astype(np.float64)
    y = graph.node("MatMul", graph.node("Transpose", s, perm=[0, 2, 3, 1]), graph.constant(matrix))
    y = graph.cast(_shifted(graph, y, shortcut.weights), np.float32)
    return _into_stream(graph, graph.node("Transpose", y, perm=[0, 3, 1, 2]), shortcut.norm)


def _head(graph: Graph, folded: FoldedResidual, s: str) -> str:
    head = folded.spec.residual.head if folded.spec.residual is not None else None
    assert head is not None
    if head.relu is not None:
        s = graph.node("Relu", s)
    axes = graph.constant(np.array([2, 3], np.int64))
    total = graph.node("ReduceSum", graph.cast(s, np.float64), axes, keepdims=0)
    features = graph.scalar("Mul", graph.cast(total, np.float32), float(folded.unit))
    products = graph.node("Mul", graph.reshape(features, (1, head.dense.in_features)), graph.constant(folded.weights))
    sums = graph.node("CumSum", products, graph.constant(np.array(2, np.int64)))
    last = graph.node("Gather", sums, graph.constant(np.array(head.dense.in_features - 1, np.int64)), axis=2)
    return graph.node("Add", last, graph.constant(folded.bias))
