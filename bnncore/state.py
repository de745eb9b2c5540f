"""State: the tensors that a model is made of, and what makes them valid.

A state is a dictionary from tensor name to array, in the order of ``ModelSpec.tensors``:

========================  ==========================  ====================================================
``<dense>.weight``        int8 or float32 [out, in]   latent weights: int8 in units of 1/127, or float32
                                                      in [-1, 1]. The weight in use is their sign, and
                                                      sign(0) = +1
``<conv2d>.weight``       float32 [out, ...]          weights of a real-valued layer, and so for ``<dense>``
``<dense>.bias``          float32 [out]               its learnt shift
``<norm>.beta``           float32 [out]               learnt shift
``<norm>.mean``           float32 [out]               running mean of the pre-activations (statistic)
``<norm>.mean_abs_dev``   float32 [out]               running mean absolute deviation, >= 0 (statistic)
========================  ==========================  ====================================================

All latent weights of one state share one dtype. Statistics are all there or all absent.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import PayloadError, ShapeError
from bnncore.spec import ModelSpec, TensorSpec

__all__ = [
    "State",
    "digest_tensors",
    "has_statistics",
    "to_float32",
    "to_int8",
    "validate_state",
    "validate_tensors",
    "weights_digest",
    "without_statistics",
]

State = dict[str, NDArray[Any]]

_HASHED_AT_ONCE = 1 << 16
WEIGHT_STEPS = 127
"""Steps of an int8 latent weight from 0 to 1."""


def to_int8(weights: NDArray[Any]) -> NDArray[np.int8]:
    """Round latent weights to int8: ``round_half_even(127 w)``, kept within [-127, 127]. int8 is passed through.

    The sign, which is the weight in use, is kept: a negative weight that would round to 0 becomes -1, as sign(0) = +1.
    """
    if weights.dtype == np.int8:
        return weights
    scaled = np.rint(weights * np.float32(WEIGHT_STEPS))
    np.clip(scaled, -WEIGHT_STEPS, WEIGHT_STEPS, out=scaled)
    scaled[(scaled == 0) & (weights < 0)] = -1
    return scaled.astype(np.int8)


def to_float32(weights: NDArray[Any]) -> NDArray[np.float32]:
    """Spread int8 latent weights to float32 in [-1, 1]: ``w / 127``; ``to_int8`` gives them back exactly."""
    if weights.dtype == np.float32:
        return weights
    return weights.astype(np.float32) / np.float32(WEIGHT_STEPS)


def has_statistics(spec: ModelSpec, state: State) -> bool:
    """Say whether a state carries any running statistic of this network."""
    return any(tensor.name in state for tensor in spec.tensors if tensor.is_statistic)


def without_statistics(state: State) -> State:
    """Give the state without its running statistics; the arrays are shared, not copied."""
    return {name: array for name, array in state.items() if not name.endswith((".mean", ".mean_abs_dev"))}


def validate_state(spec: ModelSpec, state: State, *, statistics: bool) -> None:
    """Check that a state is a valid one of this network.

    Args:
      spec: the network.
      state: what is checked; it is not changed.
      statistics: True: the running statistics must be there; False: they must not.

    Raises:
      ShapeError: a tensor is missing, unknown, or of another shape than the spec says.
      PayloadError: a tensor is of another dtype, not finite, or out of range.
    """
    validate_tensors(spec, state, [tensor for tensor in spec.tensors if statistics or not tensor.is_statistic])


def validate_tensors(spec: ModelSpec, state: State, wanted: Sequence[TensorSpec]) -> None:
    """Check that a state consists of these tensors of the network, and that they are valid.

    Raises:
      ShapeError, PayloadError: as ``validate_state``.
    """
    missing = [tensor.name for tensor in wanted if tensor.name not in state]
    unknown = sorted(set(state) - {tensor.name for tensor in wanted})
    if missing or unknown:
        raise ShapeError(
            f"this state of model {spec.name!r} has {len(wanted)} tensors; missing {missing}, not wanted {unknown}. "
            "Was it made by another model?"
        )
    latent = [tensor.name for tensor in wanted if tensor.role == "weight"]
    weight_dtype = state[latent[0]].dtype if latent else np.dtype(np.float32)
    if weight_dtype not in (np.int8, np.float32):
        raise PayloadError(f"{latent[0]} must be int8 or float32, got {weight_dtype}")
    for tensor in wanted:
        _check_tensor(tensor, state[tensor.name], weight_dtype if tensor.role == "weight" else np.dtype(np.float32))


def _check_tensor(tensor: TensorSpec, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    if array.shape != tensor.shape:
        raise ShapeError(
            f"{tensor.name} must have shape {list(tensor.shape)}, got {list(array.shape)}. "
            "Was it made by a model of other widths?"
        )
    if array.dtype != dtype:
        raise PayloadError(f"{tensor.name} must be {dtype}, got {array.dtype}")
    if array.dtype == np.int8:
        if array.min() < -WEIGHT_STEPS:
            raise PayloadError(f"{tensor.name} must lie in [-127, 127], got -128")
        return
    # NaN and infinities come out of min and max as themselves: no temporary array is needed.
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise PayloadError(f"{tensor.name} must be finite, got a NaN or an infinity. Did the training diverge?")
    if tensor.role == "weight" and max(-low, high) > 1.0:
        raise PayloadError(f"{tensor.name} must lie in [-1, 1], got values from {low:g} to {high:g}")
    if tensor.role == "mean_abs_dev" and low < 0.0:
        raise PayloadError(f"{tensor.name} must not be negative, got {low:g}")


def weights_digest(spec: ModelSpec, state: State) -> str:
    """Hash a network and the values of its tensors: equal digests mean equal bits on any machine.

    Every tensor that the state holds counts (so statistics do when they are there), with its name, dtype, shape and
    little-endian bytes, in the order of the spec.

    Returns:
      SHA-256 in lower-case hex.

    Raises:
      ShapeError: the state holds a tensor that the spec does not know.
    """
    order = [tensor.name for tensor in spec.tensors if tensor.name in state]
    if len(order) != len(state):
        raise ShapeError(f"model {spec.name!r} has no tensors named {sorted(set(state) - set(order))}")
    return digest_tensors(spec, ((name, state[name]) for name in order))


def digest_tensors(spec: ModelSpec, tensors: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """Hash tensors one after the other, so that they need not exist at once; see ``weights_digest``.

    Args:
      spec: the network.
      tensors: names and arrays in the order of the spec. float16 counts as the float32 of the same value.

    Memory: 256 KiB for float16 tensors, otherwise nothing.
    """
    digest = hashlib.sha256(spec.digest.encode())
    for name, array in tensors:
        dtype = np.dtype(np.float32) if array.dtype == np.float16 else array.dtype
        header = f"{name} {dtype.name} {list(array.shape)}".encode()
        digest.update(struct.pack("<I", len(header)) + header)
        flat = np.ascontiguousarray(array).reshape(-1)
        step = _HASHED_AT_ONCE if flat.dtype != dtype else max(len(flat), 1)
        for start in range(0, len(flat), step):
            digest.update(flat[start : start + step].astype(dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()
