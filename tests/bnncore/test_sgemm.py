"""Products in float32 and conversions to float16: the same bits on every instruction set."""

import numpy as np
import pytest

from bnncore._native import float_kernels
from bnncore.engine import isa_available
from bnncore.reference.published import chain, round_half_stochastic

# Around the tile (6 x 16), the blocks (48 rows, 128 columns, depth 256) and their tails.
SHAPES = [
    (1, 1, 1),
    (6, 16, 8),
    (5, 17, 3),
    (7, 15, 257),
    (48, 128, 256),
    (50, 130, 300),
    (13, 129, 513),
    (200, 20, 31),
]


def multiply(isa: str, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    y = np.full((len(x), len(w)), np.nan, np.float32)
    float_kernels.multiply(isa, x, w, y)
    return y


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
def test_a_product_is_one_chain_of_fused_multiply_adds(isa: str, rows: int, columns: int, depth: int) -> None:
    rng = np.random.default_rng(rows + columns + depth)
    x = rng.standard_normal((rows, depth), np.float32)
    w = rng.standard_normal((columns, depth), np.float32)

    y = multiply(isa, x, w)

    assert np.array_equal(y, chain(x, w.T))
    # A chain of n roundings errs by at most n units of 2^-24 of the sum of the magnitudes.
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    bound = depth * 2.0**-24 * 1.01 * (np.abs(x).astype(np.float64) @ np.abs(w).T.astype(np.float64))
    assert (np.abs(y - exact) <= bound).all()


@pytest.mark.parametrize("isa", isa_available())
def test_products_round_once(isa: str) -> None:
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: a product that is rounded first loses the last term.
    x = np.array([[1.0, 1 + 2.0**-12]], np.float32)
    w = np.array([[-1 - 2.0**-11, 1 + 2.0**-12]], np.float32)

    assert multiply(isa, x, w)[0, 0] == 2.0**-24


@pytest.mark.parametrize("isa", isa_available())
def test_every_float16_widens_as_in_numpy(isa: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(len(halves), np.float32)

    float_kernels.widen(isa, halves, out)

    wanted = halves.view(np.float16).astype(np.float32)
    number = ~np.isnan(wanted)
    assert np.array_equal(out.view(np.uint32)[number], wanted.view(np.uint32)[number])
    assert np.isnan(out[~number]).all()


def edge_floats() -> np.ndarray:
    """Every float16, the middle between it and the next, and the floats on both sides of either."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    near = np.concatenate([halves, middles, [65519.996, 65520.0, 1e9, 3.4e38, 1e-45, 1e-38]]).astype(np.float32)
    bits = near.view(np.uint32).astype(np.int64)
    around = np.concatenate([bits, bits[bits > 0] - 1, bits + 1]).astype(np.uint32).view(np.float32)
    around = around[np.isfinite(around)]
    return np.concatenate([around, -around])


@pytest.mark.parametrize("isa", isa_available())
def test_narrowing_rounds_to_nearest_even_and_saturates(isa: str) -> None:
    values = edge_floats()
    out = np.empty(len(values), np.uint16)

    float_kernels.narrow(isa, values, out)

    wanted = np.clip(values, -65504, 65504).astype(np.float16)
    assert np.array_equal(out, wanted.view(np.uint16))


def test_an_infinity_and_a_nan_stay_what_they_are() -> None:
    assert float_kernels.to_half(float("inf")) == 0x7C00
    assert float_kernels.to_half(float("-inf")) == 0xFC00
    assert float_kernels.to_half(65520.0) == 0x7C00
    assert np.isnan(np.uint16(float_kernels.to_half(float("nan"))).view(np.float16))


def test_stochastic_rounding_is_that_of_the_reference_and_unbiased() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice(edge_floats(), 3000)
    random = rng.integers(0, 1 << 13, len(values)).astype(np.uint32)

    found = [float_kernels.to_half_stochastic(float(v), int(r)) for v, r in zip(values, random, strict=True)]

    wanted = round_half_stochastic(values, random)
    assert np.array_equal(np.array(found, np.uint16).view(np.float16).astype(np.float32), wanted)
    # 3/16 of the way from 1 to the next: over all 2^13 random numbers exactly 3/16 of the results are the next.
    between = 1 + 3 * 2.0**-14
    up = sum(float_kernels.to_half_stochastic(between, r) == 0x3C01 for r in range(1 << 13))
    assert up == 3 * (1 << 13) // 16
