"""Residual networks for the native side: what sizes it takes, and how it is told of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.errors import BudgetError, SpecError
from bnncore.layers import BinaryConv2d, Conv2d
from bnncore.residual import ResidualNetwork
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32

if TYPE_CHECKING:
    from bnncore.plan import PlanEntry

__all__ = ["load_residual_tensors", "max_residual_batch", "native_network", "residual_tensors"]

STREAM_MAX = 32767
MAX_UNITS = 15
"""Most units that add to one stream: each keeps to a part of 16 bits, which must hold what a batch norm gives."""
MAX_WINDOW = 256
"""Most positions in a window of a stem's pool."""
MAX_BINARY_FAN_IN = 32_766
"""Most inputs of a unit's output: its products fit 16 bits."""
MAX_REAL_FAN_IN = 1 << 16
"""Most inputs, or outputs, of a real-valued convolution: seven bits and more are left for its weights."""
MAX_POSITIONS = 1 << 22
"""Most positions of a batch of maps: three sums of as many 8-bit gradients still fit an int32."""
_STEM_BITS, _SHORTCUT_BITS = 14, 20


def max_residual_batch(spec: ModelSpec) -> int:
    """Give the largest batch that the engine takes of a residual network, whatever memory it needs."""
    assert spec.residual is not None
    return min(_most_samples(*sums)[0] for sums in _sums(spec.residual))


def native_network(spec: ModelSpec, *, batch_size: int) -> _native.ResidualSpec:
    """Hand a residual network to the native side, which trusts what it is told.

    Raises:
      BudgetError: batch_size is out of range for this network.
      SpecError: a layer has other sizes than the engine takes.
    """
    network = spec.residual
    assert network is not None
    _check_sizes(network)
    most, layer = min(_most_samples(*sums) for sums in _sums(network))
    if most == 0:
        raise SpecError(f"the integer sums over the map of layer {layer!r} do not fit. Make its input smaller")
    if not 1 <= batch_size <= most:
        raise BudgetError(
            f"batch_size must lie in [1, {most}] for model {spec.name!r}, so that the integer sums over the map "
            f"of layer {layer!r} fit; got {batch_size}"
        )
    stem, stages = network.stem, network.stages
    pool = stem.pool
    native = _native.ResidualSpec(
        conv=_native_conv(stem.conv, stem.norm.name),
        relu=stem.relu is not None,
        window=(pool.pool_height, pool.pool_width) if pool else (0, 0),
        strides=pool.strides if pool else (1, 1),
        pads=pool.pads if pool else (0, 0),
        out_map=stem.out_map[:2],
        second_norm=stem.second_norm.name if stem.second_norm else "",
        limit=STREAM_MAX // (1 + len(stages[0])),
        head_relu=network.head.relu is not None,
        dense=network.head.dense.name,
        classes=spec.classes,
    )
    for number, stage in enumerate(stages):
        for unit in stage:
            conv = _native_conv(unit.conv, unit.norm.name)
            native.add_unit(conv, unit.sign.gradient == "approx", STREAM_MAX // (1 + len(stage)), number)
            if unit.shortcut is not None:
                window = unit.shortcut.pool
                height, width = (window.pool_height, window.pool_width) if window else (1, 1)
                native.add_shortcut(_native_conv(unit.shortcut.conv, unit.shortcut.norm.name), height, width)
    return native


def residual_tensors(
    spec: ModelSpec, native: _native.Engine, entries: Iterable[PlanEntry]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Give the tensors of a state one by one, in order: views of the engine's memory where it has them as they are."""
    views = _views(native, entries)
    block = 0
    for tensor in spec.tensors:
        if tensor.role == "weight":
            block += 1
        if tensor.name in views:
            yield tensor.name, views[tensor.name].reshape(tensor.shape)
        else:
            yield tensor.name, native.weights(block).reshape(tensor.shape)


def load_residual_tensors(spec: ModelSpec, native: _native.Engine, entries: Iterable[PlanEntry], state: State) -> None:
    """Write a checked state, with or without statistics, into the engine's memory."""
    views = _views(native, entries)
    block = 0
    for tensor in spec.tensors:
        if tensor.role == "weight":
            block += 1
        if tensor.name not in state:
            continue
        if tensor.name in views:
            views[tensor.name].reshape(tensor.shape)[...] = to_float32(state[tensor.name])
        else:
            native.write_weights(block, np.ascontiguousarray(state[tensor.name]).reshape(tensor.shape[0], -1))


def _views(native: _native.Engine, entries: Iterable[PlanEntry]) -> dict[str, NDArray[Any]]:
    arena = native.arena
    return {e.name: arena[e.offset : e.offset + e.num_bytes].view(e.dtype) for e in entries if e.dtype == "float32"}


def _check_sizes(network: ResidualNetwork) -> None:
    pool = network.stem.pool
    if pool is not None and pool.pool_height * pool.pool_width > MAX_WINDOW:
        raise SpecError(f"the window of layer {pool.name!r} may have at most {MAX_WINDOW} positions. Make it smaller")
    for stage in network.stages:
        if len(stage) > MAX_UNITS:
            raise SpecError(
                f"at most {MAX_UNITS} residual layers may add to one stream, {len(stage)} do up to layer "
                f"{stage[-1].name!r}. Give one of them a shortcut"
            )
    for unit in network.units:
        if unit.conv.fan_in > MAX_BINARY_FAN_IN:
            raise SpecError(
                f"an output of layer {unit.conv.name!r} may read at most {MAX_BINARY_FAN_IN} numbers, so that its sums "
                f"fit the engine's integers; it reads {unit.conv.fan_in}. Make its input or its kernel smaller"
            )
    shortcuts = [unit.shortcut.conv for unit in network.units if unit.shortcut is not None]
    for conv in (network.stem.conv, *shortcuts):
        if max(conv.fan_in, conv.out_channels) > MAX_REAL_FAN_IN:
            raise SpecError(f"layer {conv.name!r} may have at most {MAX_REAL_FAN_IN} inputs of an output, and outputs")


def _sums(network: ResidualNetwork) -> Iterator[tuple[str, int, int]]:
    """Give every batch norm's layer, the largest magnitude that it sums, and the positions of its map."""
    stem = network.stem
    yield stem.conv.name, 1 << _STEM_BITS, stem.conv.out_height * stem.conv.out_width
    if stem.second_norm is not None:
        yield stem.second_norm.name, STREAM_MAX, stem.out_map[0] * stem.out_map[1]
    for unit in network.units:
        positions = unit.conv.out_height * unit.conv.out_width
        yield unit.conv.name, unit.conv.fan_in, positions
        if unit.shortcut is not None:
            yield unit.shortcut.conv.name, 1 << _SHORTCUT_BITS, positions


def _most_samples(layer: str, bound: int, positions: int) -> tuple[int, str]:
    """Samples for which every sum over a batch stays exact: 127 * bound * n^2 of n values must fit an int64."""
    values = math.isqrt(((1 << 63) - 1) // (127 * bound))
    return min(values // positions, MAX_POSITIONS // positions), layer


def _native_conv(conv: Conv2d | BinaryConv2d, norm: str) -> _native.BlockSpec:
    return _native.BlockSpec(
        linear=conv.name,
        norm=norm,
        in_height=conv.in_height,
        in_width=conv.in_width,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_height=conv.kernel_height,
        kernel_width=conv.kernel_width,
        stride=conv.stride,
        pad_height=conv.pad_height,
        pad_width=conv.pad_width,
        conv_height=conv.out_height,
        conv_width=conv.out_width,
        pool="none",
        pool_height=1,
        pool_width=1,
    )
