"""Codec ``flips``: the largest part of a difference, entropy-coded; 16 bits a row and half a bit a weight or less.

After a weight tensor's scales come

* ``uint32``: how many bytes the next part takes;
* the mask, deflated (RFC 1951) by Huffman codes of its bytes alone: most of them are 0 or have one bit, and it has
  next to no repetitions to look for;
* the sign bits of the elements in the mask, row after row without gaps, padded with zeros to whole bytes.
"""

from __future__ import annotations

import struct
import zlib
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.codec.difference import DifferenceCodec, Reader
from bnncore.codec.signs import SignTensor
from bnncore.errors import PayloadError

__all__ = ["FlipsCodec"]

_LENGTH = struct.Struct("<I")
_RAW = -15
"""No header and no checksum of its own: the payload has both."""


class FlipsCodec(DifferenceCodec):
    """Seven in a hundred weights move by default: a row's scale up or down."""

    name: ClassVar[str] = "flips"
    number: ClassVar[int] = 2
    density: ClassVar[float | None] = 0.07

    def write_signs(self, name: str, signs: SignTensor) -> list[bytes]:
        """Give the mask and the signs in it; see ``DifferenceCodec.write_signs``."""
        if signs.mask is None:
            raise PayloadError(f"{name} leaves no element out; codec {self.name!r} needs a mask. Take 'sign'")
        deflater = zlib.compressobj(level=9, wbits=_RAW, strategy=zlib.Z_HUFFMAN_ONLY)
        mask = deflater.compress(signs.mask.tobytes()) + deflater.flush()
        return [_LENGTH.pack(len(mask)), mask, _gather(signs.bits.reshape(-1), signs.mask.reshape(-1)).tobytes()]

    def read_signs(
        self, name: str, packed: tuple[int, int], reader: Reader
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read mask and bits, of the size that the spec says and no more; see ``DifferenceCodec.read_signs``."""
        (length,) = _LENGTH.unpack(reader.take(name, _LENGTH.size))
        mask = np.frombuffer(_inflate(name, reader.take(name, length), packed[0] * packed[1]), np.uint8)
        count = _count(mask)
        gathered = reader.take_array(name, np.dtype(np.uint8), ((count + 7) // 8,))
        if count % 8 and gathered[-1] >> count % 8:
            raise PayloadError(f"{name} has sign bits beyond its {count} elements, which must be 0")
        return _scatter(gathered, mask).reshape(packed), mask.reshape(packed)


def _inflate(name: str, deflated: memoryview, size: int) -> bytes:
    inflater = zlib.decompressobj(wbits=_RAW)
    try:
        found = inflater.decompress(deflated, size + 1)
    except zlib.error as error:
        raise PayloadError(f"{name} has a mask that cannot be inflated: {error}") from error
    if len(found) != size or not inflater.eof or inflater.unused_data:
        raise PayloadError(f"{name} must have a mask of {size} bytes and nothing behind it, got {len(found)} or more")
    return found


def _count(mask: NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(mask).sum(dtype=np.int64))


def _gather(bits: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give the bits where the mask has one, packed."""
    gathered = np.empty((_count(mask) + 7) // 8, np.uint8)
    _native.kernels.gather_bits(bits, mask, gathered)
    return gathered


def _scatter(gathered: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo ``_gather``."""
    bits = np.empty_like(mask)
    _native.kernels.scatter_bits(gathered, mask, bits)
    return bits
