"""Convolutions of signs with binary weights on bits, without an engine: what ``bnncore.nn`` multiplies with.

A sample's signs lie in bits, 1 for -1, the first in the lowest bit of the first byte, in the order rows, columns,
channels without a gap (``bnncore.nn.bits``). Products are exact integers, the same on every instruction set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.engine import isa_selected
from bnncore.errors import ShapeError

__all__ = ["LARGEST_FAN_IN", "SignWeights", "multiply_sign_maps"]

LARGEST_FAN_IN = 32766
"""Products of more terms do not fit into 16 bits."""


@dataclass(frozen=True)
class SignWeights:
    """Signs of a convolution's weights in bits, whole words for each channel of a tap.

    Attributes:
      words: uint64 [out channels, taps x words for the in channels].
      kernel: rows and columns of the kernel.
      in_channels: channels that it reads.
    """

    words: NDArray[np.uint64]
    kernel: tuple[int, int]
    in_channels: int

    @classmethod
    def of(cls, signs: NDArray[np.int8]) -> SignWeights:
        """Pack signs, +1 and -1 in int8 [out channels, kernel rows, kernel columns, in channels].

        Raises:
          ShapeError: they have no four axes, or more than ``LARGEST_FAN_IN`` for one output.
        """
        if signs.ndim != 4 or signs[0].size > LARGEST_FAN_IN:
            raise ShapeError(
                f"signs must be [out channels, rows, columns, in channels] with a fan-in of at most {LARGEST_FAN_IN}, "
                f"got {signs.shape}"
            )
        outputs, rows, columns, channels = signs.shape
        words = np.zeros((outputs, rows * columns * -(-channels // 64)), np.uint64)
        _native.kernels.pack_sign_weights(isa_selected(), signs.reshape(outputs, rows * columns, channels), words)
        return cls(words, (rows, columns), channels)


def multiply_sign_maps(
    bits: NDArray[np.uint8],
    size: tuple[int, int],
    weights: SignWeights,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    threads: int = 1,
) -> NDArray[np.int16]:
    """Multiply maps of signs with weights; padding counts as 0.

    Args:
      bits: uint8 [B, bytes]: of each sample ``size`` x in channels signs.
      size: rows and columns of the maps.
      weights: of the convolution.
      stride: of the kernel, both ways.
      padding: rows above and below, columns left and right.
      threads: that share the work.

    Returns:
      int16 [B, rows, columns, out channels].

    Raises:
      ShapeError: ``bits`` has not the bytes of such maps, or the kernel does not fit into one with its padding.
    """
    count = size[0] * size[1] * weights.in_channels
    if bits.ndim != 2 or bits.shape[1] != -(-count // 8):
        raise ShapeError(f"bits of {count} signs a sample must be [B, {-(-count // 8)}], got {list(bits.shape)}")
    height, width = (size[i] + 2 * padding[i] - weights.kernel[i] for i in (0, 1))
    if height < 0 or width < 0 or stride < 1:
        raise ShapeError(
            f"a kernel of {weights.kernel} at stride {stride} does not fit maps of {size} padded by {padding}"
        )
    shape = (len(bits), height // stride + 1, width // stride + 1, len(weights.words))
    products = np.empty(shape, np.int16)
    map_shape = (*size, weights.in_channels)
    _native.kernels.multiply_sign_maps(
        isa_selected(), bits, map_shape, weights.kernel, stride, padding, weights.words, threads, products
    )
    return products
