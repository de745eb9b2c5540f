"""How a part's real numbers become whole ones on a device: clipped, bounded and rounded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import SignTensor
from bnncore.errors import PayloadError, ShapeError
from bnncore.secure.parts import WEIGHTS, Part, WeightForm
from bnncore.spec import TensorSpec

__all__ = ["Told", "bounded_numbers", "plain_numbers", "says_within", "signs_told"]

Told = Mapping[str, "SignTensor | NDArray[Any]"]
"""What a device tells, by tensor: signs, or whole steps (int16) of latent weights; float32 for everything else."""

_WITHIN = 1 - 1e-12
"""Keeps a scaled norm below its bound in spite of float64's rounding."""

_BLOCK = 1 << 16
"""Numbers at once where they are float64 on the way."""


def signs_told(tensor: TensorSpec, told: Told) -> SignTensor:
    """Give the signs that are told of a weight tensor.

    Raises:
      ShapeError: there are none, or they leave elements out.
    """
    found = told.get(tensor.name)
    if not isinstance(found, SignTensor) or found.mask is not None or found.shape != tensor.shape:
        raise ShapeError(f"{tensor.name} must be signs of shape {list(tensor.shape)} without mask, got {found!r:.80}")
    return found


def plain_numbers(part: Part, told: Told, units: Mapping[str, float]) -> NDArray[Any]:
    """Round a part to the nearest whole numbers of its units, kept within its range.

    Returns:
      [part.size] of the part's dtype.

    Raises:
      ShapeError: a tensor is missing or of another shape or type.
      PayloadError: a number is not finite, or a statistic is out of the range that the network allows.
    """
    whole = np.empty(part.size, part.dtype)
    for tensor, where in part.slices():
        found = _numbers(tensor, told)
        if tensor.role == "weight":
            np.clip(found, part.low, part.high, out=whole[where], casting="same_kind")
        else:
            whole[where] = _rounded(part, tensor, found, units[tensor.name])
    return whole


def _rounded(part: Part, tensor: TensorSpec, found: NDArray[Any], unit: float) -> NDArray[np.float64]:
    scaled = np.rint(found.astype(np.float64) * unit)
    if tensor.is_statistic and (scaled.min() < part.low or scaled.max() > part.high):
        raise PayloadError(
            f"{tensor.name} must lie within +-{part.high / unit:g}, the bound of its layer, got "
            f"{found.min():g} to {found.max():g}"
        )
    kept: NDArray[np.float64] = np.clip(scaled, part.low, part.high, out=scaled)
    return kept


def says_within(part: Part, weights: Part, told: Told, clip: int) -> NDArray[np.int64]:
    """Say whether a device's weights are within their bound without being scaled down: one number, 1 or -1 naturally.

    Args:
      part: of that number.
      weights: part of the weights.
      told: steps (int16) of weights.
      clip: by how many steps a weight may change.
    """
    norm = _norm(weights, told, {}, clip) * weights.fineness
    return np.array([part.fineness if norm <= weights.bound else -part.fineness], np.int64)


def bounded_numbers(
    part: Part, told: Told, weights: WeightForm, typical: Mapping[str, float], clip: int
) -> NDArray[Any]:
    """Turn a part into whole numbers whose L2 norm is within its bound, whatever is told.

    Natural numbers (``privacy``) are scaled down together where their norm exceeds the bound, and rounded towards zero.

    Args:
      part: one with a bound.
      told: steps (int16) of weights, or their signs; float32 for everything else.
      weights: how weights are told.
      typical: typical size of each statistic.
      clip: by how many steps a weight may change, of "fixed".

    Returns:
      [part.size] of the part's dtype.

    Raises:
      ShapeError: a tensor is missing or of another shape or type.
      PayloadError: a number is not finite.
    """
    whole = np.empty(part.size, part.dtype)
    if part.name == WEIGHTS and weights == "signs":
        for tensor, place in part.slices():
            whole[place] = _ternary(tensor, told)
        whole *= whole.dtype.type(part.fineness)
        return whole
    norm = _norm(part, told, typical, clip)
    factor = part.fineness * min(1.0, part.bound * _WITHIN / (norm * part.fineness)) if norm > 0 else 0.0
    for place, natural in _natural(part, told, typical, clip):
        whole[place] = np.trunc(natural * factor)
    return whole


def _norm(part: Part, told: Told, typical: Mapping[str, float], clip: int) -> float:
    return math.sqrt(math.fsum(float(np.dot(block, block)) for _, block in _natural(part, told, typical, clip)))


def _natural(
    part: Part, told: Told, typical: Mapping[str, float], clip: int
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Give a part's natural numbers in blocks, each with its place.

    As float64 all of them would take eight times more memory than the update.
    """
    for tensor, place in part.slices():
        numbers, typical_size = _numbers(tensor, told), typical.get(tensor.name, 1.0)
        for first in range(0, len(numbers), _BLOCK):
            block = numbers[first : first + _BLOCK].astype(np.float64) / typical_size
            if part.name == WEIGHTS:
                np.clip(block, -clip, clip, out=block)
            yield slice(place.start + first, place.start + first + len(block)), block


def _ternary(tensor: TensorSpec, told: Told) -> NDArray[np.int8]:
    found = told.get(tensor.name)
    numbers = signs_told(tensor, told).dense().reshape(-1) if isinstance(found, SignTensor) else _numbers(tensor, told)
    return np.sign(numbers).astype(np.int8)


def _numbers(tensor: TensorSpec, told: Told) -> NDArray[Any]:
    """Give one tensor's numbers, flat and finite."""
    found = told.get(tensor.name)
    wanted = np.int16 if tensor.role == "weight" else np.float32
    if not isinstance(found, np.ndarray) or found.shape != tensor.shape or found.dtype != wanted:
        raise ShapeError(f"{tensor.name} must be {np.dtype(wanted)} of shape {list(tensor.shape)}, got {found!r:.80}")
    if wanted is np.float32 and not np.isfinite(found).all():
        raise PayloadError(f"{tensor.name} must be finite, got a NaN or an infinity. Did the training diverge?")
    return found.reshape(-1)
