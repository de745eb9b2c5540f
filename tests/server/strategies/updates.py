"""Updates of a small network, and what a round makes of them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import SignTensor, encode_signs
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, weights_digest
from bnncore.zoo import mlp
from server.coordinator.spool import Spool
from server.strategies import CohortStrategy, FoldingStrategy, Update, check_values, difference_of

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
UPDATES: list[tuple[State, int]] = [
    (random_update(seed), weight) for seed, weight in ((1, 10), (2, 1), (3, 977), (4, 60_000))
]


def random_difference(seed: int, *, density: float = 1.0) -> Update:
    """A difference as signs of weights tell it, some of them left out when ``density`` is below 1."""
    rng = np.random.default_rng(seed)
    difference: dict[str, NDArray[Any] | SignTensor] = dict(random_update(seed))
    for tensor in SPEC.tensors:
        if tensor.role == "weight":
            latent = rng.integers(-127, 128, tensor.shape).astype(np.int8)
            replica = rng.integers(-127, 128, tensor.shape).astype(np.int8)
            difference[tensor.name], _ = encode_signs(latent, replica, density=None if density == 1.0 else density)
    return difference


def densely(difference: Update) -> State:
    """Write signs of weights out as int32 in fine units."""
    return {name: array.dense() if isinstance(array, SignTensor) else array for name, array in difference.items()}


def as_needed(strategy: AnyStrategy, update: Update) -> Update:
    """Return a state as the strategy takes it: itself, or its difference to the round's model."""
    return difference_of(SPEC, update, DEPLOYED) if strategy.needs_differences else update


def aggregate(strategy: AnyStrategy, updates: Sequence[tuple[Update, int]], *, base: State = BASE) -> State:
    """Play a round of states."""
    needed = [(as_needed(strategy, update), weight) for update, weight in updates]
    return aggregate_as_they_are(strategy, needed, is_difference=strategy.needs_differences, base=base)


def aggregate_as_they_are(
    strategy: AnyStrategy,
    updates: Sequence[tuple[Update, int]],
    *,
    is_difference: bool,
    base: State = BASE,
    spec: ModelSpec = SPEC,
) -> State:
    """Play a round: fold the updates, or put them aside and aggregate them at its end."""
    if isinstance(strategy, FoldingStrategy):
        accumulator = strategy.init(spec, is_difference=is_difference)
        for update, weight in updates:
            strategy.fold(accumulator, update, weight)
        state, _ = strategy.finish(accumulator, base, None)
        return state
    with tempfile.TemporaryFile() as file:
        spool = Spool(spec, file)
        for update, weight in updates:
            # what is the same has the same name in whichever order, and no two have one name
            name = hashlib.sha256(b"".join(array.tobytes() for array in densely(update).values())).hexdigest()
            name += str(sum(reader.name.startswith(name) for reader in spool.readers()))
            check_values(spec, update, weight, is_difference=is_difference)
            spool.append(name, update)
        return strategy.aggregate(spec, spool.readers(), base, is_difference=is_difference)


def same(first: State, second: State) -> bool:
    """Say whether two states are equal to the last bit."""
    return weights_digest(SPEC, first) == weights_digest(SPEC, second)
