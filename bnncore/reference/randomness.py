"""Randomness as a function of (seed, step, block, purpose, index), and rounding with it: no generator has a state."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Purpose", "padded_index", "random_halves", "random_stream", "random_words", "round_stochastic"]

_MASK64 = (1 << 64) - 1
_BLOCK = 32  # elements whose halves come from the same 16 words


class Purpose(IntEnum):
    """What a stream is drawn for (native/include/bnncore/random.h)."""

    INITIALISE = 1
    TOP_GRADIENT = 2
    GRAD_Y = 3
    GRAD_X = 4
    UPDATE = 5


def _split_mix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def random_stream(seed: int, step: int, block: int, purpose: int) -> tuple[int, int]:
    """Give the two 32-bit halves of the key of one stream."""
    key = _split_mix64(_split_mix64(_split_mix64(seed) ^ step) ^ (block << 8 | purpose))
    return key & 0xFFFFFFFF, key >> 32


def random_words(stream: tuple[int, int], index: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Give words ``index`` (taken modulo 2^32) of a stream, uint32 of the same shape."""
    x = index.astype(np.uint32) ^ np.uint32(stream[0])
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x += np.uint32(stream[1])
    x ^= x >> np.uint32(15)
    x *= np.uint32(0xD35A2D97)
    x ^= x >> np.uint32(15)
    return x


def random_halves(stream: tuple[int, int], index: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Give 16 bits for each number: elements i and i + 16 of a block of 32 share a word, i has its upper half."""
    words = random_words(stream, (index >> 5 << 4) | (index & 15))
    return np.where(index & 16, words & np.uint32(0xFFFF), words >> np.uint32(16))


def padded_index(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Number the elements of [rows, columns] so that every row begins a block of 32."""
    rows, columns = (np.arange(size, dtype=np.int64) for size in shape)
    return rows[:, None] * (-(-shape[1] // _BLOCK) * _BLOCK) + columns


def round_stochastic(x: NDArray[np.float32], random16: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Round to an integer in [-127, 127]: floor(x + r / 65536) in 16.16 fixed point, r uniform in [0, 65535]."""
    fixed = (np.clip(x, np.float32(-127), np.float32(127)) * np.float32(65536)).astype(np.int64)
    return (fixed + random16.astype(np.int64)) >> 16
