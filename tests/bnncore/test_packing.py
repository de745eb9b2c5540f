"""Packing signs into words: polarity, padding, and the way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bnncore import _native
from bnncore.engine import isa_available
from bnncore.errors import PayloadError, ShapeError
from bnncore.packing import pack_signs, unpack_signs, words_for

shapes = st.tuples(st.integers(1, 4), st.integers(1, 200))


@given(arrays(np.int8, shapes))
def test_int8_signs_come_back_from_their_bits(values: np.ndarray) -> None:
    signs = unpack_signs(pack_signs(values), values.shape[1])

    assert np.array_equal(signs, np.where(values < 0, -1, 1))


@given(arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False)))
def test_float_signs_come_back_and_negative_zero_is_positive(values: np.ndarray) -> None:
    signs = unpack_signs(pack_signs(values), values.shape[1])

    assert np.array_equal(signs, np.where(values < 0, -1, 1))


@given(arrays(np.int8, shapes))
def test_unused_bits_are_zero(values: np.ndarray) -> None:
    words = pack_signs(values)

    # All bits of a row, the unused ones after the values' own.
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, values.shape[1] :].any()
    assert words.shape == (values.shape[0], words_for(values.shape[1]))


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize("count", [1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000])
def test_every_instruction_set_packs_the_same_words_and_no_more(isa: str, count: int) -> None:
    values = np.random.default_rng(count).integers(-127, 128, count, dtype=np.int8)
    zeros = np.where(values % 5 == 0, np.float32(-0.0), values.astype(np.float32))
    expected = np.zeros(words_for(count), np.uint64)
    for i in np.flatnonzero(values < 0):
        expected[i // 64] |= np.uint64(1) << np.uint64(i % 64)
    expected_zeros = np.zeros_like(expected)
    for i in np.flatnonzero(zeros < 0):
        expected_zeros[i // 64] |= np.uint64(1) << np.uint64(i % 64)
    guard = np.uint64(0xDEADBEEF)

    for pack, source, wanted in (
        (_native.kernels.pack_int8, values, expected),
        (_native.kernels.pack_float, zeros, expected_zeros),
    ):
        words = np.full(len(expected) + 1, guard)
        pack(isa, source, words)
        assert np.array_equal(words[:-1], wanted)
        assert words[-1] == guard


def test_nan_has_no_sign() -> None:
    with pytest.raises(PayloadError, match="NaN"):
        pack_signs(np.array([[1.0, np.nan]], np.float32))


def test_wrong_shapes_and_dtypes_are_told() -> None:
    with pytest.raises(ShapeError, match=r"\[rows, count\]"):
        pack_signs(np.zeros(3, np.int8))
    with pytest.raises(PayloadError, match="float64"):
        pack_signs(np.zeros((1, 3)))
    with pytest.raises(ShapeError, match=r"\[rows, 2\]"):
        unpack_signs(np.zeros((1, 1), np.uint64), 65)
