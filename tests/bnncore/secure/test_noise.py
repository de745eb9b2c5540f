"""The discrete Gaussian: its distribution against the exact one, and how sums of it behave."""

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bnncore.errors import ConfigurationError
from bnncore.secure.noise import SeededRandomness, closeness, draw_noise, tail_bound
from bnncore.secure.noise import _steps as steps_of
from bnncore.secure.noise import _table as table_of

SIGMAS = (0.3, 1.0, 5.6, 40.0, 700.0)


def exact_pmf(sigma: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All numbers that matter, and their probabilities, straight from the definition."""
    last = math.ceil(12 * sigma) + 2
    numbers = np.arange(-last, last + 1)
    weights = np.exp(-(numbers.astype(float) ** 2) / (2 * sigma**2))
    return numbers, weights / weights.sum()


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_follow_the_exact_distribution(sigma: float, seed: int) -> None:
    size = 200_000
    drawn = draw_noise(sigma, size, SeededRandomness(seed))

    numbers, pmf = exact_pmf(sigma)
    # Cells of at least 50 expected numbers: neighbours are put together from both ends inwards.
    edges = np.searchsorted(np.cumsum(pmf), np.linspace(0, 1, 61)[1:-1])
    cells = np.unique(edges)
    found = np.bincount(np.searchsorted(numbers[cells], drawn), minlength=len(cells) + 1)
    expected = np.diff(np.concatenate([[0], np.cumsum(pmf)[cells], [1]])) * size
    kept = expected > 50
    result = stats.chisquare(found[kept], expected[kept] * found[kept].sum() / expected[kept].sum())
    assert result.pvalue > 1e-4
    variance = float((pmf * numbers.astype(float) ** 2).sum())
    assert abs(drawn.mean()) < 5 * math.sqrt(variance / size)
    kurtosis = float((pmf * numbers.astype(float) ** 4).sum()) / variance**2
    assert abs(drawn.var() / variance - 1) < 5 * math.sqrt((kurtosis - 1) / size)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_table_holds_the_probabilities_to_64_bits_and_more(sigma: float) -> None:
    high, first = table_of(sigma)
    steps = [step for _, step in sorted(steps_of(sigma))]
    assert high.tolist() == [step >> 64 for step in steps]
    masses = np.array([float(Fraction(b - a, 2**128)) for a, b in zip([0, *steps], [*steps, 2**128], strict=True)])

    numbers = np.arange(first, first + len(masses))
    weights = np.exp(-(numbers.astype(float) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(masses, weights / weights.sum(), rtol=1e-12, atol=2.0**-120)
    assert masses[0] < 2.0**-128 * 2
    assert (np.diff(np.array(steps, dtype=object)) >= 0).all()
    # symmetric, exactly as far as whole numbers can be
    np.testing.assert_allclose(masses, masses[::-1], rtol=1e-12, atol=2.0**-125)


def test_words_that_equal_a_step_are_settled_by_64_bits_more() -> None:
    high, first = table_of(5.6)
    place = len(high) // 2
    word, low = int(high[place]).to_bytes(8, "little"), dict(steps_of(5.6))[place] % 2**64
    below, at = (low - 1).to_bytes(8, "little"), low.to_bytes(8, "little")

    for rest, expected in ((below, place), (at, place + 1)):
        given = iter([word, rest])
        assert draw_noise(5.6, 1, lambda _, given=given: next(given))[0] == expected + first  # type: ignore[misc]


def test_a_seed_gives_the_same_numbers_and_the_system_gives_others() -> None:
    first, again = (draw_noise(9.0, 5000, SeededRandomness(4)) for _ in range(2))

    np.testing.assert_array_equal(first, again)
    one = draw_noise(9.0, 5000)
    other = draw_noise(9.0, 5000)
    assert (one != other).any()
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(5000)
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 5 / math.sqrt(5000)


def test_numbers_do_not_depend_on_the_blocks_they_are_drawn_in() -> None:
    drawn = draw_noise(3.0, (1 << 16) + 9, SeededRandomness(1))

    assert drawn.shape == ((1 << 16) + 9,)
    np.testing.assert_array_equal(drawn[:100], draw_noise(3.0, 100, SeededRandomness(1)))


@pytest.mark.parametrize("members", [2, 7, 60])
def test_a_sum_of_parts_has_the_variance_of_the_whole(members: int) -> None:
    sigma, size = 40.0, 20_000
    random = SeededRandomness(members)
    total = sum(draw_noise(sigma / math.sqrt(members), size, random) for _ in range(members))

    assert isinstance(total, np.ndarray)
    assert stats.kstest(total + np.random.default_rng(0).uniform(-0.5, 0.5, size), "norm", (0, sigma)).pvalue > 1e-4
    assert abs(total.var() / sigma**2 - 1) < 5 * math.sqrt(2 / size)


def test_closeness_is_the_formula_of_its_source() -> None:
    def direct(sigma: float, members: int) -> float:
        return 10 * sum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, members))

    for sigma in (0.2, 0.5, 1.0, 2.0):
        for members in (1, 2, 3, 100, 1000):
            assert closeness(sigma, members) == pytest.approx(direct(sigma, members), rel=1e-12)
        assert direct(sigma, 20_000) <= closeness(sigma, 20_000) <= 1.02 * direct(sigma, 20_000)
    assert closeness(2.0, 10_000) < 1e-15


def test_no_number_passes_the_tail_bound() -> None:
    drawn = draw_noise(10.0, 500_000, SeededRandomness(2))

    assert np.abs(drawn).max() <= tail_bound(10.0, 500_000, 1e-4)
    assert tail_bound(10.0, 500_000, 2.0**-40) < 10 * 12


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), 2.0**18])
def test_a_sigma_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigurationError, match="sigma"):
        draw_noise(sigma, 1)
