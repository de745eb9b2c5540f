"""Every kernel against plain NumPy, under every instruction set of this machine, at sizes around words and vectors.

Integers must be equal. Outputs are wider than what a kernel may write, and what lies past it must stay untouched.
"""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore import _native
from bnncore.engine import isa_available
from bnncore.packing import pack_signs
from bnncore.reference import random_halves, round_stochastic

K = _native.kernels
SIZES = [1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 129, 784, 1000]
GUARD = 0x55555555
GUARD16 = 0x5555
WIDTHS = [np.int16, np.int32]

pytestmark = pytest.mark.parametrize("isa", isa_available())


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def of_width(kernels: Any, name: str, dtype: Any) -> Any:
    """The kernel for products of this width."""
    return getattr(kernels, name + str(8 * np.dtype(dtype).itemsize))


def signs(rng: np.random.Generator, rows: int, count: int) -> NDArray[np.int8]:
    return rng.choice(np.array([-1, 1], np.int8), (rows, count))


@pytest.mark.parametrize("depth", [*SIZES, 2048, 8192, 32766])
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (5, 3), (17, 16), (33, 12), (100, 10)])
@pytest.mark.parametrize("extreme", [False, True])
def test_xnor_gemm(isa: str, depth: int, count: int, rows: int, extreme: bool) -> None:
    rng = generator(depth, count, rows)
    x, w = signs(rng, count, depth), signs(rng, rows, depth)
    if extreme:
        x[:], w[:] = 1, -1
    words = pack_signs(x)
    panel = rng.integers(0, 1 << 63, (words.shape[1], (count + 7) // 8 * 8 + 8), dtype=np.uint64)  # rubbish past x
    panel[:, :count] = words.T
    y = np.full((rows, count + 3), GUARD16, np.int16)

    K.xnor_gemm(isa, panel, count, pack_signs(w), depth, y)

    assert np.array_equal(y[:, :count], w.astype(np.int32) @ x.T.astype(np.int32))
    assert np.all(y[:, count:] == GUARD16)


@pytest.mark.parametrize("rows", [1, 3, 4, 8, 17])
@pytest.mark.parametrize("columns", [1, 3, 4, 5, 18])
def test_transpose_words(isa: str, rows: int, columns: int) -> None:
    source = generator(rows, columns).integers(0, 1 << 63, (rows, columns + 2), dtype=np.uint64)
    target = np.full((columns + 1, rows + 3), GUARD, np.uint64)

    K.transpose_words(isa, source, rows, columns, target)

    assert np.array_equal(target[:columns, :rows], source[:, :columns].T)
    assert np.all(target[columns:] == GUARD)
    assert np.all(target[:, rows:] == GUARD)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (5, 7), (28, 28), (9, 70)])
@pytest.mark.parametrize(("window_height", "window_width"), [(2, 2), (1, 2), (2, 1), (3, 3), (1, 1)])
@pytest.mark.parametrize("levels", [2, 30000])
def test_max_pool_takes_the_first_of_equal_ones(
    isa: str, height: int, width: int, window_height: int, window_width: int, levels: int
) -> None:
    rng = generator(height, width, window_height, window_width, levels)
    y = rng.integers(-levels, levels, (height, width), dtype=np.int16)
    pooled_height, pooled_width = height // window_height, width // window_width
    count = pooled_height * pooled_width
    pooled, choices = np.full(count + 3, GUARD16, np.int16), np.full(count + 3, 99, np.uint8)
    without = pooled.copy()

    K.max_pool(isa, y, window_height, window_width, pooled, choices)
    K.max_pool(isa, y, window_height, window_width, without, None)

    cut = y[: pooled_height * window_height, : pooled_width * window_width]
    windows = cut.reshape(pooled_height, window_height, pooled_width, window_width).transpose(0, 2, 1, 3)
    flat = windows.reshape(count, window_height * window_width)
    assert np.array_equal(pooled[:count], flat.max(axis=1))
    assert np.array_equal(choices[:count], flat.argmax(axis=1))
    assert np.all(pooled[count:] == GUARD16)
    assert np.all(choices[count:] == 99)
    assert np.array_equal(without, pooled)


@pytest.mark.parametrize("depth", [*SIZES, 2047, 2048, 2049, 4200])
@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (5, 3), (17, 16)])
@pytest.mark.parametrize("extreme", [False, True])
def test_input_gemm(isa: str, depth: int, batch: int, rows: int, extreme: bool) -> None:
    rng = generator(depth, batch, rows)
    u = np.full(batch * depth + 64, 201, np.uint8)  # 64 readable bytes past the last row
    if not extreme:
        u[: batch * depth] = rng.integers(0, 256, batch * depth)
    else:
        u[: batch * depth] = 255  # the largest sums
    rows_of_u = u[: batch * depth].reshape(batch, depth)
    w = np.ones((rows, depth), np.int8) if extreme else signs(rng, rows, depth)
    widths = [np.int32, np.int16] if 255 * depth <= 32766 else [np.int32]
    for width, segments in itertools.product(widths, (1, 3, 5)):
        if depth % segments != 0:
            continue
        y = np.full((rows, batch + 3), GUARD16, width)

        of_width(K, "input_gemm", width)(isa, rows_of_u, batch, pack_signs(w), depth, segments, y)

        assert np.array_equal(y[:, :batch], w.astype(np.int64) @ (2 * rows_of_u.astype(np.int64) - 255).T)
        assert np.all(y[:, batch:] == GUARD16)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 100, 239, 240, 241, 255, 480, 1000])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 17])
