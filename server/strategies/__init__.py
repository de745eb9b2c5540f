"""Rules that turn the updates of a round into the next model."""

from server.strategies.base import (
    Accumulator,
    CohortStrategy,
    FoldingStrategy,
    Strategy,
    Update,
    UpdateReader,
    difference_of,
)
from server.strategies.fixed_point import MAX_WEIGHT, check_total, check_values
from server.strategies.registry import STRATEGIES, make_strategy, register_strategy
from server.strategies.server_optimizer import ServerOptimizer

__all__ = [
    "MAX_WEIGHT",
    "STRATEGIES",
    "Accumulator",
    "CohortStrategy",
    "FoldingStrategy",
    "ServerOptimizer",
    "Strategy",
    "Update",
    "UpdateReader",
    "check_total",
    "check_values",
    "difference_of",
    "make_strategy",
    "register_strategy",
]
