"""Updates of a small network, and what a round makes of them."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, weights_digest
from bnncore.zoo import mlp
from server.coordinator.spool import Spool
from server.strategies import CohortStrategy, FoldingStrategy, check_values, difference_of

SPEC = mlp((5, 3), (8, 4), 3)

AnyStrategy = FoldingStrategy | CohortStrategy


def random_update(seed: int, *, dtype: Any = np.int8, spec: ModelSpec = SPEC) -> State:
    """A valid update: weights in range, statistics of the size that pre-activations have."""
    rng = np.random.default_rng(seed)
    state: State = {}
    for tensor in spec.tensors:
        if tensor.role == "weight":
            weights = rng.integers(-127, 128, tensor.shape).astype(np.int8)
            state[tensor.name] = weights if dtype == np.int8 else to_float32(weights)
        else:
            values = rng.normal(0.0, 3.0, tensor.shape).astype(np.float32)
            state[tensor.name] = np.abs(values) if tensor.role == "mean_abs_dev" else values
    return state


DEPLOYED = random_update(77)
"""The model that the round started from, as devices received it."""
BASE = {name: to_float32(array) for name, array in DEPLOYED.items()}
UPDATES = [(random_update(seed), num_examples) for seed, num_examples in ((1, 10), (2, 1), (3, 977), (4, 60_000))]


def as_needed(strategy: AnyStrategy, update: State) -> State:
    """Return the update as the strategy takes it: itself, or its difference to the round's model."""
    return difference_of(SPEC, update, DEPLOYED) if strategy.needs_differences else update


def aggregate(strategy: AnyStrategy, updates: list[tuple[State, int]], *, base: State = BASE) -> State:
    """Play a round: fold the updates, or put them aside and aggregate them at its end."""
    if isinstance(strategy, FoldingStrategy):
        accumulator = strategy.init(SPEC)
        for update, weight in updates:
            strategy.fold(accumulator, as_needed(strategy, update), weight)
        state, _ = strategy.finish(accumulator, base, None)
        return state
    with tempfile.TemporaryFile() as file:
        spool = Spool(SPEC, file)
        for update, weight in updates:
            # a device of the same data has the same name in whichever order, and no two have one name
            name = weights_digest(SPEC, update)
            name += str(sum(reader.name.startswith(name) for reader in spool.readers()))
            check_values(SPEC, as_needed(strategy, update), weight, is_difference=strategy.needs_differences)
            spool.append(name, as_needed(strategy, update))
        return strategy.aggregate(SPEC, spool.readers(), base, is_difference=strategy.needs_differences)


def same(first: State, second: State) -> bool:
    """Say whether two states are equal to the last bit."""
    return weights_digest(SPEC, first) == weights_digest(SPEC, second)
