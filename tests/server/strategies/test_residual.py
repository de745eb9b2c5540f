"""Strategies over residual networks, whose real-valued layers, biases and statistics have units of their own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnncore.errors import PayloadError
from bnncore.state import to_float32, validate_state, weights_digest
from bnncore.zoo import resnete18
from server.strategies import STRATEGIES, difference_of, make_strategy
from tests.server.strategies.updates import aggregate_as_they_are, random_update

SPEC = resnete18((8, 8), (4, 8), 1, 3)
DEPLOYED = random_update(5, spec=SPEC)
BASE = {name: to_float32(array) for name, array in DEPLOYED.items()}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_updates_make_a_valid_model_whatever_their_order(name: str) -> None:
    strategy = make_strategy(name)
    is_difference = strategy.needs_differences
    states = [(random_update(seed, spec=SPEC), weight) for seed, weight in ((1, 10), (2, 1), (3, 977))]
    updates = [(difference_of(SPEC, s, DEPLOYED) if is_difference else s, weight) for s, weight in states]

    results = [
        aggregate_as_they_are(strategy, order, is_difference=is_difference, base=BASE, spec=SPEC)
        for order in itertools.permutations(updates)
    ]

    validate_state(SPEC, results[0], statistics=True)
    assert len({weights_digest(SPEC, result) for result in results}) == 1


def test_a_mean_is_that_of_every_kind_of_tensor() -> None:
    one, other = random_update(1, spec=SPEC), random_update(2, spec=SPEC)

    result = aggregate_as_they_are(
        make_strategy("fedavg"), [(one, 1), (other, 3)], is_difference=False, base=BASE, spec=SPEC
    )

    for tensor in SPEC.tensors:
        mean = (to_float32(one[tensor.name]).astype(np.float64) + 3.0 * to_float32(other[tensor.name])) / 4
        # half a step of the coarsest unit here: 2^-11, of statistics of the layer that reads the samples
        tolerance = 2.0**-12 if tensor.is_statistic else 2.0**-22
        np.testing.assert_allclose(result[tensor.name], mean, atol=tolerance, rtol=2.0**-23, err_msg=tensor.name)


@pytest.mark.parametrize(
    ("role", "value"), [("real_weight", 1025.0), ("bias", -1025.0), ("real_weight", float("nan")), ("mean", 2.0**22)]
)
def test_a_value_beyond_the_fixed_point_is_refused_by_name(role: str, value: float) -> None:
    update = random_update(1, spec=SPEC)
    name = next(tensor.name for tensor in SPEC.tensors if tensor.role == role)
    update[name].reshape(-1)[0] = value

    with pytest.raises(PayloadError, match=name):
        aggregate_as_they_are(make_strategy("fedavg"), [(update, 1)], is_difference=False, base=BASE, spec=SPEC)
