"""Differences told by signs: the laws of strategies hold for them, and signs count as the numbers they stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnncore.codec import SignTensor
from bnncore.errors import PayloadError
from bnncore.state import validate_state
from server.strategies import STRATEGIES, Accumulator, FoldingStrategy, Update, make_strategy
from tests.server.strategies.updates import (
    BASE,
    SPEC,
    AnyStrategy,
    aggregate_as_they_are,
    densely,
    random_difference,
    same,
)

DIFFERENCES: list[tuple[Update, int]] = [
    (random_difference(1), 10),
    (random_difference(2), 1),
    (random_difference(3, density=0.3), 977),
    (random_difference(4, density=0.3), 60_000),
]
FOLDING = sorted(name for name, kind in STRATEGIES.items() if issubclass(kind, FoldingStrategy))


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> AnyStrategy:
    return make_strategy(request.param)


def test_signs_count_as_the_numbers_that_they_stand_for(strategy: AnyStrategy) -> None:
    signs = aggregate_as_they_are(strategy, DIFFERENCES, is_difference=True)
    numbers = aggregate_as_they_are(strategy, [(densely(d), weight) for d, weight in DIFFERENCES], is_difference=True)

    assert same(signs, numbers)
    validate_state(SPEC, signs, statistics=True)


def test_the_order_of_devices_does_not_change_one_bit(strategy: AnyStrategy) -> None:
    results = [
        aggregate_as_they_are(strategy, order, is_difference=True) for order in itertools.permutations(DIFFERENCES)
    ]

    assert all(same(result, results[0]) for result in results)


def test_many_count_as_one_where_all_send_the_same(strategy: AnyStrategy) -> None:
    difference = random_difference(5)

    one = aggregate_as_they_are(strategy, [(difference, 3)], is_difference=True)

    for count in (7, 8, 9, 17):  # signs are added several at a time
        assert same(aggregate_as_they_are(strategy, [(difference, 3)] * count, is_difference=True), one)


@pytest.mark.parametrize("name", FOLDING)
@pytest.mark.parametrize("halves", [1, 2, 3, 4])
def test_partial_sums_merge_and_survive_being_written_down(name: str, halves: int) -> None:
    strategy = make_strategy(name)
    assert isinstance(strategy, FoldingStrategy)
    sums = [strategy.init(SPEC, is_difference=True) for _ in range(halves)]
    for index, (difference, weight) in enumerate(DIFFERENCES * 3):
        strategy.fold(sums[index % halves], difference, weight)

    merged = strategy.init(SPEC, is_difference=True)
    for part in sums:
        merged = strategy.merge(Accumulator.from_bytes(part.to_bytes()), merged)
    state, _ = strategy.finish(merged, BASE, None)

    assert merged.num_updates == 12
    assert same(state, aggregate_as_they_are(strategy, DIFFERENCES * 3, is_difference=True))


@pytest.mark.parametrize("server_step", [1.0, 2.0])
def test_the_next_model_is_the_base_and_the_mean_difference(server_step: float) -> None:
    strategy = make_strategy("fedavg", {"server_step": server_step})

    state = aggregate_as_they_are(strategy, DIFFERENCES, is_difference=True)

    total = sum(weight for _, weight in DIFFERENCES)
    for tensor in SPEC.tensors:
        values = [(densely(difference)[tensor.name], weight) for difference, weight in DIFFERENCES]
        mean = sum(np.asarray(array, np.float64) * weight / total for array, weight in values)
        if tensor.role == "weight":
            expected = np.clip(BASE[tensor.name] + server_step * mean / (127 * 256), -1, 1)
        else:
            expected = mean if tensor.is_statistic else BASE[tensor.name] + server_step * mean
        np.testing.assert_allclose(state[tensor.name], expected, rtol=2.0**-22, atol=2.0**-18)


def test_the_heaviest_round_of_the_largest_scales_does_not_overflow() -> None:
    difference = dict(random_difference(1))
    for name, array in difference.items():
        if isinstance(array, SignTensor):
            scales = np.full_like(array.scales, 65535)
            difference[name] = SignTensor(array.shape, scales, np.zeros_like(array.bits))
    strategy = make_strategy("fedavg")

    state = aggregate_as_they_are(strategy, [(difference, 2**20)] * 2**10, is_difference=True)

    for tensor in SPEC.tensors:
        if tensor.role == "weight":
            np.testing.assert_allclose(state[tensor.name], np.clip(BASE[tensor.name] + 65535 / 32512, -1, 1))


@pytest.mark.parametrize("value", [np.nan, 1e9])
def test_a_hostile_number_beside_signs_is_refused_and_leaves_no_trace(value: float) -> None:
    strategy = make_strategy("fedavg")
    assert isinstance(strategy, FoldingStrategy)
    accumulator = strategy.init(SPEC, is_difference=True)
    strategy.fold(accumulator, *DIFFERENCES[0])
    before = accumulator.to_bytes()
    beta = np.zeros(3, np.float32)
    beta[1] = value

    with pytest.raises(PayloadError, match=r"norm3\.beta"):
        strategy.fold(accumulator, {**random_difference(2), "norm3.beta": beta}, 1)
    assert accumulator.to_bytes() == before