@pytest.mark.parametrize(("width", "k0"), [(10, 0), (64, 0), (100, 0), (129, 128), (192, 0)])
@pytest.mark.parametrize("extreme", [False, True])
def test_sign_gemm(isa: str, depth: int, rows: int, width: int, k0: int, extreme: bool) -> None:
    rng = generator(depth, rows, width, k0)
    stride = depth + 3
    g = np.full((rows, stride), 99, np.int8)  # what lies past the depth must not count
    g[:, :depth] = 127 if extreme else rng.integers(-127, 128, (rows, depth))
    s = -np.ones((depth, width), np.int8) if extreme else signs(rng, depth, width)
    columns = width - k0
    blocks = np.ascontiguousarray(pack_signs(s)[:, k0 // 64 :].T)
    used = 64 * len(blocks)
    start = rng.integers(-1000, 1000, (rows + 1, used + 6), dtype=np.int32)  # it adds, at any stride
    out = start.copy()

    K.sign_gemm(isa, g, depth, blocks, out)

    expected = g[:, :depth].astype(np.int64) @ (s < 0).astype(np.int64)
    assert np.array_equal(out[:rows, :columns] - start[:rows, :columns], expected[:, k0 : k0 + columns])
    assert np.array_equal(out[:, used:], start[:, used:])
    assert np.array_equal(out[rows:], start[rows:])


@pytest.mark.parametrize("samples", [1, 2, 3, 63, 64, 65, 100, 129, 1000])
@pytest.mark.parametrize("rows", [1, 3, 4, 16])
@pytest.mark.parametrize(("width", "k0"), [(10, 0), (64, 0), (784, 768), (100, 64)])
@pytest.mark.parametrize("extreme", [False, True])
def test_input_grad(isa: str, samples: int, rows: int, width: int, k0: int, extreme: bool) -> None:
    rng = generator(samples, rows, width, k0)
    g = np.full((rows, samples + 2), 99, np.int8)
    g[:, :samples] = -127 if extreme else rng.integers(-127, 128, (rows, samples))
    flat = np.full(samples * width + 64, 7, np.uint8)
    flat[: samples * width] = 255 if extreme else rng.integers(0, 256, samples * width)
    u = flat[: samples * width].reshape(samples, width)
    columns = min(64, width - k0)
    out = np.full((rows + 1, 64), GUARD, np.int32)

    K.input_grad(isa, g, samples, u, k0, out)

    expected = g[:, :samples].astype(np.int64) @ u.astype(np.int64)
    assert np.array_equal(out[:rows, :columns] - GUARD, expected[:, k0 : k0 + columns])  # it adds
    assert np.all(out[rows:] == GUARD)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 100])
def test_transpose_bytes(isa: str, rows: int, columns: int) -> None:
    source = generator(rows, columns).integers(-128, 128, (rows, columns + 5), dtype=np.int8)
    target = np.full((columns, rows + 4), 77, np.int8)

    K.transpose_bytes(isa, source, rows, columns, target)

    assert np.array_equal(target[:, :rows], source[:, :columns].T)
    assert np.all(target[:, rows:] == 77)


