"""Vectors of whole numbers modulo 2^k: what is masked, sent and added up.

A vector has named segments, each with its own k, just wide enough for what the sum can be. A segment is bit-sliced:
512 elements are a block of k planes of 64 bytes; bit j of element i of a block is bit ``i % 8`` of byte ``i // 8`` of
plane j. A number so takes k bits and no more, and 512 of them are added at once. Elements that fill a segment's last
block are 0, and under a mask anything.

A mask is a ChaCha20 key stream, whose bits are the numbers: uniform modulo 2^k, so a masked vector tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.errors import PayloadError, ShapeError

__all__ = ["BLOCK", "RingLayout", "RingSegment", "RingVector"]

BLOCK = 512
"""Elements of a block."""
_PLANE = BLOCK // 8
_MASK_BYTES = 1 << 16
"""Key stream made at a time, about: it is to stay in the processor's nearest caches."""


@dataclass(frozen=True)
class RingSegment:
    """A part of a vector: ``size`` numbers modulo ``2^bits``."""

    name: str
    size: int
    """At least 1."""
    bits: int
    """1 to 64."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.bits <= 64:
            raise ShapeError(
                f"a segment holds at least one number of 1 to 64 bits, got {self.size} of {self.bits} ({self.name!r})"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of the segment."""
        return -(-self.size // BLOCK) * _PLANE * self.bits


@dataclass(frozen=True)
class RingLayout:
    """The segments of a vector, in their order, without gaps."""

    segments: tuple[RingSegment, ...]

    def __post_init__(self) -> None:
        names = [segment.name for segment in self.segments]
        if not names or len(set(names)) != len(names):
            raise ShapeError(f"a layout needs segments of different names, got {names}")

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of a vector."""
        return sum(segment.num_bytes for segment in self.segments)

    @cached_property
    def _places(self) -> dict[str, tuple[RingSegment, slice]]:
        places, first = {}, 0
        for segment in self.segments:
            places[segment.name] = (segment, slice(first, first + segment.num_bytes))
            first += segment.num_bytes
        return places

    def segment(self, name: str) -> RingSegment:
        """Give a segment.

        Raises:
          ShapeError: there is none of this name.
        """
        return self._place(name)[0]

    def slice_of(self, name: str) -> slice:
        """Give a segment's bytes in a vector.

        Raises:
          ShapeError: there is none of this name.
        """
        return self._place(name)[1]

    def _place(self, name: str) -> tuple[RingSegment, slice]:
        if name not in self._places:
            raise ShapeError(f"the layout has no segment {name!r}; it has {list(self._places)}")
        return self._places[name]


class RingVector:
    """A vector, changed in place.

    Attributes:
      layout: its segments.
      data: ``uint8[layout.num_bytes]``.
    """

    def __init__(self, layout: RingLayout, data: NDArray[np.uint8]) -> None:
        if data.dtype != np.uint8 or data.shape != (layout.num_bytes,) or not data.flags.c_contiguous:
            raise ShapeError(f"a vector is uint8[{layout.num_bytes}], got {data.dtype}{list(data.shape)}")
        self.layout = layout
        self.data = data

    @classmethod
    def zeros(cls, layout: RingLayout) -> Self:
        """Make a vector of zeros."""
        return cls(layout, np.zeros(layout.num_bytes, np.uint8))

    @classmethod
    def from_bytes(cls, layout: RingLayout, data: bytes | bytearray | memoryview) -> Self:
        """Read a vector, masked or not: any bytes are one, if only there are as many as it takes.

        Raises:
          PayloadError: there are not.
        """
        return cls(layout, _as_planes(data, layout.num_bytes).copy())

    def to_bytes(self) -> bytes:
        """Write the vector."""
        return self.data.tobytes()

    def put_bits(self, name: str, packed: NDArray[np.uint8]) -> None:
        """Set a segment to numbers that are 0 or 1.

        Args:
          name: the segment.
          packed: ``uint8[ceil(size / 8)]``, element i in bit ``i % 8`` of byte ``i // 8``; bits beyond the last
            element must be 0.

        Raises:
          ShapeError: there is no such segment, or packed is not of its size.
          PayloadError: a bit beyond the last element is set.
        """
        segment, place = self.layout.segment(name), self.layout.slice_of(name)
        whole = -(-segment.size // 8)
        if packed.dtype != np.uint8 or packed.shape != (whole,):
            raise ShapeError(f"segment {name!r} takes uint8[{whole}] of bits, got {packed.dtype}{list(packed.shape)}")
        if segment.size % 8 and packed[-1] >> segment.size % 8:
            raise PayloadError(f"bits beyond the {segment.size} elements of segment {name!r} must be 0")
        blocks = self.data[place].reshape(-1, segment.bits, _PLANE)
        blocks[:] = 0
        full = whole // _PLANE
        blocks[:full, 0] = packed[: full * _PLANE].reshape(full, _PLANE)
        if whole % _PLANE:
            blocks[full, 0, : whole % _PLANE] = packed[full * _PLANE :]

    def put(self, name: str, values: NDArray[Any], first: int = 0) -> None:
        """Set elements of a segment.

        Args:
          name: the segment.
          values: whole numbers, ``[n]``; what is kept of each is its value modulo ``2^bits``.
          first: element that the first value is for: a multiple of ``BLOCK``. Fewer values than are left must fill
            whole blocks.

        Raises:
          ShapeError: there is no such segment, or the values do not fit it so.
        """
        segment, planes = self._part(name, first, len(values))
        if values.ndim != 1 or values.dtype.kind not in "iub":
            raise ShapeError(f"segment {name!r} takes whole numbers [n], got {values.dtype}{list(values.shape)}")
        wide = values if values.dtype == np.uint64 else values.astype(np.int64, copy=False)
        _native.kernels.ring_write(np.ascontiguousarray(wide).view(np.int64), segment.bits, planes)

    def get(self, name: str, first: int = 0, count: int | None = None) -> NDArray[np.int64]:
        """Give elements of a segment, each from 0 to ``2^bits - 1``; of 64 bits, the pattern.

        Args:
          name: the segment.
          first: the first one: a multiple of ``BLOCK``.
          count: how many; None: all that are left. Fewer than those must be whole blocks.

        Raises:
          ShapeError: there is no such segment, or it has no such elements.
        """
        wanted = self.layout.segment(name).size - first if count is None else count
        segment, planes = self._part(name, first, wanted)
        values = np.empty(wanted, np.int64)
        _native.kernels.ring_read(planes, segment.bits, values)
        return values

    def add(self, other: RingVector | bytes | bytearray | memoryview) -> None:
        """Add a vector of the same layout.

        Raises:
          ShapeError: its layout is another one.
          PayloadError: the bytes are not as many as a vector takes; nothing was added.
        """
        if isinstance(other, RingVector):
            if other.layout != self.layout:
                raise ShapeError("vectors of different layouts cannot be added")
            planes = other.data
        else:
            planes = _as_planes(other, self.layout.num_bytes)
        for segment in self.layout.segments:
            place = self.layout.slice_of(segment.name)
            _native.kernels.ring_add(self.data[place], planes[place], segment.bits, False)

    def add_mask(self, key: bytes, *, negative: bool) -> None:
        """Add or, when ``negative``, subtract the mask that a key of 32 bytes stands for.

        Memory: two buffers of 64 KiB.
        """
        from bnncore.secure.crypto import KeyStream  # loads a library that adding up does not need

        stream = KeyStream(key)
        for segment in self.layout.segments:
            planes, block = self.data[self.layout.slice_of(segment.name)], _PLANE * segment.bits
            step = max(_MASK_BYTES // block, 1) * block
            for first in range(0, len(planes), step):
                part = planes[first : first + step]
                _native.kernels.ring_add(part, stream.take(len(part)), segment.bits, negative)

    def _part(self, name: str, first: int, count: int) -> tuple[RingSegment, NDArray[np.uint8]]:
        segment = self.layout.segment(name)
        left = segment.size - first
        if first % BLOCK or first < 0 or not 0 < count <= left or (count < left and count % BLOCK):
            raise ShapeError(
                f"elements of segment {name!r} are taken in blocks of {BLOCK} from 0 to {segment.size}, "
                f"got {count} from {first}"
            )
        begin, block = self.layout.slice_of(name).start, _PLANE * segment.bits
        return segment, self.data[begin + first // BLOCK * block : begin + -(-(first + count) // BLOCK) * block]


def _as_planes(data: bytes | bytearray | memoryview, num_bytes: int) -> NDArray[np.uint8]:
    planes = np.frombuffer(data, np.uint8)
    if len(planes) != num_bytes:
        raise PayloadError(f"a vector of this exchange has {num_bytes} bytes, got {len(planes)}")
    return planes
