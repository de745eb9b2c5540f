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
from server.strategies.fixed_point import check_values
from server.strategies.registry import STRATEGIES, make_strategy

__all__ = [
    "STRATEGIES",
    "Accumulator",
    "CohortStrategy",
    "FoldingStrategy",
    "Strategy",
    "Update",
    "UpdateReader",
    "check_values",
    "difference_of",
    "make_strategy",
]
