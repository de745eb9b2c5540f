"""One-bit differences: how they are made, applied and added up, and that nothing is lost on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.codec import SignTensor, encode_signs, encode_steps, fold_many
from bnncore.codec.signs import MAX_WEIGHT
from bnncore.engine import isa_available
from bnncore.errors import PayloadError, ShapeError
from bnncore.reference import signs as reference
from tests.bnncore.random_differences import assert_same_signs, random_signs

shapes = st.lists(st.integers(1, 9), max_size=2).flatmap(
    lambda tail: st.tuples(st.integers(1, 5), st.just([*tail, 1]), st.sampled_from([1, 1, 3, 17, 64])).map(
        lambda parts: (parts[0], *parts[1][:-1], parts[1][-1] * parts[2])
    )
)
densities = st.none() | st.sampled_from([0.01, 0.07, 0.5, 1.0])
seeds = st.integers(0, 999)


@pytest.fixture(autouse=True, params=isa_available())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine."""
    monkeypatch.setenv("BITFLEET_ISA", request.param)
    return str(request.param)


def as_rows(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(array.shape[0], -1)


def signs_of(tensor: SignTensor) -> reference.Signs:
    return tensor.scales, tensor.bits, tensor.mask


def operands(shape: tuple[int, ...], seed: int) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int8]]:
    """Latent weights, a replica near or far from them, and an error."""
    generator = np.random.default_rng(seed)
    spread = int(generator.choice([1, 3, 40, 254]))
    latent = generator.integers(-127, 128, shape)
    replica = np.clip(latent + generator.integers(-spread, spread + 1, shape), -127, 127)
    error = generator.integers(-127, 128, shape) if seed % 2 else generator.integers(-2, 3, shape)
    return latent.astype(np.int8), replica.astype(np.int8), error.astype(np.int8)


@given(shapes, densities, seeds, st.booleans())
def test_encoding_is_the_references(shape: tuple[int, ...], density: float | None, seed: int, first: bool) -> None:
    latent, replica, error = operands(shape, seed)

    signs, remaining = encode_signs(latent, replica, None if first else error, density=density)

    wanted, wanted_remaining = reference.encode_signs(
        as_rows(latent), as_rows(replica), None if first else as_rows(error), density
    )
    assert_same_signs(signs, SignTensor(shape, *wanted))
    np.testing.assert_array_equal(remaining, wanted_remaining.reshape(shape))
    assert remaining.dtype == np.int8


@given(shapes, densities, seeds)
def test_encoding_steps_is_the_references(shape: tuple[int, ...], density: float | None, seed: int) -> None:
    _, replica, _ = operands(shape, seed)
    generator = np.random.default_rng(seed)
    near = replica / 127 + generator.normal(0, 0.01, shape)
    master = (np.clip(near, -1, 1) if seed % 3 else generator.uniform(-1, 1, shape)).astype(np.float32)
    master[generator.random(shape) < 0.1] *= np.float32(1e-30)

    signs = encode_steps(master, replica, density=density)

    assert_same_signs(signs, SignTensor(shape, *reference.encode_steps(as_rows(master), as_rows(replica), density)))


@given(shapes, densities, seeds)
def test_dense_and_applying_are_the_references(shape: tuple[int, ...], density: float | None, seed: int) -> None:
    signs = random_signs(shape, seed, density=density)
    replica = operands(shape, seed)[0]
    moved = replica.copy()

    signs.apply_to(moved)

    wanted = reference.apply(signs_of(signs), as_rows(replica)).reshape(shape)
    np.testing.assert_array_equal(moved, wanted)
    np.testing.assert_array_equal(
        signs.dense(), reference.dense(signs_of(signs), as_rows(replica).shape[1]).reshape(shape)
    )
    assert signs.dense().dtype == np.int32


@given(shapes, st.lists(st.tuples(seeds, densities, st.integers(-MAX_WEIGHT, MAX_WEIGHT)), max_size=19), seeds)
@example((3, 17), [(1, None, MAX_WEIGHT)] * 8, 0)
@example((3, 17), [(1, 0.5, -MAX_WEIGHT)] * 8, 0)
def test_folding_is_the_references(
    shape: tuple[int, ...], updates: list[tuple[int, float | None, int]], seed: int
) -> None:
    tensors = [random_signs(shape, s, density=density) for s, density, _ in updates]
    weights = [weight for _, _, weight in updates]
    start = np.random.default_rng(seed).integers(-(2**60), 2**60, shape)
    sums, one_by_one, reverse = start.copy(), start.copy(), start.copy()

    fold_many(sums, tensors, weights)
    fold_many(reverse, tensors[::-1], weights[::-1])
    for tensor, weight in zip(tensors, weights, strict=True):
        tensor.add_to(one_by_one, weight)

    wanted = as_rows(start)
    for tensor, weight in zip(tensors, weights, strict=True):
        wanted = reference.add(signs_of(tensor), weight, wanted)
    np.testing.assert_array_equal(as_rows(sums), wanted)
    np.testing.assert_array_equal(sums, one_by_one)
    np.testing.assert_array_equal(sums, reverse)


@given(shapes, densities, seeds)
def test_what_is_told_and_what_remains_are_the_difference(
    shape: tuple[int, ...], density: float | None, seed: int
) -> None:
    latent, replica, error = operands(shape, seed)

    signs, remaining = encode_signs(latent, replica, error, density=density)

    x = latent.astype(int) - replica + error
    rest = 256 * x - signs.dense() - 256 * remaining.astype(int)
    inside = np.abs(256 * x - signs.dense()) <= 256 * 127
    assert np.abs(rest[inside]).max(initial=0) <= 128  # half a step, by rounding
    assert (np.abs(remaining[~inside]) == 127).all()


