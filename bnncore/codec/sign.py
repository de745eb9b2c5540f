"""Codec ``sign``: one bit a weight and 16 bits a row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.codec.difference import DifferenceCodec, Reader
from bnncore.codec.signs import SignTensor
from bnncore.errors import PayloadError

__all__ = ["SignCodec"]


class SignCodec(DifferenceCodec):
    """Every weight moves: a row's scale up or down. Bits are written as they are held."""

    name: ClassVar[str] = "sign"
    number: ClassVar[int] = 1
    density: ClassVar[float | None] = None

    def write_signs(self, name: str, signs: SignTensor) -> list[bytes]:
        """Give the bits; see ``DifferenceCodec.write_signs``."""
        if signs.mask is not None:
            raise PayloadError(f"{name} leaves elements out, which codec {self.name!r} cannot tell; take 'flips'")
        return [signs.bits.tobytes()]

    def read_signs(self, name: str, packed: tuple[int, int], reader: Reader) -> tuple[NDArray[np.uint8], None]:
        """Read the bits as a view; see ``DifferenceCodec.read_signs``."""
        return reader.take_array(name, np.dtype(np.uint8), packed), None
