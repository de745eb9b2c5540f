"""Rules that turn the updates of a round into the next model."""

from server.strategies.base import Accumulator, FoldingStrategy, Strategy, difference_of
from server.strategies.registry import STRATEGIES, make_strategy

__all__ = ["STRATEGIES", "Accumulator", "FoldingStrategy", "Strategy", "difference_of", "make_strategy"]
