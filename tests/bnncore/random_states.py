"""Hypothesis strategies and small builders for networks and states."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.spec import ModelSpec
from bnncore.state import State
from bnncore.zoo import binarynet, mlp

_dense = st.builds(
    mlp,
    input_shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    widths=st.lists(st.integers(1, 9), max_size=3),
    classes=st.integers(1, 5),
)
_maps = st.builds(
    binarynet,
    input_shape=st.tuples(st.integers(4, 7), st.integers(4, 7), st.integers(1, 3)),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    convs_per_stage=st.integers(1, 2),
    dense_widths=st.lists(st.integers(1, 5), max_size=1),
    classes=st.integers(1, 5),
)
specs = _dense | _maps


def random_state(spec: ModelSpec, seed: int, *, statistics: bool = True, dtype: Any = np.int8) -> State:
    """A valid state whose values cover the whole range."""
    generator = np.random.default_rng(seed)
    state: State = {}
    for tensor in spec.tensors:
        array: NDArray[Any]
        if tensor.role == "weight":
            array = generator.integers(-127, 128, tensor.shape, dtype=np.int8)
            if dtype == np.float32:
                array = generator.uniform(-1, 1, tensor.shape).astype(np.float32)
        elif tensor.role == "mean_abs_dev":
            array = generator.gamma(1, 10, tensor.shape).astype(np.float32)
        else:
            array = generator.normal(0, 10, tensor.shape).astype(np.float32)
        if statistics or not tensor.is_statistic:
            state[tensor.name] = array
    return state


def assert_same_state(left: State, right: State) -> None:
    """Equal names in equal order, equal dtypes, equal bits."""
    assert list(left) == list(right)
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert array.tobytes() == right[name].tobytes(), name
