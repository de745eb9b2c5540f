"""Shards cover the data once, differ as asked, and are the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnncore.data import dirichlet_shards
from bnncore.errors import DataError

LABELS = np.tile(np.arange(10, dtype=np.uint8), 200)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.integers(1, 60),
    st.sampled_from([1e-3, 0.1, 1.0, 100.0, math.inf]),
    st.integers(0, 5),
)
def test_every_example_is_in_one_shard_and_no_shard_is_empty(
    labels: list[int], n: int, alpha: float, seed: int
) -> None:
    num_shards = min(n, len(labels))

    shards = dirichlet_shards(np.array(labels, np.uint8), num_shards, alpha, seed)

    assert len(shards) == num_shards
    assert all(len(shard) for shard in shards)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    assert all(np.all(np.diff(shard.astype(int)) > 0) for shard in shards)


def test_the_seed_decides() -> None:
    def draw(seed: int) -> list[list[int]]:
        return [shard.tolist() for shard in dirichlet_shards(LABELS, 4, 0.5, seed)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def imbalance(alpha: float) -> float:
    """Mean over shards and classes of |share of the class in the shard - 1/10|."""
    shards = dirichlet_shards(LABELS, 4, alpha, 3)
    return float(np.mean([np.abs(np.bincount(LABELS[s], minlength=10) / len(s) - 0.1) for s in shards]))


def test_a_smaller_alpha_makes_shards_differ_more() -> None:
    assert imbalance(0.1) > imbalance(1.0) > imbalance(100.0)


def test_infinite_alpha_gives_equal_sizes_and_mixtures() -> None:
    shards = dirichlet_shards(LABELS, 3, math.inf, 1)

    assert sorted(len(shard) for shard in shards) == [666, 667, 667]
    # 667 draws of 10 equal classes: a class count has mean 66.7 and a standard deviation below 8.
    assert all(np.abs(np.bincount(LABELS[shard]) - 66.7).max() < 5 * 8 for shard in shards)


@pytest.mark.parametrize(("num_shards", "alpha"), [(0, 1.0), (2001, 1.0), (2, 0.0), (2, -1.0), (2, math.nan)])
def test_what_cannot_be_is_refused(num_shards: int, alpha: float) -> None:
    with pytest.raises(DataError):
        dirichlet_shards(LABELS, num_shards, alpha, 0)