@given(shapes, seeds)
def test_the_mean_of_a_row_is_told(shape: tuple[int, ...], seed: int) -> None:
    latent, replica, error = operands(shape, seed)

    signs, _ = encode_signs(latent, replica, error)

    means = np.abs(as_rows(latent.astype(int) - replica + error)).mean(axis=1)
    np.testing.assert_allclose(signs.scales, np.minimum(256 * means, 65535), atol=0.5)


@given(shapes, st.sampled_from([0.07, 0.3, 1.0]), seeds)
def test_the_largest_part_is_told(shape: tuple[int, ...], density: float, seed: int) -> None:
    latent, replica, error = operands(shape, seed)

    signs, _ = encode_signs(latent, replica, error, density=density)

    assert signs.mask is not None
    x = np.abs(as_rows(latent.astype(int) - replica + error))
    told = np.unpackbits(signs.mask, axis=1, count=x.shape[1], bitorder="little").astype(bool)
    assert told.sum() == min(max(1, int(density * math.prod(shape))), np.count_nonzero(x))
    assert x[told].min(initial=400) >= x[~told].max(initial=0)


def test_a_replica_follows_its_master_by_one_bit_steps() -> None:
    generator = np.random.default_rng(2)
    master = generator.uniform(-1, 1, (20, 30)).astype(np.float32)
    replica = np.zeros((20, 30), np.int8)
    distances = []

    for _ in range(60):
        encode_steps(master, replica).apply_to(replica)
        distances.append(np.abs(127 * master - replica).mean())

    assert distances[-1] < 1.0 < 20 < distances[0]


def test_a_sender_with_error_feedback_tells_a_constant_difference_in_the_mean() -> None:
    generator = np.random.default_rng(3)
    latent = generator.integers(-9, 10, (4, 50)).astype(np.int8)
    error, told = np.zeros((4, 50), np.int8), np.zeros((4, 50))
    replica = np.zeros((4, 50), np.int8)

    for _ in range(400):
        signs, error = encode_signs(latent, replica, error)
        told += signs.dense() / 256

    # What was not told is the error, of at most 127 steps, and half a step of rounding a time.
    np.testing.assert_allclose(told / 400, latent, atol=127 / 400 + 0.5)


def test_known_signs_of_a_row() -> None:
    latent = np.array([[3, -2, 0, 5]], np.int8)
    replica = np.array([[1, 1, 0, 5]], np.int8)

    signs, remaining = encode_signs(latent, replica)  # x = 2, -3, 0, 0: mean |x| = 1.25

    assert (signs.scales.tolist(), signs.bits.tolist()) == ([320], [[0b0010]])
    assert remaining.tolist() == [[1, -2, -1, -1]]  # 0.75, -1.75, -1.25, -1.25
    signs.apply_to(replica)
    assert replica.tolist() == [[2, 0, 1, 6]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scales", np.zeros(3, np.uint16)),
        ("scales", np.zeros(4, np.int16)),
        ("bits", np.zeros((4, 2), np.uint8)),
        ("mask", np.zeros((4, 2), np.uint8)),
        ("mask", np.zeros((4, 1), np.int8)),
    ],
)
def test_signs_of_other_arrays_are_refused(field: str, value: NDArray[Any]) -> None:
    fields = {"scales": np.zeros(4, np.uint16), "bits": np.zeros((4, 1), np.uint8), field: value}

    with pytest.raises(ShapeError, match=field):
        SignTensor((4, 6), **fields)  # type: ignore[arg-type]


def test_a_sign_without_an_element_is_refused() -> None:
    with pytest.raises(PayloadError, match="no element"):
        SignTensor((1, 3), np.zeros(1, np.uint16), np.array([[1]], np.uint8), np.array([[2]], np.uint8))


def test_mistakes_of_a_caller_are_refused_before_anything_changes() -> None:
    signs = random_signs((4, 6), 1)
    latent = np.zeros((4, 6), np.int8)
    sums = np.zeros((4, 6), np.int64)
    frozen = latent.copy()
    frozen.flags.writeable = False

    other_dtype: NDArray[Any] = np.zeros((4, 6), np.int16)
    for replica in (np.zeros((6, 4), np.int8), other_dtype, np.zeros((4, 12), np.int8)[:, ::2], frozen):
        with pytest.raises(ShapeError, match="the tensor must be"):
            signs.apply_to(replica)
    with pytest.raises(ShapeError, match="the tensor must be int64"):
        fold_many(np.zeros((4, 6), np.int32), [signs], [1])
    with pytest.raises(ShapeError, match="the tensor must be int64 of shape"):
        fold_many(sums, [signs, random_signs((6, 4), 1)], [1, 1])
    with pytest.raises(ShapeError, match="2 weights"):
        fold_many(sums, [signs], [1, 2])
    with pytest.raises(PayloadError, match="got 1099511627777"):
        fold_many(sums, [signs, signs], [1, MAX_WEIGHT + 1])
    with pytest.raises(ShapeError, match="replica"):
        encode_signs(latent, latent.T.copy())
    with pytest.raises(ShapeError, match="error"):
        encode_signs(latent, latent, latent.astype(np.int16))
    with pytest.raises(ShapeError, match="master"):
        encode_steps(latent, latent)  # type: ignore[arg-type]
    for density in (0.0, 1.5, math.nan):
        with pytest.raises(PayloadError, match="density"):
            encode_signs(latent, latent, density=density)
        with pytest.raises(PayloadError, match="density"):
            encode_steps(latent.astype(np.float32), latent, density=density)
    assert not sums.any()
