"""What a device's update is as whole numbers: its parts, and between which numbers each lies.

A *part* is a run of numbers of one kind that share a range, and so a width in the ring: it is one ``RingSegment``. How
real numbers become whole ones:

====================  ====================  =====================================================================
part                  units per 1.0         range
====================  ====================  =====================================================================
a weight tensor       signs: itself         a bit, 1 means minus; rows padded to whole bytes as in ``SignTensor``
..                    fixed: 127            +-clip steps of a latent weight
``scales``            fine units            0 .. 65535, one for each row of each weight tensor (signs alone)
``reals``             2^16                  +-2^19: differences of beta, bias and real-valued weights within +-8
``statistics``        2^(20 - b)            +-2^20: |pre-activation| <= 2^b, known from a binary layer's fan-in
``wide_statistics``   2^11                  +-2^31: those after a real-valued layer, within +-2^20
``metrics``           see ``Metrics``       0 .. 2^32 - 1
====================  ====================  =====================================================================

Under differential privacy there are fewer parts, all weights are one of them, and each has a bound (``privacy``).
"""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bnncore.codec import NONE_LOCAL, PayloadKind, statistic_bounds
from bnncore.codec.base import tensors_of_kind
from bnncore.codec.signs import FINE_UNITS
from bnncore.errors import ConfigurationError
from bnncore.spec import ModelSpec, TensorSpec
from bnncore.state import WEIGHT_STEPS

__all__ = [
    "FINE_PER_UNIT",
    "METRICS",
    "REALS",
    "SCALES",
    "STATISTICS",
    "WEIGHTS",
    "WIDE_STATISTICS",
    "WITHIN_CLIP",
    "Part",
    "WeightForm",
    "groups_of_tensors",
    "parts_of_form",
    "units_by_tensor",
]

WeightForm = Literal["signs", "fixed"]

WEIGHTS = "weights"
SCALES = "scales"
REALS = "reals"
STATISTICS = "statistics"
WIDE_STATISTICS = "wide_statistics"
METRICS = "metrics"
WITHIN_CLIP = "within_clip"
NUM_METRICS = 5

FINE_PER_UNIT = WEIGHT_STEPS * FINE_UNITS
"""Fine units of a weight per 1.0: the unit of every sum of weights."""

_REAL_BITS, _REAL_STEPS = 19, 2**16
_STATISTIC_BITS = 20
_WIDE_BITS, _WIDE_STEPS = 31, 2**11
_BITS = {REALS: _REAL_BITS, STATISTICS: _STATISTIC_BITS, WIDE_STATISTICS: _WIDE_BITS}
_LARGEST_SCALE = 65535
_DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "i8")
_MAX_CLIP = 127


@dataclass(frozen=True)
class Part:
    """A run of whole numbers.

    Attributes:
      name: of its segment in the ring.
      tensors: whose numbers they are, one tensor after the other.
      size: how many numbers.
      low: the least that a number may be.
      high: the greatest.
      is_bits: whether the numbers are held as packed bits (``low`` 0, ``high`` 1).
      fineness: under privacy, whole numbers of a natural one.
      bound: under privacy, the largest L2 norm of the numbers.
      sigma: under privacy, standard deviation of the noise in the sum of the fewest devices.
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    size: int
    low: int
    high: int
    is_bits: bool = False
    fineness: int = 1
    bound: float = 0.0
    sigma: float = 0.0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest dtype that holds the range, little-endian; uint8 of packed bits."""
        if self.is_bits:
            return np.dtype(np.uint8)
        fitting = (name for name in _DTYPES if np.iinfo(name).min <= self.low and self.high <= np.iinfo(name).max)
        return np.dtype(next(fitting)).newbyteorder("<")

    def slices(self, *, rows: bool = False) -> list[tuple[TensorSpec, slice]]:
        """Say where in the part each tensor's numbers lie: one a row where ``rows``, else one an element."""
        start, found = 0, []
        for tensor in self.tensors:
            end = start + (tensor.shape[0] if rows else math.prod(tensor.shape))
            found.append((tensor, slice(start, end)))
            start = end
        return found


def parts_of_form(
    spec: ModelSpec, kind: PayloadKind, local: AbstractSet[str], weights: WeightForm, clip: int
) -> tuple[Part, ...]:
    """List the parts of an update, in their order in the ring.

    Raises:
      ConfigurationError: the kind is none of updates, or clip is out of range.
    """
    if weights == "fixed" and not 1 <= clip <= _MAX_CLIP:
        raise ConfigurationError(f"clip must be 1 to {_MAX_CLIP} steps of 1/127, got {clip}")
    if weights not in ("signs", "fixed"):
        raise ConfigurationError(f"weights are told as 'signs' or 'fixed', got {weights!r}")
    groups = groups_of_tensors(spec, kind, local)
    binary = groups.pop(WEIGHTS, ())
    parts = [_bits(t) if weights == "signs" else Part(t.name, (t,), math.prod(t.shape), -clip, clip) for t in binary]
    if weights == "signs" and binary:
        parts.append(Part(SCALES, binary, sum(t.shape[0] for t in binary), 0, _LARGEST_SCALE))
    for name, members in groups.items():
        size, largest = sum(math.prod(t.shape) for t in members), 2 ** _BITS[name]
        parts.append(Part(name, members, size, -largest, largest))
    return (*parts, Part(METRICS, (), NUM_METRICS, 0, 2**32 - 1))


def groups_of_tensors(spec: ModelSpec, kind: PayloadKind, local: AbstractSet[str]) -> dict[str, tuple[TensorSpec, ...]]:
    """Sort a kind's shared tensors by what they are: name of the part, and its tensors; parts without any are left out.

    Raises:
      ConfigurationError: the kind is none of updates.
    """
    if kind not in ("update", "statistics"):
        raise ConfigurationError(f"updates and statistics are added up under masks, not payloads of kind {kind!r}")
    bounds = statistic_bounds(spec)
    groups: dict[str, list[TensorSpec]] = {name: [] for name in (WEIGHTS, REALS, STATISTICS, WIDE_STATISTICS)}
    for tensor in tensors_of_kind(spec, kind, local):
        if tensor.is_statistic:
            groups[STATISTICS if tensor.name in bounds else WIDE_STATISTICS].append(tensor)
        else:
            groups[WEIGHTS if tensor.role == "weight" else REALS].append(tensor)
    return {name: tuple(tensors) for name, tensors in groups.items() if tensors}


def _bits(tensor: TensorSpec) -> Part:
    rows, row_size = tensor.shape[0], math.prod(tensor.shape[1:])
    return Part(tensor.name, (tensor,), rows * ((row_size + 7) // 8) * 8, 0, 1, is_bits=True)


def units_by_tensor(spec: ModelSpec, local: AbstractSet[str] = NONE_LOCAL) -> dict[str, float]:
    """Give the units per 1.0 in which each shared tensor's sums are counted: powers of two, or those of fine units."""
    bounds = statistic_bounds(spec)
    units: dict[str, float] = {}
    for tensor in tensors_of_kind(spec, "update", local):
        if tensor.role == "weight":
            units[tensor.name] = FINE_PER_UNIT
        elif not tensor.is_statistic:
            units[tensor.name] = _REAL_STEPS
        else:
            bound = bounds.get(tensor.name)
            units[tensor.name] = _WIDE_STEPS if bound is None else 2.0**_STATISTIC_BITS / bound
    return units