@pytest.mark.parametrize("count", [1, 2, 7, 33, 100, 1000, 70_000])
@pytest.mark.parametrize("bound", [1, 10, 32766, 200_000, 16_000_000])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("extreme", [False, True])
def test_statistics_are_exact(isa: str, count: int, bound: int, width: Any, extreme: bool) -> None:
    if bound > np.iinfo(width).max:
        return
    y = generator(count, bound).integers(-bound, bound + 1, count).astype(width)
    if extreme:
        y[:], y[count // 3 :] = -bound, bound

    total, deviation = of_width(K, "statistics", width)(isa, y)

    assert total == y.sum(dtype=np.int64)
    assert deviation == np.abs(count * y.astype(np.int64) - total).sum()


@pytest.mark.parametrize("count", [1, 7, 33, 100])
@pytest.mark.parametrize("rows", [1, 10, 16])
@pytest.mark.parametrize("width", WIDTHS)
def test_emitted_signs_compare_with_the_threshold(isa: str, count: int, rows: int, width: Any) -> None:
    rng = generator(count, rows)
    y = rng.integers(-5, 6, (rows, count + 2)).astype(width)
    y[:, 0] = rng.choice([-32766, 32766], rows)
    sign_from = rng.integers(-3, 4, rows, dtype=np.int32)
    sign_from[0] = np.iinfo(np.int32).min  # a dead channel with beta >= 0: all +1
    sign_from[1:4] = [np.iinfo(np.int32).max, -32767, 32767][: rows - 1]
    bits = np.full(count + 1, 0xABCD, np.uint16)

    of_width(K, "emit_signs", width)(isa, y, count, sign_from, bits)

    expected = ((y[:, :count] < sign_from[:, None]).astype(np.int64) << np.arange(rows)[:, None]).sum(axis=0)
    assert np.array_equal(bits[:count], expected)
    assert bits[count] == 0xABCD


@pytest.mark.parametrize("count", [1, 8, 33, 1000])
def test_integer_quantise_rounds_like_the_reference(isa: str, count: int) -> None:
    sums, whole = generator(count).integers(-1500, 1501, count, dtype=np.int32), 137
    values = whole - 2 * sums
    q = np.full(count + 1, 55, np.int8)
    gain = np.float32(0.05)

    saturated, largest = K.integer_quantise(isa, sums, whole, q[:count], float(gain), 11, 22, 33)

    real = values.astype(np.float32) * gain
    halves = random_halves((11, 22), np.arange(count, dtype=np.int64) + 33)
    assert np.array_equal(q[:count], round_stochastic(real, halves))
    assert saturated == (np.abs(real) > 127).sum()
    assert largest == np.abs(real).max()
    assert q[count] == 55


@pytest.mark.parametrize("count", [1, 2, 31, 100, 1000])
@pytest.mark.parametrize("bound", [3, 256, 199_920])
@pytest.mark.parametrize("beta", [0.0, -0.6, 1.5])
@pytest.mark.parametrize("width", WIDTHS)
def test_channel_gradient_is_the_exact_derivative(isa: str, count: int, bound: int, beta: float, width: Any) -> None:
    if bound > np.iinfo(width).max:
        return
    rng = generator(count, bound)
    y = rng.integers(-bound, bound + 1, count).astype(width)
    q = rng.integers(-127, 128, count, dtype=np.int8)
    if np.ptp(y) == 0:
        return  # a dead channel never gets here
    rounded = q.copy()

    _, _, largest, _, _ = of_width(K, "channel_gradient", width)(isa, y, rounded, bound, beta, 1.0, 1, 2, 3)

    # The formula of the module docstring, in float64 from the definition.
    mu = y.mean()
    psi = np.abs(y - mu).mean()
    x = (y - mu) / psi + np.float32(beta)
    masked = np.where(np.abs(x) <= 1, q, 0).astype(float)
    side = np.sign(count * y.astype(np.int64) - y.sum(dtype=np.int64))
    exact = masked - masked.mean() - (side - side.mean()) * (masked * (y - mu) / psi).mean()
    on_the_edge = np.any(np.abs(np.abs(x) - 1) < 1e-12)  # there a float64 comparison may differ from the integer one
    if not on_the_edge:
        # offset and difference are each rounded to float32: at most two half-ulps of the largest magnitude.
        assert largest == pytest.approx(np.abs(exact).max(), abs=4 * 127 * 2.0**-24 * 4)
        error = rounded - np.clip(exact, -127, 127)
        assert np.all(np.abs(error) < 1 + 1e-3)  # stochastic rounding goes to one of the two neighbours


@pytest.mark.parametrize("count", [1, 7, 32])
def test_updates_are_the_same_on_every_instruction_set(isa: str, count: int) -> None:
    rng = generator(count)
    sums = rng.integers(-5_000, 5_001, count, dtype=np.int32)
    start = rng.integers(-127, 128, count, dtype=np.int8)
    moment = rng.integers(-127, 128, count, dtype=np.int8)

    def run(name: str) -> list[NDArray[np.generic] | int]:
        u, m, v = start.copy(), moment.copy(), moment.copy()
        K.latent8(name, u, sums, -2, 77, 1e-3, 0.3, 5, 6, 7)
        K.latent8_momentum(name, v, m, sums, -2, 77, 1e-3, 0.9, 3.2, 0.01, 5, 6, 7)
        average = moment.copy()
        flips = K.bop(name, 0xA5A5A5A5, average, sums, -2, 77, 1e-3, 0.999, 0.5, 25.0, 5, 6, 7)
        w = (start / np.float32(127)).astype(np.float32)
        first, second = np.zeros(count, np.float32), np.zeros(count, np.float32)
        K.adam(name, w, first, second, sums, -2, 77, 1e-5, 0.9, 0.999, 0.01, 1000.0, 1e-8)
        latent, momentum = w.copy(), first.copy()
        K.sgd(name, latent, momentum, sums, -2, 77, 1e-5, 0.9, 0.5)
        return [u, v, m, average, flips, w, first, second, latent, momentum]

    for here, portable in zip(run(isa), run("portable"), strict=True):
        assert np.array_equal(here, portable)
    assert not np.array_equal(run(isa)[0], start) or count == 1
