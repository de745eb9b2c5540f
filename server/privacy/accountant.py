"""The account: epsilon at delta after so many rounds, and the noise that keeps a budget.

Each round that ends in a sum is one Gaussian mechanism. Rényi differential privacy is added up and turned into epsilon
by dp-accounting (Mironov, "Rényi Differential Privacy", CSF 2017). Its curve for the Gaussian, alpha / (2 z^2), holds
for the discrete Gaussian as it is (Canonne, Kamath and Steinke, 2020); tighter accounts, of the privacy loss of the
continuous one, do not. Nothing is gained by sampling: the coordinator picks the cohort, so it knows who took part.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from bnncore.errors import ConfigurationError

__all__ = ["epsilon_after", "multiplier_for"]


@functools.lru_cache(maxsize=4096)
def epsilon_after(noise_multiplier: float, delta: float, releases: int) -> float:
    """Give epsilon at delta of so many sums that a device is in.

    Args:
      noise_multiplier: standard deviation of the noise over the most that one device adds; that of the account
        (``ValueForm.accounted_multiplier``), the same in every round.
      delta: between 0 and 1.
      releases: sums that were seen; 0: nothing was.

    Raises:
      ConfigurationError: dp-accounting is not installed.
    """
    if releases == 0:
        return 0.0
    event, rdp = _library()
    accountant = rdp.RdpAccountant()
    accountant.compose(event.GaussianDpEvent(noise_multiplier), releases)
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=256)
def multiplier_for(epsilon: float, delta: float, releases: int) -> float:
    """Give the least noise multiplier with which so many sums stay within epsilon at delta, to a relative 10^-4.

    Raises:
      ConfigurationError: dp-accounting is not installed, or no noise is enough.
    """
    if not (epsilon > 0 and 0 < delta < 1 and releases >= 1):
        raise ConfigurationError(f"epsilon must be above 0, delta between 0 and 1, got {epsilon} and {delta}")
    low = high = 1.0
    while epsilon_after(high, delta, releases) > epsilon:
        low, high = high, high * 2
        if high > 1e6:
            raise ConfigurationError(f"no noise keeps {releases} rounds within epsilon {epsilon} at delta {delta}")
    while low == high or epsilon_after(low, delta, releases) <= epsilon:
        low, high = low / 2, low
    while high / low > 1 + 1e-4:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if epsilon_after(middle, delta, releases) <= epsilon else (middle, high)
    return high


def _library() -> tuple[Any, Any]:
    """Load dp-accounting, which takes a second: only jobs with privacy need it."""
    try:
        return importlib.import_module("dp_accounting.dp_event"), importlib.import_module("dp_accounting.rdp")
    except ImportError as error:
        raise ConfigurationError(
            f"jobs with privacy need dp-accounting ({error}); install it with: pip install 'bitfleet[privacy]'"
        ) from error
