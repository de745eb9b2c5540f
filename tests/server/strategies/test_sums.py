"""The sum of many updates, taken in whole: what folding them one by one with weight 1 gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnncore.codec import SignTensor
from bnncore.errors import PayloadError
from bnncore.secure.parts import WeightForm
from bnncore.secure.values import ValueForm, Vector
from bnncore.state import State
from bnncore.zoo import mlp
from server.strategies import FoldingStrategy, make_strategy
from server.strategies.fixed_point import MAX_TOTAL_WEIGHT
from tests.server.member import plain_sum, random_vector

SPEC = mlp((5,), (11,), 3)
CASES = [
    (name, weights)
    for name in ("fedavg", "fedprox", "fedadam", "fedyogi", "signvote")
    for weights in ("signs", "fixed")
    if (name, weights) != ("signvote", "fixed")
]


def told_by(vector: Vector, scales: dict[str, Any]) -> dict[str, Any]:
    """Say what one device's numbers stand for, as an update in the clear."""
    update: dict[str, Any] = {}
    for part in vector.form.parts:
        values = vector.values[part.name]
        if part.is_bits:
            (tensor,) = part.tensors
            bits = values.reshape(tensor.shape[0], -1)
            update[tensor.name] = SignTensor(tensor.shape, scales[tensor.name], bits)
        elif part.tensors and part.name != "scales":
            for tensor, place in part.slices():
                number = values[place].reshape(tensor.shape)
                is_weight = tensor.role == "weight"
                update[tensor.name] = (
                    number.astype(np.int16)
                    if is_weight
                    else (number.astype(np.float64) / vector.form.units[tensor.name]).astype(np.float32)
                )
    return update


@pytest.mark.parametrize(("name", "weights"), CASES)
@pytest.mark.parametrize("agreed", [True, False])
def test_a_sum_is_what_its_updates_give_one_by_one(name: str, weights: WeightForm, agreed: bool) -> None:
    form, strategy = ValueForm(SPEC, "update", weights=weights), make_strategy(name)
    assert isinstance(strategy, FoldingStrategy)
    vectors = [random_vector(form, seed) for seed in range(5)]
    total = plain_sum(vectors)
    scales = {
        tensor.name: np.full(tensor.shape[0], 300, np.uint16) for tensor in SPEC.tensors if tensor.role == "weight"
    }
    common = scales if agreed else dict(total.mean_scales)
    one_by_one, at_once = (strategy.init(SPEC, is_difference=True) for _ in range(2))
    for vector in vectors:
        strategy.fold(one_by_one, told_by(vector, common), 1)

    strategy.fold_sum(at_once, total, scales if agreed else {})

    one_by_one.settle()
    assert (at_once.num_updates, at_once.total_weight) == (5, 5)
    for tensor, sums in one_by_one.sums.items():
        np.testing.assert_array_equal(at_once.sums[tensor], sums, err_msg=tensor)
    base: State = {t.name: np.zeros(t.shape, np.float32) for t in SPEC.tensors}
    first, second = (strategy.finish(accumulator, base, None)[0] for accumulator in (one_by_one, at_once))
    assert all(np.array_equal(first[tensor], second[tensor]) for tensor in first)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_sums_of_parts_add_up(seed: int, count: int) -> None:
    form, strategy = ValueForm(SPEC, "update"), make_strategy("fedavg")
    assert isinstance(strategy, FoldingStrategy)
    vectors = [random_vector(form, seed + number) for number in range(count + 1)]
    scales = {tensor.name: np.full(tensor.shape[0], 7, np.uint16) for tensor in SPEC.tensors if tensor.role == "weight"}
    whole, parts = (strategy.init(SPEC, is_difference=True) for _ in range(2))

    strategy.fold_sum(whole, plain_sum(vectors), scales)
    strategy.fold_sum(parts, plain_sum(vectors[:1]), scales)
    strategy.fold_sum(parts, plain_sum(vectors[1:]), scales)

    assert all(np.array_equal(whole.sums[name], parts.sums[name]) for name in whole.sums)


def test_statistics_alone_leave_the_rest_as_it_is() -> None:
    form, strategy = ValueForm(SPEC, "statistics"), make_strategy("fedavg")
    assert isinstance(strategy, FoldingStrategy)
    accumulator = strategy.init(SPEC)

    strategy.fold_sum(accumulator, plain_sum([random_vector(form, seed) for seed in range(3)]), {})

    for tensor in SPEC.tensors:
        assert accumulator.sums[tensor.name].any() == tensor.is_statistic


def test_a_round_carries_so_many_updates() -> None:
    form, strategy = ValueForm(SPEC, "update"), make_strategy("fedavg")
    assert isinstance(strategy, FoldingStrategy)
    accumulator = strategy.init(SPEC, is_difference=True)
    accumulator.total_weight = MAX_TOTAL_WEIGHT

    with pytest.raises(PayloadError, match="at most"):
        strategy.fold_sum(accumulator, plain_sum([random_vector(form, 1)]), {})

    assert not any(sums.any() for sums in accumulator.sums.values())
