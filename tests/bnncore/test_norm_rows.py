"""Batch norm's native passes over rows against plain float64, and the same bits for any number of threads."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.norm_rows import ABOVE, BELOW, INSIDE, RowSums, RowThresholds, apply_gradient_rows, row_statistics

SHAPES = [(1, 1), (3, 5), (1024, 8), (1025, 3), (5000, 17)]


def samples(shape: tuple[int, int], dtype: Any = np.int16) -> tuple[NDArray[Any], NDArray[np.float32], RowThresholds]:
    rng = np.random.default_rng(shape[0])
    y = rng.integers(-40, 41, shape).astype(dtype)
    grad = rng.normal(size=shape).astype(np.float32)
    mean = y.mean(axis=0).astype(np.float32)
    return y, grad, RowThresholds(mean - 12, mean + 15, mean, mean, mean)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("low", [-32768, -3])
def test_statistics_are_exact(shape: tuple[int, int], low: int) -> None:
    y = np.random.default_rng(7).integers(low, 32768, shape, np.int16)
    sums, deviation = row_statistics(y, threads=1)
    whole = y.astype(object)
    assert list(sums) == list(whole.sum(axis=0))
    assert list(deviation) == list(abs(len(y) * whole - whole.sum(axis=0)).sum(axis=0))
    for threads in (2, 5):
        assert [a.tobytes() for a in row_statistics(y, threads=threads)] == [sums.tobytes(), deviation.tobytes()]


def test_statistics_of_no_rows_are_zero() -> None:
    sums, deviation = row_statistics(np.empty((0, 3), np.int16), threads=2)
    assert list(sums) == list(deviation) == [0, 0, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("is_masked", [True, False])
def test_sums_of_the_gradient_are_those_of_numpy(shape: tuple[int, int], dtype: Any, is_masked: bool) -> None:
    y, grad, t = samples(shape, dtype)
    inside = (y >= t.mask_from) & (y <= t.mask_to) if is_masked else np.ones(shape, bool)
    masked = grad.astype(np.float64) * inside
    sums = RowSums(shape[1])
    codes = sums.add(y, grad, t, is_masked=is_masked, threads=1)
    above, below = y > t.mean_low, y < t.mean_high
    np.testing.assert_array_equal(codes, above * ABOVE + below * BELOW + (inside * INSIDE if is_masked else 0))
    np.testing.assert_array_equal(sums.above, above.sum(axis=0))
    np.testing.assert_array_equal(sums.below, below.sum(axis=0))
    # A sum of J terms in float64, each rounded to float32 once where it is a product.
    np.testing.assert_allclose(sums.grad, masked.sum(axis=0), atol=1e-12 * len(y))
    terms = masked * (y - t.mean.astype(np.float64))
    np.testing.assert_allclose(sums.moment, terms.sum(axis=0), atol=2.0**-22 * np.abs(terms).sum(axis=0).max() + 1e-12)


def test_sums_are_added_to_and_do_not_depend_on_threads() -> None:
    y, grad, t = samples((5000, 17))
    one, more = RowSums(17), RowSums(17)
    for part in (slice(0, 3000), slice(3000, 5000)):
        a = one.add(y[part], grad[part], t, is_masked=True, threads=1)
        b = more.add(y[part], grad[part], t, is_masked=True, threads=4)
        np.testing.assert_array_equal(a, b)
    for name in ("grad", "moment", "above", "below"):
        assert getattr(one, name).tobytes() == getattr(more, name).tobytes()
    np.testing.assert_array_equal(one.above, (y > t.mean_low).sum(axis=0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_masked", [True, False])
def test_the_gradient_of_y_is_that_of_the_formula(shape: tuple[int, int], is_masked: bool) -> None:
    rng = np.random.default_rng(3)
    grad = rng.normal(size=shape).astype(np.float32)
    codes = rng.choice([0, ABOVE, BELOW, INSIDE, ABOVE + INSIDE, BELOW + INSIDE], shape).astype(np.uint8)
    offset, slope, inverse = rng.normal(size=(3, shape[1])).astype(np.float32)
    side = ((codes & ABOVE) > 0) * np.float32(1) - ((codes & BELOW) > 0) * np.float32(1)
    wanted = ((grad * (codes >= INSIDE) if is_masked else grad) - offset - side * slope) * inverse
    numbers = {"offset": offset, "slope": slope, "inverse": inverse}
    for threads in (1, 3):
        found = grad.copy()
        apply_gradient_rows(found, codes, is_masked=is_masked, **numbers, threads=threads)
        np.testing.assert_array_equal(found, wanted.astype(np.float32))
