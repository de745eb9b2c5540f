"""Strategies by name. A new one is its own file, one row here, and its own test file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from server.errors import InvalidJobError
from server.strategies.base import CohortStrategy, FoldingStrategy
from server.strategies.fedavg import FedAvg
from server.strategies.fedbuff import FedBuff
from server.strategies.fedopt import FedAdam, FedYogi
from server.strategies.fedprox import FedProx
from server.strategies.krum import Krum, MultiKrum
from server.strategies.signvote import SignVote
from server.strategies.trimmed import Median, TrimmedMean

_Kind = type[FoldingStrategy] | type[CohortStrategy]

_ALL: tuple[_Kind, ...] = (FedAvg, FedProx, FedBuff, FedAdam, FedYogi, SignVote, Median, TrimmedMean, Krum, MultiKrum)

STRATEGIES: dict[str, _Kind] = {strategy.name: strategy for strategy in _ALL}


def make_strategy(name: str, parameters: Mapping[str, float] | None = None) -> FoldingStrategy | CohortStrategy:
    """Make a strategy with its parameters; those that are not given have their defaults.

    Raises:
      InvalidJobError: no strategy has this name, or it has no such parameter, or a value is out of its range.
    """
    if name not in STRATEGIES:
        raise InvalidJobError(f"strategy must be one of {', '.join(sorted(STRATEGIES))}, got {name!r}")
    kind = STRATEGIES[name]
    known = [field.name for field in fields(kind)]
    for key in parameters or {}:
        if key not in known:
            raise InvalidJobError(f"strategy {name!r} has the parameters {', '.join(known) or '(none)'}, not {key!r}")
    return kind(**(parameters or {}))
