"""Strategies by name. A new one is its own file, one row here, and its own test file."""

from __future__ import annotations

from server.errors import InvalidJobError
from server.strategies.base import Strategy
from server.strategies.fedavg import FedAvg

STRATEGIES: dict[str, Strategy] = {
    "fedavg": FedAvg(),
}


def get_strategy(name: str) -> Strategy:
    """Return a strategy.

    Raises:
      InvalidJobError: no strategy has this name.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        known = ", ".join(sorted(STRATEGIES))
        raise InvalidJobError(f"strategy must be one of {known}, got {name!r}") from None
