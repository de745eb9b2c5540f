"""Rules that turn the updates of a round into the next model."""

from server.strategies.base import Accumulator, Strategy
from server.strategies.registry import STRATEGIES, get_strategy

__all__ = ["STRATEGIES", "Accumulator", "Strategy", "get_strategy"]
