"""The account agrees with dp-accounting called directly, and with what can be worked out by hand."""

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from bnncore.errors import ConfigurationError
from server.privacy import epsilon_after, multiplier_for


def gaussian_delta(sigma: float, epsilon: float) -> float:
    """Theorem 8 of Balle and Wang, "Improving the Gaussian Mechanism" (ICML 2018), for sensitivity 1."""
    return float(
        norm.cdf(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-1 / (2 * sigma) - epsilon * sigma)
    )


@pytest.mark.parametrize(("multiplier", "delta", "releases"), [(0.7, 1e-5, 1), (2.2, 1e-5, 12), (9.0, 1e-6, 200)])
def test_the_account_is_that_of_dp_accounting(multiplier: float, delta: float, releases: int) -> None:
    accountant = RdpAccountant()
    for _ in range(releases):
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier))

    assert epsilon_after(multiplier, delta, releases) == pytest.approx(accountant.get_epsilon(delta), rel=1e-9)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0])
def test_one_gaussian_lies_between_its_exact_epsilon_and_the_classical_conversion(sigma: float) -> None:
    delta = 1e-5
    exact = brentq(lambda epsilon: gaussian_delta(sigma, epsilon) - delta, 1e-6, 100)
    rho = 1 / (2 * sigma**2)

    found = epsilon_after(sigma, delta, 1)

    # Proposition 1.3 of Bun and Steinke (2016): rho-zCDP is (rho + 2 sqrt(rho ln(1/delta)), delta)
    assert exact <= found <= rho + 2 * math.sqrt(rho * math.log(1 / delta))
    assert found <= 1.15 * exact + 0.1


def test_many_gaussians_are_one_of_less_noise_and_never_less_private_than_the_exact_account() -> None:
    assert epsilon_after(3.0, 1e-5, 9) == pytest.approx(epsilon_after(1.0, 1e-5, 1), rel=1e-9)
    exact = PLDAccountant()
    exact.compose(dp_accounting.GaussianDpEvent(3.0), 9)
    assert exact.get_epsilon(1e-5) <= epsilon_after(3.0, 1e-5, 9)
    assert epsilon_after(3.0, 1e-5, 0) == 0


@settings(max_examples=15, deadline=None)
@given(epsilon=st.floats(0.1, 20), releases=st.integers(1, 200))
def test_the_noise_that_is_found_keeps_the_budget_and_hardly_more(epsilon: float, releases: int) -> None:
    multiplier = multiplier_for(epsilon, 1e-5, releases)

    assert epsilon_after(multiplier, 1e-5, releases) <= epsilon
    assert epsilon_after(multiplier * 0.999, 1e-5, releases) > epsilon


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_a_budget_that_makes_no_sense_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigurationError, match="epsilon must be above 0"):
        multiplier_for(epsilon, delta, 3)
