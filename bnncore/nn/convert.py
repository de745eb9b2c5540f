"""PyTorch networks and specs with their states, each turned into the other, without loss.

``network`` builds the ``bnncore.nn.Sequential`` of a spec; ``spec_of`` reads a spec out of any ``torch.nn.Sequential``
of binary layers, also a nested one. ``load_state`` and ``state_of`` move weights, beta and running statistics.
There and back gives the same bits.

========================  ================================  =====================================================
spec                      PyTorch                           what changes
========================  ================================  =====================================================
``<dense>.weight``        ``<dense>.weight``                columns: PyTorch flattens maps channel by channel, a
                                                            spec pixel by pixel
``<conv>.weight``         ``<conv>.weight``                 [out, rows, columns, in] -> [out, in, rows, columns]
``<dense>.bias``          ``<dense>.bias``                  of the real linear layer of a residual network
``<norm>.beta``           ``<norm>.bias``
``<norm>.mean``           ``<norm>.running_mean``           units, in the first norm only
``<norm>.mean_abs_dev``   ``<norm>.running_mean_abs_dev``   likewise
========================  ================================  =====================================================

A spec reads uint8 samples as ``2 u - 255``. A network in PyTorch may be given that times ``input_scale``: the norms do
not mind, but the statistics of the first are in those units. With 1 or a power of two nothing is ever rounded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bnncore.blocks import Block
from bnncore.checkpoint import load_checkpoint, save_checkpoint
from bnncore.errors import ShapeError
from bnncore.nn.maps import channels_second, input_map
from bnncore.nn.reading import find_layers, map_of, spec_of
from bnncore.nn.sequential import Sequential
from bnncore.nn.tensors import places_of
from bnncore.nn.writing import modules_of
from bnncore.spec import ModelSpec
from bnncore.state import State, has_statistics, to_float32, to_int8, validate_state

__all__ = [
    "INPUT_SCALE",
    "load_network",
    "load_state",
    "network",
    "save_network",
    "spec_of",
    "state_of",
    "to_input",
]

INPUT_SCALE = 1 / 256
"""What samples are multiplied with unless someone says otherwise: it brings 2 u - 255 into (-1, 1) without rounding."""
_SETTLED = 10
"""Batches after which the share of a new one in running statistics no longer falls."""


def network(spec: ModelSpec, state: State | None = None, *, input_scale: float = INPUT_SCALE) -> Sequential:
    """Build the network of a spec, with fresh weights or those of a state.

    Returns:
      Layers under the spec's names, without the loss. It takes what ``to_input`` gives, and gives the logits.

    Raises:
      ShapeError, PayloadError: the state is not a valid one of the spec.
      SpecError: PyTorch cannot call a module what the spec calls a layer.
    """
    built = Sequential(modules_of(spec))
    if state is not None:
        load_state(built, spec, state, input_scale=input_scale)
    return built


def load_state(model: Any, spec: ModelSpec, state: State, *, input_scale: float = INPUT_SCALE) -> None:
    """Give a network the weights, beta and, where the state has them, running statistics of a state.

    Raises:
      ShapeError, PayloadError: the state is not a valid one of the spec, or the network is another.
    """
    statistics = has_statistics(spec, state)
    validate_state(spec, state, statistics=statistics)
    if spec.residual is not None:
        _load_residual(model, spec, state, statistics=statistics, input_scale=input_scale)
        return
    with torch.no_grad():
        for block, (linear, norm), columns in _pairs(model, spec):
            weight = torch.from_numpy(to_float32(state[f"{block.linear}.weight"]).copy())
            linear.weight.copy_(weight.permute(0, 3, 1, 2) if block.is_conv else weight[:, columns])
            norm.bias.copy_(torch.from_numpy(state[f"{block.norm}.beta"].copy()))
            norm.num_batches_tracked.fill_(_SETTLED if statistics else 0)
            scale = input_scale if block.is_first else 1.0
            for target, name in ((norm.running_mean, "mean"), (norm.running_mean_abs_dev, "mean_abs_dev")):
                if statistics:
                    target.copy_(torch.from_numpy(state[f"{block.norm}.{name}"].copy()) * scale)
                else:
                    target.fill_(name == "mean_abs_dev")


def state_of(model: Any, spec: ModelSpec, *, dtype: Any = np.float32, input_scale: float = INPUT_SCALE) -> State:
    """Read the state of a network: with running statistics if it has been trained or given some.

    Args:
      model: the network.
      spec: its spec (see ``spec_of``).
      dtype: of the weights: float32, which loses nothing, or int8, which keeps their signs and 1/127 of their range.
      input_scale: what its samples are multiplied with.

    Raises:
      ShapeError: the network is not one of this spec.
      PayloadError: a weight or a statistic is not finite.
    """
    if spec.residual is not None:
        return _residual_state(model, spec, dtype=dtype, input_scale=input_scale)
    state: State = {}
    pairs = _pairs(model, spec)
    statistics = all(int(norm.num_batches_tracked) > 0 for _, (_, norm), _ in pairs)
    for block, (linear, norm), columns in pairs:
        weight = linear.weight.detach().float().cpu().clamp(-1, 1)
        if block.is_conv:
            weight = weight.permute(0, 2, 3, 1)
        else:
            weight = torch.empty_like(weight).index_copy_(1, columns, weight)
        values = np.ascontiguousarray(weight.numpy())
        state[f"{block.linear}.weight"] = to_int8(values) if dtype == np.int8 else values
        state[f"{block.norm}.beta"] = _array(norm.bias)
        if statistics:
            scale = input_scale if block.is_first else 1.0
            state[f"{block.norm}.mean"] = _array(norm.running_mean.float() / scale)
            state[f"{block.norm}.mean_abs_dev"] = _array(norm.running_mean_abs_dev.float() / scale)
    validate_state(spec, state, statistics=statistics)
    return state


def to_input(spec: ModelSpec, samples: NDArray[np.uint8], *, input_scale: float = INPUT_SCALE) -> Any:
    """Turn samples into what a network takes: ``(2 u - 255) input_scale``, channels first where it reads maps.

    Args:
      spec: of the network.
      samples: uint8 [batch, ...] with ``spec.input_features`` numbers each.
      input_scale: as in ``load_state``.

    Returns:
      float32 [batch, channels, height, width], or [batch, features].
    """
    x = torch.from_numpy(np.ascontiguousarray(samples).reshape(len(samples), -1)).float()
    x = x.mul_(2).sub_(255).mul_(input_scale)
    shape = input_map(spec)
    return x if shape is None else channels_second(x.view(-1, *shape)).contiguous()


def save_network(path: Any, model: Any, spec: ModelSpec, **options: Any) -> str:
    """Write a checkpoint that the native engine reads; options are those of ``state_of``. Gives the weights' digest."""
    return save_checkpoint(path, spec, state_of(model, spec, **options))


