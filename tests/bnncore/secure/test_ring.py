"""Vectors modulo 2^k: what is put in comes out, sums are sums modulo 2^k, masks go as they came."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.errors import PayloadError, ShapeError
from bnncore.secure import RingLayout, RingSegment, RingVector

segments = st.lists(st.tuples(st.integers(1, 1600), st.integers(1, 64)), min_size=1, max_size=4)
layouts = segments.map(lambda parts: RingLayout(tuple(RingSegment(f"s{i}", *part) for i, part in enumerate(parts))))
seeds = st.integers(0, 999)


def random_values(size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(-(1 << 63), (1 << 63) - 1, size)


def modulo(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    return values if bits == 64 else values & ((1 << bits) - 1)


@given(layouts, seeds)
def test_what_is_put_in_comes_out_and_sums_are_exact(layout: RingLayout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [{s.name: random_values(s.size, rng) for s in layout.segments} for _ in range(3)]

    total = RingVector.zeros(layout)
    for values in parts:
        vector = RingVector.zeros(layout)
        for name, numbers in values.items():
            vector.put(name, numbers)
        total.add(vector.to_bytes() if seed % 2 else vector)

    for segment in layout.segments:
        wanted = parts[0][segment.name] + parts[1][segment.name] + parts[2][segment.name]  # wraps modulo 2^64
        assert np.array_equal(total.get(segment.name), modulo(wanted, segment.bits))


@given(st.integers(1, 2000), st.integers(1, 9), seeds)
def test_bits_are_numbers(size: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ones = rng.integers(0, 2, size, dtype=np.uint8)
    vector = RingVector(RingLayout((RingSegment("a", size, bits),)), _noise(size, bits, rng))

    vector.put_bits("a", np.packbits(ones, bitorder="little"))

    assert np.array_equal(vector.get("a"), ones)


def _noise(size: int, bits: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    return rng.integers(0, 256, RingSegment("a", size, bits).num_bytes, dtype=np.uint8)


def test_the_layout_is_that_of_blocks_and_planes() -> None:
    vector = RingVector.zeros(RingLayout((RingSegment("a", 513, 3), RingSegment("b", 2, 1))))
    values = np.zeros(513, np.int32)
    values[9], values[512] = 5, 2

    vector.put("a", values)
    vector.put("b", np.array([False, True]))

    wanted = np.zeros(7 * 64, np.uint8)
    wanted[1] = wanted[2 * 64 + 1] = 2  # element 9: bit 1 of byte 1, in planes 0 and 2
    wanted[4 * 64] = 1  # element 512 = 2: plane 1 of the second block
    wanted[6 * 64] = 2
    assert np.array_equal(vector.data, wanted)


def test_a_segment_can_be_read_and_written_in_parts() -> None:
    layout = RingLayout((RingSegment("first", 700, 5), RingSegment("a", 1100, 11)))
    values, vector = np.arange(1100), RingVector.zeros(layout)

    for first in range(0, 1100, 512):
        vector.put("a", values[first : first + 512], first)

    assert np.array_equal(vector.get("a"), values)
    assert np.array_equal(vector.get("a", 512, 512), values[512:1024])
    assert np.array_equal(vector.get("a", 1024), values[1024:])
    assert not vector.get("first").any()


@given(layouts, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_mask_is_the_key_stream_and_goes_as_it_came(layout: RingLayout, key: bytes, other: bytes) -> None:
    vector = RingVector.zeros(layout)
    for segment in layout.segments:
        vector.put(segment.name, np.arange(segment.size))
    before = vector.to_bytes()

    vector.add_mask(key, negative=False)
    vector.add_mask(other, negative=True)
    vector.add_mask(other, negative=False)
    masked = vector.to_bytes()
    vector.add_mask(key, negative=True)

    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(layout.num_bytes))
    wanted = RingVector.from_bytes(layout, stream)
    wanted.add(before)
    assert masked == wanted.to_bytes()
    assert vector.to_bytes() == before


def test_a_long_mask_is_one_key_stream() -> None:
    layout = RingLayout((RingSegment("a", 300_000, 7), RingSegment("b", 100_000, 1), RingSegment("c", 40_000, 64)))
    key, vector = bytes(range(32)), RingVector.zeros(layout)

    vector.add_mask(key, negative=False)

    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(layout.num_bytes))
    assert vector.to_bytes() == stream


def test_what_does_not_fit_is_refused() -> None:
    layout = RingLayout((RingSegment("a", 700, 3),))
    vector = RingVector.zeros(layout)

    for wrong in (b"", bytes(layout.num_bytes - 1), bytes(layout.num_bytes + 1)):
        with pytest.raises(PayloadError, match="384 bytes"):
            RingVector.from_bytes(layout, wrong)
        with pytest.raises(PayloadError, match="384 bytes"):
            vector.add(wrong)
    with pytest.raises(ShapeError, match="different layouts"):
        vector.add(RingVector.zeros(RingLayout((RingSegment("b", 700, 3),))))
    with pytest.raises(ShapeError, match="no segment 'b'"):
        vector.get("b")
    with pytest.raises(ShapeError, match="blocks of 512"):
        vector.put("a", np.arange(701))
    with pytest.raises(ShapeError, match="blocks of 512"):
        vector.put("a", np.arange(100))
    with pytest.raises(ShapeError, match="blocks of 512"):
        vector.get("a", 1)
    with pytest.raises(ShapeError, match="whole numbers"):
        vector.put("a", np.zeros(700))
    with pytest.raises(ShapeError, match=r"uint8\[88\]"):
        vector.put_bits("a", np.zeros(87, np.uint8))
    with pytest.raises(PayloadError, match="beyond the 700"):
        vector.put_bits("a", np.full(88, 255, np.uint8))
    with pytest.raises(ShapeError, match="different names"):
        RingLayout((RingSegment("a", 1, 1), RingSegment("a", 2, 1)))
    for size, bits in ((0, 1), (1, 0), (1, 65)):
        with pytest.raises(ShapeError, match="1 to 64 bits"):
            RingSegment("a", size, bits)
