"""From what a device learnt to whole numbers, and from their sum back: what secure aggregation adds up.

A device turns its difference into a *vector*, whole numbers in known ranges (``parts``), and keeps it in the clear for
itself alone. In the ring each number stands as its distance from the least possible one, so that a segment is as wide
as the largest sum of a cohort and no wider, and a sum is exact. Every device counts as one.

Signs: x = latent - base + owed is told by one bit a weight, so their sum is n - 2 * (how often the bit was set). A
magnitude goes beside it in two ways: each device's own row scales are added up too, and the mean of the last round's is
the scale common to the cohort in this one, so no device's own is seen.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import NONE_LOCAL, PayloadKind
from bnncore.codec.signs import FINE_UNITS
from bnncore.errors import PayloadError
from bnncore.secure.metrics import Metrics, MetricSums
from bnncore.secure.noise import Randomness, draw_noise
from bnncore.secure.parts import (
    METRICS,
    SCALES,
    WEIGHTS,
    WITHIN_CLIP,
    Part,
    WeightForm,
    groups_of_tensors,
    parts_of_form,
    units_by_tensor,
)
from bnncore.secure.privacy import Privacy, effective_multiplier, private_parts, tail_of, typical_sizes
from bnncore.secure.ring import BLOCK, RingLayout, RingSegment, RingVector
from bnncore.secure.rounding import Told, bounded_numbers, plain_numbers, says_within, signs_told
from bnncore.secure.scales import Scales, public_scales
from bnncore.spec import ModelSpec, TensorSpec

__all__ = ["Told", "ValueForm", "ValueSum", "Vector"]

_MAGIC = b"bfv1"
_HEADER = struct.Struct("<4s32s")
_CHECKSUM = struct.Struct("<I")
_AT_ONCE = 128 * BLOCK
"""Numbers on the way into the ring, as int64."""
_LEAST_DEVIATION = 1 / 64
"""Under privacy, of a typical size."""


@dataclass(frozen=True)
class ValueForm:
    """How the updates of a round are told as whole numbers; the coordinator and every device agree on it.

    Attributes:
      spec: the network.
      kind: "update", or "statistics" where nothing was trained.
      local: names of the tensors that stay on devices.
      weights: "signs" or "fixed".
      clip: "fixed": by how many steps of 1/127 a weight may change.
      privacy: how the sum is made differentially private; None: it is not.

    Raises:
      ConfigurationError: these are no updates, clip is out of range, or the network has no bounds that privacy needs.
    """

    spec: ModelSpec
    kind: PayloadKind
    local: AbstractSet[str] = NONE_LOCAL
    weights: WeightForm = "signs"
    clip: int = 15
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        _ = self.parts

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The runs of whole numbers, in their order in the ring."""
        plain = parts_of_form(self.spec, self.kind, self.local, self.weights, self.clip)
        if self.privacy is None:
            return plain
        groups = groups_of_tensors(self.spec, self.kind, self.local)
        return private_parts(self.weights, self.privacy, self.clip, list(groups.items()))

    @cached_property
    def units(self) -> Mapping[str, float]:
        """Units per 1.0 of each shared tensor's sum."""
        return units_by_tensor(self.spec, self.local)

    @cached_property
    def digest(self) -> bytes:
        """Tell forms apart: SHA-256 of all of it."""
        said = [self.spec.digest, self.kind, sorted(self.local), self.weights, self.clip, repr(self.privacy)]
        return hashlib.sha256(json.dumps(said).encode()).digest()

    @property
    def accounted_multiplier(self) -> float:
        """Noise multiplier that the account of privacy goes by; 0 where there is no privacy."""
        return 0.0 if self.privacy is None else effective_multiplier(self.parts, self.privacy)

    def layout(self, num_members: int) -> RingLayout:
        """Give the ring that holds the sum of so many vectors and of their noise, each segment just wide enough.

        Raises:
          PayloadError: they are too many for 62 bits, with which sums are told from less than nothing in int64.
        """
        segments = []
        for part in self.parts:
            bits = (num_members * (part.high - part.low) + 2 * self._tail(part, num_members)).bit_length()
            if num_members < 1 or bits > 62:
                raise PayloadError(f"the sum of {num_members} updates needs {bits} bits for {part.name!r}, at most 62")
            segments.append(RingSegment(part.name, part.size, bits))
        return RingLayout(tuple(segments))

    def encode(self, told: Told, metrics: Metrics) -> Vector:
        """Turn what a device tells into whole numbers, without noise.

        Real-valued differences and "fixed" weights are kept within their part's range; nothing else is changed but by
        rounding to the nearest unit.

        Args:
          told: signs without mask (form "signs") or int16 steps (form "fixed", and either under privacy) of each binary
            weight tensor, and float32 for the others: differences, and statistics as they are. What the kind does not
            hold is not read.
          metrics: what the device measured.

        Raises:
          ShapeError: a tensor is missing or of another shape or type.
          PayloadError: a number is not finite, or a statistic is out of the range that the network allows.
        """
        numbers = {part.name: self._numbers(part, told, metrics).astype(part.dtype, copy=False) for part in self.parts}
        return Vector(self, numbers)

    def _numbers(self, part: Part, told: Told, metrics: Metrics) -> NDArray[Any]:
        if part.name == METRICS:
            return metrics.to_numbers()
        if part.is_bits:
            return signs_told(part.tensors[0], told).bits.reshape(-1)
        if part.name == SCALES:
            return np.concatenate([signs_told(tensor, told).scales for tensor in part.tensors])
        if part.name == WITHIN_CLIP:
            weights = next(other for other in self.parts if other.name == WEIGHTS)
            return says_within(part, weights, told, self.clip)
        if self.privacy is None:
            return plain_numbers(part, told, self.units)
        return bounded_numbers(part, told, self.weights, self._typical, self.clip)

    def decode_sum(self, ring: RingVector, num_members: int) -> ValueSum:
        """Read the sum of so many vectors: exactly what adding up their numbers gives.

        Args:
          ring: the sum, in a ``layout`` of at least as many members.
          num_members: vectors in the sum.

        Raises:
          PayloadError: a sum is one that no such vectors have. Was one of them not made by this form?
        """
        sums: dict[str, NDArray[np.int64]] = {}
        for part in self.parts:
            found, bits = ring.get(part.name), ring.layout.segment(part.name).bits
            tail = self._tail(part, num_members)
            if tail:  # less than nothing stands at the ring's upper end
                found[found >= (1 << bits) - tail] -= 1 << bits
            largest = num_members * (part.high - part.low) + tail
            if int(found.max()) > largest:
                raise PayloadError(
                    f"the sum of {part.name!r} must lie within what {num_members} updates can add up to, {largest}, "
                    f"got {int(found.max())}: a device sent what is no update"
                )
            sums[part.name] = found if part.is_bits else found + num_members * part.low
        return ValueSum(self, num_members, sums)

    def add_up(self, vectors: Iterable[Vector]) -> ValueSum:
        """Add vectors up without a ring, noise or masks: for one who may see them, and for simulations."""
        total = self.nothing()
        for vector in vectors:
            total = total.plus(vector)
        return total

    def nothing(self) -> ValueSum:
        """Give the sum of no vectors."""
        return ValueSum(self, 0, {part.name: np.zeros(part.size, np.int64) for part in self.parts})

    @cached_property
    def _typical(self) -> Mapping[str, float]:
        return typical_sizes(self.spec.tensors)

    def _tail(self, part: Part, num_members: int) -> int:
        return 0 if self.privacy is None else tail_of(part, self.privacy, num_members)


