"""Strategies that compare updates: against plain NumPy, and what a few devices that lie can do to them."""

from __future__ import annotations

import tempfile
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.state import State, to_float32
from bnncore.zoo import mlp
from server.coordinator.spool import Spool
from server.strategies import CohortStrategy, difference_of, krum, make_strategy, trimmed
from server.strategies.krum import squared_distances
from tests.server.strategies.updates import BASE, DEPLOYED, SPEC, aggregate, random_update

ROBUST = ["krum", "median", "multikrum", "trimmed_mean"]


def stack(updates: list[State], name: str) -> NDArray[np.float64]:
    return np.stack([to_float32(update[name]).astype(np.float64) for update in updates])


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 11])
def test_the_median_is_that_of_each_coordinate(count: int, dtype: Any) -> None:
    updates = [random_update(seed, dtype=dtype) for seed in range(count)]

    result = aggregate(make_strategy("median"), [(update, 1) for update in updates])

    for tensor in SPEC.tensors:
        expected = np.median(stack(updates, tensor.name), axis=0)
        np.testing.assert_allclose(result[tensor.name], expected, rtol=2.0**-23, atol=2.0**-19)


@pytest.mark.parametrize(
    ("count", "trim", "left_out"), [(10, 0.2, 2), (10, 0.3, 3), (9, 0.2, 1), (4, 0.2, 0), (5, 0, 0)]
)
def test_the_trimmed_mean_leaves_the_extremes_out(count: int, trim: float, left_out: int) -> None:
    updates = [random_update(seed) for seed in range(count)]

    result = aggregate(make_strategy("trimmed_mean", {"trim": trim}), [(update, 1) for update in updates])

    for tensor in SPEC.tensors:
        values = np.sort(stack(updates, tensor.name), axis=0)[left_out : count - left_out]
        np.testing.assert_allclose(result[tensor.name], values.mean(axis=0), rtol=2.0**-22, atol=2.0**-19)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_distances_are_exact_for_weights(dtype: Any) -> None:
    updates = [random_update(seed, dtype=dtype) for seed in range(4)]
    for update in updates:
        for name in update:
            if name.endswith(".beta"):
                steps = np.rint(update[name] * 1024)  # whole ones of a distance's beta
                update[name] = (steps / 1024).astype(np.float32)

    with tempfile.TemporaryFile() as file:
        spool = Spool(SPEC, file)
        for index, update in enumerate(updates):
            spool.append(str(index), update)
        distances = squared_distances(SPEC, spool.readers())

    for i, first in enumerate(updates):
        for j, second in enumerate(updates):
            exact = 0
            for tensor in SPEC.tensors:
                if tensor.role == "weight":
                    steps = np.rint(127.0 * stack([first, second], tensor.name)).astype(np.int64)
                    exact += 16 * 256**2 * int(((steps[0] - steps[1]) ** 2).sum())
                elif tensor.role == "beta":
                    whole = (1024 * stack([first, second], tensor.name)).astype(np.int64)
                    exact += 127**2 * int(((whole[0] - whole[1]) ** 2).sum())
            assert distances[i][j] == exact


def crowd(honest: int, liars: int) -> list[tuple[State, int]]:
    """Devices that agree up to a few steps, and some that send the opposite with as much weight as they may."""
    rng = np.random.default_rng(5)
    truth = random_update(1)
    updates = []
    for _ in range(honest):
        update = dict(truth)
        for name, array in truth.items():
            if array.dtype == np.int8:
                update[name] = np.clip(array.astype(int) + rng.integers(-3, 4, array.shape), -127, 127).astype(np.int8)
        updates.append((update, 10))
    lie = {name: -array if not name.endswith("mean_abs_dev") else array for name, array in truth.items()}
    return [*updates, *[(lie, 2**20)] * liars]


@pytest.mark.parametrize("name", ROBUST)
def test_four_liars_among_twenty_move_no_weight_out_of_the_range_of_the_honest(name: str) -> None:
    updates = crowd(16, 4)

    result = aggregate(make_strategy(name), updates)

    for tensor in SPEC.tensors:
        honest = stack([update for update, _ in updates[:16]], tensor.name)
        assert np.all(result[tensor.name] >= honest.min(axis=0) - 2.0**-19)
        assert np.all(result[tensor.name] <= honest.max(axis=0) + 2.0**-19)


def test_the_mean_does_not_survive_them() -> None:
    updates = crowd(16, 4)

    result = aggregate(make_strategy("fedavg"), updates)

    truth = random_update(1)["dense1.weight"]
    assert np.mean(np.sign(result["dense1.weight"]) == np.sign(truth)) < 0.2


def test_krum_returns_one_of_the_updates_and_multikrum_the_mean_of_those_kept() -> None:
    updates = crowd(8, 2)

    one = aggregate(make_strategy("krum"), updates)
    several = aggregate(make_strategy("multikrum"), updates)

    honest = [update for update, _ in updates[:8]]
    assert any(np.array_equal(one["dense1.weight"], to_float32(update["dense1.weight"])) for update in honest)
    np.testing.assert_allclose(several["dense1.weight"], stack(honest, "dense1.weight").mean(axis=0), rtol=2.0**-22)


@pytest.mark.parametrize("name", ROBUST)
def test_differences_give_the_same_model_as_states(name: str) -> None:
    updates = crowd(8, 2)
    strategy = make_strategy(name)
    assert isinstance(strategy, CohortStrategy)

    with tempfile.TemporaryFile() as file:
        spool = Spool(SPEC, file)
        for index, (update, _) in enumerate(updates):
            spool.append(str(index), difference_of(SPEC, update, DEPLOYED))
        result = strategy.aggregate(SPEC, spool.readers(), BASE, is_difference=True)

    states = aggregate(strategy, updates)
    for tensor in SPEC.tensors:
        # the model is in float32 and its differences are added to it in float64: one rounding more
        np.testing.assert_allclose(result[tensor.name], states[tensor.name], rtol=2.0**-22, atol=2.0**-18)


@pytest.mark.parametrize("name", ROBUST)
def test_memory_does_not_grow_with_the_cohort(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimmed, "VALUES_AT_ONCE", 1 << 14)
    monkeypatch.setattr(krum, "VALUES_AT_ONCE", 1 << 14)
    spec = mlp((20, 20), (400,), 3)  # 161 kB an update, 644 kB a model in float32
    strategy = make_strategy(name)
    assert isinstance(strategy, CohortStrategy)

    peaks = []
    for count in (4, 40):
        with tempfile.TemporaryFile() as file:
            spool = Spool(spec, file)
            for index in range(count):
                spool.append(str(index), random_update(index, spec=spec))
            tracemalloc.start()
            strategy.aggregate(spec, spool.readers(), None, is_difference=False)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    assert peaks[1] - peaks[0] < 161_000  # 36 updates more take less than one of them
