"""What a valid state is, and that its digest means its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnncore.errors import BitfleetError, PayloadError, ShapeError
from bnncore.state import (
    has_statistics,
    to_float32,
    to_int8,
    validate_state,
    weights_digest,
    without_statistics,
)
from bnncore.zoo import mlp
from tests.bnncore.random_states import assert_same_state, random_state

SPEC = mlp((2, 3), (4,), 2)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_a_valid_state_passes_with_and_without_statistics(dtype: Any) -> None:
    state = random_state(SPEC, 1, dtype=dtype)

    validate_state(SPEC, state, statistics=True)
    validate_state(SPEC, without_statistics(state), statistics=False)

    assert has_statistics(SPEC, state)
    assert not has_statistics(SPEC, without_statistics(state))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("norm1.beta", None, ShapeError),
        ("norm1.mean", None, ShapeError),
        ("norm9.beta", np.zeros(4, np.float32), ShapeError),
        ("dense1.weight", np.zeros((6, 4), np.int8), ShapeError),
        ("norm1.beta", np.zeros((4, 1), np.float32), ShapeError),
        ("dense1.weight", np.zeros((4, 6), np.int16), PayloadError),
        ("dense2.weight", np.zeros((2, 4), np.float32), PayloadError),  # dense1 is int8
        ("dense1.weight", np.full((4, 6), -128, np.int8), PayloadError),
        ("norm1.beta", np.zeros(4, np.float64), PayloadError),
        ("norm1.beta", np.array([0, np.nan, 0, 0], np.float32), PayloadError),
        ("norm1.beta", np.array([0, 0, np.inf, 0], np.float32), PayloadError),
        ("norm1.mean", np.array([0, 0, 0, -np.inf], np.float32), PayloadError),
        ("norm1.mean_abs_dev", np.array([1, 1, 1, -1e-9], np.float32), PayloadError),
    ],
)
def test_an_invalid_tensor_is_refused_by_name(name: str, value: Any, error: type[BitfleetError]) -> None:
    state = random_state(SPEC, 1)
    if value is None:
        del state[name]
    else:
        state[name] = value

    with pytest.raises(error, match=name):
        validate_state(SPEC, state, statistics=True)


@pytest.mark.parametrize("value", [1.0000001, -1.5, np.nan])
def test_a_float_weight_out_of_range_is_refused(value: float) -> None:
    state = random_state(SPEC, 1, dtype=np.float32)
    state["dense2.weight"][1, 2] = value

    with pytest.raises(PayloadError, match=r"dense2\.weight"):
        validate_state(SPEC, state, statistics=True)


def test_statistics_are_refused_where_they_are_not_wanted() -> None:
    with pytest.raises(ShapeError, match=r"not wanted.*norm1\.mean"):
        validate_state(SPEC, random_state(SPEC, 1), statistics=False)


def test_int8_rounds_halves_to_even_and_stays_in_range() -> None:
    # 127 w = 0.5, 1.5, -2.5, 200, -200, 126.6; each is exact in float32 or far from a half.
    weights = np.array([0.5 / 127, 1.5 / 127, -2.5 / 127, 200 / 127, -200 / 127, 126.6 / 127], np.float32)
    assert (weights[:3] * np.float32(127)).tolist() == [0.5, 1.5, -2.5]

    assert to_int8(weights).tolist() == [0, 2, -2, 127, -127, 127]


def test_every_int8_weight_survives_float32() -> None:
    steps = np.arange(-127, 128, dtype=np.int8)

    spread = to_float32(steps)

    assert spread.dtype == np.float32
    assert (spread[0], spread[127], spread[-1]) == (-1.0, 0.0, 1.0)
    assert np.array_equal(to_int8(spread), steps)


def test_rounding_to_int8_never_changes_the_binary_weight() -> None:
    weights = np.array([-1e-9, -1 / 300, -0.0, 0.0, 1e-9, -1.0], np.float32)

    assert to_int8(weights).tolist() == [-1, -1, 0, 0, 0, -127]


def test_conversion_to_the_dtype_it_has_changes_nothing() -> None:
    int8, float32 = np.array([3], np.int8), np.array([0.3], np.float32)

    assert to_int8(int8) is int8
    assert to_float32(float32) is float32


def test_digest_depends_on_every_bit_and_not_on_order_or_layout() -> None:
    state = random_state(SPEC, 1)
    digest = weights_digest(SPEC, state)
    shuffled = dict(reversed(state.items()))
    shuffled["dense1.weight"] = np.asfortranarray(state["dense1.weight"])
    changed = [weights_digest(mlp((3, 2), (4,), 2), state), weights_digest(SPEC, without_statistics(state))]
    for name, array in state.items():
        other = array.copy()
        other.view(np.uint8).reshape(-1)[-1] ^= 1
        changed.append(weights_digest(SPEC, {**state, name: other}))

    assert weights_digest(SPEC, shuffled) == digest
    assert len({digest, *changed}) == len(changed) + 1
    assert_same_state(state, random_state(SPEC, 1))


def test_digest_refuses_a_tensor_that_the_network_lacks() -> None:
    with pytest.raises(ShapeError, match="extra"):
        weights_digest(SPEC, {**random_state(SPEC, 1), "extra": np.zeros(1, np.float32)})