def load_network(path: Any, *, input_scale: float = INPUT_SCALE) -> tuple[Sequential, ModelSpec]:
    """Read a checkpoint that the native engine, or ``save_network``, wrote.

    Raises:
      CheckpointError: the file is missing, damaged, or of a newer version.
    """
    checkpoint = load_checkpoint(path)
    return network(checkpoint.spec, checkpoint.state, input_scale=input_scale), checkpoint.spec


def _pairs(model: Any, spec: ModelSpec) -> list[tuple[Block, tuple[Any, Any], Any]]:
    """Give each block with its weights' module, its norm, and where column i of PyTorch's weights stands in a spec."""
    layers = find_layers(model)
    if len(layers.pairs) != len(spec.blocks):
        raise ShapeError(f"model {spec.name!r} has {len(spec.blocks)} blocks, the network has {len(layers.pairs)}")
    found = []
    for number, (block, pair) in enumerate(zip(spec.blocks, layers.pairs, strict=True)):
        wanted = block.weight_shape
        if block.is_conv:
            wanted = (block.out_channels, block.in_channels, block.kernel_height, block.kernel_width)
        if tuple(pair[0].weight.shape) != wanted:
            raise ShapeError(
                f"{block.linear}.weight must have shape {list(wanted)} in PyTorch, got {list(pair[0].weight.shape)}. "
                "Is the network of other widths?"
            )
        columns = torch.arange(math.prod(wanted[1:]))
        if not block.is_conv and number in layers.flattened:
            flattened = (
                map_of(spec.input_shape) if number == 0 else (block.in_height, block.in_width, block.in_channels)
            )
            columns = columns.view(flattened).permute(2, 0, 1).flatten()
        found.append((block, pair, columns))
    return found


def _load_residual(model: Any, spec: ModelSpec, state: State, *, statistics: bool, input_scale: float) -> None:
    for place in places_of(model, spec):
        tensor, target = place.tensor, place.values
        if tensor.role == "beta":
            place.module.num_batches_tracked.fill_(_SETTLED if statistics else 0)
        if tensor.is_statistic and not statistics:
            target.fill_(tensor.role == "mean_abs_dev")
            continue
        scale = input_scale if place.is_first and tensor.is_statistic else 1.0
        target.copy_(torch.from_numpy(to_float32(state[tensor.name]).copy()) * scale)


def _residual_state(model: Any, spec: ModelSpec, *, dtype: Any, input_scale: float) -> State:
    places = places_of(model, spec)
    statistics = all(int(p.module.num_batches_tracked) > 0 for p in places if p.tensor.is_statistic)
    state: State = {}
    for place in places:
        tensor, values = place.tensor, place.values
        if tensor.is_statistic and not statistics:
            continue
        if place.is_first and tensor.is_statistic:
            values = values.float() / input_scale
        elif tensor.role == "weight":
            values = values.clamp(-1, 1)
        array = np.ascontiguousarray(_array(values))
        state[tensor.name] = to_int8(array) if tensor.role == "weight" and dtype == np.int8 else array
    validate_state(spec, state, statistics=statistics)
    return state


def _array(tensor: Any) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().float().cpu().numpy()).copy()