@dataclass(frozen=True, eq=False)
class Vector:
    """One device's numbers: in the clear, for the device alone.

    Attributes:
      form: how they were made.
      values: by name of part: packed bits (uint8), or numbers in the smallest dtype that holds the part's range.
    """

    form: ValueForm
    values: Mapping[str, NDArray[Any]]

    def to_ring(self, layout: RingLayout, randomness: Randomness = os.urandom) -> RingVector:
        """Write the numbers into the ring that the cohort agreed on, to be masked and sent.

        Args:
          layout: the form's, for as many members.
          randomness: for this device's part of the noise, where privacy has devices add it: it is added here, anew in
            every call.
        """
        ring, privacy = RingVector.zeros(layout), self.form.privacy
        for part in self.form.parts:
            values = self.values[part.name]
            if part.is_bits:
                ring.put_bits(part.name, values)
                continue
            for first in range(0, part.size, _AT_ONCE):
                numbers = values[first : first + _AT_ONCE].astype(np.int64) - part.low
                if privacy is not None and privacy.devices_add:
                    numbers += draw_noise(privacy.device_sigma(part), len(numbers), randomness)
                ring.put(part.name, numbers, first)
        return ring

    def to_bytes(self) -> bytes:
        """Write the numbers for this device's own disk.

        ``bfv1``, the form's digest, the parts without gaps (little-endian), and the CRC-32 of everything before it.
        """
        header = _HEADER.pack(_MAGIC, self.form.digest)
        pieces: list[Any] = [header]
        checksum = zlib.crc32(header)
        for part in self.form.parts:
            pieces.append(np.ascontiguousarray(self.values[part.name], part.dtype).view(np.uint8))
            checksum = zlib.crc32(pieces[-1], checksum)
        return b"".join([*pieces, _CHECKSUM.pack(checksum)])

    @classmethod
    def from_bytes(cls, form: ValueForm, data: bytes | memoryview) -> Vector:
        """Read what ``to_bytes`` wrote; the arrays are read-only views of ``data``.

        Raises:
          PayloadError: the bytes are cut or damaged, or of another form, or a number is out of its part's range.
        """
        view = memoryview(data).toreadonly()
        sizes = [part.dtype.itemsize * part.size // (8 if part.is_bits else 1) for part in form.parts]
        size = _HEADER.size + sum(sizes) + _CHECKSUM.size
        if len(view) != size or view[: _HEADER.size] != _HEADER.pack(_MAGIC, form.digest):
            raise PayloadError(f"the vector must be one of this task, {size} bytes, got {len(view)} or of another form")
        if _CHECKSUM.unpack(view[-_CHECKSUM.size :])[0] != zlib.crc32(view[: -_CHECKSUM.size]):
            raise PayloadError("the vector is damaged: its checksum does not fit its bytes")
        values, start = {}, _HEADER.size
        for part, length in zip(form.parts, sizes, strict=True):
            flat = np.frombuffer(view[start : start + length], part.dtype)
            start += length
            if not part.is_bits and (int(flat.min()) < part.low or int(flat.max()) > part.high):
                raise PayloadError(f"{part.name} must lie within {part.low} to {part.high}")
            values[part.name] = flat
        return cls(form, values)


@dataclass(frozen=True, eq=False)
class ValueSum:
    """The sum of a cohort's numbers.

    Attributes:
      form: how they were made.
      num_updates: how many vectors were added.
      sums: by name of part; of bits: how often each was set.
    """

    form: ValueForm
    num_updates: int
    sums: Mapping[str, NDArray[np.int64]]

    def plus(self, vector: Vector) -> ValueSum:
        """Add one vector; the arrays are this sum's own, which is used up."""
        for part in self.form.parts:
            values = vector.values[part.name]
            self.sums[part.name][:] += np.unpackbits(values, bitorder="little") if part.is_bits else values
        return ValueSum(self.form, self.num_updates + 1, self.sums)

    def with_noise(self, randomness: Randomness = os.urandom) -> ValueSum:
        """Add all of the noise that the sum is to have: the coordinator's part of "central" privacy.

        Of "distributed" privacy it stands for what the devices would have added; for simulations.
        """
        privacy = self.form.privacy
        if privacy is None:
            return self
        sums = {
            part.name: self.sums[part.name]
            + draw_noise(privacy.sum_sigma(part, self.num_updates), part.size, randomness)
            for part in self.form.parts
        }
        return ValueSum(self.form, self.num_updates, sums)

    @property
    def metrics(self) -> MetricSums:
        """What the devices measured; nothing where privacy leaves that out."""
        if METRICS not in self.sums:
            return MetricSums(0.0, 0.0, 0, 0, 0.0)
        return MetricSums.from_sums(self.sums[METRICS], self.num_updates)

    @property
    def within_clip(self) -> float | None:
        """Part of the devices whose weights were within privacy's clip, as far as noise shows; None: nobody told."""
        part = next((part for part in self.form.parts if part.name == WITHIN_CLIP), None)
        if part is None:
            return None
        mean = int(self.sums[WITHIN_CLIP][0]) / part.fineness / self.num_updates
        return min(max((mean + 1) / 2, 0.0), 1.0)

    @cached_property
    def signs(self) -> Mapping[str, NDArray[np.int64]]:
        """Sum of the signs, by weight tensor, of its shape; empty where the form tells none."""
        found = {}
        for part in self.form.parts:
            if part.is_bits:
                (tensor,) = part.tensors
                counts = self.sums[part.name].reshape(tensor.shape[0], -1)[:, : math.prod(tensor.shape[1:])]
                found[tensor.name] = (self.num_updates - 2 * counts).reshape(tensor.shape)
            elif part.name == WEIGHTS and self.form.weights == "signs":
                whole = _divide(self.sums[part.name], part.fineness)
                found |= {tensor.name: whole[place].reshape(tensor.shape) for tensor, place in part.slices()}
        return found

    @cached_property
    def mean_scales(self) -> Scales:
        """Mean of the devices' scales, rounded half up, one a row by weight tensor; empty where there are none."""
        part = next((part for part in self.form.parts if part.name == SCALES), None)
        if part is None:
            return {}
        means = _divide(self.sums[SCALES], self.num_updates)
        return {tensor.name: means[rows].astype(np.uint16) for tensor, rows in part.slices(rows=True)}

    def tensors(self, scales: Scales | None = None) -> dict[str, NDArray[np.int64]]:
        """Give the sum by tensor, in ``units``: of differences, and of statistics as they are.

        Args:
          scales: magnitudes common to the cohort; None or empty: the mean of those that were added up beside the signs,
            or ``public_scales`` where privacy leaves those out. "fixed" has none.

        Returns:
          int64 of each tensor's shape, in the order of the spec, by name of shared tensor of the form's kind.
        """
        common = scales or self.mean_scales or public_scales(self.form.spec, 1.0, self.form.local)
        found: dict[str, NDArray[np.int64]] = {}
        for name, signs in self.signs.items():
            found[name] = signs * common[name].astype(np.int64).reshape(-1, *(1,) * (signs.ndim - 1))
        for part in self.form.parts:
            if part.is_bits or part.name in (SCALES, METRICS, WITHIN_CLIP) or (part.name == WEIGHTS and self.signs):
                continue
            for tensor, place in part.slices():
                numbers = self.sums[part.name][place].reshape(tensor.shape)
                found[tensor.name] = self._in_units(part, tensor, numbers)
        return {tensor.name: found[tensor.name] for tensor in self.form.spec.tensors if tensor.name in found}

    def _in_units(self, part: Part, tensor: TensorSpec, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        form = self.form
        if tensor.role == "weight":
            return _divide(numbers * FINE_UNITS, part.fineness)
        if form.privacy is None:
            return numbers
        natural = typical_sizes(form.spec.tensors).get(tensor.name, 1.0)
        sums: NDArray[np.int64] = np.rint(numbers * (natural / part.fineness * form.units[tensor.name])).astype(
            np.int64
        )
        if tensor.role == "mean_abs_dev":  # noise must not make it nothing, or less
            least = natural * _LEAST_DEVIATION * form.units[tensor.name] * self.num_updates
            sums = np.maximum(sums, math.ceil(least))
        return sums


def _divide(sums: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """Divide, rounding halves up."""
    divided: NDArray[np.int64] = (2 * sums + by) // (2 * by)
    return divided
