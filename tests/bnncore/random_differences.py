"""Builders for differences, and for the tensors that they are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import Difference, SignTensor
from bnncore.codec.difference import statistic_bounds
from bnncore.spec import ModelSpec


def random_signs(shape: tuple[int, ...], seed: int, *, density: float | None = None) -> SignTensor:
    """Any valid signs: scales over the whole range, with a mask where there is a density."""
    generator = np.random.default_rng(seed)
    rows, row_size = shape[0], math.prod(shape[1:])
    scales = generator.integers(0, 65536, rows).astype(np.uint16)
    negative = generator.random((rows, row_size)) < 0.5
    present = np.ones_like(negative) if density is None else generator.random((rows, row_size)) < density
    bits, mask = (np.packbits(flags, axis=1, bitorder="little") for flags in (negative & present, present))
    return SignTensor(shape, scales, bits, None if density is None else mask)


def random_difference(spec: ModelSpec, seed: int, *, density: float | None = None) -> Difference:
    """A valid difference of every tensor, statistics included, over much of the range that can be told."""
    generator = np.random.default_rng(seed)
    bounds = statistic_bounds(spec)
    difference: Difference = {}
    for tensor in spec.tensors:
        if tensor.role == "weight":
            difference[tensor.name] = random_signs(tensor.shape, int(generator.integers(1 << 30)), density=density)
            continue
        values: NDArray[np.float32] = generator.normal(0, 0.1, tensor.shape).astype(np.float32)
        if tensor.is_statistic:
            values = generator.uniform(-1, 1, tensor.shape).astype(np.float32) * bounds.get(tensor.name, 1)
        difference[tensor.name] = np.abs(values) if tensor.role == "mean_abs_dev" else values
    return difference


def signs(found: NDArray[Any] | SignTensor) -> SignTensor:
    """A tensor that is told in signs."""
    assert isinstance(found, SignTensor)
    return found


def numbers(found: NDArray[Any] | SignTensor) -> NDArray[Any]:
    """A tensor that is told in numbers."""
    assert not isinstance(found, SignTensor)
    return found


def assert_same_difference(left: Difference, right: Difference) -> None:
    """Equal names in equal order, equal bits."""
    assert list(left) == list(right)
    for name, found in left.items():
        other = right[name]
        if isinstance(found, SignTensor):
            assert isinstance(other, SignTensor)
            assert_same_signs(found, other)
        else:
            assert not isinstance(other, SignTensor)
            assert found.dtype == np.float32
            assert found.shape == other.shape
            assert found.tobytes() == other.tobytes(), name


def assert_same_signs(left: SignTensor, right: SignTensor) -> None:
    assert left.shape == right.shape
    np.testing.assert_array_equal(left.scales, right.scales)
    np.testing.assert_array_equal(left.bits, right.bits)
    assert (left.mask is None) == (right.mask is None)
    if left.mask is not None and right.mask is not None:
        np.testing.assert_array_equal(left.mask, right.mask)
